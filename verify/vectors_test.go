package verify_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

// vector is a file of testdata/vectors: a header that says what is expected, an empty line, and a
// narinfo up to the end of the file, byte for byte. testdata/README.md describes the header.
type vector struct {
	header map[string]string
	body   string
}

func readVectors(t testing.TB) map[string]vector {
	t.Helper()
	files, err := os.ReadDir(filepath.Join("testdata", "vectors"))
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]vector)
	for _, f := range files {
		head, body, ok := strings.Cut(string(readFile(t, filepath.Join("testdata", "vectors", f.Name()))), "\n\n")
		if !ok {
			t.Fatalf("%s has no empty line after its header", f.Name())
		}
		v := vector{make(map[string]string), body}
		for line := range strings.SplitSeq(head, "\n") {
			key, value, ok := strings.Cut(line, ": ")
			if !ok {
				t.Fatalf("%s: header line %q", f.Name(), line)
			}
			v.header[key] = value
		}
		if v.header["class"] == "" {
			t.Fatalf("%s names no class", f.Name())
		}
		m[f.Name()] = v
	}
	return m
}

func TestNarInfosAreReadAsNixReadsThem(t *testing.T) {
	keys := mustKeys(t, []string{centralKey}, nil)
	vectors := readVectors(t)
	if len(vectors) < 100 {
		t.Fatalf("only %d vectors", len(vectors))
	}
	for name, v := range vectors {
		t.Run(name, func(t *testing.T) {
			n, err := verify.ParseNarInfo(v.body)
			switch v.header["expect"] {
			case "malformed":
				if !errors.Is(err, verify.ErrMalformed) {
					t.Fatalf("%s: got %v", v.header["class"], err)
				}
			case "ok":
				if err != nil {
					t.Fatalf("%s: %v", v.header["class"], err)
				}
				v.compare(t, keys, n)
			default:
				t.Fatalf("expects %q", v.header["expect"])
			}
		})
	}
}

// compare checks every field that the header mentions.
func (v vector) compare(t *testing.T, keys *verify.Keys, n *verify.NarInfo) {
	trusted := "no"
	verified, err := keys.Verify(n)
	if err == nil {
		trusted = "yes"
		if len(verified.For(verify.ScopePublic, "nar/x", "none").Sigs) != 1 {
			t.Errorf("passed on with other than the one good signature")
		}
	} else if !errors.Is(err, verify.ErrUntrusted) {
		t.Error(err)
	}
	got := map[string]string{
		"trusted": trusted, "URL": n.URL, "Compression": n.Compression,
		"FileHash": n.FileHash, "FileSize": strconv.FormatInt(n.FileSize, 10),
		"References": strconv.Itoa(len(n.References)), "Deriver": n.Deriver,
		"System": n.System, "Sigs": strconv.Itoa(len(n.Sigs)), "CA": n.CA,
	}
	for key, want := range v.header {
		switch key {
		case "class", "expect", "nix":
			continue
		}
		if g, ok := got[key]; !ok || g != want {
			t.Errorf("%s is %q, want %q (%s)", key, g, want, v.header["class"])
		}
	}
	if _, ok := v.header["trusted"]; !ok {
		t.Error("an accepted vector must say whether it is trusted")
	}
}

func TestANarInfoBeyondItsBoundIsTooLarge(t *testing.T) {
	text := string(readFile(t, "testdata/cache.nixos.org/00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo"))
	full := text + "X: " + strings.Repeat("x", verify.MaxNarInfo-len(text)-4) + "\n"
	if _, err := verify.ParseNarInfo(full); err != nil || len(full) != verify.MaxNarInfo {
		t.Errorf("%d bytes: %v", len(full), err)
	}
	if _, err := verify.ParseNarInfo("x" + full); !errors.Is(err, verify.ErrTooLarge) {
		t.Errorf("one byte more: %v", err)
	}
	if _, err := verify.ReadNarInfo(strings.NewReader(full)); err != nil {
		t.Errorf("read: %v", err)
	}
	if _, err := verify.ReadNarInfo(endless{}); !errors.Is(err, verify.ErrTooLarge) {
		t.Errorf("read without end: %v", err)
	}
}

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
