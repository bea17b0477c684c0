package substituter

import (
	"context"
	"sync"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// Internet is agents beyond the site. Safe for concurrent use.
type Internet interface {
	// Find looks for agents that have the path of a publicly signed narinfo and connects to them, until
	// ctx ends at most. It is called once per NAR, when this machine is about to ask the central cache.
	Find(ctx context.Context, v *verify.Verified) []Peer
	// Told returns connected agents that told that they have a path, the quickest for size bytes first,
	// without sending anything.
	Told(d verify.PathDigest, size int64) []Peer
}

const (
	findFarPatience = 6 * time.Second        // of a look-up beside the central cache's download
	offloadPatience = 700 * time.Millisecond // that the central cache waits for it where it is to be spared
	farFirst        = 256 << 10              // bytes asked of an agent whose rate is not known
	farLeast        = 64 << 10               // bytes worth a request
	farMost         = 8 << 20
	farTime         = time.Second // that one request should take
	farWorth        = 250 * time.Millisecond
	farRate         = 1e6 // bytes per second, before it was measured
)

// far is what a flight knows of agents beyond the site. mu guards peers and done.
type far struct {
	begun time.Time
	rates map[string]float64 // of agents, bytes per second, as this flight saw them
	heard bool               // candidates know what the look-up brought

	mu    sync.Mutex
	peers []Peer
	done  bool
}

// lookFar begins the look-up, once; from then on it is this machine that downloads for its site.
func (p *plan) lookFar() {
	in := p.f.all.internet
	if in == nil || p.far != nil || p.f.v.Scope() != verify.ScopePublic {
		return
	}
	f := &far{begun: time.Now(), rates: map[string]float64{}}
	p.far = f
	p.f.all.wg.Go(func() {
		ctx, cancel := context.WithTimeout(p.f.all.ctx, findFarPatience)
		defer cancel()
		list := in.Find(ctx, p.f.v)
		f.mu.Lock()
		f.peers, f.done = list, true
		f.mu.Unlock()
	})
}

// goUpstream begins to look beyond the site and tells whether the central cache may be asked meanwhile.
func (p *plan) goUpstream() bool {
	p.lookFar()
	return !p.awaitsFar()
}

// awaitsFar tells whether the central cache should not be asked yet, as somebody else may well have it.
func (p *plan) awaitsFar() bool {
	if p.far == nil || !p.f.all.offload {
		return false
	}
	return !p.far.heard && time.Since(p.far.begun) < offloadPatience
}

// farPending tells whether agents may still be found that nobody has tried.
func (p *plan) farPending() bool {
	if p.far == nil {
		return false
	}
	p.far.mu.Lock()
	defer p.far.mu.Unlock()
	return !p.far.done
}

// farPeers returns the agents beyond the site that have the NAR, as far as is known now.
func (p *plan) farPeers() []Peer {
	if p.far == nil {
		return nil
	}
	list := p.f.all.internet.Told(p.digest, p.f.v.NarSize())
	p.far.mu.Lock()
	defer p.far.mu.Unlock()
	p.far.heard = p.far.done
	known := map[string]bool{}
	for _, q := range list {
		known[q.ID()] = true
	}
	for _, q := range p.far.peers {
		if !known[q.ID()] {
			list = append(list, q)
		}
	}
	return list
}

// farSource is an agent beyond the site that helps the central cache's download from its end: it brings
// the last bytes that nobody brings, while those from the cache stream to Nix. Where the two meet the NAR
// is complete, so that a slow helper delays nothing.
type farSource struct{ peerSource }

// patience implements source: a round trip across the world is no silence.
func (s farSource) patience() time.Duration {
	return min(max(8*s.RTT(), 2*peerSilenceMost), 4*peerSilenceMost)
}

// assignFar picks a run of bytes for an agent beyond the site; flight.mu is held. Without a central cache
// at work it is a source like any other: ok is then false and ordinary true.
func (p *plan) assignFar(src farSource, now time.Time) (run span, ok, ordinary bool) {
	f := p.f
	var cache *leg
	stalled := false
	busy := append(spans(nil), f.claimed...)
	for l := range f.legs {
		switch {
		case l.src.fromPeer():
			busy = busy.add(l.pos, l.end)
		case l.silent(now) > l.src.patience():
			stalled = true
		default:
			cache = l
		}
	}
	if f.all.offload || cache == nil && (stalled || p.cachesFailed()) {
		return span{}, false, true
	}
	if p.lone || cache == nil || cache.got == 0 || !f.all.farGate.open(now) {
		return span{}, false, false
	}
	gap, ok := busy.lastGap(0, f.v.NarSize())
	if !ok {
		return span{}, false, false
	}
	rate := p.far.rates[src.ID()]
	want := int64(farFirst)
	if rate > 0 {
		want = min(max(int64(rate*farTime.Seconds()), farLeast), farMost)
	} else {
		rate = farRate
	}
	cacheRate := float64(cache.got) / max(now.Sub(cache.started).Seconds(), 1e-3)
	if float64(gap.to-cache.pos)/cacheRate < farWorth.Seconds() {
		return span{}, false, false
	}
	run = span{max(gap.from, cache.pos, gap.to-want), gap.to}
	takes := src.RTT().Seconds() + float64(run.len())/rate
	if reached := cache.pos + int64(cacheRate*takes); reached > run.from {
		run.from = reached // the cache will have brought the rest by then
	}
	return run, run.len() >= min(farLeast, gap.len()), false
}

// cachesFailed tells whether every central cache let this flight down.
func (p *plan) cachesFailed() bool {
	for _, up := range p.f.all.finder.upstreams {
		if p.failures[up.URL()] == 0 && !p.excluded[up.URL()] {
			return false
		}
	}
	return true
}

// rated notes how quick an agent beyond the site was.
func (p *plan) rated(l *leg) {
	src, ok := l.src.(farSource)
	if !ok || l.got < farLeast {
		return
	}
	rate := float64(l.got) / max(time.Since(l.started).Seconds(), 1e-3)
	if old := p.far.rates[src.ID()]; old > 0 {
		rate = (old + rate) / 2
	}
	p.far.rates[src.ID()] = rate
}

// A farGate keeps agents beyond the site from making downloads slower: on one link their bytes, which are
// not compressed like the central cache's, may displace more than they bring. It measures the cache alone,
// then both together, and lets the agents help only while that is quicker. mu guards all fields.
type farGate struct {
	mu     sync.Mutex
	since  time.Time // of the present window
	cache  int64     // bytes in it
	far    int64
	state  gateState
	alone  float64       // bytes per second of the central cache without help
	closed time.Duration // how long the next closing lasts
	until  time.Time     // of the present closing
	last   time.Time     // byte counted
}

type gateState uint8

const (
	gateMeasures gateState = iota // the cache alone
	gateTries                     // both
	gateOpen
	gateClosed
)

const (
	gateWindow   = 600 * time.Millisecond // of one measurement
	gateBytes    = 512 << 10              // below which a window says nothing
	gateGain     = 1.1
	gateLeast    = time.Minute // first closing; each further one is twice as long
	gateMost     = time.Hour
	gateStale    = 2 * time.Minute // after which the cache is measured alone again
	gateIdle     = 300 * time.Millisecond
	gateTryAgain = 3 // windows of a try
)

// open tells whether agents beyond the site may help now.
func (g *farGate) open(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.step(now)
	return g.state == gateTries || g.state == gateOpen
}

// count takes note of NAR bytes that came, from the central cache or from beyond the site.
func (g *farGate) count(now time.Time, n int64, far bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.Sub(g.last) > gateIdle { // nothing was on its way: the window says nothing
		g.begin(now)
	}
	g.last = now
	if far {
		g.far += n
	} else {
		g.cache += n
	}
	g.step(now)
}

func (g *farGate) begin(now time.Time) { g.since, g.cache, g.far = now, 0, 0 }

// step closes a window that is long enough and decides; mu is held.
func (g *farGate) step(now time.Time) {
	took := now.Sub(g.since)
	switch {
	case g.state == gateClosed:
		if now.After(g.until) {
			g.state = gateMeasures
			g.begin(now)
		}
		return
	case g.state == gateTries && took < gateTryAgain*gateWindow, took < gateWindow, g.cache+g.far < gateBytes:
		return
	}
	rate := float64(g.cache+g.far) / took.Seconds()
	helped := g.far > 0
	g.begin(now)
	switch g.state {
	case gateMeasures:
		if !helped {
			g.alone, g.state = rate, gateTries
			g.until = now.Add(gateStale)
		}
	case gateTries, gateOpen:
		switch {
		case helped && rate < gateGain*g.alone:
			g.closed = min(max(2*g.closed, gateLeast), gateMost)
			g.state, g.until = gateClosed, now.Add(g.closed)
		case now.After(g.until):
			g.state = gateMeasures
		case helped:
			g.state, g.closed = gateOpen, 0
		}
	}
}
