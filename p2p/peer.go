package p2p

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/verify"
)

// Standing of a peer.
const (
	firstRTT      = 5 * time.Millisecond   // before any was measured: a LAN's
	firstRate     = 50e6                   // bytes per second, likewise: half a Gbit link
	ewmaWeight    = 0.25                   // of the newest sample
	suspectMin    = time.Second            // how long a stalled peer is left out, at first
	suspectMax    = time.Minute            // and at most
	suspectAlive  = 500 * time.Millisecond // for a first failure of a peer that answers a ping
	busyTime      = time.Second            // a peer that said it is busy, and not until when, is asked last that long
	busyMost      = time.Minute            // and at most
	busyCost      = 10 * time.Second       // what asking it meanwhile counts for: others and the central cache come first
	banTime       = 12 * time.Hour         // for wrong bytes
	maxReason     = 200                    // bytes of an error kept as a ban's reason
	minRateBytes  = 256 << 10              // a body below this says nothing about throughput
	minRateTime   = 500 * time.Millisecond // unless it took that long: a dribble says much
	slowestRate   = 16 << 10               // bytes per second; slower is all the same, and must be able to heal
	strangerDelay = 20 * time.Millisecond  // added to the cost of a peer without a good record
	falseWeight   = 0.1                    // of the newest answer in the share of false claims
	discreditedAt = 0.5                    // share of useless answers from which on announcements do not count: seven in a row
	falseHalfLife = 10 * time.Minute       // a liar that is asked nothing must be able to heal
	rateHalfLife  = 10 * time.Minute       // and so must one that was slow
)

// ErrBusy is a peer's answer that it serves as many as it can. It says nothing against the peer.
var ErrBusy = errors.New("busy")

// errFalseClaims is what an operator reads of a peer that often lacks what its have-set names.
var errFalseClaims = errors.New("says \"not found\" to what it claims to have")

// Peer is another agent. Its methods are safe for concurrent use; mu guards the fields below it.
type Peer struct {
	id   peer.ID
	name string // id as text
	host *Host
	have haveSet

	in, out     atomic.Int64 // NAR bytes received from and sent to it
	falseClaims atomic.Int64 // questions it answered with 404 although it claimed to have the path
	sending     atomic.Int32 // NARs that are on their way to it
	bringing    atomic.Int32 // NARs that are on their way from it
	brought     atomic.Int64 // when one of these last ended, in Unix nanoseconds
	chains      atomic.Int32 // chains that it waits for
	hearing     atomic.Bool  // a stream of its announcements is open; whoever set it has flightBudget
	far         atomic.Bool  // of the internet: a source beside the central cache, not before it
	courting    atomic.Bool  // it is a neighbour because it told us what it has
	checking    atomic.Bool  // a ping is deciding whether it is alive

	life   sync.Mutex // one change between connected and not at a time; taken before mu
	haveMu sync.Mutex // one change of its have-set at a time; taken before mu

	flightBudget *rate.Limiter // what its announcements may cost us, in bytes; nil before the first

	mu           sync.Mutex
	via          string
	connectedAt  time.Time          // zero: not connected
	remote       bool               // connected, but no neighbour; see Internet
	session      context.Context    // of what runs for as long as it is connected
	asked        context.Context    // the session in which it is asked for introductions
	refreshed    time.Time          // when a change of its connections last made us begin anew
	endSession   context.CancelFunc // stops what runs for as long as it is connected
	resend       context.CancelFunc // makes it get our have-set anew; nil before the first
	haveStream   network.Stream     // on which it tells what it has
	haveBudget   *rate.Limiter      // what its have-set streams may cost us, in bytes; nil before the first
	rtt          time.Duration
	rttMeasured  bool
	rate         float64 // bytes per second of its NAR bodies as of rateAt, 0 unknown
	rateAt       time.Time
	plainRate    float64 // NAR bytes per second of bodies that came as they are, all at a time together; 0 unknown
	codedRate    float64 // and of compressed ones, as of codedAt
	codedAt      time.Time
	good         int     // verified transfers, kept over restarts
	falseShare   float64 // share of false claims among its answers, smoothed, as of falseAt
	falseAt      time.Time
	failures     int // in a row
	suspectUntil time.Time
	busyUntil    time.Time // by its own word; for NARs and chains
	bannedUntil  time.Time
	banReason    string
	trouble      trouble
	pace         *throttle.Throttle // that it asked for lately; nil before the first
	group        bool               // proved knowledge of the group secret on this connection
}

func newPeer(h *Host, id peer.ID) *Peer {
	return &Peer{id: id, name: id.String(), host: h, rtt: firstRTT}
}

// ID returns the peer id's text.
func (p *Peer) ID() string { return p.name }

// Banned tells whether the peer sent wrong bytes not long ago.
func (p *Peer) Banned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host.now().Before(p.bannedUntil)
}

// scope is the audience that the peer belongs to.
func (p *Peer) scope() verify.Scope {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.scopeLocked()
}

func (p *Peer) scopeLocked() verify.Scope {
	if p.group {
		return verify.ScopeGroup
	}
	return verify.ScopePublic
}

// costNow estimates how long the peer takes to send size bytes; ok is false if it is better left alone.
// Peers without a good record come behind those that have one and are about as quick, so that whoever
// makes identities by the thousand does not get to be asked first.
func (p *Peer) costNow(now time.Time, size int64) (cost time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.askableLocked(now) {
		return 0, false
	}
	return p.costLocked(now, size), true
}

func (p *Peer) costLocked(now time.Time, size int64) time.Duration {
	rate := p.rateLocked(now)
	cost := p.rtt + time.Duration(float64(size)/rate*float64(time.Second)) + time.Duration(min(p.failures, 100))*50*time.Millisecond
	if size > 0 && now.Before(p.busyUntil) {
		cost += busyCost
	}
	if p.good == 0 {
		cost = 2*cost + strangerDelay
	}
	if p.falseShare > 0 {
		share := p.falseShareLocked(now)
		cost += time.Duration(share * float64(4*cost+100*time.Millisecond))
	}
	return cost
}

// rateLocked is what the peer is expected to send in bytes per second. A new one is tried, after known fast
// ones; one that was slow is not asked, so it is given the benefit of the doubt as time passes.
func (p *Peer) rateLocked(now time.Time) float64 {
	if p.rate == 0 || p.rate >= firstRate {
		return max(p.rate, firstRate)
	}
	age := max(0, now.Sub(p.rateAt))
	return firstRate - (firstRate-p.rate)*math.Exp2(-age.Seconds()/rateHalfLife.Seconds())
}

func (p *Peer) falseShareLocked(now time.Time) float64 {
	age := max(0, now.Sub(p.falseAt))
	return p.falseShare * math.Exp2(-age.Seconds()/falseHalfLife.Seconds())
}

// heeded tells whether what the peer told counts, and whether it is better left alone for the moment.
func (p *Peer) heeded(now time.Time) (suspect, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.bannedUntil) || p.falseShareLocked(now) > discreditedAt {
		return false, false
	}
	return !p.askableLocked(now), true
}

// askableLocked tells whether the peer is connected and may be asked.
func (p *Peer) askableLocked(now time.Time) bool {
	suspect := now.Before(p.suspectUntil) || p.failures > 0 && p.checking.Load() // a ping is deciding
	return !p.connectedAt.IsZero() && !suspect && !now.Before(p.bannedUntil)
}

// Cost estimates how long the peer takes to send size bytes.
func (p *Peer) Cost(size int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.costLocked(p.host.now(), size)
}

// RTT is the smoothed time from a question to the first byte of its answer.
func (p *Peer) RTT() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rtt
}

// Claims tells whether the peer's have-set names the path; no packet is sent.
func (p *Peer) Claims(d verify.PathDigest) bool { return p.have.Has(d.Key()) }

func (p *Peer) sampleRTT(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.rttMeasured {
		p.rtt, p.rttMeasured = d, true
		return
	}
	p.rtt += time.Duration(ewmaWeight * float64(d-p.rtt))
}

func (p *Peer) sampleRate(rate float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rateAt = p.host.now()
	if p.rate == 0 {
		p.rate = rate
		return
	}
	p.rate += ewmaWeight * (rate - p.rate)
}

// answered records whether the peer had what its have-set claims.
func (p *Peer) answered(had bool) {
	now := p.host.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if had && p.falseShare == 0 {
		return
	}
	p.falseShare, p.falseAt = p.falseShareLocked(now)*(1-falseWeight), now
	if !had {
		if p.falseShare += falseWeight; p.falseShare > falseTold {
			p.trouble.add(now, errFalseClaims)
		}
	}
}

// Good records that a transfer went well: verified bytes.
func (p *Peer) Good() {
	p.mu.Lock()
	p.failures, p.suspectUntil = 0, time.Time{}
	p.good = min(p.good+1, math.MaxInt32)
	good := p.good
	p.mu.Unlock()
	if good&(good-1) == 0 { // now and then: it is a tag for the connection manager, not a count
		p.host.host.ConnManager().TagPeer(p.id, "good", min(good, 100))
	}
}

// Flaky records a stall or a failure. The peer is left out for a while that doubles with each failure
// in a row, with jitter, and heals by itself; a ping finds out at once whether it is there at all.
func (p *Peer) Flaky(err error) {
	now := p.host.now()
	p.mu.Lock()
	p.trouble.add(now, err)
	if now.Before(p.suspectUntil) && p.failures > 0 { // one cause lets many requests down at once: it counts once
		p.mu.Unlock()
		return
	}
	p.failures++
	d := min(suspectMax, suspectMin<<min(p.failures-1, 10))
	d = d/2 + rand.N(d)
	p.suspectUntil = now.Add(d)
	p.mu.Unlock()
	p.host.chatter("peer is left out for a while", "peer", p.name, "for", d.Round(time.Millisecond), "err", err)
	p.host.doubt(p)
}

// reassure shortens a first suspicion: the peer is slow, not gone.
func (p *Peer) reassure() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failures != 1 {
		return
	}
	if soon := p.host.now().Add(suspectAlive); soon.Before(p.suspectUntil) {
		p.suspectUntil = soon
	}
}

// Convict records that the peer sent bytes known to be wrong. It is out at once, whatever its address,
// and stays out over restarts.
func (p *Peer) Convict(err error) {
	reason := cleanText(err.Error(), maxReason)
	p.mu.Lock()
	p.bannedUntil, p.banReason = p.host.now().Add(banTime), reason
	p.good = 0
	p.mu.Unlock()
	p.host.log.Warn("peer sent wrong bytes and is shut out", "peer", p.name, "for", banTime, "err", err)
	p.host.standing.changed()
	p.host.expel(p)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// cleanText makes a short printable line of s, of which a part may come from the network.
func cleanText(s string, most int) string {
	b := make([]byte, 0, min(len(s), most))
	for i := 0; i < len(s) && len(b) < most; i++ {
		c := s[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		b = append(b, c)
	}
	return string(b)
}
