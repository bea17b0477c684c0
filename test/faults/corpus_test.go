//go:build linux

package faults

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// corpus is a small closure, signed with a key made for the run.
type corpus struct {
	paths   []*storePath // the last one needs all others
	key     string       // as in trusted-public-keys
	private ed25519.PrivateKey
}

// storePath is one path of the closure with all that a cache has of it.
type storePath struct {
	verify.StorePath
	nar         []byte
	narHash     verify.Hash
	refs        []string // base names
	compression string
	file        []byte // the NAR, compressed
	sig         string // of the true fingerprint
}

func newCorpus() (*corpus, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &corpus{key: "faults-1:" + base64.StdEncoding.EncodeToString(public), private: private}
	for _, p := range []struct {
		name        string
		size        int
		compression string
	}{
		{"leaf-small", 20_000, "xz"},
		{"leaf-zstd", 600_000, "zstd"},
		{"lib-plain", 3 << 20, "none"},
		{"lib-large", 9 << 20, "zstd"}, // larger than what is collected in memory
		{"top", 100_000, "xz"},
	} {
		if err := c.add(p.name, p.size, p.compression); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// add makes a path that needs all made before it.
func (c *corpus) add(name string, size int, compression string) error {
	var h verify.StoreHash
	rand.Read(h[:])
	path, err := verify.ParseStorePath("/nix/store/" + h.String() + "-" + name)
	if err != nil {
		return err
	}
	p := &storePath{StorePath: path, nar: fileNAR(noise(size, uint64(size))), compression: compression}
	p.narHash = sha256.Sum256(p.nar)
	for _, before := range c.paths {
		p.refs = append(p.refs, before.Base())
	}
	p.sig = c.sign(p)
	if p.file, err = pack(p.nar, compression); err != nil {
		return err
	}
	c.paths = append(c.paths, p)
	return nil
}

func (c *corpus) sign(p *storePath) string {
	info := &verify.NarInfo{StorePath: p.StorePath, NarHash: p.narHash, NarSize: int64(len(p.nar)), References: p.refs}
	return "faults-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(c.private, []byte(info.Fingerprint())))
}

// top is the path that needs all others.
func (c *corpus) top() *storePath { return c.paths[len(c.paths)-1] }

// noise is half random, so that it compresses like programs do.
func noise(size int, seed uint64) []byte {
	rng := mathrand.New(mathrand.NewPCG(seed, 1))
	b := make([]byte, size)
	for i := 0; i+16 <= size; i += 16 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}

// fileNAR is the NAR of a single file.
func fileNAR(content []byte) []byte {
	var b bytes.Buffer
	str := func(s []byte) {
		binary.Write(&b, binary.LittleEndian, uint64(len(s)))
		b.Write(s)
		b.Write(make([]byte, (8-len(s)%8)%8))
	}
	for _, s := range []string{"nix-archive-1", "(", "type", "regular", "contents"} {
		str([]byte(s))
	}
	str(content)
	str([]byte(")"))
	return b.Bytes()
}

// narinfo is what an honest source says of a path; a peer serves the bare NAR.
func (p *storePath) narinfo(kind string) string {
	url, compression := p.upstreamURL(), p.compression
	if kind == kindPeer {
		url, compression = binarycache.NARURL(p.Hash(), p.narHash), "none"
	}
	return fmt.Sprintf("StorePath: %s\nURL: %s\nCompression: %s\nNarHash: %s\nNarSize: %d\nReferences: %s\nSig: %s\n",
		p, url, compression, p.narHash, len(p.nar), strings.Join(p.refs, " "), p.sig)
}

func (p *storePath) upstreamURL() string { return "nar/" + p.Hash().String() + ".nar." + p.compression }

// pack compresses a NAR as a cache stores it.
func pack(nar []byte, compression string) ([]byte, error) {
	switch compression {
	case "xz":
		cmd := exec.Command("xz", "-c", "-0")
		cmd.Stdin, cmd.Stderr = bytes.NewReader(nar), os.Stderr
		return cmd.Output()
	case "gzip":
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write(nar)
		err := z.Close()
		return b.Bytes(), err
	case "zstd":
		enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
		if err != nil {
			return nil, err
		}
		return enc.EncodeAll(nar, nil), nil
	}
	return nar, nil
}
