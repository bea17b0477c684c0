package verify_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
	"github.com/nix-community/go-nix/pkg/nixbase32"
	"pgregory.net/rapid"
)

// centralKey is the key that signs what cache.nixos.org serves.
const centralKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="

// fixtures returns the real narinfos of a folder under testdata, by file name.
func fixtures(t testing.TB, dir string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.narinfo"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no fixtures in %s: %v", dir, err)
	}
	m := make(map[string]string)
	for _, f := range files {
		m[filepath.Base(f)] = string(readFile(t, f))
	}
	return m
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustKeys(t testing.TB, public, private []string) *verify.Keys {
	t.Helper()
	k, err := verify.NewKeys(public, private)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustParse(t testing.TB, text string) *verify.NarInfo {
	t.Helper()
	n, err := verify.ParseNarInfo(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// signer is a key pair whose seed is its name, so that tests repeat exactly.
type signer struct {
	name string
	key  ed25519.PrivateKey
}

func newSigner(name, seed string) signer {
	s := make([]byte, ed25519.SeedSize)
	copy(s, seed)
	return signer{name, ed25519.NewKeyFromSeed(s)}
}

func (s signer) public() string {
	return s.name + ":" + base64.StdEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey))
}

func (s signer) sign(n *verify.NarInfo) string {
	return s.name + ":" + base64.StdEncoding.EncodeToString(ed25519.Sign(s.key, []byte(n.Fingerprint())))
}

// junk returns a well-formed signature in s's name that is not good; i makes it differ from others.
func (s signer) junk(i int) string {
	b := make([]byte, ed25519.SignatureSize)
	b[0], b[1] = byte(i), byte(i>>8)
	return s.name + ":" + base64.StdEncoding.EncodeToString(b)
}

// unsigned returns a narinfo that nobody has signed yet.
func unsigned(t testing.TB) *verify.NarInfo {
	t.Helper()
	n := mustParse(t, string(readFile(t, "testdata/cache.nixos.org/00bgd045z0d4icpbc2yyz4gx48ak44la.narinfo")))
	n.Sigs = nil
	n.CA = "fixed:r:sha256:" + strings.Repeat("0", 52)
	n.System = "x86_64-linux"
	return n
}

var (
	genBase32 = func(n int) *rapid.Generator[string] {
		return rapid.Map(rapid.SliceOfN(rapid.SampledFrom([]byte(nixbase32.Alphabet)), n, n), func(b []byte) string { return string(b) })
	}
	genBaseName = rapid.Custom(func(t *rapid.T) string {
		name := rapid.StringMatching(`[a-zA-Z0-9+_?=][a-zA-Z0-9+._?=-]{0,40}`).Draw(t, "name")
		return genBase32(verify.StoreHashLen).Draw(t, "hash") + "-" + name
	})
	genHash = rapid.Custom(func(t *rapid.T) verify.Hash {
		return verify.Hash(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "hash"))
	})
)

// genNarInfo draws narinfos that go-nix can read too: sorted references, no unknown field, no ": "
// inside a value.
var genNarInfo = rapid.Custom(func(t *rapid.T) *verify.NarInfo {
	path, err := verify.ParseStorePath(verify.DefaultStoreDir + "/" + genBaseName.Draw(t, "path"))
	if err != nil {
		t.Fatal(err)
	}
	n := &verify.NarInfo{
		StorePath:   path,
		URL:         rapid.StringMatching(`nar/[a-z0-9]{1,52}\.nar(\.xz)?(\?[a-z]=%20)?`).Draw(t, "url"),
		Compression: rapid.SampledFrom([]string{"none", "xz", "zstd", "bzip2", "br"}).Draw(t, "compression"),
		NarHash:     genHash.Draw(t, "narhash"),
		NarSize:     rapid.Int64Min(1).Draw(t, "narsize"),
		References:  rapid.SliceOfN(genBaseName, 0, 8).Draw(t, "references"),
		FileSize:    rapid.Int64Min(0).Draw(t, "filesize"),
		FileHash:    genHash.Draw(t, "filehash").String(),
	}
	slices.Sort(n.References)
	n.References = slices.Compact(n.References)
	if len(n.References) == 0 {
		n.References = nil
	}
	if rapid.Bool().Draw(t, "with deriver") {
		n.Deriver = genBaseName.Draw(t, "deriver") + ".drv"
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "signatures") {
		n.Sigs = append(n.Sigs, newSigner("key-"+string(rune('a'+i)), "seed").sign(n))
	}
	return n
})
