package verify_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
	"github.com/google/go-cmp/cmp"
)

var (
	central = newSigner("central-1", "central")
	rotated = newSigner("central-1", "central, after a rotation")
	company = newSigner("company-1", "company")
	foreign = newSigner("foreign-1", "foreign")
)

func TestTheZeroKeysTrustNobody(t *testing.T) {
	n := unsigned(t)
	n.Sigs = []string{central.sign(n)}
	var k verify.Keys
	if _, err := k.Verify(n); !errors.Is(err, verify.ErrUntrusted) {
		t.Error(err)
	}
	if k.ScopeOf(n) != verify.ScopeNone || k.Len() != 0 {
		t.Errorf("scope %v, %d keys", k.ScopeOf(n), k.Len())
	}
}

func TestMalformedKeysAreRefused(t *testing.T) {
	good := central.public()
	data := strings.TrimPrefix(good, "central-1:")
	raw, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		t.Fatal(err)
	}
	for what, s := range map[string]string{
		"empty":              "",
		"no colon":           "central-1",
		"no name":            ":" + data,
		"no data":            "central-1:",
		"short":              "central-1:" + base64.StdEncoding.EncodeToString(raw[:31]),
		"long":               "central-1:" + base64.StdEncoding.EncodeToString(append(raw, 0)),
		"a secret key":       "central-1:" + base64.StdEncoding.EncodeToString(central.key),
		"unpadded":           strings.TrimSuffix(good, "="),
		"carriage return":    good[:20] + "\r" + good[20:],
		"newline at the end": good + "\n",
		"space at the end":   good + " ",
		"other spelling":     respell(good),
		"huge":               "central-1:" + strings.Repeat("A", 1<<20),
	} {
		if _, _, err := verify.ParsePublicKey(s); !errors.Is(err, verify.ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := verify.NewKeys([]string{good}, []string{s}); !errors.Is(err, verify.ErrMalformed) {
			t.Errorf("%s among keys: %v", what, err)
		}
	}
	name, key, err := verify.ParsePublicKey(good)
	if err != nil || name != "central-1" || !key.Equal(central.key.Public()) {
		t.Errorf("%q, %v, %v", name, key, err)
	}
}

// respell changes the spare bits of the last base64 character before the padding, so that a careless
// decoder reads the same bytes.
func respell(s string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	data := strings.TrimRight(s, "=")
	last := strings.IndexByte(alphabet, data[len(data)-1])
	return data[:len(data)-1] + alphabet[last^1:last^1+1] + s[len(data):]
}

func TestSeveralKeysMayShareAName(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, []string{rotated.public(), company.public()})
	if keys.Len() != 3 {
		t.Errorf("%d keys", keys.Len())
	}
	for _, c := range []struct {
		what   string
		signer signer
		want   verify.Scope
	}{
		{"the public one", central, verify.ScopePublic},
		{"the private one of the same name", rotated, verify.ScopeGroup},
		{"another private one", company, verify.ScopeGroup},
		{"one that is not configured", foreign, verify.ScopeNone},
		{"one that only took a trusted name", newSigner("company-1", "impostor"), verify.ScopeNone},
	} {
		n := unsigned(t)
		n.Sigs = []string{c.signer.sign(n)}
		if got := keys.ScopeOf(n); got != c.want {
			t.Errorf("%s: scope %v, want %v", c.what, got, c.want)
		}
		v, err := keys.Verify(n)
		if (err == nil) != (c.want != verify.ScopeNone) || err == nil && v.Scope() != c.want {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestAKeyConfiguredAsPublicAndAsPrivateIsPublic(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, []string{central.public()})
	n := unsigned(t)
	n.Sigs = []string{central.sign(n)}
	if got := keys.ScopeOf(n); got != verify.ScopePublic {
		t.Error(got)
	}
}

func TestAGoodSignatureIsFoundAmongOthers(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, nil)
	n := unsigned(t)
	good := central.sign(n)
	wrongLength := "central-1:" + base64.StdEncoding.EncodeToString(make([]byte, ed25519.SignatureSize-1))
	n.Sigs = []string{
		"", ":", "junk", "central-1", "central-1:", "central-1:!!!!", wrongLength, good + "A", good[:40] + "\r" + good[40:],
		foreign.sign(n), strings.Replace(foreign.sign(n), "foreign-1", "central-1", 1), central.junk(0), good, good, central.junk(1),
	}
	before := slices.Clone(n.Sigs)
	v, err := keys.Verify(n)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.For(verify.ScopePublic, "nar/x", "none").Sigs; !slices.Equal(got, []string{good}) {
		t.Errorf("passes on %q", got)
	}
	if !slices.Equal(n.Sigs, before) {
		t.Error("the claim was changed")
	}
}

func TestASignatureInAnotherSpellingIsNone(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, nil)
	n := unsigned(t)
	good := central.sign(n)
	for what, s := range map[string]string{
		"spare bits":         respell(good),
		"unpadded":           strings.TrimRight(good, "="),
		"carriage return":    good[:30] + "\r" + good[30:],
		"newline":            good[:30] + "\n" + good[30:],
		"return at the end":  good + "\r",
		"space at the end":   good + " ",
		"space before":       " " + good,
		"junk after padding": good + "AAAA",
		"url alphabet":       strings.NewReplacer("+", "-", "/", "_").Replace(good),
	} {
		if s == good {
			t.Fatalf("%s: nothing changed", what)
		}
		n.Sigs = []string{s}
		if _, err := keys.Verify(n); !errors.Is(err, verify.ErrUntrusted) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Each check costs time, so a narinfo may ask for 32. Junk under names that nobody configured, and
// malformed junk, costs none and hides nothing.
func TestJunkSignaturesAreBounded(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, nil)
	for _, c := range []struct {
		what    string
		junk    func(int) string
		n       int
		trusted bool
	}{
		{"31 under the key's name", central.junk, 31, true},
		{"32 under the key's name", central.junk, 32, false},
		{"thousands under other names", foreign.junk, 5000, true},
		{"thousands of the wrong length", func(int) string { return "central-1:AAAA" }, 5000, true},
	} {
		n := unsigned(t)
		good := central.sign(n)
		for i := range c.n {
			n.Sigs = append(n.Sigs, c.junk(i))
		}
		n.Sigs = append(n.Sigs, good)
		if _, err := keys.Verify(n); (err == nil) != c.trusted {
			t.Errorf("%s: %v", c.what, err)
		}
		if got := keys.ScopeOf(n); (got == verify.ScopePublic) != c.trusted {
			t.Errorf("%s: scope %v", c.what, got)
		}
	}
}

func TestEveryReaderGetsOnlyWhatItMayKnow(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, []string{company.public()})
	n := unsigned(t)
	pub, priv := central.sign(n), company.sign(n)
	n.Sigs = []string{priv, foreign.sign(n), pub}
	v, err := keys.Verify(n)
	if err != nil || v.Scope() != verify.ScopePublic {
		t.Fatal(v, err)
	}
	signed := verify.NarInfo{
		StorePath: n.StorePath, NarHash: n.NarHash, NarSize: n.NarSize, References: n.References,
		URL: "nar/mine", Compression: "zstd",
	}
	public, group, self := signed, signed, signed
	public.Sigs = []string{pub}
	group.Sigs = []string{priv, pub}
	self.Sigs = group.Sigs
	self.Deriver, self.System, self.CA = n.Deriver, n.System, n.CA
	for scope, want := range map[verify.Scope]verify.NarInfo{
		verify.ScopePublic: public, verify.ScopeGroup: group, verify.ScopeNone: self,
	} {
		if diff := cmp.Diff(&want, v.For(scope, "nar/mine", "zstd"), comparePaths); diff != "" {
			t.Errorf("reader of scope %v: %s", scope, diff)
		}
		again, err := keys.Verify(mustParse(t, v.For(scope, "nar/mine", "zstd").String()))
		if err != nil || again.Scope() != verify.ScopePublic {
			t.Errorf("what a reader of scope %v gets does not verify: %v", scope, err)
		}
	}
}

func TestAReaderNotEntitledToAPathGetsNothing(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, []string{company.public()})
	n := unsigned(t)
	n.Sigs = []string{company.sign(n), central.junk(0)}
	v, err := keys.Verify(n)
	if err != nil || v.Scope() != verify.ScopeGroup {
		t.Fatal(v, err)
	}
	if got := v.For(verify.ScopePublic, "nar/x", "none"); got != nil {
		t.Errorf("a public reader gets\n%v", got)
	}
	if got := v.For(verify.ScopeGroup, "nar/x", "none"); got == nil || len(got.Sigs) != 1 {
		t.Errorf("the group gets %v", got)
	}
}

func TestAnUncompressedNarIsItsOwnFile(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, nil)
	n := unsigned(t)
	n.Sigs = []string{central.sign(n)}
	v, err := keys.Verify(n)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.For(verify.ScopePublic, "nar/x", "none"); got.FileHash != n.NarHash.String() || got.FileSize != n.NarSize {
		t.Errorf("none: %s, %d bytes", got.FileHash, got.FileSize)
	}
	if got := v.For(verify.ScopePublic, "nar/x", "xz"); got.FileHash != "" || got.FileSize != 0 {
		t.Errorf("xz: %s, %d bytes", got.FileHash, got.FileSize)
	}
	if url, compression, size := v.Source(); url != n.URL || compression != n.Compression || size != n.FileSize {
		t.Errorf("source: %s, %s, %d bytes", url, compression, size)
	}
}

func TestAFactDoesNotChangeWithItsClaim(t *testing.T) {
	keys := mustKeys(t, []string{central.public()}, nil)
	n := unsigned(t)
	n.Sigs = []string{central.sign(n)}
	v, err := keys.Verify(n)
	if err != nil {
		t.Fatal(err)
	}
	want := n.References[0]
	n.References[0] = "changed"
	v.For(verify.ScopePublic, "nar/x", "none").References[0] = "changed too"
	if got := v.References()[0]; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The database of a store has no URL to offer.
func TestAnIncompleteNarInfoHasAScope(t *testing.T) {
	n := unsigned(t)
	n.URL, n.Compression, n.FileHash, n.FileSize = "", "", "", 0
	n.Sigs = []string{company.junk(1), company.sign(n), central.sign(n)}
	if got := mustKeys(t, []string{central.public()}, []string{company.public()}).ScopeOf(n); got != verify.ScopePublic {
		t.Errorf("both: %v", got)
	}
	if got := mustKeys(t, nil, []string{company.public()}).ScopeOf(n); got != verify.ScopeGroup {
		t.Errorf("private only: %v", got)
	}
}
