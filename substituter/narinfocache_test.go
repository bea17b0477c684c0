package substituter

import (
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// TestCachedNarInfosStayWithinTheirRoom: those that were not used for the longest time go first.
func TestCachedNarInfosStayWithinTheirRoom(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	c := newNarInfoCache(t.TempDir(), 16*blockSize, func() time.Time { return now }, slog.New(slog.DiscardHandler))
	hash := func(i int) (h verify.StoreHash) { h[0] = byte(i); return h }
	for i := range 40 {
		c.write(cacheWrite{hash(i), "from x\ntext"})
		used := now.Add(-time.Duration(i) * time.Hour)
		if err := os.Chtimes(c.file(hash(i)), used, used); err != nil {
			t.Fatal(err)
		}
	}
	c.sweep(t.Context())
	kept := 0
	for i := range 40 {
		if _, ok := c.get(hash(i)); ok {
			if kept++; kept <= i {
				t.Errorf("entry %d is kept, a younger one is not", i)
			}
		}
	}
	if kept > 16 || kept < 12 {
		t.Errorf("%d entries kept, there is room for 16", kept)
	}
}
