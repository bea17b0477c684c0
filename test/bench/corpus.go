//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/store/nar"
	"github.com/flurry-nix/flurry/verify"
)

// corpus is one set of store paths: a Nix store with a database that Nix made, and the same as files
// for a static server. It is a function of its name and is kept between runs.
type corpus struct {
	Paths []item `json:"paths"`
	dir   string
}

// item is one store path.
type item struct {
	Hash    string `json:"hash"` // the store hash
	NARName string `json:"nar"`  // the NAR's URL, the same on every server
	Size    int64  `json:"size"` // of the NAR, bytes
}

func (c *corpus) database() string { return filepath.Join(c.dir, "root/nix/var/nix/db/db.sqlite") }
func (c *corpus) realDir() string  { return filepath.Join(c.dir, "root/nix/store") }
func (c *corpus) static() string   { return filepath.Join(c.dir, "static") }

func (c *corpus) narInfos() (names []string) {
	for _, p := range c.Paths {
		names = append(names, p.Hash+".narinfo")
	}
	return names
}

func (c *corpus) nars() (names []string, sizes []int64) {
	for _, p := range c.Paths {
		names, sizes = append(names, p.NARName), append(sizes, p.Size)
	}
	return names, sizes
}

func (c *corpus) bytes() (n int64) {
	for _, p := range c.Paths {
		n += p.Size
	}
	return n
}

// signer signs narinfos with a key that is no secret.
type signer struct {
	key    ed25519.PrivateKey
	public string
}

const keyName = "bench.flurry-1"

func newSigner() *signer {
	seed := sha256.Sum256([]byte(keyName))
	key := ed25519.NewKeyFromSeed(seed[:])
	return &signer{key, keyName + ":" + base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))}
}

func (s *signer) sign(n *verify.NarInfo) {
	n.Sigs = []string{keyName + ":" + base64.StdEncoding.EncodeToString(ed25519.Sign(s.key, []byte(n.Fingerprint())))}
}

// spec says how a corpus is made.
type spec struct {
	paths  int
	static bool                                                     // as files too
	make   func(dir string, i int, r *rand.Rand) error              // writes path i's tree at dir
	refs   func(i int, r *rand.Rand) (earlier []int)                // nil: none
	after  func(b *bench, c *corpus, infos []*verify.NarInfo) error // nil: nothing
}

// corpusVersion changes with what is made below.
const corpusVersion = "1"

// corpus makes, or finds, a set.
func (b *bench) corpus(name string) (*corpus, error) {
	c := &corpus{dir: filepath.Join(b.dir, name)}
	stamp := filepath.Join(c.dir, "stamp-"+corpusVersion)
	if text, err := os.ReadFile(stamp); err == nil {
		return c, json.Unmarshal(text, c)
	}
	fmt.Fprintf(os.Stderr, "          making corpus %s …\n", name)
	if err := os.RemoveAll(c.dir); err != nil {
		return nil, err
	}
	if err := c.fill(b, specs()[name], name); err != nil {
		return nil, fmt.Errorf("corpus %s: %w", name, err)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return c, os.WriteFile(stamp, text, 0o644)
}

func (c *corpus) fill(b *bench, s spec, name string) error {
	for _, d := range []string{c.realDir(), filepath.Join(c.static(), "nar")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(c.static(), "nix-cache-info"), []byte(binarycache.Info("/nix/store", 40)), 0o644); err != nil {
		return err
	}
	var infos []*verify.NarInfo
	for i := range s.paths {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		r := rand.New(rand.NewPCG(uint64(i), uint64(len(name))<<8|uint64(name[0])))
		n, err := c.path(name, i, r)
		if err != nil {
			return err
		}
		if s.refs != nil {
			for _, j := range s.refs(i, r) {
				n.References = append(n.References, infos[j].StorePath.Base())
			}
		}
		tree := filepath.Join(c.realDir(), n.StorePath.Base())
		if err := s.make(tree, i, r); err != nil {
			return err
		}
		if err := c.archive(b.ctx, n, tree, s.static); err != nil {
			return err
		}
		b.key.sign(n)
		text := n.String()
		if err := os.WriteFile(filepath.Join(c.static(), n.StorePath.Hash().String()+".narinfo"), []byte(text), 0o644); err != nil {
			return err
		}
		infos = append(infos, n)
		c.Paths = append(c.Paths, item{n.StorePath.Hash().String(), n.URL, n.NarSize})
	}
	if err := writeDatabase(b.ctx, filepath.Join(c.dir, "root"), infos); err != nil {
		return err
	}
	if s.after != nil {
		return s.after(b, c, infos)
	}
	return nil
}

// path gives path i its name.
func (c *corpus) path(name string, i int, r *rand.Rand) (*verify.NarInfo, error) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", name, i))
	var h verify.StoreHash
	copy(h[:], sum[:])
	p, err := verify.ParseStorePath(fmt.Sprintf("/nix/store/%s-%s-%d.%d", h, name, i, r.IntN(40)))
	return &verify.NarInfo{StorePath: p, Compression: "none"}, err
}

// archive learns the NAR's hash and size, and keeps it if it is to be served as a file.
func (c *corpus) archive(ctx context.Context, n *verify.NarInfo, tree string, keep bool) error {
	a, err := nar.Open(ctx, tree)
	if err != nil {
		return err
	}
	sum := sha256.New()
	var w io.Writer = sum
	tmp := filepath.Join(c.static(), "nar", "new")
	if keep {
		f, err := os.Create(tmp)
		if err != nil {
			return err
		}
		defer f.Close()
		w = io.MultiWriter(sum, f)
	}
	if _, err := a.WriteRange(ctx, w, 0, a.Size()); err != nil {
		return err
	}
	n.NarSize = a.Size()
	copy(n.NarHash[:], sum.Sum(nil))
	n.URL = binarycache.NARURL(n.StorePath.Hash(), n.NarHash)
	n.FileHash, n.FileSize = n.NarHash.String(), n.NarSize
	if !keep {
		return nil
	}
	return os.Rename(tmp, filepath.Join(c.static(), n.URL))
}

// writeDatabase lets Nix make a store in root and registers the paths.
func writeDatabase(ctx context.Context, root string, infos []*verify.NarInfo) error {
	if out, err := exec.CommandContext(ctx, "nix-store", "--store", "local?root="+root, "--init").CombinedOutput(); err != nil {
		return fmt.Errorf("nix-store --init: %w\n%s", err, out)
	}
	cmd := exec.CommandContext(ctx, "sqlite3", "-bail", filepath.Join(root, "nix/var/nix/db/db.sqlite"))
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	ids := map[string]int{}
	w := bufio.NewWriter(in)
	fmt.Fprintln(w, "begin;")
	for i, n := range infos {
		ids[n.StorePath.Base()] = i + 1
		fmt.Fprintf(w, "insert into ValidPaths (id, path, hash, registrationTime, narSize, sigs) values (%d, '%s', 'sha256:%s', 1, %d, '%s');\n",
			i+1, n.StorePath, hex.EncodeToString(n.NarHash[:]), n.NarSize, strings.Join(n.Sigs, " "))
		for _, ref := range n.References {
			fmt.Fprintf(w, "insert or ignore into Refs values (%d, %d);\n", i+1, ids[ref])
		}
	}
	fmt.Fprintln(w, "commit;")
	if err := w.Flush(); err != nil {
		return err
	}
	in.Close()
	return cmd.Wait()
}

// specs are the sets that there are.
func specs() map[string]spec {
	sizes := closureSizes()
	refs := func(i int, r *rand.Rand) (out []int) {
		for range min(i, 6) {
			out = append(out, i-1-r.IntN(min(i, 60)))
		}
		return out
	}
	oneFile := func(size int64) func(string, int, *rand.Rand) error {
		return func(dir string, _ int, r *rand.Rand) error { return writeFile(dir, size, r) }
	}
	return map[string]spec{
		// As many paths and bytes as a firefox closure, sizes spread as in one.
		"closure": {paths: len(sizes), static: true, refs: refs, make: func(dir string, i int, r *rand.Rand) error { return writeTree(dir, sizes[i], r) }},
		"tiny":    {paths: 5000, static: true, make: oneFile(200)},
		"big":     {paths: 1, static: true, make: oneFile(2 << 30)},
		"many": {paths: 1, static: true, make: func(dir string, _ int, r *rand.Rand) error {
			return writeFiles(dir, 50_000, func() int64 { return fileSize(r) / 8 }, r)
		}},
		"gib":     {paths: 1, static: true, make: oneFile(1 << 30)},
		"mib":     {paths: 40, static: true, make: oneFile(1 << 20)},
		"sixteen": {paths: 16, make: func(dir string, _ int, r *rand.Rand) error { return writeSparse(dir, 1<<30, r) }},
		"xz":      {paths: 1, static: true, make: copyBinaries, after: compressXZ},
	}
}

// closureSizes are 373 sizes with the quantiles of a desktop's closure: half below 150 KB, a tenth
// above 8 MB, the largest about 260 MB, 1.5 GB in all.
func closureSizes() []int64 {
	r := rand.New(rand.NewPCG(3, 73))
	sizes := make([]int64, 373)
	var sum int64
	for i := range sizes {
		sizes[i] = max(300, min(260<<20, int64(150e3*math.Exp(2.6*r.NormFloat64()))))
		sum += sizes[i]
	}
	sizes[372] = 240 << 20                                   // the browser itself
	for i := 371; sum+240<<20 < 1500<<20 && i > 0; i -= 31 { // its large libraries
		add := int64(30+r.IntN(60)) << 20
		sizes[i] += add
		sum += add
	}
	return sizes
}

// fileSize draws from what files of a store have: half below 3 KB, a mean of 30 KB.
func fileSize(r *rand.Rand) int64 {
	return min(64<<20, int64(3e3*math.Exp(2.1*r.NormFloat64())))
}

// writeTree makes a tree of about size bytes; large ones have one large file.
func writeTree(dir string, size int64, r *rand.Rand) error {
	if size < 2000 {
		return writeFile(dir, size, r)
	}
	left := size
	if size > 4<<20 {
		if err := writeFile(filepath.Join(dir, "lib", "large.so"), size/2, r); err != nil {
			return err
		}
		left -= size / 2
	}
	for i := 0; left > 0; i++ {
		n := min(fileSize(r), left)
		left -= n + 200
		if err := writeFile(filepath.Join(dir, "share", fmt.Sprintf("d%d", i/400), fmt.Sprintf("d%d", i/20%20), fmt.Sprintf("file-%d", i)), n, r); err != nil {
			return err
		}
	}
	return nil
}

func writeFiles(dir string, n int, size func() int64, r *rand.Rand) error {
	for i := range n {
		name := filepath.Join(dir, fmt.Sprintf("d%d", i/1000), fmt.Sprintf("d%d", i/50%20), fmt.Sprintf("file-%d", i))
		if err := writeFile(name, size(), r); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(name string, size int64, r *rand.Rand) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(r.Uint32())
	}
	if _, err := io.CopyN(f, rand.NewChaCha8(seed), size); err != nil {
		return err
	}
	return f.Close()
}

// writeSparse makes a file of which only the beginning takes room.
func writeSparse(name string, size int64, r *rand.Rand) error {
	if err := writeFile(name, 4096, r); err != nil {
		return err
	}
	return os.Truncate(name, size)
}

// copyBinaries makes a tree of this machine's programs and libraries, which compress as such things do.
func copyBinaries(dir string, _ int, _ *rand.Rand) error {
	left := int64(96 << 20)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files, _ := filepath.Glob("/usr/lib/x86_64-linux-gnu/*.so.*")
	more, _ := filepath.Glob("/usr/bin/*")
	for i, f := range append(files, more...) {
		info, err := os.Lstat(f)
		if err != nil || !info.Mode().IsRegular() || info.Size() > 16<<20 {
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d", i)), text, 0o644); err != nil {
			return err
		}
		if left -= info.Size(); left < 0 {
			return nil
		}
	}
	return nil
}

// compressXZ replaces the static NAR by one compressed as cache.nixos.org's old ones are.
func compressXZ(b *bench, c *corpus, infos []*verify.NarInfo) error {
	n := infos[0]
	file := filepath.Join(c.static(), n.URL)
	if out, err := exec.CommandContext(b.ctx, "xz", "-6", "--keep", file).CombinedOutput(); err != nil {
		return fmt.Errorf("xz: %w\n%s", err, out)
	}
	n.URL, n.Compression, n.FileHash, n.FileSize = n.URL+".xz", "xz", "", 0
	return os.WriteFile(filepath.Join(c.static(), n.StorePath.Hash().String()+".narinfo"), []byte(n.String()), 0o644)
}
