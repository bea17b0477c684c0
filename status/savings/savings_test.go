package savings

import (
	"context"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// clock is a time that the test sets.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func open(t *testing.T, file string, c *clock) *Book {
	t.Helper()
	return Open(file, c.now, slog.New(slog.DiscardHandler))
}

func start() *clock { return &clock{time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)} }

// upstreamGives teaches the book that central caches give 10 MB/s.
func upstreamGives(b *Book, c *Counters) {
	c.FromUpstream += 100e6
	c.Busy += 10 * time.Second
	b.Note(*c)
}

func near(a, b float64) bool { return math.Abs(a-b) < 1e-6 }

func TestSecondsAreThoseOfTheCentralCacheLessThoseThatItTook(t *testing.T) {
	b, c := open(t, filepath.Join(t.TempDir(), "s"), start()), Counters{}
	c.FromPeers, c.Busy = 5e6, time.Second
	b.Note(c)
	if s := b.Savings(); s.SinceInstallation.SecondsGained != 0 || s.SinceInstallation.Unjudged != 5e6 || s.UpstreamRate != 0 {
		t.Errorf("before the rate is known: %+v", s)
	}
	upstreamGives(b, &c)
	if s := b.Savings(); s.SinceInstallation.SecondsGained != 0 || !near(s.UpstreamRate, 10e6) {
		t.Errorf("the central cache alone gains nothing: %+v", s)
	}
	for _, step := range []struct {
		what            string
		peers, upstream int64
		busy            time.Duration
		gained          float64
	}{
		{"a quick neighbour", 100e6, 0, time.Second, 9},
		{"a slow neighbour", 10e6, 0, 3 * time.Second, -2},
		{"both at once", 10e6, 10e6, time.Second, 1},
		{"silence", 0, 0, 2 * time.Second, -2},
		{"nothing wanted", 0, 0, 0, 0},
	} {
		before := b.Savings().ThisMonth.SecondsGained
		c.FromPeers, c.FromUpstream, c.Busy = c.FromPeers+step.peers, c.FromUpstream+step.upstream, c.Busy+step.busy
		b.Note(c)
		if got := b.Savings().ThisMonth.SecondsGained - before; !near(got, step.gained) {
			t.Errorf("%s: %v s, want %v", step.what, got, step.gained)
		}
	}
	s := b.Savings().SinceInstallation
	if s.FromPeers != 125e6 || s.FromUpstream != 110e6 || s.Unjudged != 5e6 {
		t.Errorf("%+v", s)
	}
}

func TestTotalsSurviveARestartAndMonthsBeginAnew(t *testing.T) {
	file, now := filepath.Join(t.TempDir(), "s"), start()
	b, c := open(t, file, now), Counters{ToPeers: 7}
	upstreamGives(b, &c)
	c.FromPeers, c.Busy = c.FromPeers+100e6, c.Busy+time.Second
	b.Note(c)
	b.save()
	was := b.Savings()

	b = open(t, file, now)
	if got := b.Savings(); got.SinceInstallation.Since.Equal(was.SinceInstallation.Since) == false ||
		got.SinceInstallation.FromPeers != 100e6 || got.ThisMonth.SecondsGained != 9 || got.UpstreamRate != was.UpstreamRate {
		t.Errorf("after a restart %+v, before %+v", got, was)
	}
	now.Time = now.Add(5 * 24 * time.Hour) // December
	b.Note(Counters{FromPeers: 3, Busy: time.Millisecond})
	got := b.Savings()
	if got.ThisMonth.FromPeers != 3 || got.ThisMonth.ToPeers != 0 || !got.ThisMonth.Since.Equal(now.Time) || got.SinceInstallation.FromPeers != 100e6+3 {
		t.Errorf("in the next month: %+v", got)
	}
}

func TestADamagedFileIsPutAside(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(file, []byte(`{"since_installation":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := open(t, file, start()).Savings(); s.SinceInstallation.FromPeers != 0 || s.SinceInstallation.Since.IsZero() {
		t.Errorf("%+v", s)
	}
	if b, err := os.ReadFile(file + ".broken"); err != nil || !strings.HasPrefix(string(b), "{") {
		t.Error("the damaged file is gone:", err)
	}
}

func TestTheFileIsWrittenOnceAMinuteAndAtTheEnd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "s")
	synctest.Test(t, func(t *testing.T) {
		b := Open(file, time.Now, slog.New(slog.DiscardHandler))
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		bytes := int64(0)
		go func() {
			ended <- b.Run(ctx, func() Counters { bytes += 10; return Counters{FromPeers: bytes, Busy: time.Duration(bytes)} })
		}()
		size := func() int64 {
			if info, err := os.Stat(file); err == nil {
				return info.ModTime().UnixNano()
			}
			return 0
		}
		time.Sleep(50*time.Second + time.Millisecond)
		synctest.Wait()
		if size() != 0 {
			t.Error("written before a minute was over")
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		first := size()
		if first == 0 {
			t.Error("not written after a minute")
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), `"bytes_from_peers": 660`) {
			t.Errorf("at the end: %v\n%s", err, text)
		}
	})
}
