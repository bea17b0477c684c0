// Package savings keeps what sharing saved, over restarts: bytes that no central cache had to send, and
// the seconds that were gained or lost by it.
//
// Seconds gained are, for every moment in which NARs were on their way: how long their bytes would have
// taken at the rate that the central caches give this machine, less how long they took. That rate is
// measured here, while a central cache alone was sending (uncompressed bytes per second of such time, over
// the last ten minutes or so of it). So:
//
//   - bytes that came from central caches alone neither gain nor lose;
//   - time in which NARs were wanted and no byte came counts as lost, whoever kept silent;
//   - bytes from peers count as [Totals.Unjudged], not as seconds, until a central cache has sent enough
//     to know its rate;
//   - where neighbours share one line to the central cache, the rate is of that shared line.
//
// The sum may be negative, and is shown so.
package savings

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/flurry-nix/flurry/internal/beat"
)

const (
	// saveEvery bounds how often the file is written while something changes.
	saveEvery = time.Minute
	// rateLeastBytes and rateLeastTime are what the rate of central caches needs to mean something.
	rateLeastBytes = 4 << 20
	rateLeastTime  = time.Second
	// rateSpan is how much of the past the rate remembers, in time under way.
	rateSpan = 10 * time.Minute
)

// Counters are what the agent counted since it started.
type Counters struct {
	FromPeers, FromUpstream, ToPeers int64         // uncompressed NAR bytes
	Busy                             time.Duration // in which at least one NAR was on its way
}

// Totals are sums since a moment. Field names are a contract.
type Totals struct {
	Since         time.Time `json:"since"`
	FromPeers     int64     `json:"bytes_from_peers"`
	FromUpstream  int64     `json:"bytes_from_upstream"`
	ToPeers       int64     `json:"bytes_to_peers"`
	SecondsGained float64   `json:"seconds_gained"` // negative: lost
	Unjudged      int64     `json:"bytes_unjudged"` // from peers, while the rate of central caches was not known
}

// Savings are what the book says now.
type Savings struct {
	SinceInstallation Totals  `json:"since_installation"`
	ThisMonth         Totals  `json:"this_month"`                // local time
	UpstreamRate      float64 `json:"upstream_bytes_per_second"` // as measured, 0 unknown
}

// page is the file's form.
type page struct {
	Installation Totals        `json:"since_installation"`
	Month        Totals        `json:"this_month"`
	RateBytes    float64       `json:"rate_bytes"`
	RateTime     time.Duration `json:"rate_nanoseconds"`
}

// Book adds up. Safe for concurrent use; mu guards all below it.
type Book struct {
	file string
	now  func() time.Time
	log  *slog.Logger

	mu    sync.Mutex
	page  page
	last  Counters
	dirty bool
}

// Open reads the book, or begins one. A damaged file is put aside: nothing depends on it.
func Open(file string, now func() time.Time, log *slog.Logger) *Book {
	b := &Book{file: file, now: now, log: log}
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &b.page)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("what was saved so far cannot be read; counting anew", "file", file, "err", err)
		_ = os.Rename(file, file+".broken")
		b.page = page{}
	}
	if b.page.Installation.Since.IsZero() {
		b.page = page{Installation: Totals{Since: now()}, Month: Totals{Since: now()}}
	}
	return b
}

// Run looks at the counters once a second until ctx ends, and keeps the file up to date to a minute.
func (b *Book) Run(ctx context.Context, counters func() Counters) error {
	t := time.NewTimer(beat.Next())
	defer t.Stop()
	saved := time.Now()
	for {
		select {
		case <-ctx.Done():
			b.Note(counters())
			b.save()
			return nil
		case <-t.C:
		}
		t.Reset(beat.Next())
		b.Note(counters())
		if time.Since(saved) >= saveEvery {
			b.save()
			saved = time.Now()
		}
	}
}

// Note takes the counters' growth over.
func (b *Book) Note(c Counters) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := Counters{c.FromPeers - b.last.FromPeers, c.FromUpstream - b.last.FromUpstream, c.ToPeers - b.last.ToPeers, c.Busy - b.last.Busy}
	b.last = c
	if now := b.now(); now.Format("2006-01") != b.page.Month.Since.In(now.Location()).Format("2006-01") {
		b.page.Month = Totals{Since: now}
		b.dirty = true
	}
	if d == (Counters{}) {
		return
	}
	b.dirty = true
	gained, unjudged := b.judge(d)
	for _, t := range []*Totals{&b.page.Installation, &b.page.Month} {
		t.FromPeers += d.FromPeers
		t.FromUpstream += d.FromUpstream
		t.ToPeers += d.ToPeers
		t.SecondsGained += gained
		t.Unjudged += unjudged
	}
}

// judge says what a while gained, in seconds; mu is held.
func (b *Book) judge(d Counters) (gained float64, unjudged int64) {
	rate := b.rate()
	switch {
	case d.FromPeers == 0 && d.FromUpstream == 0:
		return -d.Busy.Seconds(), 0
	case d.FromPeers == 0:
		b.page.RateBytes += float64(d.FromUpstream)
		b.page.RateTime += d.Busy
		if b.page.RateTime > rateSpan {
			b.page.RateBytes, b.page.RateTime = b.page.RateBytes/2, b.page.RateTime/2
		}
		return 0, 0
	case rate == 0:
		return 0, d.FromPeers
	}
	return float64(d.FromPeers+d.FromUpstream)/rate - d.Busy.Seconds(), 0
}

func (b *Book) rate() float64 {
	if b.page.RateBytes < rateLeastBytes || b.page.RateTime < rateLeastTime {
		return 0
	}
	return b.page.RateBytes / b.page.RateTime.Seconds()
}

// Savings returns the sums as of the last look.
func (b *Book) Savings() Savings {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Savings{b.page.Installation, b.page.Month, b.rate()}
}

// save writes the file if it is older than the book.
func (b *Book) save() {
	b.mu.Lock()
	text, err := json.MarshalIndent(b.page, "", "  ")
	dirty := b.dirty
	b.dirty = false
	b.mu.Unlock()
	if !dirty {
		return
	}
	if err == nil {
		err = write(b.file, append(text, '\n'))
	}
	if err != nil {
		b.log.Warn("what was saved cannot be written down; trying again", "err", err)
		b.mu.Lock()
		b.dirty = true
		b.mu.Unlock()
	}
}

// write replaces a file at once or not at all.
func write(name string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".savings-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename, as it should
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
