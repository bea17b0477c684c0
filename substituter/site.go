package substituter

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// Site is the neighbours as far as NARs on their way are concerned: one machine of a site fetches a NAR
// from the central cache, the others read from it as it arrives. Safe for concurrent use; no method
// blocks. Only publicly signed paths are told of.
type Site interface {
	Self() string    // this agent's id
	Neighbours() int // how many would hear
	IDs() []string   // theirs
	// Spread is about how long it takes until what is told was answered by all but those that are slow, by their ids.
	Spread(slow func(id string) bool) time.Duration
	// Tell announces how far this machine is with a NAR; unless now is set, together with what is told next.
	Tell(d verify.PathDigest, p Progress, now bool)
	// Fetched tells how many bytes of public NARs this machine has got from central caches since it
	// started, and returns how many neighbours got while they were neighbours.
	Fetched(own int64) int64
	// Flying returns what neighbours told of a NAR.
	Flying(d verify.PathDigest) []Flying
	// News is closed at the next change of what Flying returns.
	News(d verify.PathDigest) <-chan struct{}
}

// Stage is how a machine stands to a NAR on its way.
type Stage uint8

// The stages. A claim is made before the central cache is asked; of several at the same moment the
// best ranked goes, see outranks.
const (
	StageNone      Stage = iota // nothing to tell any more
	StageClaiming               // about to ask the central cache
	StageFetching               // asking it
	StageFollowing              // reading from other machines
	StageLanded                 // whole and verified
)

// Progress is one machine's announcement.
type Progress struct {
	Stage Stage
	Held  [][2]int64 // byte ranges [from, to) that can be had from it, at most MaxHeld
}

// MaxHeld is how many ranges an announcement names; a machine with more names the first ones.
const MaxHeld = 32

// Flying is a neighbour's announcement.
type Flying struct {
	Peer    Peer
	Suspect bool // not to be asked for the moment; its claims hold
	Progress
}

const (
	// A claim waits for others of the same moment for as long as announcements take, within these bounds, of which
	// the upper one grows with the number of neighbours as tellEvery does.
	settleLeast = 15 * time.Millisecond
	settleMost  = 150 * time.Millisecond
	// A NAR that is fetched ahead nobody waits for. Its claim waits settleAhead times as long; and since all
	// of a site work ahead in the same order, each machine first leaves it to those that rank before it, for turnLeast
	// or half of what announcements take each, turnMost at most.
	settleAhead     = 4
	settleAheadMost = 2 * time.Second
	turnLeast       = 20 * time.Millisecond
	turnMost        = time.Second
	claimLag        = 25 * time.Millisecond // for each neighbour: its turn, and its share in how late news are
	claimLagMost    = time.Second
	// claimPatience is how long another machine's claim counts without progress; busyPatience while the
	// uplink is busy, since its bytes may merely be waiting for others', or this machine is overloaded and hears late. A neighbour whose latest claim came to
	// nothing gets idlerPatience until it has brought bytes.
	claimPatience = 1500 * time.Millisecond
	busyPatience  = 8 * time.Second
	idlerPatience = 500 * time.Millisecond
	// Whatever neighbours tell of their progress, one that follows them gets bytes in followPatience, followBusy while the
	// uplink is busy or this machine overloaded, or asks the central cache; before limitBusy, after which Nix is told that there is none.
	followPatience = 4 * claimPatience
	followBusy     = 12 * time.Second
	// Progress is announced at most every tellEvery, after tellStep more bytes or after tellMost: all neighbours
	// hear each other, and ask for what they hear of.
	tellEvery = 40 * time.Millisecond
	tellStep  = 256 << 10
	tellMost  = 500 * time.Millisecond // well below claimPatience
	tellMany  = 8                      // neighbours; with more, the first two grow in proportion

)

// claim is how a plan stands to the central cache.
type claim struct {
	stage    Stage
	at       time.Time // of the stage's beginning
	grown    map[string]growth
	told     time.Time
	toldSum  int64
	turn     time.Time       // before it a NAR that is fetched ahead is left to others; zero: not reckoned yet
	leader   string          // the latest, by its id
	followed time.Time       // when it first followed one
	led      time.Time       // when that was looked for last
	offered  time.Time       // since when a leader has bytes that may be asked for; zero: it has none
	waited   time.Time       // since when a neighbour has bytes that are missing here, and none was asked for; zero: not so
	beside   bool            // the central cache is asked although a neighbour has claimed the NAR
	crossed  bool            // and one that ranks before this machine asks it too
	ignored  map[string]bool // neighbours whose claims came to nothing, by id
}

type growth struct {
	held int64
	at   time.Time
	told bool // that it brings nothing
}

// site returns whom the flight's progress may be told, nil if nobody.
func (p *plan) site() Site {
	s := p.f.all.site
	if s == nil || p.f.v.Scope() != verify.ScopePublic || s.Neighbours() == 0 {
		return nil
	}
	return s
}

// flying returns the neighbours' progress with this NAR.
func (p *plan) flying() []Flying {
	if s := p.site(); s != nil {
		return s.Flying(p.digest)
	}
	return nil
}

// news is closed when a neighbour told something of this NAR; nil, which never is, without neighbours.
func (p *plan) news() <-chan struct{} {
	if s := p.site(); s != nil && p.claim.stage != StageNone {
		return s.News(p.digest)
	}
	return nil
}

// next returns how long to wait until sources are looked for again at the latest, and whether news end it
// earlier; running legs are under way.
func (p *plan) next(running int) (wait time.Duration, news bool) {
	if s := p.site(); s != nil && p.claim.stage == StageClaiming {
		if left := p.settle(s) - time.Since(p.claim.at); left > 0 {
			return min(left, pollEvery), true
		}
	}
	if left := time.Until(p.claim.turn); p.claim.stage == StageNone && left > 0 {
		return min(left, pollEvery), false
	}
	every := newsEvery
	if s := p.site(); s != nil {
		every = newsEvery * time.Duration(max(s.Neighbours(), tellMany)) / tellMany
	}
	if since := time.Since(p.heard); since < every {
		return every - since, false
	}
	switch {
	case p.tail:
		return pollSwarm, true
	case p.claim.stage == StageFetching && running <= 1: // it needs nothing of what the others tell at once
		return pollEvery, false
	case p.claim.stage == StageFollowing && running == 0:
		return pollIdle, true
	}
	return pollEvery, true
}

// waiting tells whether it is right to have no leg now: a claim settles, or a neighbour is about to have
// bytes.
func (p *plan) waiting() bool {
	if p.farPending() {
		return true
	}
	s := p.site()
	return s != nil && (p.claim.stage == StageClaiming || p.claim.stage == StageNone && time.Now().Before(p.claim.turn) || p.claim.stage == StageFollowing && (p.leader(s) != nil || p.lostTouch()))
}

// lostTouch tells whether the neighbour that this machine follows dropped out of sight a moment ago while this machine was itself
// late: others took it for dead and closed what connects them, it hears of them again in a moment, and the claim still holds.
func (p *plan) lostTouch() bool {
	return p.claim.stage == StageFollowing && time.Since(p.claim.led) < claimPatience && p.f.all.uplink.overloaded() && !p.announced(p.claim.leader)
}

// mayAskUpstream tells whether it is this machine's turn to ask the central cache. It claims the NAR,
// waits for claims of the same moment, and yields to a better one or to one that came first. Where it
// asks although a neighbour has the NAR in hand, it counts why.
func (p *plan) mayAskUpstream() bool {
	s := p.site()
	if s == nil || p.claim.stage == StageFetching || !p.try.since.IsZero() {
		return true
	}
	leader := p.leader(s)
	if leader != nil && p.silentFor(leader) {
		p.beside("silent", &p.f.all.stats.Beside.Silent)
		p.claim.ignored[leader.Peer.ID()] = true
		if leader.Stage != StageLanded && !p.f.all.uplink.overloaded() {
			p.idles(leader.Peer, "announced bytes of a NAR and did not send them")
		}
		leader = p.leader(s)
	}
	if leader != nil && p.followsInVain() {
		p.beside("in vain", &p.f.all.stats.Beside.Silent)
		p.ignoreAll()
		leader = p.leader(s)
	}
	if leader != nil {
		p.claim.leader, p.claim.led = leader.Peer.ID(), time.Now()
	}
	switch {
	case p.lostTouch():
		return false
	case leader != nil && p.tooSlow():
		p.beside("slow", &p.f.all.stats.Beside.Slow)
		p.startTry()
		return true // still a follower for others: it may not last
	case leader != nil:
		p.enter(StageFollowing)
		return false
	case p.claim.stage != StageClaiming && p.outOfTurn(s):
		return false
	case p.claim.stage != StageClaiming:
		p.enter(StageClaiming)
		return false
	case time.Since(p.claim.at) < p.settle(s):
		return false
	}
	p.enter(StageFetching)
	return true
}

// settle is how long a claim waits for others of the same moment.
func (p *plan) settle(s Site) time.Duration {
	if p.f.ahead() {
		return p.f.all.settleOfAhead(s)
	}
	return min(p.f.all.spread(s), settleMost*time.Duration(max(s.Neighbours(), tellMany))/tellMany)
}

func (a *flights) settleOfAhead(s Site) time.Duration {
	return min(settleAhead*a.spread(s), settleAheadMost)
}

// spread is about how long neighbours take to answer what is told. A laggard's queue may hold its answers up for a second:
// nobody waits for those.
func (a *flights) spread(s Site) time.Duration { return max(s.Spread(a.laggards.has), settleLeast) }

// claimTime is how long it takes about until the central cache is asked for a NAR that is begun ahead of Nix: what
// neighbours have got is heard late, then the claim waits for its turn, and for others.
func (a *flights) claimTime() time.Duration {
	if a.site == nil || a.site.Neighbours() == 0 {
		return 0
	}
	return a.settleOfAhead(a.site) + min(time.Duration(a.site.Neighbours())*claimLag, claimLagMost)
}

// outOfTurn tells whether a NAR that is fetched ahead is better left to a neighbour that ranks before this
// machine.
func (p *plan) outOfTurn(s Site) bool {
	if !p.f.ahead() {
		return false
	}
	if p.claim.turn.IsZero() {
		before := 0
		for _, id := range s.IDs() {
			if outranks(p.digest, id, s.Self()) {
				before++
			}
		}
		p.claim.turn = time.Now().Add(min(time.Duration(before)*max(turnLeast, p.f.all.spread(s)/2), turnMost))
	}
	return time.Now().Before(p.claim.turn)
}

// ahead tells whether nobody has asked for the NAR yet.
func (f *flight) ahead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.asked
}

// silentFor tells whether whoever has bytes for us has sent none for too long. One that has none to give
// is no less alive: whether its claim counts is moving's to say.
func (p *plan) silentFor(leader *Flying) bool {
	if !p.offers(leader) {
		p.claim.offered = time.Time{}
		return false
	}
	if p.claim.offered.IsZero() {
		p.claim.offered = time.Now()
	}
	patience := claimPatience
	if leader.Stage != StageLanded && !p.overdue() {
		patience *= 2
	}
	if p.f.all.uplink.overloaded() || leader.Suspect { // it is not even asked
		patience *= 2
	}
	_, silence := p.f.look()
	return min(silence, time.Since(p.claim.offered)) > patience
}

// followsInVain tells whether no byte came for so long that neither this leader's progress nor that of others before it can
// be true, or is of any use.
func (p *plan) followsInVain() bool {
	if p.claim.stage != StageFollowing {
		return false
	}
	patience := followPatience
	if p.f.all.uplink.busy() || p.f.all.uplink.overloaded() {
		patience = followBusy
	}
	_, silence := p.f.look()
	return min(silence, time.Since(p.claim.at)) > patience || min(silence, time.Since(p.claim.followed)) > followBusy
}

// ignoreAll ends the hold of all claims that there are now, of this NAR; those who made them are waited for less from now on.
func (p *plan) ignoreAll() {
	for _, n := range p.near {
		if id := n.Peer.ID(); n.Stage != StageFollowing && !p.claim.ignored[id] {
			p.claim.ignored[id] = true
			p.idles(n.Peer, "announced a NAR as on its way and none of its bytes came")
		}
	}
}

// idles notes that what a neighbour announced came to nothing.
func (p *plan) idles(peer Peer, why string) {
	p.f.all.idlers.Add(peerSource{peer}.name(), struct{}{})
	peer.Useless(errors.New(why))
}

// offers tells whether a neighbour has bytes that would be asked for now.
func (p *plan) offers(n *Flying) bool {
	if n.Stage == StageLanded || p.lone { // then nothing is read from those that are still fetching
		return n.Stage == StageLanded
	}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	return p.missing(n, p.whole)
}

// leader returns a neighbour whose claim comes before ours, or that has it all already, as of this round of scheduling; nil
// if there is none. It looks at all of them, so that what is waited for is waited for at the same time.
func (p *plan) leader(s Site) (first *Flying) {
	for _, n := range p.near {
		id, name := n.Peer.ID(), peerSource{n.Peer}.name()
		if p.claim.ignored[id] {
			continue
		}
		leads := false
		switch n.Stage {
		case StageLanded:
			leads = p.failures[name] < triesPerSource && !p.excluded[name]
		case StageFetching:
			leads = p.moving(n)
		case StageClaiming:
			leads = p.moving(n) && (p.claim.stage != StageClaiming || outranks(p.digest, id, s.Self()))
		}
		if leads && first == nil {
			first = &n
		}
	}
	return first
}

// moving tells whether a neighbour made progress not long ago. That of one whose latest claim came to nothing does not count
// before bytes have come from it.
func (p *plan) moving(n Flying) bool {
	held, now := n.held(p.f.v.NarSize()), time.Now()
	idler := p.f.all.idlers.Contains(peerSource{n.Peer}.name())
	g, ok := p.claim.grown[n.Peer.ID()]
	if !ok || held != g.held && !idler {
		g = growth{held: held, at: now}
		p.claim.grown[n.Peer.ID()] = g
	}
	patience := claimPatience
	if idler && held == 0 {
		patience = idlerPatience
	} else if p.f.all.uplink.busy() || p.f.all.uplink.overloaded() {
		patience = busyPatience
	}
	silent := now.Sub(g.at) >= patience
	if silent && (held == 0 || idler) && !g.told {
		g.told = true
		p.claim.grown[n.Peer.ID()] = g
		p.idles(n.Peer, fmt.Sprintf("announced a NAR as on its way and none of its bytes came for %v", patience))
	}
	return !silent
}

func (p *plan) enter(stage Stage) {
	if p.claim.stage == stage {
		return
	}
	p.claim.stage, p.claim.at = stage, time.Now()
	if stage == StageFollowing && p.claim.followed.IsZero() {
		p.claim.followed = p.claim.at
	}
	// Nobody waits for what a follower does, nor for a second machine that has it all.
	landed := func(n Flying) bool { return n.Stage == StageLanded }
	p.announce(stage != StageFollowing && !(stage == StageLanded && slices.ContainsFunc(p.flying(), landed)))
}

// tell announces progress, if there was enough since the last time.
func (p *plan) tell() {
	s := p.site()
	if s == nil || p.claim.stage == StageNone {
		return
	}
	many, since := max(s.Neighbours(), tellMany), time.Since(p.claim.told)
	if since < time.Duration(many)*tellEvery/tellMany {
		return
	}
	p.f.mu.Lock()
	_, sum := p.f.heldRanges()
	p.f.mu.Unlock()
	if grown := sum - p.claim.toldSum; grown == 0 || grown < int64(many)*tellStep/tellMany && since < tellMost {
		return
	}
	p.announce(false)
}

// announce tells the neighbours how far this machine is, at once if now is set.
func (p *plan) announce(now bool) {
	s := p.site()
	if s == nil || p.claim.stage == StageNone {
		return
	}
	p.f.mu.Lock()
	held, sum := p.f.heldRanges()
	p.f.told = true
	p.f.mu.Unlock()
	p.claim.told, p.claim.toldSum = time.Now(), sum
	s.Tell(p.digest, Progress{p.claim.stage, held}, now)
}

// heldRanges returns what can be had from this flight; mu is held.
func (f *flight) heldRanges() (held [][2]int64, sum int64) {
	for _, w := range f.written[:min(len(f.written), MaxHeld)] {
		held = append(held, [2]int64{w.from, w.to})
		sum += w.len()
	}
	return held, sum
}

// untell takes an announcement back; mu is held.
func (f *flight) untell() {
	if f.told && f.all.site != nil {
		f.all.site.Tell(f.hash.Digest(), Progress{}, f.err != nil)
		f.told = false
	}
}

// outranks decides between two machines that want the same NAR at the same moment, the same way
// wherever it is asked, and differently for each NAR.
func outranks(d verify.PathDigest, a, b string) bool { return rank(d, a) > rank(d, b) }

func rank(d verify.PathDigest, id string) uint64 {
	sum := sha256.Sum256(append(d[:], id...))
	return binary.BigEndian.Uint64(sum[:8])
}
