package cli

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// fakeCache is a signed binary cache in memory: app refers to lib, lib to itself, twin has lib's NAR.
type fakeCache struct {
	publicKey string
	byName    map[string]*verify.NarInfo
	byHash    map[string]*verify.NarInfo
	nars      map[string][]byte // by URL
}

// Store hashes of the paths, named in the scripts.
var fakeHashes = map[string]string{
	"app":  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
	"lib":  "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
	"twin": "cccccccccccccccccccccccccccccccc",
	"evil": "dddddddddddddddddddddddddddddddd",
	"hole": "ffffffffffffffffffffffffffffffff",
}

func newFakeCache(t *testing.T) *fakeCache {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize))
	c := &fakeCache{
		publicKey: "test-1:" + base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)),
		byName:    map[string]*verify.NarInfo{}, byHash: map[string]*verify.NarInfo{}, nars: map[string][]byte{},
	}
	base := func(name string) string { return fakeHashes[name] + "-" + name + "-1.0" }
	lib := narOfFile(strings.Repeat("lib ", 50_000))
	c.add(t, key, base("app"), narOfFile("app"), base("lib"))
	c.add(t, key, base("lib"), lib, base("lib"))
	c.add(t, key, base("twin"), lib)
	c.add(t, other, base("evil"), narOfFile("evil"))
	c.add(t, key, base("hole"), narOfFile("hole"), "gggggggggggggggggggggggggggggggg-absent")
	return c
}

func (c *fakeCache) add(t *testing.T, key ed25519.PrivateKey, base string, nar []byte, refs ...string) {
	t.Helper()
	path, err := verify.ParseStorePath("/nix/store/" + base)
	if err != nil {
		t.Fatal(err)
	}
	sum := verify.Hash(sha256.Sum256(nar))
	n := &verify.NarInfo{StorePath: path, NarHash: sum, NarSize: int64(len(nar)), References: refs,
		URL: "nar/" + path.Hash().String() + "-" + sum.Base32() + ".nar", Compression: "none"}
	n.Sigs = []string{"test-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(key, []byte(n.Fingerprint())))}
	c.byHash[path.Hash().String()], c.byName[strings.TrimSuffix(path.Name(), "-1.0")] = n, n
	c.nars[n.URL] = nar
}

func (c *fakeCache) keys() *verify.Keys {
	k, err := verify.NewKeys([]string{c.publicKey}, nil)
	if err != nil {
		panic(err)
	}
	return k
}

// narOfFile writes the archive of one regular file.
func narOfFile(contents string) []byte {
	var b []byte
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents", contents, ")"} {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
		b = append(b, make([]byte, (8-len(s)%8)%8)...)
	}
	return b
}

// serve answers as a substituter does, unless there is a fault.
func (c *fakeCache) serve(w http.ResponseWriter, r *http.Request, fault string) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if n := c.byHash[strings.TrimSuffix(name, ".narinfo")]; n != nil {
		fmt.Fprint(w, n)
		return
	}
	nar, ok := c.nars[name]
	if !ok || fault == "gone" {
		http.NotFound(w, r)
		return
	}
	switch fault {
	case "cut":
		w.Header().Set("Content-Length", fmt.Sprint(len(nar)))
		_, _ = w.Write(nar[:len(nar)/3])
		panic(http.ErrAbortHandler)
	case "ignore-range":
		_, _ = w.Write(nar)
		return
	case "wrong":
		nar = bytes.Clone(nar)
		nar[len(nar)/2] ^= 1
	case "long":
		nar = append(bytes.Clone(nar), 0)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(nar))
}
