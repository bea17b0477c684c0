package substituter

import (
	"context"
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
	helpFloor = 64 << 10 // bytes per second, below which a second central cache is called in beside the first
)

// plan chooses a flight's sources. Only the flight's run goroutine uses it.
type plan struct {
	f         *flight
	failures  map[string]int       // by source name, in this round
	letDown   map[string]time.Time // when a source last failed
	excluded  map[string]bool
	tries     []failedTry
	lone      bool // after a mismatch of several sources: one source alone, a fresh one first
	round     int
	resume    time.Time // start of the next round
	last      error
	digest    verify.PathDigest
	claim     claim
	far       *far     // nil until agents beyond the site are looked for
	near      []Flying // neighbours' progress, and all sources in order, as of this round of scheduling
	sources   []source
	ask       asking
	wrong     error     // the whole is known to be wrong; chunks are being looked at
	begun     time.Time // of the flight
	prefixing bool      // an upstream streams to Nix from the front on while peers bring the rest
	// As of this round of scheduling: whether peers work from the end on, how many have all of it, and who
	// sent chunks that misfit.
	tail    bool
	wholes  int
	suspect map[string]spans
	heard   time.Time // of the latest news that ended a wait
	whole   bool      // neighbours that are still fetching are asked for whole chunks only
	try     try       // whether the central cache beside a neighbour pays
	wired   lately    // what central caches sent for this flight
}

func newPlan(f *flight) *plan {
	return &plan{
		f: f, failures: map[string]int{}, letDown: map[string]time.Time{}, excluded: map[string]bool{}, digest: f.hash.Digest(),
		claim: claim{grown: map[string]growth{}, ignored: map[string]bool{}}, begun: time.Now(),
		ask: asking{asked: map[string]bool{}, rates: map[string]float64{}},
	}
}

// candidates returns the sources in the order in which they should be tried.
func (p *plan) candidates() []source {
	var list []source
	whole, able := map[string]bool{}, p.upstreamAble()
	for _, peer := range p.f.all.laggards.last(p.f.all.finder.peers.Holders(p.digest, p.f.v.NarSize())) {
		whole[peer.ID()] = true
		if able && !p.announced(peer.ID()) && p.passes(peer) {
			continue
		}
		list = append(list, peerSource{peer})
	}
	for _, n := range p.near {
		switch {
		case whole[n.Peer.ID()], n.Suspect:
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
	return slices.Concat(list, beyond, last)
}

// tooLong is how long a peer may need for the whole NAR before the central cache is the better choice.
func (p *plan) tooLong() time.Duration {
	return followRatio * (helpLeast + p.f.upstreamTakes(p.f.v.NarSize(), helpRate))
}

// ready returns the sources that are not at work, the most promising first.
func (p *plan) ready() []source {
	if time.Now().Before(p.resume) {
		return nil
	}
	busy, hanging := p.engaged()
	var again []source
	var byTries [triesPerSource][]source
	candidates := p.sources
	shunned := p.shunned(candidates)
	for _, s := range candidates {
		name := s.name()
		failed := p.failures[name]
		if p.lone && p.contributed(name) {
			failed++ // a source that is above suspicion first
		}
		if hanging[name] && !p.excluded[name] && failed < triesPerSource {
			again = append(again, s)
		}
		if !busy[name] && !p.excluded[name] && !shunned[name] && failed < triesPerSource {
			byTries[failed] = append(byTries[failed], s)
		}
	}
	return append(slices.Concat(byTries[:]...), again...)
}

// advance goes on with fetching, as long as bytes are missing. It fails when nothing is left to try.
func (p *plan) advance(ctx context.Context, start func(*leg), running int) error {
	finished, silence := p.f.look()
	p.wired.grown(time.Now(), p.f.wireGot.Load())
	if finished {
		p.dismiss()
		p.tell()
		return nil
	}
	begun := false
	p.schedule(ctx, func(l *leg) { begun = true; start(l) })
	p.tell()
	if running == 0 && !begun && !p.waiting() && !p.another() {
		return p.failure()
	}
	silence = min(silence, p.f.waited())
	if p.claim.stage == StageFetching || p.claim.stage == StageClaiming { // a follower that takes over has only just begun
		silence = min(silence, time.Since(p.claim.at))
	}
	if silence > lateSilence && silence > p.limit() || p.late(silence) {
		return fmt.Errorf("%w: no byte for %v", errNoSource, silence.Round(time.Millisecond))
	}
	return nil
}

// schedule starts legs where bytes are missing that nobody is bringing, beside legs that have gone
// silent, and where a leg has so much left that another source should take half of it.
func (p *plan) schedule(ctx context.Context, start func(*leg)) {
	p.dismiss()
	p.yield()
	p.weigh(false)
	p.near = p.flying()
	p.waitForChunks()
	p.mindFar()
	p.mindLaggards()
	p.sources = p.candidates()
	p.seekChain(ctx)
	p.watchFirstByte()
	p.tail, p.wholes, p.suspect = p.swarming(), len(p.wholePeers(p.sources)), p.suspects()
	for _, src := range p.ready() {
		l := p.assign(src)
		if l == nil || !src.fromPeer() && !(p.mayAskUpstream() && p.goUpstream()) {
			continue
		}
		p.begin(l)
		start(l)
	}
}

// begin counts a leg among those at work.
func (p *plan) begin(l *leg) {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	p.f.legs[l] = true
	if peer, ok := l.src.(peerSource); ok {
		l.before = p.f.all.laggards.count(peer.ID(), 0)
	}
	l.seen = p.f.see(l)
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
	busy, victim, most := p.atWork(src, now)
	l := &leg{src: src, started: now}
	if whole, ok := src.(peerSource); ok && p.tail {
		if run, ok := p.tailRun(whole, busy); ok {
			l.pos, l.end = run.from, run.to
			return l
		}
		return p.endgame(l, victim, now, stealTime)
	}
	if !src.fromPeer() && p.tail && p.peersSuffice(now) {
		return nil
	}
	if part, ok := src.(partialSource); ok {
		run, ok := pickPartial(part, busy, p.near, f.v.NarSize(), p.whole)
		l.pos, l.end = run.from, run.to
		if !ok {
			return nil
		}
		p.claim.waited = now
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
		if !src.fromPeer() && p.prefixing {
			l.pos = f.prefix // it passes by what peers brought there, which may stream then
		}
		if !src.seeks() {
			l.end = f.v.NarSize() // it passes by everything anyway
		}
		p.overtake(l, now)
		return l
	}
	if _, whole := src.(peerSource); whole && victim == nil && !p.lone {
		return p.endgame(l, nil, now, helpLeast)
	}
	if p.lone || victim == nil || !src.seeks() && !p.tooSlowFor(victim, most) {
		return nil
	}
	if !src.seeks() { // it passes by everything, and the slow one's bytes with it
		victim.slow = true
		l.pos, l.end = 0, f.v.NarSize()
		return l
	}
	return l.halve(victim)
}

// atWork returns the bytes that src need not bring, since they are here or on their way, and the leg that
// needs longest, if one needs long, and how long; mu is held.
func (p *plan) atWork(src source, now time.Time) (busy spans, victim *leg, most time.Duration) {
	busy = append(busy, p.f.claimed...)
	most = stealTime
	for l := range p.f.legs {
		if l.hangs(now) {
			continue // somebody else should try its bytes
		}
		// Peers come towards it, or show what they bring while it is tried.
		if (p.prefixing || !p.try.since.IsZero()) && !l.src.fromPeer() {
			busy = busy.add(l.pos, min(l.end, l.pos+2*verify.ChunkSize))
			continue
		}
		busy = busy.add(l.pos, l.end)
		if left := l.left(now); left > most {
			victim, most = l, left
		}
	}
	for _, s := range p.suspect[src.name()] {
		busy = busy.add(s.from, s.to) // somebody else should bring these
	}
	return busy, victim, most
}

// overtake notes which silent legs l is started beside: they are told of even if their next byte comes just
// then. mu is held.
func (p *plan) overtake(l *leg, now time.Time) {
	for o := range p.f.legs {
		if o.hangs(now) && o.pos < l.end && l.pos < o.end {
			o.slow = !o.lags || !o.flows(now)
		}
	}
}

// halve takes half of what another leg has left; mu is held.
func (l *leg) halve(victim *leg) *leg {
	middle := (victim.pos + victim.end) / 2
	l.pos, l.end = middle, victim.end
	victim.end = middle
	return l
}

// rate is what the leg brings, in bytes per second, as far as one can tell; mu is held.
func (l *leg) rate(now time.Time) float64 {
	if l.got == 0 {
		return firstRate
	}
	return float64(l.got) / max(now.Sub(l.started).Seconds(), 1e-3)
}

// tooSlowFor tells whether the central cache would have brought the whole NAR long before a peer brings
// what it has left. mu is held.
func (p *plan) tooSlowFor(victim *leg, left time.Duration) bool {
	age := time.Since(victim.started)
	if _, partial := victim.src.(partialSource); partial || victim.got == 0 || age < helpLeast {
		return false // following others has its own rule
	}
	if !victim.src.fromPeer() && float64(victim.got) > helpFloor*age.Seconds() {
		return false // two downloads would share one slow link
	}
	return left > p.tooLong()
}

// left estimates how long a leg still needs, 0 if it is not worth helping; flight.mu is held.
func (l *leg) left(now time.Time) time.Duration {
	n := l.end - l.pos
	if n < stealLeast {
		return 0
	}
	return time.Duration(float64(n) / l.rate(now) * float64(time.Second))
}

// dismiss ends legs whose next byte came from elsewhere.
func (p *plan) dismiss() {
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	now := time.Now()
	for l := range p.f.legs {
		for twin := range p.f.legs { // asked again, and one of them lives
			if twin != l && !l.src.fromPeer() && sameSource(l.src, twin.src) && twin.pos > l.pos && !twin.hangs(now) {
				l.dismissed = true
				l.cancel()
			}
		}
		skips := !l.src.seeks() || l.double
		if !skips && p.f.claimed.has(l.pos) && l.pos < l.end || skips && !p.useful(l) {
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

// ended takes note of how a leg went. One that was silent when its bytes came from elsewhere is to
// blame; one that merely came second is not.
func (p *plan) ended(l *leg, err error) {
	now := time.Now()
	p.f.mu.Lock()
	overtaken, trouble, rate, got := l.slow, l.trouble(now), l.rate(now), l.got
	p.f.clock(l, true)
	p.f.mu.Unlock()
	name := l.src.name()
	if got >= rateLeast {
		p.ask.rates[name] = rate
	}
	if src, ok := l.src.(farSource); ok && got >= farLeast {
		p.f.all.farRates.note(src.ID(), rate, now)
	}
	if got > 0 {
		p.f.all.idlers.Remove(name)
	}
	if err == nil && !overtaken {
		p.judgePace(l, got)
		return
	}
	if got > 0 {
		p.f.all.stats.Switched.Add(1)
	}
	if l.dismissed || err == nil { // an overtaken one ends well where its next byte finds all the others there
		if trouble != nil {
			p.failed(l.src, got)
			p.letDown[name] = time.Now()
			p.letDownBy(l.src, trouble)
		}
		return
	}
	p.letDown[name] = time.Now()
	if errors.Is(err, ErrAbsent) {
		p.failures[name] += absentWeight
	} else {
		p.failed(l.src, got)
	}
	p.last = err
	p.letDownBy(l.src, err)
}

// failed counts a failure of a source that had brought got bytes. A neighbour that has told of the NAR and brings many is there, and
// busy with others: only what fails in a row counts against it, or several would ask the central cache for what it has.
func (p *plan) failed(src source, got int64) {
	if peer, ok := src.(interface{ ID() string }); ok && got >= rateLeast && p.announced(peer.ID()) {
		delete(p.failures, src.name())
		return
	}
	p.failures[src.name()]++
}

// letDownBy tells of a source that let the flight down.
func (p *plan) letDownBy(src source, err error) {
	p.judgeTempo(src, err)
	src.flaky(err)
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
	var ended []*leg
	f.mu.Lock()
	for l := range f.legs {
		f.clock(l, true)
		if l.pos >= l.end && !l.slow {
			ended = append(ended, l)
		}
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
		p.letDownBy(b.src, b.err)
	}
	for _, l := range ended {
		p.judgePace(l, l.got)
	}
}

func (p *plan) failure() error {
	if p.last == nil {
		return errNoSource
	}
	return fmt.Errorf("%w: %w", errNoSource, p.last)
}
