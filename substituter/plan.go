package substituter

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

const (
	triesPerSource = 2                      // failures of one source in one flight
	maxMismatches  = 6                      // of one flight; after that it is given up
	roundPause     = 300 * time.Millisecond // before all sources are tried once more
	roundsMost     = 3
	maxLegs        = 8
	// Half of what a leg has left goes to an idle source if it is more than this, in bytes and in time.
	stealLeast = 512 << 10
	stealTime  = 60 * time.Millisecond
	firstRate  = 100e6 // bytes per second, before a leg brought anything
	// A central cache is called in beside a peer that is slower by followRatio, not before helpLeast; helpRate
	// stands for the cache's bytes per second until they were measured.
	helpLeast = 500 * time.Millisecond
	helpRate  = 1 << 20
	// Without a byte for this long a flight that has shown Nix nothing ends: the next substituter is the
	// better chance. One that has shown bytes holds on, since an abort costs Nix the whole NAR.
	limitUnseen = 4500 * time.Millisecond
	limitSeen   = 60 * time.Second
)

// plan chooses a flight's sources. Only the flight's run goroutine uses it.
type plan struct {
	f        *flight
	failures map[string]int // by source name
	excluded map[string]bool
	tries    []failedTry
	lone     bool // after a mismatch of several sources: one source alone, a fresh one first
	round    int
	resume   time.Time // start of the next round
	last     error
	digest   verify.PathDigest
	claim    claim
	far      *far     // nil until agents beyond the site are looked for
	near     []Flying // neighbours' progress, as of this round of scheduling
}

func newPlan(f *flight) *plan {
	return &plan{
		f: f, failures: map[string]int{}, excluded: map[string]bool{}, digest: f.hash.Digest(),
		claim: claim{grown: map[string]growth{}},
	}
}

// candidates returns the sources in the order in which they should be tried.
func (p *plan) candidates() []source {
	var list, slow []source
	whole := map[string]bool{}
	for _, peer := range p.f.all.finder.peers.Holders(p.digest, p.f.v.NarSize()) {
		whole[peer.ID()] = true
		if peer.Cost(p.f.v.NarSize()) > p.tooLong() {
			slow = append(slow, peerSource{peer})
			continue
		}
		list = append(list, peerSource{peer})
	}
	for _, n := range p.near {
		switch {
		case whole[n.Peer.ID()]:
		case n.Stage == StageLanded:
			list = append(list, peerSource{n.Peer})
		case p.lone: // its bytes are unverified by nature, and somebody's were wrong
		case len(n.Held) > 0:
			held := spans{}
			for _, h := range n.Held {
				held = held.add(max(0, h[0]), min(h[1], p.f.v.NarSize()))
			}
			list = append(list, partialSource{peerSource{n.Peer}, held})
		}
	}
	var beyond []source
	for _, peer := range p.farPeers() {
		beyond = append(beyond, farSource{peerSource{peer}})
	}
	if p.f.all.offload {
		list, beyond = append(list, beyond...), nil
	}
	var last []source
	all, now := p.f.all, p.f.all.now()
	for _, up := range all.records.order(all.finder.records.order(all.finder.upstreams, now), now) {
		if s := (upstreamSource{up, p.f.all}); s.distrusted() {
			last = append(last, s)
		} else {
			list = append(list, s)
		}
	}
	return slices.Concat(list, beyond, slow, last)
}

// tooLong is how long a peer may need for the whole NAR before the central cache is the better choice.
func (p *plan) tooLong() time.Duration {
	rate := p.f.all.upstreamRate.Load()
	if rate == 0 {
		rate = helpRate
	}
	return followRatio * (helpLeast + time.Duration(float64(p.f.v.NarSize())/float64(rate)*float64(time.Second)))
}

// ready returns the sources that are not at work, the most promising first.
func (p *plan) ready() []source {
	if time.Now().Before(p.resume) {
		return nil
	}
	busy := map[string]bool{}
	p.f.mu.Lock()
	for l := range p.f.legs {
		busy[l.src.name()] = true
	}
	p.f.mu.Unlock()
	var byTries [triesPerSource][]source
	for _, s := range p.candidates() {
		name := s.name()
		failed := p.failures[name]
		if p.lone && p.contributed(name) {
			failed++ // a source that is above suspicion first
		}
		if !busy[name] && !p.excluded[name] && failed < triesPerSource {
			byTries[failed] = append(byTries[failed], s)
		}
	}
	return slices.Concat(byTries[:]...)
}

// schedule starts legs where bytes are missing that nobody is bringing, beside legs that have gone
// silent, and where a leg has so much left that another source should take half of it.
func (p *plan) schedule(start func(*leg)) {
	p.dismiss()
	p.yield()
	p.near = p.flying()
	if len(p.f.all.finder.upstreams) == 0 {
		p.lookFar()
	}
	for _, src := range p.ready() {
		l := p.assign(src)
		if l == nil || !src.fromPeer() && !(p.mayAskUpstream() && p.goUpstream()) {
			continue
		}
		p.f.mu.Lock()
		p.f.legs[l] = true
		p.f.mu.Unlock()
		start(l)
	}
}

// assign finds work for a source, nil if there is none.
func (p *plan) assign(src source) *leg {
	f := p.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.legs) >= maxLegs {
		return nil
	}
	now := time.Now()
	busy := append(spans(nil), f.claimed...)
	var victim *leg // the leg that needs longest, if it needs long
	most := stealTime
	for l := range f.legs {
		if l.silent(now) > l.src.patience() {
			continue // somebody else should try its bytes
		}
		busy = busy.add(l.pos, l.end)
		if left := l.left(now); left > most {
			victim, most = l, left
		}
	}
	l := &leg{src: src, started: now}
	if part, ok := src.(partialSource); ok {
		run, ok := pickPartial(part, busy, p.near)
		l.pos, l.end = run.from, run.to
		if !ok {
			return nil
		}
		return l
	}
	if src, ok := src.(farSource); ok {
		run, ok, ordinary := p.assignFar(src, now)
		if ok {
			l.pos, l.end = run.from, run.to
			return l
		}
		if !ordinary {
			return nil
		}
	}
	if g, ok := busy.gap(0, f.v.NarSize()); ok {
		l.pos, l.end = g.from, g.to
		if !src.seeks() {
			l.end = f.v.NarSize() // it passes by everything anyway
		}
		return l
	}
	if p.lone || victim == nil || !src.seeks() && !p.tooSlowFor(victim, most) {
		return nil
	}
	if !src.seeks() { // it passes by everything, and the slow one's bytes with it
		victim.slow = true
		l.pos, l.end = 0, f.v.NarSize()
		return l
	}
	middle := (victim.pos + victim.end) / 2
	l.pos, l.end = middle, victim.end
	victim.end = middle
	return l
}

// tooSlowFor tells whether the central cache would have brought the whole NAR long before a peer brings
// what it has left. mu is held.
func (p *plan) tooSlowFor(victim *leg, left time.Duration) bool {
	if _, partial := victim.src.(partialSource); partial || !victim.src.fromPeer() || victim.got == 0 || time.Since(victim.started) < helpLeast {
		return false // following others has its own rule
	}
	return left > p.tooLong()
}

// left estimates how long a leg still needs, 0 if it is not worth helping; flight.mu is held.
func (l *leg) left(now time.Time) time.Duration {
	n := l.end - l.pos
	if n < stealLeast {
		return 0
	}
	rate := firstRate
	if l.got > 0 {
		rate = float64(l.got) / max(now.Sub(l.started).Seconds(), 1e-3)
	}
	return time.Duration(float64(n) / rate * float64(time.Second))
}

// dismiss ends legs whose next byte came from elsewhere.
func (p *plan) dismiss() {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	for l := range p.f.legs {
		if l.src.seeks() && p.f.claimed.has(l.pos) && l.pos < l.end || !l.src.seeks() && !p.useful(l) {
			l.dismissed = true
			l.cancel()
		}
	}
}

// useful tells whether a leg that cannot skip has anything left to bring; mu is held.
func (p *plan) useful(l *leg) bool {
	_, ok := p.f.claimed.gap(l.pos, l.end)
	return ok
}

func (p *plan) contributed(name string) bool {
	for _, t := range p.tries {
		for _, part := range t.parts {
			if part.src.name() == name {
				return true
			}
		}
	}
	return false
}

// another starts a new round of tries after a pause; false if there were enough.
func (p *plan) another() bool {
	if time.Now().Before(p.resume) {
		return true
	}
	if a := p.f.all; a.now().Sub(a.finder.started) < startGrace {
		p.resume = time.Now().Add(startPoll) // neighbours are still being found again
		clear(p.failures)
		return true
	}
	if p.round++; p.round > roundsMost || p.allAbsent() {
		return false
	}
	clear(p.failures)
	p.resume = time.Now().Add(roundPause)
	return true
}

// allAbsent tells whether nobody is left who could have it.
func (p *plan) allAbsent() bool {
	for _, s := range p.candidates() {
		if !p.excluded[s.name()] && p.failures[s.name()] < absentWeight {
			return false
		}
	}
	return true
}

// absentWeight is what a definite no counts for: more than all other failures.
const absentWeight = 100

// limit is how long the flight may go without a byte.
func (p *plan) limit() time.Duration {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if p.f.served > 0 {
		return limitSeen
	}
	return max(limitUnseen-p.f.spent, limitUnseen/2)
}

// ended takes note of how a leg went. One that was silent when its bytes came from elsewhere is to
// blame; one that merely came second is not.
func (p *plan) ended(l *leg, err error) {
	p.rated(l)
	if err == nil {
		return
	}
	if l.got > 0 {
		p.f.all.stats.Switched.Add(1)
	}
	name := l.src.name()
	if l.dismissed {
		p.f.mu.Lock()
		trouble := l.trouble(time.Now())
		p.f.mu.Unlock()
		if trouble != nil {
			p.failures[name]++
			l.src.flaky(trouble)
		}
		return
	}
	if errors.Is(err, ErrAbsent) {
		p.failures[name] += absentWeight
	} else {
		p.failures[name]++
	}
	p.last = err
	l.src.flaky(err)
}

// trouble is what to say of a leg that was not needed in the end, nil if nothing; mu is held.
func (l *leg) trouble(now time.Time) error {
	age := now.Sub(l.started)
	switch silent := l.silent(now); {
	case silent > l.src.patience():
		return fmt.Errorf("silent for %v after %d bytes", silent.Round(time.Millisecond), l.got)
	case l.slow:
		return fmt.Errorf("slow: %d bytes in %v", l.got, age.Round(time.Millisecond))
	}
	return nil
}

// dropLegs ends what is still under way when it does not matter any more. It waits for nothing but bytes
// on their way into the spool: a leg whose source does not let go ends in its own time.
func (p *plan) dropLegs() {
	f, now := p.f, time.Now()
	type blame struct {
		src source
		err error
	}
	var blamed []blame
	f.mu.Lock()
	for l := range f.legs {
		if trouble := l.trouble(now); trouble != nil {
			blamed = append(blamed, blame{l.src, trouble})
		}
	}
	f.legs = map[*leg]bool{}
	for f.writing > 0 {
		changed := f.changed
		f.mu.Unlock()
		<-changed
		f.mu.Lock()
	}
	f.mu.Unlock()
	for _, b := range blamed {
		b.src.flaky(b.err)
	}
}

func (p *plan) failure() error {
	if p.last == nil {
		return errNoSource
	}
	return fmt.Errorf("%w: %w", errNoSource, p.last)
}

// blame follows a mismatch. A sole sender is guilty; among several, the right bytes will tell.
func (p *plan) blame(t failedTry) error {
	p.tries = append(p.tries, t)
	clear(p.failures)
	sole := true
	for _, part := range t.parts {
		sole = sole && part.src.name() == t.parts[0].src.name()
	}
	if sole && len(t.parts) > 0 {
		p.excluded[t.parts[0].src.name()] = true
		t.parts[0].src.convict(t.err)
	} else {
		p.lone = true
	}
	if len(p.tries) >= maxMismatches {
		return fmt.Errorf("%w: %w", errNoSource, t.err)
	}
	return nil
}

// acquit compares failed tries with the verified bytes: whoever sent other ones is guilty, the others
// are not. It also tells whether readers were shown wrong bytes.
func (p *plan) acquit() error {
	f := p.f
	f.mu.Lock()
	served := f.served
	f.mu.Unlock()
	for i, t := range p.tries {
		for _, part := range t.parts {
			same, err := sameBytes(t.spool, f.spool, part.from, part.to)
			if err != nil {
				return err
			}
			if !same && !p.excluded[part.src.name()] {
				p.excluded[part.src.name()] = true
				part.src.convict(t.err)
			}
		}
		if i == 0 && served > 0 { // only before the first mismatch was anything shown unverified
			same, err := sameBytes(t.spool, f.spool, 0, served)
			if err != nil {
				return err
			}
			f.mu.Lock()
			f.poisoned = !same
			f.mu.Unlock()
		}
	}
	for _, part := range f.parts {
		part.src.good()
	}
	return nil
}

// close hands the evidence over to be dropped with the flight.
func (p *plan) close() {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	for _, t := range p.tries {
		p.f.trash = append(p.f.trash, t.spool)
	}
}

// failedTry is a NAR put together from sources of which one lied.
type failedTry struct {
	spool *spool
	parts []part
	err   error
}

// sameBytes compares [from, to) of two spools.
func sameBytes(a, b *spool, from, to int64) (bool, error) {
	const step = 64 << 10
	var x, y [step]byte
	for off := from; off < to; off += step {
		n := min(step, to-off)
		if err := a.readAt(x[:n], off); err != nil {
			return false, err
		}
		if err := b.readAt(y[:n], off); err != nil {
			return false, err
		}
		if !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
	}
	return true, nil
}
