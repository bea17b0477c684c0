package verify_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/flurry-nix/flurry/verify"
	"github.com/google/go-cmp/cmp"
	"github.com/xi2/xz"
)

// comparePaths lets cmp look into the types that hide their fields.
var comparePaths = cmp.Comparer(func(a, b verify.StorePath) bool { return a == b })

func TestNarInfosOfTheCentralCacheVerifyUnderItsKey(t *testing.T) {
	keys := mustKeys(t, []string{centralKey}, nil)
	for name, text := range fixtures(t, "cache.nixos.org") {
		n := mustParse(t, text)
		if got, want := n.StorePath.Hash().String()+".narinfo", name; got != want {
			t.Errorf("%s is about %s", name, got)
		}
		v, err := keys.Verify(n)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v.Scope() != verify.ScopePublic || keys.ScopeOf(n) != verify.ScopePublic {
			t.Errorf("%s: scope %v, %v", name, v.Scope(), keys.ScopeOf(n))
		}
	}
}

func TestWhatNixSignedVerifies(t *testing.T) {
	keys := mustKeys(t, nil, []string{strings.TrimSpace(string(readFile(t, "testdata/nix/key.pub")))})
	for name, text := range fixtures(t, "nix") {
		n := mustParse(t, text)
		v, err := keys.Verify(n)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v.Scope() != verify.ScopeGroup {
			t.Errorf("%s: scope %v", name, v.Scope())
		}
		if got := n.String(); got != text {
			t.Errorf("%s is printed differently than Nix did:\n%s", name, cmp.Diff(text, got))
		}
	}
}

func TestTheCentralCachesOwnNarInfosArePrintedAsItPrintsThem(t *testing.T) {
	for name, text := range fixtures(t, "cache.nixos.org") {
		want := strings.Replace(text, "Deriver: unknown-deriver\n", "", 1)
		if got := mustParse(t, text).String(); got != want {
			t.Errorf("%s:\n%s", name, cmp.Diff(want, got))
		}
	}
}

// Every signed part of a real narinfo is covered: any change makes it untrusted.
func TestAChangeOfASignedFieldIsUntrusted(t *testing.T) {
	keys := mustKeys(t, []string{centralKey}, nil)
	other, err := verify.ParseStorePath("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44lb-other")
	if err != nil {
		t.Fatal(err)
	}
	changes := map[string]func(*verify.NarInfo){
		"StorePath":           func(n *verify.NarInfo) { n.StorePath = other },
		"NarHash":             func(n *verify.NarInfo) { n.NarHash[31] ^= 1 },
		"NarSize":             func(n *verify.NarInfo) { n.NarSize++ },
		"NarSize zero":        func(n *verify.NarInfo) { n.NarSize = 0 },
		"a reference more":    func(n *verify.NarInfo) { n.References = append(n.References, other.Base()) },
		"a reference less":    func(n *verify.NarInfo) { n.References = n.References[1:] },
		"a reference changed": func(n *verify.NarInfo) { n.References[0] += "x" },
		"no signature":        func(n *verify.NarInfo) { n.Sigs = nil },
		"no path":             func(n *verify.NarInfo) { n.StorePath = verify.StorePath{} },
	}
	for name, text := range fixtures(t, "cache.nixos.org") {
		for what, change := range changes {
			n := mustParse(t, text)
			change(n)
			if _, err := keys.Verify(n); !errors.Is(err, verify.ErrUntrusted) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			if s := keys.ScopeOf(n); s != verify.ScopeNone {
				t.Errorf("%s, %s: scope %v", name, what, s)
			}
		}
	}
}

// netTools returns a NAR as cache.nixos.org serves it, decompressed, and what was signed about it.
func netTools(t testing.TB) ([]byte, *verify.Verified) {
	t.Helper()
	n := mustParse(t, string(readFile(t, "testdata/cache.nixos.org/00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo")))
	file := readFile(t, "testdata/cache.nixos.org/"+strings.TrimPrefix(n.URL, "nar/"))
	if got := verify.Hash(sha256.Sum256(file)); got.String() != n.FileHash || int64(len(file)) != n.FileSize {
		t.Fatalf("the fixture is not the file that was served: %v", got)
	}
	r, err := xz.NewReader(bytes.NewReader(file), 0)
	if err != nil {
		t.Fatal(err)
	}
	nar, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	v, err := mustKeys(t, []string{centralKey}, nil).Verify(n)
	if err != nil {
		t.Fatal(err)
	}
	return nar, v
}

func TestANarOfTheCentralCacheIsAccepted(t *testing.T) {
	nar, v := netTools(t)
	c := verify.NewChecker(v.NarHash(), v.NarSize())
	if _, err := io.Copy(c, bytes.NewReader(nar)); err != nil {
		t.Fatal(err)
	}
	if err := c.Finish(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(verify.NewReader(iotest.HalfReader(bytes.NewReader(nar)), v.NarHash(), v.NarSize()))
	if err != nil || !bytes.Equal(got, nar) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestANarOfTheCentralCacheWithOneByteFlippedIsRefused(t *testing.T) {
	nar, v := netTools(t)
	for _, at := range []int{0, 1, len(nar) / 2, len(nar) - 1} {
		bad := bytes.Clone(nar)
		bad[at] ^= 0x20
		got, err := io.ReadAll(verify.NewReader(bytes.NewReader(bad), v.NarHash(), v.NarSize()))
		var mismatch *verify.MismatchError
		if !errors.As(err, &mismatch) || len(got) >= len(nar) {
			t.Errorf("byte %d: %d of %d bytes, %v", at, len(got), len(nar), err)
		}
	}
}
