package substituter

import (
	"sync"
	"time"
)

const (
	paceEvery = 250 * time.Millisecond // that a download has lasted when it is looked at, or its end
	paceKept  = 0.75                   // of what was seen before, at each look
	paceLife  = 10 * time.Minute       // of what was seen
	paceGain  = 4                      // bytes of NARs for each that is sent, at most: single ones compress much better than the next will
)

// pace is how quick the central caches lately were: all downloads at a time together, since they share the link. Safe for
// concurrent use; the zero value is ready.
type pace struct {
	mu              sync.Mutex // guards all below
	nar, wire, secs float64    // bytes of NARs, as they are and as sent, and the time that they took; they fade
	at              time.Time
}

func (p *pace) note(nar, wire int64, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nar, p.wire, p.secs = paceKept*p.nar+float64(nar), paceKept*p.wire+float64(wire), paceKept*p.secs+took.Seconds()
	p.at = time.Now()
}

// rates returns bytes per second of NARs, as they are and as sent; both 0 where nothing is known.
func (p *pace) rates() (nar, wire float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.secs == 0 || time.Since(p.at) > paceLife {
		return 0, 0
	}
	return min(p.nar, paceGain*p.wire) / p.secs, p.wire / p.secs
}

func (p *pace) known() bool {
	nar, _ := p.rates()
	return nar > 0
}

// upstreamTakes is about how long a central cache takes for n bytes of the NAR, by how large it is as sent where that is known;
// unknown stands for its bytes of NARs per second until they were seen.
func (f *flight) upstreamTakes(n int64, unknown float64) time.Duration {
	rate, wire := f.all.pace.rates()
	if size := f.wireSize(); size < f.v.NarSize() && wire > 0 {
		rate = wire * float64(f.v.NarSize()) / float64(size)
	}
	if rate == 0 {
		rate = unknown
	}
	return time.Duration(float64(n) / rate * float64(time.Second))
}

// sight is a moment of a download from a central cache.
type sight struct {
	at        time.Time
	pos       int64 // of the leg
	got       int64 // by the leg
	nar, wire int64 // by all
}

// see returns how far the leg is now; mu is held.
func (f *flight) see(l *leg) sight {
	return sight{time.Now(), l.pos, l.got, f.all.stats.FromUpstream.Load(), f.all.stats.Wire.Load()}
}

// clock takes down how quick a central cache is, at the end of a leg, or when it has lasted; mu is held.
func (f *flight) clock(l *leg, end bool) {
	if l.src.fromPeer() {
		return
	}
	now := f.see(l)
	if l.passes { // what it passes by in its body says nothing of NAR bytes
		l.seen = now
		return
	}
	took, passed := now.at.Sub(l.seen.at), now.pos-l.seen.pos
	if passed < rateLeast || !end && took < paceEvery {
		return
	}
	others := now.nar - l.seen.nar - (now.got - l.seen.got)
	f.all.pace.note(passed+others, now.wire-l.seen.wire, took)
	l.seen = now
}
