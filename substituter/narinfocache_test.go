package substituter

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// diskCache is a loaded cache in dir; its clock is now.
func diskCache(t testing.TB, dir string, most int64, now *time.Time) *narInfoCache {
	t.Helper()
	c := newNarInfoCache(dir, most, func() time.Time { return *now }, slog.New(slog.DiscardHandler))
	if err := c.load(); err != nil {
		t.Fatal(err)
	}
	close(c.loaded)
	t.Cleanup(c.close)
	return c
}

// flush writes what is queued.
func (c *narInfoCache) flush() {
	select {
	case w := <-c.queue:
		c.write(w)
	default:
	}
}

// BenchmarkNarInfoCache puts 1,000 narinfos and reads each; loads is opening a cache of 50,000 anew.
func BenchmarkNarInfoCache(b *testing.B) {
	now := time.Now()
	text := strings.Repeat("x", 1000)
	b.Run("puts and gets 1,000", func(b *testing.B) {
		c := diskCache(b, b.TempDir(), 1<<30, &now)
		for b.Loop() {
			for i := range 1000 {
				c.put(numbered(i), "u", text)
			}
			c.flush()
			for i := range 1000 {
				if _, ok := c.get(numbered(i)); !ok {
					b.Fatal("lost")
				}
			}
		}
	})
	b.Run("loads 50,000", func(b *testing.B) {
		dir := b.TempDir()
		c := diskCache(b, dir, 1<<30, &now)
		for i := range 50_000 {
			c.put(numbered(i), "u", text)
			if i%1000 == 999 {
				c.flush()
			}
		}
		for b.Loop() {
			diskCache(b, dir, 1<<30, &now).close()
		}
	})
}

func numbered(i int) (h verify.StoreHash) {
	h[0], h[1] = byte(i), byte(i>>8)
	return h
}

// TestCachedNarInfosStayWithinTheirRoom: those that were not used for the longest time go first.
func TestCachedNarInfosStayWithinTheirRoom(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	const most = 1 << 20
	c := diskCache(t, t.TempDir(), most, &now)
	text := strings.Repeat("x", 1000)
	for i := range 2000 {
		c.put(numbered(i), "u", text)
		if i%10 == 9 {
			now = now.Add(25 * time.Hour / 10)
			c.get(numbered(0)) // used every day
			c.flush()
			if err := c.compactIfDue(); err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(c.path()); err != nil || info.Size() > most/2 {
				t.Fatalf("after %d entries: %v, %v", i, info.Size(), err)
			}
		}
	}
	kept, first := 0, 0
	for i := 1; i < 2000; i++ {
		if _, ok := c.get(numbered(i)); ok {
			kept++
		} else {
			first = i + 1
		}
	}
	if kept < 300 || kept != 2000-first {
		t.Errorf("%d entries kept, the oldest but one for %d", kept, first)
	}
	if _, ok := c.get(numbered(0)); !ok {
		t.Error("an entry in use was thrown out before others")
	}
}

// TestTheCacheIsWhatWasPutThere compares it with a map, over rewrites, restarts and torn ends.
func TestTheCacheIsWhatWasPutThere(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	r := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	const most = 64 << 20
	c := diskCache(t, dir, most, &now)
	want := map[verify.StoreHash]cached{}
	check := func(when string) {
		t.Helper()
		for i := range 200 {
			got, ok := c.get(numbered(i))
			w, known := want[numbered(i)]
			if ok != known || got != w {
				t.Fatalf("%s: entry %d is %v %+v, want %v %+v", when, i, ok, got, known, w)
			}
		}
	}
	for step := range 3000 {
		h := numbered(r.IntN(200))
		switch r.IntN(20) {
		case 0:
			c.drop(h)
			delete(want, h)
		case 1:
			c.putAbsent(h)
			want[h] = cached{absent: true}
		default:
			e := cached{from: fmt.Sprint("https://", r.IntN(3)), text: strings.Repeat(fmt.Sprintln(step), r.IntN(100))}
			c.put(h, e.from, e.text)
			want[h] = e
		}
		if step%100 != 99 {
			continue
		}
		c.flush()
		check("as written")
		switch step / 100 % 3 {
		case 0:
			c.writing.Lock()
			if err := c.compact(); err != nil {
				t.Fatal(err)
			}
			c.writing.Unlock()
		case 1:
			c.close()
			c = diskCache(t, dir, most, &now)
		case 2: // a power cut amid a write
			c.close()
			b, err := os.ReadFile(c.path())
			if err != nil {
				t.Fatal(err)
			}
			torn := appendRecord(nil, cacheWrite{h, "from x\nnever whole"}, now.Unix())
			if step/100%2 == 0 {
				torn = append(torn[:len(torn)-8], make([]byte, 5000)...) // longer, but never written
			} else {
				torn = torn[:1+r.IntN(len(torn)-1)]
			}
			if err := os.WriteFile(c.path(), append(b, torn...), 0o600); err != nil {
				t.Fatal(err)
			}
			c = diskCache(t, dir, most, &now)
		}
		check("after it was opened again")
	}
}

func TestDamageInTheCacheIsNoAnswer(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	dir := t.TempDir()
	c := diskCache(t, dir, 1<<20, &now)
	c.put(numbered(1), "u", "one")
	c.put(numbered(2), "u", "two")
	c.flush()
	b, err := os.ReadFile(c.path())
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		damaged := append([]byte{}, b...)
		damaged[i] ^= 1 << (i % 8)
		if err := os.WriteFile(c.path(), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		other := diskCache(t, dir, 1<<20, &now)
		for _, c := range []*narInfoCache{c, other} { // damaged while in use, and before
			for j, text := range map[int]string{1: "one", 2: "two"} {
				if e, ok := c.get(numbered(j)); ok && e != (cached{from: "u", text: text}) {
					t.Fatalf("byte %d: entry %d is %+v", i, j, e)
				}
			}
		}
		if err := os.WriteFile(c.path(), b, 0o600); err != nil { // in place, so that c still has it open
			t.Fatal(err)
		}
	}
	if e, ok := c.get(numbered(2)); !ok || e.text != "two" {
		t.Error("what is whole again is not found")
	}
}

func TestOldEntriesAreForgotten(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	now := start
	c := diskCache(t, t.TempDir(), 1<<20, &now)
	c.put(numbered(1), "u", "unused")
	c.put(numbered(2), "u", "used")
	c.putAbsent(numbered(3))
	c.flush()
	if e, ok := c.get(numbered(3)); !ok || !e.absent {
		t.Error("a fresh miss is forgotten")
	}
	for now.Sub(start) < keepPositive {
		now = now.Add(36 * time.Hour)
		if _, ok := c.get(numbered(2)); !ok {
			t.Fatal("an entry in use is forgotten")
		}
		c.flush()
	}
	if _, ok := c.get(numbered(3)); ok {
		t.Error("an old miss is an answer")
	}
	if p, n, err := c.clear(false); p != 0 || n != 1 || err != nil {
		t.Errorf("clear found %d narinfos, %d misses, %v", p, n, err)
	}
	if p, _, err := c.clear(true); p != 1 || err != nil {
		t.Errorf("%d narinfos were left, %v; the unused one should be gone", p, err)
	}
}

// TestTheCacheStartsOverFromAnotherLayout: earlier versions kept a file for each narinfo.
func TestTheCacheStartsOverFromAnotherLayout(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "ab"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ab", "ab.narinfo"), []byte(absentBody), 0o600); err != nil {
		t.Fatal(err)
	}
	c := diskCache(t, dir, 1<<20, &now)
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 || names[0].Name() != filepath.Base(c.path()) {
		t.Errorf("there are %v, %v", names, err)
	}
}

// TestWhatIsQueuedIsWrittenAtTheEnd: nothing that was put is lost by an ordinary stop.
func TestWhatIsQueuedIsWrittenAtTheEnd(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	dir := t.TempDir()
	c := newNarInfoCache(dir, 1<<20, func() time.Time { return now }, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.run(ctx) }()
	for i := range 100 {
		c.put(numbered(i), "u", "text")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c = diskCache(t, dir, 1<<20, &now)
	for i := range 100 {
		if _, ok := c.get(numbered(i)); !ok {
			t.Fatalf("entry %d is lost", i)
		}
	}
}
