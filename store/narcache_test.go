package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

func TestASmallNARIsThatOfTheTreeThereIs(t *testing.T) {
	dir, h := t.TempDir(), verify.StoreHash{1}
	s := New(Config{RealDir: dir}, &verify.Keys{})
	path := filepath.Join(dir, h.String()+"-name")
	s.idx.add(s.dir, row{id: 1, path: filepath.Join(s.dir, filepath.Base(path))})
	const size = 15 * 8 // of a NAR of one file of up to eight bytes
	ask := func() string {
		b, err := s.AppendNAR(t.Context(), []byte("head "), h, size)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	put := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o644), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	put("one")
	first := ask()
	if again := ask(); again != first || !strings.HasPrefix(first, "head ") || !strings.Contains(first, "one") {
		t.Errorf("%q, then %q", first, again)
	}
	for _, text := range []string{"two", "longer"} {
		if put(text); !strings.Contains(ask(), text) {
			t.Errorf("not the tree that has %q", text)
		}
	}
	put("too long to be it")
	if b, err := s.AppendNAR(t.Context(), []byte("head "), h, size); err == nil || string(b) != "head " {
		t.Errorf("of another size: %q, %v", b, err)
	}
	os.Remove(path)
	if b, err := s.AppendNAR(t.Context(), nil, h, size); !errors.Is(err, ErrAbsent) || len(b) > 0 {
		t.Errorf("of nothing: %q, %v", b, err)
	}
}

func TestANARIsWalkedOnceUntilItsTreeIsAnother(t *testing.T) {
	var c narCache
	root := filepath.Join(t.TempDir(), "tree")
	put := func(text string) {
		t.Helper()
		os.RemoveAll(root)
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "file"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	content := func() string {
		t.Helper()
		n, err := c.open(t.Context(), verify.StoreHash{1}, root)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := n.WriteRange(t.Context(), &b, 0, n.Size()); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	put("one")
	first, _ := c.open(t.Context(), verify.StoreHash{1}, root)
	if second, _ := c.open(t.Context(), verify.StoreHash{1}, root); second != first {
		t.Error("walked again")
	}
	one := content()
	put("another")
	if two := content(); two == one || !bytes.Contains([]byte(two), []byte("another")) {
		t.Error("an old tree's NAR is served for a new one")
	}
	os.RemoveAll(root)
	if _, err := c.open(t.Context(), verify.StoreHash{1}, root); err == nil {
		t.Error("a NAR of nothing")
	}
	if c.entries != 0 || c.order.Len() != 0 {
		t.Errorf("%d entries of %d NARs are kept", c.entries, c.order.Len())
	}
	put("x")
	for i := range 301 { // two entries each
		if _, err := c.open(t.Context(), verify.StoreHash{2, byte(i), byte(i >> 8)}, root); err != nil {
			t.Fatal(err)
		}
		if i == 100 {
			c.entries += maxCachedEntries - 300 // as if the others were large
		}
		if c.entries > maxCachedEntries {
			t.Fatal("the bound does not hold")
		}
	}
	if c.order.Len() >= 300 || c.order.Len() < 100 {
		t.Errorf("%d kept", c.order.Len())
	}
}
