package substituter

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

const (
	// chainSoon is how long sources work from the NAR's end on in the hope of a chain; it is there at once
	// where the peer has it, and takes a second per GiB or two where it has to be computed.
	chainSoon = 300 * time.Millisecond
	// chainPatience is how long nothing is given up while a chain may come; then it may still come.
	chainPatience = 2 * time.Second
	chainTimeout  = 12 * time.Second // of one question
	chunkTries    = 4                // senders of one chunk before a mere claim
	provenTries   = 16               // and before a proven state
	asideMost     = 16               // chunks kept as evidence; who sent others only loses its place
	// So many chunks are fetched anew before it is known whether that helps: perhaps the claims are wrong.
	asideTrial = 2
	askMost    = 16 // peers that are asked for chains
	// A source is given so much at once as it brings in runTime, within bounds; the first time runFirst.
	runTime  = 300 * time.Millisecond
	runFirst = 2 * verify.ChunkSize
	runMost  = 16 * verify.ChunkSize
)

// asking is a flight's search for chains. Only the run goroutine uses it; answers go to flight.swarm.
type asking struct {
	wg    sync.WaitGroup
	asked map[string]bool // sources, by name
	last  time.Time       // of the last question
	open  chan struct{}   // closed when the last question was answered; nil before the first
	rates map[string]float64
}

// wholePeers returns the sources that are peers and have all of the NAR, those that did not fail first.
func (p *plan) wholePeers(from []source) (out []peerSource) {
	for _, s := range from {
		peer, ok := s.(peerSource)
		if far, beyond := s.(farSource); beyond {
			peer, ok = far.peerSource, true
		}
		if ok && !p.excluded[s.name()] {
			out = append(out, peer)
		}
	}
	slices.SortStableFunc(out, func(a, b peerSource) int { return cmp.Compare(p.failures[a.name()], p.failures[b.name()]) })
	return out
}

// waitingForChain tells whether the last question for a chain may well be answered soon.
func (p *plan) waitingForChain(patience time.Duration) bool {
	if p.ask.open == nil || time.Since(p.ask.last) > patience {
		return false
	}
	select {
	case <-p.ask.open:
		return false
	default:
		return true
	}
}

// askChain asks a peer that was not asked before for a chain; false if there is none.
func (p *plan) askChain(ctx context.Context) bool {
	f := p.f
	f.mu.Lock()
	enough := f.swarm.over || len(f.swarm.claims) >= verify.MaxClaims
	f.mu.Unlock()
	if enough || f.v.NarSize() < chainLeast || len(p.ask.asked) >= askMost {
		return false
	}
	for _, src := range p.wholePeers(p.candidates()) {
		if p.ask.asked[src.name()] {
			continue
		}
		open := make(chan struct{})
		p.ask.asked[src.name()], p.ask.last, p.ask.open = true, time.Now(), open
		p.ask.wg.Go(func() {
			defer close(open)
			f.askChain(ctx, src)
		})
		return true
	}
	return false
}

func (f *flight) askChain(ctx context.Context, src peerSource) {
	ctx, cancel := context.WithTimeout(ctx, chainTimeout)
	defer cancel()
	chain, err := src.Chain(ctx, f.hash, f.v.NarHash(), f.v.NarSize())
	if err == nil && len(chain) != verify.Chunks(f.v.NarSize())-1 {
		err = errors.New("chain of the wrong length")
	}
	if err != nil {
		f.all.log.Debug("no chain", "source", src.name(), "err", err)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swarm.answers++
	same := func(c verify.Chain) bool { return slices.Equal(c, chain) }
	if len(f.swarm.claims) < verify.MaxClaims && !slices.ContainsFunc(f.swarm.claims, same) {
		f.swarm.claims = append(f.swarm.claims, chain)
		f.broadcast()
	}
}

// swarming tells whether peers bring the NAR from its end on, in runs, since that is the way in which it
// can be proven. What they bring is not for Nix before all is, so that their order is free.
func (p *plan) swarming() bool {
	if p.lone || p.f.v.NarSize() < chainLeast {
		return false
	}
	p.f.mu.Lock()
	claims, over := len(p.f.swarm.claims), p.f.swarm.over
	p.f.mu.Unlock()
	return !over && (claims > 0 || p.waitingForChain(chainSoon)) || p.prefixing
}

// seekChain asks for a first chain where several sources can make use of it, and for another one where
// the first does not come.
func (p *plan) seekChain(ctx context.Context) {
	p.f.mu.Lock()
	claims := len(p.f.swarm.claims)
	p.f.mu.Unlock()
	if claims > 0 || p.lone || p.f.v.NarSize() < chainLeast || p.waitingForChain(chainPatience) {
		return
	}
	sources := 0
	for _, s := range p.sources {
		if s.fromPeer() && !p.excluded[s.name()] {
			sources++
		}
	}
	if sources > 1 {
		p.askChain(ctx)
	}
}

// tailRun is the next run of missing bytes for a source, from the end on and by whole chunks; so much as
// it brings in a while, and little enough that all sources end at the same time.
func (p *plan) tailRun(src peerSource, busy spans) (span, bool) {
	size := p.f.v.NarSize()
	g, ok := busy.lastGap(0, size)
	if !ok {
		return g, false
	}
	n := int64(runFirst)
	if rate := p.ask.rates[src.name()]; rate > 0 {
		n = int64(rate * max(runTime, 20*src.RTT()).Seconds())
	}
	left := size
	for _, b := range busy {
		left -= b.len()
	}
	n = max(min(n, runMost, left/int64(2*max(p.wholes, 1))), verify.ChunkSize)
	last := (g.to - 1) / verify.ChunkSize // chunk
	from := (last - (n/verify.ChunkSize - 1)) * verify.ChunkSize
	return span{max(g.from, from), g.to}, true
}

// endgame helps the leg that needs longest when nothing is missing that nobody brings: with half of what
// it has left, or, when that is little and still takes it longer than worth, with the same bytes once more. mu is held.
func (p *plan) endgame(l, victim *leg, now time.Time, worth time.Duration) *leg {
	if victim != nil {
		return l.halve(victim)
	}
	for other := range p.f.legs {
		n := other.end - other.pos
		slow := float64(n)/other.rate(now) > worth.Seconds() && now.Sub(other.started) > worth
		if other.src.fromPeer() && !other.double && !other.doubled && n > 0 && n < stealLeast && slow {
			l.pos, l.end, l.double, other.doubled = other.pos, other.end, true, true
			return l
		}
	}
	return nil
}

// peersSuffice tells whether peers that have all of it are at work, so that the central cache need not be;
// mu is held.
func (p *plan) peersSuffice(now time.Time) bool {
	atWork := false
	for l := range p.f.legs {
		if !l.src.fromPeer() && p.prefixing {
			return true // one is enough
		}
		_, whole := l.src.(peerSource)
		atWork = atWork || whole && !l.hangs(now)
	}
	return atWork && !p.prefixing
}

// watchFirstByte looks whether a NAR comes so slowly from peers that have all of it that the central cache
// would long have brought it, or that Nix would give up before the whole is verified: then a central cache
// streams it from the front on, and peers bring it from the end on.
func (p *plan) watchFirstByte() {
	f := p.f
	elapsed := time.Since(p.begun)
	if p.prefixing || p.lone || p.wholes == 0 || f.v.NarSize() < chainLeast || elapsed < min(helpLeast, f.all.firstByte/8) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var got int64
	for _, w := range f.written {
		got += w.len()
	}
	whole := time.Duration(float64(elapsed) * float64(f.v.NarSize()) / float64(max(got, 1)))
	waits := f.asked && elapsed >= f.all.firstByte/8 && whole >= f.all.firstByte
	if f.hold || f.prefix > 0 || !waits && !(p.tail && got > 0 && elapsed >= helpLeast && whole-elapsed > p.tooLong()) {
		return
	}
	p.prefixing = true
	for l := range f.legs { // what these have left is not to be in the upstream's way
		if _, to := verify.ChunkRange(int(l.pos/verify.ChunkSize), f.v.NarSize()); l.src.fromPeer() && l.pos < l.end {
			l.end = min(l.end, to)
		}
	}
}
