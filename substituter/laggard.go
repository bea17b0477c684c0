package substituter

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// A neighbour that has a NAR is asked before the central cache, and Nix waits for it meanwhile. That pays only if the
// neighbour is the quicker one. One that nothing is known of gets firstLook to show it. One that was slower, or let
// Nix wait, is a laggard: as long as a central cache can be asked, it is asked for nothing that Nix waits for, only now and then
// for a few bytes that show whether it has become quick again. It stays one when its connection is made anew.
const (
	firstLook   = 100 * time.Millisecond // or what it usually takes to answer, if that is more
	lookAllows  = 250 * time.Millisecond // beyond followRatio times what the central cache would need
	probeBytes  = 256 << 10              // fewer may fit into the queues on the way, however slow the link
	probeAllows = 100 * time.Millisecond // beyond what the central cache would need for as many
	probeMost   = 2 * time.Second        // that one probe lasts
	probeLeast  = 500 * time.Millisecond // between a probe that failed and the next; it doubles with each in a row
	probePause  = time.Minute            // and at most
	tempoMost   = 2000                   // neighbours that are remembered
)

// laggards is what is known of how quick neighbours are beside the central caches. Safe for concurrent use; the zero value
// is ready.
type laggards struct {
	mu   sync.Mutex
	byID map[string]*tempo
}

// tempo is one neighbour's.
type tempo struct {
	lags  bool
	next  time.Time     // before it no further probe begins
	pause time.Duration // after the next one, if it fails
}

// of returns a neighbour's tempo. known says that it brought a NAR in time since this agent started, or lags.
func (l *laggards) of(id string) (lags, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.byID[id]
	return t != nil && t.lags, t != nil
}

// last returns the neighbours in their order, but those that lag after the others.
func (l *laggards) last(peers []Peer) []Peer {
	lags := func(p Peer) int {
		if lags, _ := l.of(p.ID()); lags {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(peers, func(a, b Peer) int { return lags(a) - lags(b) })
	return peers
}

// note takes down whether a neighbour was slower than a central cache would have been; what it brings in time does not
// clear one that lags, since Nix may have waited: a probe does.
func (l *laggards) note(id string, lags bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.byID) >= tempoMost || l.byID == nil {
		l.byID = map[string]*tempo{}
	}
	if t := l.byID[id]; t == nil {
		l.byID[id] = &tempo{lags: lags, pause: probeLeast}
	} else if lags && !t.lags {
		t.lags, t.next, t.pause = true, time.Time{}, probeLeast
	}
}

// due tells whether a probe of a laggard should begin now; until it ends no other does.
func (l *laggards) due(id string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.byID[id]
	if t == nil || !t.lags || now.Before(t.next) {
		return false
	}
	t.next = now.Add(probeMost + t.pause)
	return true
}

// probed takes down how a probe went.
func (l *laggards) probed(id string, quick bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.byID[id]
	switch {
	case t == nil:
	case quick:
		t.lags, t.pause = false, probeLeast
	default:
		t.next = now.Add(t.pause)
		t.pause = min(2*t.pause, probePause)
	}
}

// probe asks a laggard for some bytes of the NAR, which nobody waits for.
func (p *plan) probe(peer Peer) {
	all, size := p.f.all, p.f.v.NarSize()
	if size < probeBytes || !all.laggards.due(peer.ID(), time.Now()) {
		return
	}
	const n = probeBytes
	allowed := probeAllows + all.upstreamTakes(n)
	all.wg.Go(func() {
		ctx, cancel := context.WithTimeout(all.ctx, probeMost)
		defer cancel()
		begun := time.Now()
		body, err := peer.NAR(ctx, p.f.hash, p.f.v.NarHash(), size, size-n, size)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { body.Close() })
			_, err = io.CopyN(io.Discard, body, n)
			stop()
			body.Close()
		}
		took := time.Since(begun)
		quick := err == nil && (took <= allowed || all.uplink.overloaded())
		all.laggards.probed(peer.ID(), quick, time.Now())
		all.log.Debug("probed a slow peer", "peer", peer.ID(), "bytes", n, "ms", took.Milliseconds(), "allowed", allowed.Milliseconds(), "err", err)
	})
}

// upstreamTakes is about how long a central cache takes for a NAR of n bytes.
func (a *flights) upstreamTakes(n int64) time.Duration {
	rate := float64(a.upstreamRate.Load())
	if rate == 0 {
		rate = helpRate
	}
	return time.Duration(float64(n) / rate * float64(time.Second))
}

// upstreamAble tells whether some central cache could bring the NAR, as far as is known.
func (p *plan) upstreamAble() bool {
	if p.lone {
		return false
	}
	able := func(up Upstream) bool {
		s := upstreamSource{up, p.f.all}
		return p.failures[up.URL()] == 0 && !p.excluded[up.URL()] && !s.distrusted() && p.f.all.records.of(up).suspect(p.f.all.now()).IsZero()
	}
	if !slices.ContainsFunc(p.f.all.finder.upstreams, able) {
		return false
	}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	now, asked := time.Now(), false
	for l := range p.f.legs {
		if !l.src.fromPeer() {
			if asked = true; !l.hangs(now) {
				return true
			}
		}
	}
	return !asked
}

// passes tells whether the central cache is the better choice than a neighbour that has the NAR.
func (p *plan) passes(peer Peer) bool {
	if lags, _ := p.f.all.laggards.of(peer.ID()); lags {
		p.probe(peer)
		return true
	}
	return peer.Cost(p.f.v.NarSize()) > p.tooLong()
}

// mindLaggards looks how those neighbours do that have all of the NAR and are asked for it: the bytes of a laggard, and of one that
// nothing was known of and that turns out to be slow, are brought by others too.
func (p *plan) mindLaggards() {
	able := p.upstreamAble()
	now, all := time.Now(), p.f.all
	judge := able && !all.uplink.overloaded() // else it may be this machine's own slowness
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	for l := range p.f.legs {
		src, whole := l.src.(peerSource)
		if !whole || p.announced(src.ID()) {
			continue
		}
		lags, known := all.laggards.of(src.ID())
		if age := now.Sub(l.started); judge && !known && age >= max(firstLook, min(4*src.RTT(), peerSilenceMost)) {
			needs := float64(l.end-l.pos) / max(float64(l.got), 1) * age.Seconds()
			if needs > (lookAllows + followRatio*all.upstreamTakes(p.f.v.NarSize())).Seconds() {
				all.laggards.note(src.ID(), true)
				lags = true
			}
		}
		l.lags = lags && able
	}
}

// flows tells whether a leg brings bytes at a rate that is no trouble to tell of: perhaps it merely began late. mu is held.
func (l *leg) flows(now time.Time) bool {
	return l.got > 0 && l.rate(now) >= helpRate && l.silent(now) < firstLook
}

// announced tells whether a neighbour told how far it is with the NAR: then it is waited for by the rules of claims.
func (p *plan) announced(id string) bool {
	return slices.ContainsFunc(p.near, func(n Flying) bool { return n.Peer.ID() == id })
}

// judgeTempo takes down how a neighbour did that was asked for all or a part of the NAR, err being what to say against it.
func (p *plan) judgeTempo(src source, err error) {
	peer, whole := src.(peerSource)
	if !whole || p.announced(peer.ID()) || errors.Is(err, ErrAbsent) || errors.Is(err, ErrBusy) || errors.Is(err, context.Canceled) {
		return
	}
	if err != nil && p.f.all.uplink.overloaded() {
		return // it may be this machine's own slowness
	}
	p.f.all.laggards.note(peer.ID(), err != nil)
}
