package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/flurry-nix/flurry/verify"
)

// FuzzRetryAfter: no server sends us away for longer than we allow, or into the past.
func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, s := range []string{"5", "0", "-1", "99999999999999999999", now.Add(time.Minute).Format(http.TimeFormat), now.Add(-time.Minute).Format(http.TimeFormat), "Fri, 31 Dec 9999 23:59:59 GMT", "soon"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := retryAfter(http.Header{"Retry-After": {s}}, now); d < 0 {
			t.Fatalf("%q: %v", s, d)
		}
	})
}

// FuzzRedirect: a chain of redirects stays on the web, ends, never falls back from https and never comes
// nearer to this machine than the cache is.
func FuzzRedirect(f *testing.F) {
	for _, s := range []string{"/a", "http://127.0.0.1/", "file:///etc/passwd", "//[::1]/", "https://cdn.example/x", "http://localhost.:80/", "https://169.254.169.254/latest", "gopher://x"} {
		f.Add(s, uint8(1))
		f.Add(s, uint8(200))
	}
	base, _ := url.Parse("https://cache.example/b")
	hop := &transport{base: base}
	f.Fuzz(func(t *testing.T, location string, before uint8) {
		u, err := base.Parse(location)
		if err != nil {
			return
		}
		via := make([]*http.Request, max(1, int(before)))
		for i := range via {
			via[i] = &http.Request{URL: base}
		}
		r := &http.Request{URL: u, Header: http.Header{"Referer": {"https://cache.example/?secret"}}}
		if hop.checkRedirect(r, via) != nil {
			return
		}
		if len(via) > maxRedirects || u.Scheme != "https" || reachOfHost(u.Hostname()) != reachPublic || r.Header.Get("Referer") != "" {
			t.Fatalf("%q is followed after %d", location, len(via))
		}
	})
}

// FuzzContentRange: what says where a part belongs says so without a doubt.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 5-9/10", "bytes 5-9/*", "bytes */10", "bytes -5-9/10", "bytes 5-9", "", "bytes 99999999999999999999-/1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, total, ok := contentRange(http.Header{"Content-Range": {s}})
		if ok && (!strings.HasPrefix(s, "bytes ") || start < -1 || total < -1) {
			t.Fatalf("%q: %d of %d", s, start, total)
		}
	})
}

// FuzzDecoders: no file, however made, becomes more than was asked for or more than one error.
func FuzzDecoders(f *testing.F) {
	text := bytes.Repeat([]byte("a nar of some length. "), 50)
	for kind, b := range map[uint8][]byte{0: text, 1: compressZstd(f, text), 2: {0x1f, 0x8b, 8, 0}, 3: []byte("BZh9"), 4: {0x21, 0x2c}, 5: []byte("\xfd7zXZ\x00\x00\x04")} {
		f.Add(kind, b)
		f.Add(kind, b[:len(b)/2])
	}
	kinds := []string{"none", "zstd", "gzip", "bzip2", "br", "xz"}
	c := &Client{xz: xzChoice{why: "a fuzz target starts no program"}}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		const most = 1 << 20
		src := &body{c: c, off: 0, total: int64(len(b)), limit: int64(len(b)), rc: io.NopCloser(bytes.NewReader(b))}
		src.ctx, src.abort = context.WithCancelCause(t.Context())
		src.rctx, src.cancel = context.WithCancelCause(src.ctx)
		src.watch = time.AfterFunc(time.Hour, func() {})
		src.c.t.Idle, src.c.t.SlowWindow = time.Hour, time.Hour
		defer src.watch.Stop()
		d, err := c.decoder(src.ctx, kinds[int(kind)%len(kinds)], src)
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, io.LimitReader(d, most))
		if n > most {
			t.Fatal(n)
		}
		if err == nil && n < most {
			if _, again := d.Read(make([]byte, 1)); again == nil {
				t.Fatal("it goes on after its end")
			}
		}
		src.abort(errors.New("over"))
		d.Close()
	})
}

// FuzzNarInfoAnswer: what a cache answers to a question about one path is that path's, signed, or nothing.
func FuzzNarInfoAnswer(f *testing.F) {
	keys, err := verify.NewKeys([]string{"cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="}, nil)
	if err != nil {
		f.Fatal(err)
	}
	h, err := verify.ParseStoreHash("syd87l2rxw8cbsxmxl853h0r6pdwhwjr")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("StorePath: /nix/store/syd87l2rxw8cbsxmxl853h0r6pdwhwjr-curl-7.82.0-bin\nURL: nar/05ra3y72i3qjri7xskf9qj8kb29r6naqy1sqpbs3azi3xcigmj56.nar.xz\nCompression: xz\nNarHash: sha256:1b4sb93wp679q4zx9k1ignby1yna3z7c4c2ri3wphylbc2dwsys0\nNarSize: 196040\nReferences: \nSig: cache.nixos.org-1:AAAA\n")
	f.Add("")
	base, _ := url.Parse("https://cache.example")
	c := &Client{base: base, keys: keys, storeDir: verify.DefaultStoreDir, hop: &transport{base: base}}
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := c.Parse(h, text); err == nil {
			t.Fatalf("%v is believed without anybody's signature", v.Path())
		}
	})
}

func compressZstd(tb testing.TB, b []byte) []byte {
	tb.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}
