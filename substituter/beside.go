package substituter

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Asking the central cache although a neighbour has a NAR, or has claimed it, costs the site bytes twice.
// It is right where the neighbour is dead or much slower; it is counted always.
const (
	// Neighbours are too slow if the central cache, by what is left of the uplink, would be so many times
	// quicker, and it matters.
	followRatio = 3
	slowLeast   = 700 * time.Millisecond
	slowTurn    = time.Second // further for each follower that comes before: one tries, not all
	// Whether it pays shows after trialTime. Where it did not, the next trial waits, longer each time.
	trialTime  = 1500 * time.Millisecond
	trialLeast = 300 * time.Millisecond
	trialPause = 30 * time.Second
	trialMost  = 2 * time.Minute
	// Where one NAR is all that the uplink carries, nobody knows whether it or the machine that fetches it is
	// what is slow. The first of those that follow tries it after probeAfter, if more than probeLeft is still to come; not one that
	// lately got NARs from the central cache itself, no more quickly than would be needed.
	probeAfter = 8 * time.Second
	probeLeft  = 20 * time.Second
	// Of two machines whose claims crossed one gives up if it misses more than this, bytes.
	yieldLeast = 256 << 10
)

// Beside counts the NARs that were asked of the central cache although a neighbour had them or had
// claimed them, by why.
type Beside struct {
	Crossed atomic.Int64 // both claimed it at the same moment
	Silent  atomic.Int64 // none of its bytes came for claimPatience or more, or none of anybody's
	Slow    atomic.Int64 // its bytes came much more slowly than the central cache's would
}

// trials is a machine's experience with asking the central cache beside slow neighbours: one NAR at a
// time, and further ones freely once it paid. Safe for concurrent use.
type trials struct {
	mu    sync.Mutex // guards all below
	on    *plan      // the one under way
	paid  bool       // the latest one did
	next  time.Time  // before it none begins, after one that did not pay
	pause time.Duration
}

// may tells whether p's NAR may be asked for beside.
func (t *trials) may(p *plan) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.paid || t.on == p || t.on == nil && time.Now().After(t.next)
}

func (t *trials) begin(p *plan) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on == nil {
		t.on = p
	}
}

// end takes note of how a trial went.
func (t *trials) end(p *plan, paid, verdict bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.on == p {
		t.on = nil
	}
	switch {
	case !verdict:
	case paid:
		t.paid, t.pause = true, 0
	default:
		t.paid, t.pause = false, min(max(2*t.pause, trialPause), trialMost)
		t.next = time.Now().Add(t.pause)
	}
}

// try is one NAR's part in the trials.
type try struct {
	since       time.Time // zero: none
	probe       bool      // how quickly neighbours got it until then counts, not what they send: soon they have it from here
	wire, peers int64     // that came before; with probe, what that neighbour had that had most
}

// startTry begins to watch whether the central cache is the quicker one.
func (p *plan) startTry() {
	if p.try.since.IsZero() {
		p.f.all.trials.begin(p)
		p.f.mu.Lock()
		p.try.since, p.try.wire, p.try.peers = time.Now(), p.f.wireGot.Load(), p.f.peersGot
		p.f.mu.Unlock()
		if p.try.probe {
			p.try.peers = p.mostHeld()
		}
	}
}

// weigh ends a trial that has lasted long enough, or with over any; where it does not pay the central
// cache is left to whoever came first.
func (p *plan) weigh(over bool) {
	lasted := time.Since(p.try.since)
	if p.try.since.IsZero() || lasted < trialTime && !over {
		return
	}
	p.f.mu.Lock()
	peers := p.f.peersGot - p.try.peers
	wire := p.f.wireGot.Load() - p.try.wire
	p.f.mu.Unlock()
	if p.try.probe {
		peers = int64(float64(p.try.peers) * float64(lasted) / float64(p.try.since.Sub(p.begun)))
	}
	upstream := float64(wire) * float64(p.f.v.NarSize()) / float64(p.f.wireSize())
	paid := upstream > followRatio*float64(peers)
	p.f.all.trials.end(p, paid, lasted > trialLeast)
	p.try = try{}
	switch {
	case over:
	case paid && p.claim.stage != StageNone:
		p.enter(StageFetching)
	case !paid && p.leaveUpstream():
		p.claim.beside = false
		if p.claim.stage == StageFetching {
			p.enter(StageFollowing)
		}
	}
}

// beside notes that the central cache is asked although a neighbour has claimed the NAR.
func (p *plan) beside(why string, count *atomic.Int64) {
	count.Add(1)
	p.claim.beside = true
	p.f.all.log.Debug("asking upstream beside a neighbour", "why", why, "bytes", p.f.v.NarSize())
}

// yield gives the central cache up where a neighbour that outranks this machine asks it too: their
// claims crossed. Who has much more than the other goes on, and the bytes that both get are counted all the same; what is nearly
// done is finished.
func (p *plan) yield() {
	s := p.site()
	if s == nil || p.claim.stage != StageFetching || p.claim.beside {
		return
	}
	p.f.mu.Lock()
	got := p.f.held()
	p.f.mu.Unlock()
	for _, n := range s.Flying(p.digest) {
		if n.Stage != StageFetching || p.claim.ignored[n.Peer.ID()] || !outranks(p.digest, n.Peer.ID(), s.Self()) || !p.moving(n) {
			continue
		}
		if !p.claim.crossed {
			p.beside("crossed", &p.f.all.stats.Beside.Crossed)
			p.claim.beside, p.claim.crossed = false, true
		}
		if 2*n.held(p.f.v.NarSize()) < got {
			continue
		}
		if p.claim.beside = !p.leaveUpstream(); !p.claim.beside {
			p.claim.crossed = false
			p.enter(StageFollowing)
		}
		return
	}
}

// leaveUpstream ends the legs that ask the central cache, unless little is missing.
func (p *plan) leaveUpstream() bool {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if left := p.f.v.NarSize() - p.f.held(); left < yieldLeast {
		return false
	}
	for l := range p.f.legs {
		if !l.src.fromPeer() {
			l.dismissed = true
			l.cancel()
		}
	}
	return true
}

// held is how many bytes are in the spool; mu is held.
func (f *flight) held() (sum int64) {
	for _, w := range f.written {
		sum += w.len()
	}
	return sum
}

// held is how many bytes of a NAR of size bytes a neighbour says that it has.
func (n Flying) held(size int64) (sum int64) {
	for _, h := range n.Held {
		sum += max(0, min(h[1], size)-h[0])
	}
	return sum
}

// tooSlow tells whether the neighbours' bytes come so slowly that the central cache should be asked too: never for
// what nobody waits for, nor by an agent that may be what is slow.
func (p *plan) tooSlow() bool {
	elapsed := time.Since(p.begun)
	waited := min(elapsed, p.f.waited())
	if p.claim.stage != StageFollowing || p.f.ahead() || waited < slowLeast || p.f.all.uplink.overloaded() || !p.f.all.trials.may(p) {
		return false
	}
	upstream, room := p.f.all.uplink.estimate(p.f.wireSize())
	p.f.mu.Lock()
	got, size := p.f.held()+p.unasked(), p.f.v.NarSize()
	p.f.mu.Unlock()
	rate := float64(max(got, 1)) / elapsed.Seconds()
	left := time.Duration(float64(size-got) / rate * float64(time.Second))
	if room {
		return left > followRatio*upstream+slowLeast && waited > slowLeast+time.Duration(p.before())*slowTurn
	}
	p.try.probe = elapsed > probeAfter && left > max(probeLeft, followRatio*p.f.upstreamTakes(size, math.Inf(1))) &&
		p.f.all.uplink.carriesLittleBeside(rate*float64(p.f.wireSize())/float64(size)) && p.before() == 0
	return p.try.probe
}

// mostHeld is how many bytes that neighbour has that has most.
func (p *plan) mostHeld() (most int64) {
	for _, n := range p.flying() {
		most = max(most, n.held(p.f.v.NarSize()))
	}
	return most
}

// before is how many neighbours that follow, too, rank before this machine.
func (p *plan) before() (n int) {
	s := p.site()
	if s == nil {
		return 0
	}
	for _, o := range s.Flying(p.digest) {
		if o.Stage == StageFollowing && outranks(p.digest, o.Peer.ID(), s.Self()) {
			n++
		}
	}
	return n
}

// wireSize is how many bytes a central cache sends for the NAR, as far as is known.
func (f *flight) wireSize() int64 {
	if _, _, size := f.v.Source(); size > 0 {
		return size
	}
	return f.v.NarSize()
}
