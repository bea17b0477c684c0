//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// corpus is a binary cache made by lab/make-corpus.
type corpus struct {
	dir   string
	key   string            // name:base64, for trusted-public-keys
	roots map[string]string // seed package or "system" to store path
	paths map[string]*corpusPath
}

// corpusPath is one store path of a corpus.
type corpusPath struct {
	path    string
	narHash string // sha256:base32
	narSize int64
	refs    []string // store paths, itself left out
	url     string
}

func readCorpus(dir string) (*corpus, error) {
	if _, err := os.Stat(filepath.Join(dir, "stamp")); err != nil {
		return nil, fmt.Errorf("no corpus: %w", err)
	}
	key, err := os.ReadFile(filepath.Join(dir, "key.pub"))
	if err != nil {
		return nil, err
	}
	c := &corpus{dir: dir, key: strings.TrimSpace(string(key)), roots: map[string]string{}, paths: map[string]*corpusPath{}}
	roots, err := os.ReadFile(filepath.Join(dir, "roots.tsv"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(roots)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		c.roots[f[1]] = f[2]
	}
	files, err := filepath.Glob(filepath.Join(dir, "cache", "*.narinfo"))
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		p, err := readNarinfo(f)
		if err != nil {
			return nil, err
		}
		c.paths[p.path] = p
	}
	return c, nil
}

func readNarinfo(file string) (*corpusPath, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := narinfoFields(string(b))
	size, err := strconv.ParseInt(p["NarSize"], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	c := &corpusPath{path: p["StorePath"], narHash: p["NarHash"], narSize: size, url: p["URL"]}
	for _, r := range strings.Fields(p["References"]) {
		if r = "/nix/store/" + r; r != c.path {
			c.refs = append(c.refs, r)
		}
	}
	return c, nil
}

// narinfoFields keeps the last value of a repeated field.
func narinfoFields(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			m[k] = v
		}
	}
	return m
}

// find returns the one path whose name starts with this.
func (c *corpus) find(t testing.TB, name string) *corpusPath {
	t.Helper()
	var found []*corpusPath
	for _, p := range c.paths {
		if strings.HasPrefix(p.path[len("/nix/store/")+33:], name) {
			found = append(found, p)
		}
	}
	if len(found) != 1 {
		t.Fatalf("the corpus has %d paths named %s…, want one", len(found), name)
	}
	return found[0]
}

// closure returns the path and all it refers to.
func (c *corpus) closure(path string) []*corpusPath {
	seen := map[string]bool{path: true}
	todo := []string{path}
	var all []*corpusPath
	for len(todo) > 0 {
		p := c.paths[todo[0]]
		todo = todo[1:]
		all = append(all, p)
		for _, r := range p.refs {
			if !seen[r] {
				seen[r] = true
				todo = append(todo, r)
			}
		}
	}
	return all
}

// narBytes is the total of the paths' NARs.
func narBytes(paths []*corpusPath) (n int64) {
	for _, p := range paths {
		n += p.narSize
	}
	return n
}

// storeHash returns the 32 characters that name the path in a binary cache.
func storeHash(path string) string { return path[len("/nix/store/"):][:32] }
