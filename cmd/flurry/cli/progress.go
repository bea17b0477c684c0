package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/term"

	"github.com/flurry-nix/flurry/verify"
)

const (
	redraw     = 200 * time.Millisecond
	rateWindow = 5 * time.Second // over which the rate is taken: steady, yet it notices a change
)

// progress shows how a fetch goes: a bar on a terminal, a line per path elsewhere. Safe for
// concurrent use.
type progress struct {
	out      io.Writer // one line per path; nil if the bar shows it
	bar      io.Writer // nil without a terminal
	total    int64     // bytes
	count    int       // paths
	have     atomic.Int64
	fresh    atomic.Int64 // bytes that came over the socket
	finished atomic.Int64 // paths
	mu       sync.Mutex   // guards out

	stop    chan struct{}
	drawing sync.WaitGroup
}

func newProgress(out, err io.Writer, paths []*verify.Verified) *progress {
	p := &progress{out: out, count: len(paths), stop: make(chan struct{})}
	seen := map[verify.Hash]bool{}
	for _, v := range paths {
		if !seen[v.NarHash()] {
			seen[v.NarHash()] = true
			p.total += v.NarSize()
		}
	}
	if isTerminal(err) {
		p.bar = err
		if isTerminal(out) {
			p.out = nil
		}
		p.drawing.Go(p.draw)
	}
	return p
}

// add counts bytes of NARs that the directory now has (or, negative, had); fresh ones were fetched.
func (p *progress) add(n int64, fresh bool) {
	p.have.Add(n)
	if fresh {
		p.fresh.Add(n)
	}
}

// done counts a path.
func (p *progress) done(v *verify.Verified, fresh bool) {
	p.finished.Add(1)
	if p.out != nil {
		word := "fetched"
		if !fresh {
			word = "kept"
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		fmt.Fprintln(p.out, word, v.Path(), bytesText(v.NarSize()))
	}
}

func (p *progress) finish() {
	close(p.stop)
	p.drawing.Wait()
}

// draw owns the terminal's line.
func (p *progress) draw() {
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	m := meter{}
	for {
		fresh := p.fresh.Load()
		m.note(time.Now(), fresh)
		fmt.Fprint(p.bar, "\r\x1b[K", barLine(p.width(), p.have.Load(), p.total, int(p.finished.Load()), p.count, m.rate()))
		select {
		case <-p.stop:
			fmt.Fprint(p.bar, "\r\x1b[K")
			return
		case <-tick.C:
		}
	}
}

func (p *progress) width() int {
	if f, ok := p.bar.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			return w
		}
	}
	return 80
}

// meter takes a rate over the last rateWindow.
type meter struct {
	at    []time.Time
	bytes []int64
}

func (m *meter) note(now time.Time, bytes int64) {
	m.at, m.bytes = append(m.at, now), append(m.bytes, bytes)
	for len(m.at) > 2 && now.Sub(m.at[1]) >= rateWindow {
		m.at, m.bytes = m.at[1:], m.bytes[1:]
	}
}

// rate is in bytes per second, 0 if not known yet.
func (m *meter) rate() float64 {
	last := len(m.at) - 1
	if last < 1 {
		return 0
	}
	return float64(m.bytes[last]-m.bytes[0]) / m.at[last].Sub(m.at[0]).Seconds()
}

// barLine is the bar with its figures, at most width-1 columns wide.
func barLine(width int, have, total int64, paths, count int, perSecond float64) string {
	percent := int64(100)
	if total > 0 {
		percent = min(100, max(0, have)*100/total)
	}
	figures := fmt.Sprintf(" %3d %%  %s of %s  %d/%d paths", percent, bytesText(have), bytesText(total), paths, count)
	if perSecond > 0 {
		eta := time.Duration(float64(max(0, total-have)) / perSecond * float64(time.Second))
		figures += "  " + rate(perSecond) + "  " + duration(eta) + " left"
	}
	room := min(40, width-1-len(figures)-2)
	if room < 5 {
		return figures[1:max(1, min(len(figures), width))]
	}
	full := int(percent) * room / 100
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", room-full) + "]" + figures
}
