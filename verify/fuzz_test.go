package verify_test

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
	"github.com/google/go-cmp/cmp"
)

// FuzzParseNarInfo: what is accepted can be printed and read back to the same, and printing that again
// changes nothing; what is refused says why.
func FuzzParseNarInfo(f *testing.F) {
	for _, v := range readVectors(f) {
		f.Add(v.body)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := verify.ParseNarInfo(text)
		if err != nil {
			if !errors.Is(err, verify.ErrMalformed) && !errors.Is(err, verify.ErrTooLarge) {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		printed := n.String()
		again, err := verify.ParseNarInfo(printed)
		if errors.Is(err, verify.ErrTooLarge) {
			return // at the bound, the printed form may be longer
		}
		if err != nil {
			t.Fatalf("%v\n%q", err, printed)
		}
		if diff := cmp.Diff(n, again, comparePaths); diff != "" {
			t.Fatalf("%s\n%q", diff, printed)
		}
		if again.String() != printed || again.Fingerprint() != n.Fingerprint() {
			t.Fatalf("%q\n%q", again.String(), printed)
		}
		if strings.ContainsAny(n.Fingerprint(), "\n\x00 ") || strings.Count(n.Fingerprint(), ";") != 4 {
			t.Fatalf("fingerprint %q", n.Fingerprint())
		}
	})
}

// FuzzParseHash: a hash has one printed form, which reads back to it.
func FuzzParseHash(f *testing.F) {
	f.Add("sha256:0lxjvvpr59c2mdram7ympy5ay741f180kv3349hvfc3f8nrmbqf6")
	f.Add("sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := verify.ParseHash(s)
		if err != nil {
			if !errors.Is(err, verify.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again, err := verify.ParseHash(h.String())
		if err != nil || again != h {
			t.Fatalf("%v, %v, %v", h, again, err)
		}
		if bare, err := verify.ParseHashBase32(h.Base32()); err != nil || bare != h {
			t.Fatalf("%v, %v", bare, err)
		}
	})
}

// FuzzParseStorePath: an accepted path is its own printed form, is made of its parts, and could not be
// taken for anything else in a narinfo or a URL.
func FuzzParseStorePath(f *testing.F) {
	f.Add("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-net-tools-1.60_p20170221182432")
	f.Add("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-..")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := verify.ParseStorePath(s)
		if err != nil {
			if !errors.Is(err, verify.ErrMalformed) || p != (verify.StorePath{}) {
				t.Fatalf("%v, %v", p, err)
			}
			return
		}
		if p.String() != s || p.Dir()+"/"+p.Base() != s || p.Hash().String()+"-"+p.Name() != p.Base() {
			t.Fatalf("%q: dir %q, base %q, hash %v, name %q", s, p.Dir(), p.Base(), p.Hash(), p.Name())
		}
		if filepath.Clean(s) != s || !filepath.IsAbs(s) || strings.ContainsAny(s, "\n ,;") {
			t.Fatalf("accepted %q", s)
		}
		if h, err := verify.ParseStoreHash(p.Hash().String()); err != nil || h != p.Hash() {
			t.Fatalf("%v, %v", h, err)
		}
	})
}

// FuzzParsePublicKey: there is one way to write a key.
func FuzzParsePublicKey(f *testing.F) {
	f.Add(centralKey)
	f.Add("a:AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		name, key, err := verify.ParsePublicKey(s)
		if err != nil {
			if !errors.Is(err, verify.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if again := name + ":" + base64.StdEncoding.EncodeToString(key); again != s {
			t.Fatalf("%q and %q are one key", s, again)
		}
		if _, err := verify.NewKeys([]string{s}, []string{s}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestEveryFuzzTargetHasSeeds(t *testing.T) {
	targets := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`).FindAllSubmatch(readFile(t, "fuzz_test.go"), -1)
	if len(targets) < 4 {
		t.Fatalf("found %d targets", len(targets))
	}
	for _, m := range targets {
		seeds, err := os.ReadDir(filepath.Join("testdata", "fuzz", string(m[1])))
		if err != nil || len(seeds) == 0 {
			t.Errorf("%s has no committed seeds: %v", m[1], err)
		}
	}
}
