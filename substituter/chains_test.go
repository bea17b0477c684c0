package substituter

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

func testChains(t *testing.T, dir string) *chains {
	t.Helper()
	c, err := newChains(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (w *world) verified() *verify.Verified {
	w.t.Helper()
	v, err := w.keys.Verify(w.info)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// trueChain is what an honest holder says.
func trueChain(w *world) verify.Chain {
	h := verify.NewChainHash()
	h.Write(w.nar)
	_, chain := h.Sum()
	return chain
}

func TestAChainIsComputedOnceAndKeptOverRestarts(t *testing.T) {
	w := newWorld(t, 9*mib+5)
	v, dir := w.verified(), t.TempDir()
	c := testChains(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- c.run(ctx) }()
	opened := 0
	open := func(context.Context) (binarycache.Content, error) { opened++; return memNAR(w.nar), nil }
	for range 2 {
		form, err := c.of(t.Context(), v, open)
		if err != nil || !bytes.Equal(form, trueChain(w).Bytes(9*mib+5)) {
			t.Fatal(len(form), err)
		}
	}
	stop()
	<-ended
	if form, ok := testChains(t, dir).get(v.NarHash(), v.NarSize()); !ok || opened != 1 {
		t.Errorf("after a restart: %v, %d bytes; computed %d times", ok, len(form), opened)
	}
}

func TestAChainThatManyAskForAtOnceIsComputedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 9*mib)
		c, v := testChains(t, t.TempDir()), w.verified()
		opened := 0
		open := func(context.Context) (binarycache.Content, error) { opened++; return memNAR(w.nar), nil }
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if _, err := c.of(t.Context(), v, open); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go c.run(ctx)
		wg.Wait()
		synctest.Wait()
		if opened != 1 {
			t.Errorf("computed %d times", opened)
		}
	})
}

// TestARottenStorePathHasNoChain: what is offered fits the signature.
func TestARottenStorePathHasNoChain(t *testing.T) {
	w := newWorld(t, 9*mib)
	c := testChains(t, t.TempDir())
	go c.run(t.Context())
	w.nar[3*mib] ^= 1
	open := func(context.Context) (binarycache.Content, error) { return memNAR(w.nar), nil }
	if form, err := c.of(t.Context(), w.verified(), open); !errors.Is(err, ErrAbsent) {
		t.Errorf("%d bytes, %v", len(form), err)
	}
}

func TestADamagedChainIsNotOffered(t *testing.T) {
	w := newWorld(t, 9*mib)
	v, dir := w.verified(), t.TempDir()
	for what, damage := range map[string]func([]byte) []byte{
		"a bit":       func(b []byte) []byte { b[40] ^= 1; return b },
		"the sum":     func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut":         func(b []byte) []byte { return b[:len(b)-32] },
		"version":     func(b []byte) []byte { b[4] = 2; return b },
		"emptied":     func([]byte) []byte { return nil },
		"not damaged": func(b []byte) []byte { return b },
	} {
		c := testChains(t, dir)
		c.put(v.NarHash(), v.NarSize(), trueChain(w))
		b, err := os.ReadFile(c.file(v.NarHash()))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.file(v.NarHash()), damage(b), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, ok := testChains(t, dir).get(v.NarHash(), v.NarSize()); ok != (what == "not damaged") {
			t.Errorf("%s: offered: %v", what, ok)
		}
	}
}

func TestChainsOnDiskAreBounded(t *testing.T) {
	dir := t.TempDir()
	c := testChains(t, dir)
	const size = 1 << 37 // its chain takes an eighth of the room
	chain := make(verify.Chain, verify.Chunks(size)-1)
	for i := range 12 {
		c.put(verify.Hash{byte(i)}, size, chain)
		c.get(verify.Hash{0}, size) // is used
	}
	c = testChains(t, dir)
	var bytes int64
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		bytes += info.Size()
	}
	if bytes > chainBytes || bytes < chainBytes/2 {
		t.Errorf("%d bytes in %d files", bytes, len(files))
	}
	for i, want := range map[byte]bool{0: true, 1: false, 11: true} {
		if _, ok := c.get(verify.Hash{i}, size); ok != want {
			t.Errorf("chain %d kept: %v", i, ok)
		}
	}
}

func TestWhoWaitsForAChainDoesNotWaitForEver(t *testing.T) {
	w := newWorld(t, 9*mib)
	c := testChains(t, t.TempDir()) // nothing computes
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.of(ctx, w.verified(), nil); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	if len(c.jobs) != 1 {
		t.Error("it is not computed for the next one who asks")
	}
}
