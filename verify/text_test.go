package verify_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
	"pgregory.net/rapid"
)

func TestAStorePathHasItsParts(t *testing.T) {
	p, err := verify.ParseStorePath("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-net-tools-1.60")
	if err != nil {
		t.Fatal(err)
	}
	if p.Dir() != verify.DefaultStoreDir || p.Base() != "00bgd045z0d4icpbc2yyz4gx48ak44la-net-tools-1.60" ||
		p.Name() != "net-tools-1.60" || p.Hash().String() != "00bgd045z0d4icpbc2yyz4gx48ak44la" {
		t.Errorf("%q %q %q %v", p.Dir(), p.Base(), p.Name(), p.Hash())
	}
	var none verify.StorePath
	if none.String() != "" || none.Dir() != "" || none.Base() != "" || none.Name() != "" {
		t.Errorf("the zero path: %q %q %q %q", none, none.Dir(), none.Base(), none.Name())
	}
}

func TestNamesHaveNixsLimits(t *testing.T) {
	const hash = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-"
	for name, ok := range map[string]bool{
		"x": true, "a+-._?=Z9": true, ".x": true, "...": true, "..x": true, "-": true,
		strings.Repeat("x", 211): true, strings.Repeat("x", 212): false,
		"": false, ".": false, "..": false, ".-x": false, "..-x": false, ".-": false, "..-": false,
		"a b": false, "a/b": false, "a\n": false, "a\x00": false, "é": false, "a~": false, "a,b": false, "a;b": false,
	} {
		_, err := verify.ParseStorePath(hash + name)
		if (err == nil) != ok || err != nil && !errors.Is(err, verify.ErrMalformed) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestStoreDirectoriesAreCanonical(t *testing.T) {
	const base = "/00bgd045z0d4icpbc2yyz4gx48ak44la-x"
	for dir, ok := range map[string]bool{
		"/nix/store": true, "/gnu/store": true, "/home/me/nix store": false, "/s": true,
		"": false, "/": false, "nix/store": false, "/nix/store/": false, "//nix/store": false, "/nix//store": false,
		"/nix/./store": false, "/nix/../store": false, "/nix/store/..": false, "/a\n/store": false, "/a,b": false, "/a;b": false,
		"/" + strings.Repeat("x", 1100): false,
	} {
		if _, err := verify.ParseStorePath(dir + base); (err == nil) != ok {
			t.Errorf("%.40q: %v", dir, err)
		}
	}
}

func TestAPathsDigestIsThatOfItsHashsCharacters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := genBase32(verify.StoreHashLen).Draw(t, "hash")
		h, err := verify.ParseStoreHash(text)
		if err != nil || h.String() != text {
			t.Fatalf("%v, %v", h, err)
		}
		want := sha256.Sum256([]byte(text))
		d, err := verify.ParsePathDigest(h.Digest().String())
		if err != nil || d != verify.PathDigest(want) || d.Key() != binary.BigEndian.Uint64(want[:]) {
			t.Fatalf("%v, %v", d, err)
		}
	})
}

func TestHashesFromTheNetworkAreExact(t *testing.T) {
	store := strings.Repeat("0", verify.StoreHashLen)
	sum := strings.Repeat("0", 52)
	parseStore := func(s string) error { _, err := verify.ParseStoreHash(s); return err }
	parseSum := func(s string) error { _, err := verify.ParseHashBase32(s); return err }
	parseDigest := func(s string) error { _, err := verify.ParsePathDigest(s); return err }
	for _, c := range []struct {
		parse func(string) error
		good  string
	}{{parseStore, store}, {parseSum, sum}, {parseDigest, sum}} {
		if err := c.parse(c.good); err != nil {
			t.Error(err)
		}
		for _, bad := range []string{
			"", c.good[1:], c.good + "0", c.good[1:] + "e", c.good[1:] + "A", c.good[1:] + "/", c.good[1:] + "\n",
			"../" + c.good[3:], c.good[1:] + "\x00",
		} {
			if err := c.parse(bad); !errors.Is(err, verify.ErrMalformed) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	}
	if err := parseSum("z" + sum[1:]); !errors.Is(err, verify.ErrMalformed) {
		t.Errorf("more than 256 bits: %v", err)
	}
}
