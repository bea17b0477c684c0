package page

import (
	"sync"
	"time"

	"github.com/flurry-nix/flurry/status"
)

const (
	sampleEvery  = 5 * time.Second
	shortSamples = 120 // 10 minutes
	longEvery    = 60  // short samples in a long one: 5 minutes
	longSamples  = 288 // a day
)

// span is a stretch of time that the chart can show.
type span string

const (
	spanShort span = "10min"
	spanLong  span = "24h"
)

func spanOf(s string) span {
	if span(s) == spanLong {
		return spanLong
	}
	return spanShort
}

func (s span) every() time.Duration {
	if s == spanLong {
		return longEvery * sampleEvery
	}
	return sampleEvery
}

// sample is NAR bytes by where they came from.
type sample struct{ peers, upstream, store int64 }

func totalsOf(b status.Bytes) sample { return sample{b.FromPeers, b.FromUpstream, b.FromStore} }

func (a sample) plus(b sample) sample {
	return sample{a.peers + b.peers, a.upstream + b.upstream, a.store + b.store}
}

// minus is what was added since b; a counter that went back began anew.
func (a sample) minus(b sample) sample {
	since := func(a, b int64) int64 {
		if a < b {
			return a
		}
		return a - b
	}
	return sample{since(a.peers, b.peers), since(a.upstream, b.upstream), since(a.store, b.store)}
}

func (a sample) sum() int64 { return a.peers + a.upstream + a.store }

// history keeps what was received lately, 10 KiB in all.
type history struct {
	mu    sync.Mutex // guards all below
	begun bool
	last  sample // totals
	n     int    // short samples so far
	short [shortSamples]sample
	long  [longSamples]sample
}

// add takes the totals at the end of a short sample; the first call only sets the beginning.
func (h *history) add(totals sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.begun {
		h.begun, h.last = true, totals
		return
	}
	d := totals.minus(h.last)
	h.last = totals
	h.short[h.n%shortSamples] = d
	l := h.n / longEvery % longSamples
	if h.n%longEvery == 0 {
		h.long[l] = sample{}
	}
	h.long[l] = h.long[l].plus(d)
	h.n++
}

// samples returns a span's samples, the oldest first; those before the start are zero. The newest long
// one is not complete yet.
func (h *history) samples(s span) []sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	ring, next := h.short[:], h.n
	if s == spanLong {
		ring, next = h.long[:], (h.n+longEvery-1)/longEvery
	}
	out := make([]sample, 0, len(ring))
	for i := range ring {
		out = append(out, ring[(next+i)%len(ring)])
	}
	return out
}
