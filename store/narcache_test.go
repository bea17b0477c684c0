package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

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
