package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

var allCompressions = []string{"none", "xz", "zstd", "bzip2", "gzip", "br"}

func mustNarInfo(t testing.TB, c *Client, h verify.StoreHash) *verify.Verified {
	t.Helper()
	v, _, err := c.NarInfo(context.Background(), h)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// read gets a NAR to its end, checked as callers do.
func read(c *Client, v *verify.Verified) ([]byte, *NARReader, error) {
	r, err := c.NAR(context.Background(), v, 0)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(verify.NewReader(r, v.NarHash(), v.NarSize()))
	return b, r, err
}

func TestEveryCompressionIsUndoneFromAnyOffset(t *testing.T) {
	nar := append(random(300_000), bytes.Repeat([]byte("nix"), 100_000)...)
	for _, xz := range []string{"", "none"} {
		for _, compression := range allCompressions {
			t.Run(compression+xz, func(t *testing.T) {
				t.Parallel()
				up := newCache(t)
				c := up.client(func(cfg *Config) { cfg.XZ = xz })
				v := mustNarInfo(t, c, up.add(nar, compression))
				for _, off := range []int64{0, 1, 299_999, int64(len(nar)) - 1, int64(len(nar))} {
					r, err := c.NAR(context.Background(), v, off)
					if err != nil {
						t.Fatal(err)
					}
					b, err := io.ReadAll(r)
					if err != nil || !bytes.Equal(b, nar[off:]) {
						t.Errorf("from %d: %d bytes, %v", off, len(b), err)
					}
					r.Close()
				}
			})
		}
	}
}

func TestAnOffsetIntoAnUncompressedFileIsAskedFor(t *testing.T) {
	up := newCache(t)
	nar := random(1000)
	h := up.add(nar, "none")
	path := "/nar/" + h.String() + ".nar"
	c := up.client()
	v := mustNarInfo(t, c, h)
	for _, fault := range []string{"ok", "ok:noranges"} {
		up.fault(path, fault)
		r, err := c.NAR(context.Background(), v, 900)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, nar[900:]) {
			t.Errorf("%s: %d bytes, %v", fault, len(b), err)
		}
		if want := map[string]int64{"ok": 100, "ok:noranges": 1000}[fault]; r.WireBytes() != want {
			t.Errorf("%s: %d bytes received, want %d", fault, r.WireBytes(), want)
		}
		r.Close()
	}
}

// A broken download goes on where it broke, whatever the compression, and no byte comes twice.
func TestABrokenDownloadGoesOnAtTheSameByteOfTheFile(t *testing.T) {
	nar := random(400_000)
	for _, compression := range allCompressions {
		for _, fault := range []string{"truncate", "chunk-abort", "stall", "eof"} {
			t.Run(compression+" "+fault, func(t *testing.T) {
				t.Parallel()
				up := newCache(t)
				h := up.add(nar, compression)
				path := "/nar/" + h.String() + ".nar"
				up.fault(path, fault, "503", "close", "ok")
				c := up.client(impatientWith(fault))
				b, r, err := read(c, mustNarInfo(t, c, h))
				if err != nil || !bytes.Equal(b, nar) {
					t.Fatalf("%d bytes, %v", len(b), err)
				}
				if size := int64(len(up.files[path])); r.WireBytes() != size {
					t.Errorf("%d bytes received of a file of %d", r.WireBytes(), size)
				}
				half := len(up.files[path]) / 2
				last := up.requests()[len(up.requests())-1]
				if want := fmt.Sprintf("%s bytes=%d-", path, half); last != want {
					t.Errorf("last request %q, want %q", last, want)
				}
				if fault != "eof" && up.sent[path] != len(up.files[path]) {
					t.Errorf("server sent %d bytes of a file of %d", up.sent[path], len(up.files[path]))
				}
			})
		}
	}
}

func TestFaultsOfNARs(t *testing.T) {
	nar := random(200_000)
	tooMany := fmt.Sprint(maxTries)
	for _, tc := range []struct {
		fault string
		want  error  // nil: any of those that verification gives
		at    string // "open" or "read"
	}{
		{"404", ErrAbsent, "open"},
		{"403", ErrAbsent, "open"},
		{"410", ErrAbsent, "open"},
		{"401", ErrUnauthorized, "open"},
		{"400", ErrUnreachable, "open"},
		{"500", ErrUnreachable, "open"},
		{"503:1", ErrUnreachable, "open"},
		{"429:1", ErrUnreachable, "open"},
		{"hang", ErrUnreachable, "open"},
		{"close", ErrUnreachable, "open"},
		{"redirect:/nar/loop", ErrUnreachable, "open"},
		{"redirect:file:///etc/passwd", ErrForbidden, "open"},
		{"truncate:noranges", ErrChanged, "read"},
		{"stall:noranges", ErrChanged, "read"},
		{"chunk-abort:noranges", ErrChanged, "read"},
		{"short", io.ErrUnexpectedEOF, "read"},
		{"empty", io.ErrUnexpectedEOF, "read"},
		{"eof", io.ErrUnexpectedEOF, "read"},
		{"garbage", nil, "read"},
		{"corrupt", nil, "read"},
	} {
		for _, compression := range []string{"none", "xz", "zstd"} {
			t.Run(tc.fault+" "+compression, func(t *testing.T) {
				t.Parallel()
				up := newCache(t)
				h := up.add(nar, compression)
				path := "/nar/" + h.String() + ".nar"
				up.fault(path, tc.fault)
				up.fault("/nar/loop", "redirect:/nar/loop")
				c := up.client(impatientWith(tc.fault))
				_, r, err := read(c, mustNarInfo(t, c, h))
				if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
					t.Fatalf("error %v, want %v", err, tc.want)
				}
				if (r == nil) != (tc.at == "open") {
					t.Errorf("failed at another point: %v", err)
				}
				var te *TransferError
				var me *verify.MismatchError
				if r != nil && !errors.As(err, &te) && !errors.As(err, &me) {
					t.Errorf("error of type %T", err)
				}
				if n := len(up.requests()); n > 2*maxTries+maxRedirects {
					t.Errorf("%d requests, want about %s at most", n, tooMany)
				}
			})
		}
	}
}

func TestAServerThatAlwaysBreaksIsGivenUp(t *testing.T) {
	up := newCache(t)
	h := up.add(random(200_000), "xz")
	up.fault("/nar/"+h.String()+".nar", "truncate", "close")
	c := up.client()
	_, _, err := read(c, mustNarInfo(t, c, h))
	var te *TransferError
	if !errors.As(err, &te) || !errors.Is(err, ErrUnreachable) || te.Wire == 0 || te.Want != 200_000 {
		t.Errorf("error %v", err)
	}
	if n := len(up.requests()); n != 1+maxTries {
		t.Errorf("%d requests, want one narinfo and %d attempts", n, maxTries)
	}
}

func TestAFileThatChangedIsNotSpliced(t *testing.T) {
	up := newCache(t)
	h := up.add(random(200_000), "none")
	path := "/nar/" + h.String() + ".nar"
	up.fault(path, "truncate", "ok")
	c := up.client()
	v := mustNarInfo(t, c, h)
	r, err := c.NAR(context.Background(), v, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	up.mu.Lock()
	up.files[path] = append(bytes.Clone(up.files[path]), 0)
	up.mu.Unlock()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, ErrChanged) {
		t.Errorf("error %v", err)
	}
}

func TestNeverMoreThanNarSizeIsYielded(t *testing.T) {
	bomb := make([]byte, 64<<20)
	for _, compression := range allCompressions {
		t.Run(compression, func(t *testing.T) {
			t.Parallel()
			up := newCache(t)
			h := up.add(random(1000), compression)
			up.files["/nar/"+h.String()+".nar"] = compress(t, compression, bomb[:2<<20])
			c := up.client()
			v := mustNarInfo(t, c, h)
			r, err := c.NAR(context.Background(), v, 0)
			if err != nil {
				if !errors.Is(err, verify.ErrTooLarge) {
					t.Error(err)
				}
				return
			}
			defer r.Close()
			n, err := io.Copy(io.Discard, r)
			if n > 1000 || !errors.Is(err, verify.ErrTooLarge) {
				t.Errorf("%d bytes of a NAR of 1000, %v", n, err)
			}
		})
	}
}

func TestDecodersRefuseHugeDictionaries(t *testing.T) {
	for name, tc := range map[string]struct {
		cmd []string
		xz  string
		of  string
	}{
		"xz program": {[]string{"xz", "-c", "--lzma2=dict=512MiB"}, "", "xz"},
		"xz in Go":   {[]string{"xz", "-c", "--lzma2=dict=512MiB"}, "none", "xz"},
		"zstd":       {[]string{"zstd", "-c", "--ultra", "--long=28"}, "", "zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			up := newCache(t)
			nar := random(1000)
			h := up.add(nar, tc.of)
			up.files["/nar/"+h.String()+".nar"] = pipeThrough(t, nar, tc.cmd...)
			c := up.client(func(cfg *Config) { cfg.XZ = tc.xz })
			if _, _, err := read(c, mustNarInfo(t, c, h)); !errors.Is(err, verify.ErrMalformed) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// What follows the stream is treated as the command-line tools treat it.
func TestConcatenatedStreamsAndTrailingGarbage(t *testing.T) {
	nar := random(100_000)
	for _, xz := range []string{"", "none"} {
		for compression, tolerant := range map[string]bool{"xz": false, "zstd": false, "bzip2": true, "gzip": true, "br": false} {
			t.Run(compression+xz, func(t *testing.T) {
				t.Parallel()
				up := newCache(t)
				h := up.add(nar, compression)
				path := "/nar/" + h.String() + ".nar"
				c := up.client(func(cfg *Config) { cfg.XZ = xz })
				v := mustNarInfo(t, c, h)
				if compression != "br" {
					up.files[path] = append(compress(t, compression, nar[:40_000]), compress(t, compression, nar[40_000:])...)
					if b, _, err := read(c, v); err != nil || !bytes.Equal(b, nar) {
						t.Errorf("two streams: %d bytes, %v", len(b), err)
					}
				}
				up.files[path] = append(compress(t, compression, nar), "garbage that is no stream"...)
				if _, _, err := read(c, v); (err == nil) != tolerant {
					t.Errorf("trailing garbage: %v", err)
				}
			})
		}
	}
}

func TestAnUnknownCompressionIsRefusedBeforeAnyRequest(t *testing.T) {
	up := newCache(t)
	h := up.add(random(10), "lzip")
	c := up.client()
	v := mustNarInfo(t, c, h)
	_, err := c.NAR(context.Background(), v, 0)
	var ce *CompressionError
	if !errors.Is(err, ErrCompression) || !errors.As(err, &ce) || len(up.requests()) != 1 {
		t.Errorf("%v after %v", err, up.requests())
	}
}

// children lists this process's children, zombies included.
func children(t *testing.T) string {
	t.Helper()
	var all []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		all = append(all, strings.Fields(string(b))...)
	}
	return strings.Join(all, " ")
}

func TestTheXZProgramIsReapedHoweverTheStreamEnds(t *testing.T) {
	up := newCache(t)
	h := up.add(random(2<<20), "xz")
	path := "/nar/" + h.String() + ".nar"
	c := up.client(impatientWith("stall"))
	if !strings.HasPrefix(c.Status().XZ, "xz program /") {
		t.Fatalf("xz by %q", c.Status().XZ)
	}
	v := mustNarInfo(t, c, h)
	for _, fault := range []string{"ok", "stall", "corrupt", "cancel", "close at once", "closed while waiting"} {
		up.fault(path, map[string]string{"cancel": "stall", "closed while waiting": "stall", "close at once": "ok"}[fault])
		if f := fault; f == "ok" || f == "stall" || f == "corrupt" {
			up.fault(path, f)
		}
		ctx, cancel := context.WithCancel(context.Background())
		r, err := c.NAR(ctx, v, 0)
		if err != nil {
			t.Fatal(err)
		}
		if children(t) == "" {
			t.Fatalf("%s: no child to look for", fault)
		}
		switch fault {
		case "close at once":
		case "cancel":
			io.ReadFull(r, make([]byte, 100_000))
			cancel()
			if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
		case "closed while waiting":
			io.ReadFull(r, make([]byte, 100_000))
			read := make(chan error)
			go func() { _, err := io.Copy(io.Discard, r); read <- err }()
			r.Close()
			if err := <-read; err == nil {
				t.Error("a closed stream ended well")
			}
		default:
			io.Copy(io.Discard, r)
		}
		r.Close()
		r.Close()
		cancel()
		if left := children(t); left != "" {
			t.Errorf("%s: children left: %s", fault, left)
		}
	}
}

// When the file is no xz at all, the verdict is about the file, however long the server would stall.
func TestAFailedDecoderDoesNotWaitForTheServer(t *testing.T) {
	up := newCache(t)
	h := up.add(random(200_000), "xz")
	path := "/nar/" + h.String() + ".nar"
	up.files[path] = random(400_000)
	up.fault(path, "stall")
	c := up.client(impatientWith("stall"))
	if _, _, err := read(c, mustNarInfo(t, c, h)); !errors.Is(err, verify.ErrMalformed) || errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v", err)
	}
}

func TestWithoutAStartingProgramXZIsDecodedInGo(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "xz")
	if err := os.WriteFile(program, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	up := newCache(t)
	nar := random(1000)
	h := up.add(nar, "xz")
	c := up.client(func(cfg *Config) { cfg.XZ = program })
	if b, _, err := read(c, mustNarInfo(t, c, h)); err != nil || !bytes.Equal(b, nar) {
		t.Error(err)
	}
	if s := c.Status().XZ; !strings.HasPrefix(s, "pure Go: ") {
		t.Errorf("status %q", s)
	}
}
