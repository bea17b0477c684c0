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
	lookFarAfter    = 300 * time.Millisecond // of a central cache without a byte, or whose rate is not known
	farFirst        = 256 << 10              // bytes asked of an agent whose rate is not known
	farLeast        = 64 << 10               // bytes worth a request
	farMost         = 8 << 20
	farTime         = time.Second      // that one request should take
	farRateLife     = 10 * time.Minute // of what was seen of an agent's rate: a slow one must be able to heal
	// farWorth is what help must spare the central cache's link. Below it stopping the cache's answer early costs more:
	// what is on its way already comes in vain, about a fifth of a second of it, and the connection often has to be made anew.
	farWorth = 400 * time.Millisecond
)

// far is what a flight knows of agents beyond the site. mu guards peers and done.
type far struct {
	begun time.Time
	heard bool // candidates know what the look-up brought

	mu    sync.Mutex
	peers []Peer
	done  bool
}

// farRates is how quick agents beyond the site were, over flights. The zero value is ready.
type farRates struct {
	mu   sync.Mutex
	byID map[string]farRate
}

type farRate struct {
	rate float64 // bytes per second
	at   time.Time
}

// of returns an agent's rate, 0 if it is not known, or not any more.
func (r *farRates) of(id string, now time.Time) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.byID[id]; now.Sub(old.at) <= farRateLife {
		return old.rate
	}
	return 0
}

func (r *farRates) note(id string, rate float64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID == nil {
		r.byID = map[string]farRate{}
	}
	for old, o := range r.byID {
		if now.Sub(o.at) > farRateLife {
			delete(r.byID, old)
		}
	}
	if old, ok := r.byID[id]; ok { // one of the last minutes
		rate = (old.rate + rate) / 2
	}
	r.byID[id] = farRate{rate, now}
}

// lookFar begins the look-up, once; from then on it is this machine that downloads for its site.
func (p *plan) lookFar() {
	in := p.f.all.internet
	if in == nil || p.far != nil || p.f.v.Scope() != verify.ScopePublic {
		return
	}
	f := &far{begun: time.Now()}
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

// goUpstream tells whether the central cache may be asked now. Where it is to be spared the look-up begins before.
func (p *plan) goUpstream() bool {
	if p.f.all.offload {
		p.lookFar()
	}
	return !p.awaitsFar()
}

// mindFar begins the look-up where agents beyond the site may be of use: there is no central cache, it does not
// answer, or it needs so long for the rest that help could be worth it. Most NARs are there before that.
func (p *plan) mindFar() {
	all := p.f.all
	if all.internet == nil || p.far != nil {
		return
	}
	if len(all.finder.upstreams) == 0 || p.cachesFailed() {
		p.lookFar()
		return
	}
	now := time.Now()
	p.f.mu.Lock()
	var cache *leg
	for l := range p.f.legs {
		if !l.src.fromPeer() {
			cache = l
		}
	}
	look := false
	if cache != nil && cache.got == 0 {
		look = now.Sub(cache.started) > lookFarAfter
	} else if cache != nil {
		rest := p.f.v.NarSize() - cache.pos
		look = all.farGate.spares(rest/2, 0) >= farWorth || rest > 0 && float64(rest)/cache.rate(now) > 10*farWorth.Seconds()
	}
	p.f.mu.Unlock()
	if look {
		p.lookFar()
	}
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
		case l.hangs(now):
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
	want, rate := int64(farFirst), f.all.farRates.of(src.ID(), now)
	left, cacheRate := gap.to-cache.pos, cache.rate(now)
	if rate > 0 {
		want = min(max(int64(rate*farTime.Seconds()), farLeast), farMost)
	} else {
		rate = cacheRate // at best, so that it is worth finding out
	}
	brings := int64(float64(left) * rate / (rate + cacheRate)) // until the two meet
	if f.all.farGate.spares(brings, cacheRate) < farWorth {
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

// A farGate keeps agents beyond the site from making downloads slower: on one link their bytes may displace better
// compressed ones of the central cache. It measures the cache alone, as sent, for how well NARs compress differs; then both
// together, and lets the agents help only while they bring more than they displace. mu guards all fields.
type farGate struct {
	mu     sync.Mutex
	since  time.Time // of the present window
	wire   int64     // bytes in it from the central cache, as sent
	cache  int64     // and of NARs
	far    int64     // NAR bytes from beyond the site
	looks  int       // windows of this measurement
	state  gateState
	alone  float64       // bytes per second of the central cache without help, as sent
	nars   float64       // and of NARs
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
	gateBytes    = 128 << 10              // of NARs, below which a window says nothing
	gateLooks    = 2                      // windows of the cache alone, of which the best counts
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

// spares estimates how much of the central cache's time n NAR bytes are; least is a rate, in bytes per second, that
// it was seen to have in any case. 0 while nothing was measured.
func (g *farGate) spares(n int64, least float64) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.nars == 0 {
		return 0
	}
	return time.Duration(float64(n) / max(g.nars, least) * float64(time.Second))
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

// wired takes note of bytes that came from the central cache, as sent.
func (g *farGate) wired(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wire += n
}

func (g *farGate) begin(now time.Time) { g.since, g.wire, g.cache, g.far = now, 0, 0, 0 }

// step closes a window that is long enough and decides; mu is held.
func (g *farGate) step(now time.Time) {
	took := now.Sub(g.since)
	switch {
	case g.state == gateClosed:
		if now.After(g.until) {
			g.measure(now)
		}
		return
	case g.state == gateTries && took < gateTryAgain*gateWindow, took < gateWindow, g.cache+g.far < gateBytes:
		return
	}
	wire, nars, both := float64(g.wire)/took.Seconds(), float64(g.cache)/took.Seconds(), float64(g.cache+g.far)/took.Seconds()
	helped := g.far > 0
	g.begin(now)
	switch g.state {
	case gateMeasures:
		if helped {
			return
		}
		g.alone, g.nars = max(g.alone, wire), max(g.nars, nars)
		if g.looks++; g.looks == gateLooks {
			g.state, g.until = gateTries, now.Add(gateStale)
		}
	case gateTries, gateOpen:
		without := g.nars // what the cache would have brought
		if wire > 0 && nars > 0 {
			without = g.alone * nars / wire
		}
		switch {
		case helped && both < gateGain*without:
			g.closed = min(max(2*g.closed, gateLeast), gateMost)
			g.state, g.until = gateClosed, now.Add(g.closed)
		case now.After(g.until):
			g.measure(now)
		case helped:
			g.state, g.closed = gateOpen, 0
		}
	}
}

// measure begins to measure the cache alone; mu is held.
func (g *farGate) measure(now time.Time) {
	g.state, g.alone, g.nars, g.looks = gateMeasures, 0, 0, 0
	g.begin(now)
}
