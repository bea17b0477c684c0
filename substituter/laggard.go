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
// neighbour is the quicker one, by what both lately were seen to send. One that nothing is known of gets firstLook to show it.
// One that was slower, or let Nix wait, is a laggard: as long as a central cache can be asked, it is asked for nothing that Nix waits for, only now and then
// for a few bytes that show whether it has become quick again. It stays one when its connection is made anew.
const (
	firstLook  = 100 * time.Millisecond // or what it usually takes to answer, if that is more
	lookRatio  = 1.25                   // times what the central cache would need
	lookAllows = 250 * time.Millisecond // and beyond that: claims, narinfos and first bytes take their time there too
	// A central cache of unknown rate is taken to bring lookRate bytes of NARs per second, so that it is asked for a NAR, and known
	// then, where neighbours are slow; for one of chainLeast or more that would be dear.
	lookRate    = 10 << 20
	probeAllows = 100 * time.Millisecond // for each part of a probe, beyond what the central cache would need for as many bytes
	probeMost   = 2 * time.Second        // that one probe lasts
	probeLeast  = 500 * time.Millisecond // between a probe that failed and the next; it doubles with each in a row
	probePause  = time.Minute            // and at most
	// One that was many times slower than allowed is so for a reason: what probes of it take from a link that it shares with the
	// central cache is bounded by rarer ones.
	muchSlower = 4
	probeRare  = 4 * time.Second // before a first probe of it
	probeRarer = 4               // times, from one to the next
	probeClear = 1.5             // times what was allowed, from which on a probe leaves no doubt of it
	tempoMost  = 2000            // neighbours that are remembered
)

// probeBytes are how many bytes a probe asks for, one after the other, as long as they do not come much too late. Few may fit into the queues on the way,
// or come in a moment when a busy link is idle: only who brings the many in time, too, is quick. Where the central caches need long for few, these are enough.
var probeBytes = []int64{64 << 10, 256 << 10, 1 << 20}

// laggards is what is known of how quick neighbours are beside the central caches. Safe for concurrent use; the zero value
// is ready.
type laggards struct {
	mu   sync.Mutex
	byID map[string]*tempo
}

// tempo is one neighbour's.
type tempo struct {
	got     int64   // bytes that it brought
	worth   float64 // its time for NARs as a part of what it is allowed, smoothed; 0 unknown
	lags    bool
	next    time.Time     // before it no further probe begins
	pause   time.Duration // after the next one, if it fails
	cleared time.Time     // when a probe last went well
}

// of returns a neighbour's tempo, a new one where there is none; mu is held.
func (l *laggards) of(id string) *tempo {
	if t := l.byID[id]; t != nil {
		return t
	}
	if len(l.byID) >= tempoMost || l.byID == nil {
		l.byID = map[string]*tempo{}
	}
	t := &tempo{pause: probeLeast}
	l.byID[id] = t
	return t
}

// has tells whether a neighbour is a laggard.
func (l *laggards) has(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.byID[id]
	return t != nil && t.lags
}

// count takes down that a neighbour brought n bytes, and returns how many it did in all.
func (l *laggards) count(id string, n int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.of(id)
	t.got += n
	return t.got
}

// last returns the neighbours in their order, but those that lag after the others.
func (l *laggards) last(peers []Peer) []Peer {
	lags := func(p Peer) int {
		if l.has(p.ID()) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(peers, func(a, b Peer) int { return lags(a) - lags(b) })
	return peers
}

// mixed is the neighbour's worth with one more look at it.
func (t *tempo) mixed(worth float64) float64 {
	if t.worth == 0 {
		return worth
	}
	return (t.worth + worth) / 2
}

// look tells whether a neighbour that seems to take worth times what it is allowed is a laggard; final says that this is how it
// ended, sure that the central cache's rate is known. What it brings in time does not clear one that lags, since Nix may have waited: a
// probe does.
func (l *laggards) look(id string, worth float64, final, sure bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.of(id)
	mixed := t.mixed(worth)
	if final {
		t.worth = mixed
	}
	if now := time.Now(); mixed > 1 && !t.lags {
		if sure && mixed > muchSlower {
			t.lag(now, probeRare, probeRarer*probeRare)
		} else { // when it is probed more will be known
			t.lag(now, probeLeast, probeLeast)
		}
	}
	return t.lags
}

// note takes down that a neighbour let Nix wait.
func (l *laggards) note(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.of(id); !t.lags {
		t.lag(time.Now(), 0, probeLeast)
	}
}

// lag begins the neighbour's time as a laggard: how long until the first probe, and until another one if that fails. Where a probe has lately
// cleared it the next one is late: such probes tell little.
func (t *tempo) lag(now time.Time, first, then time.Duration) {
	t.lags, t.next, t.pause = true, now.Add(first), then
	if now.Sub(t.cleared) < probePause {
		t.next, t.pause = now.Add(probeRarer*probeRare), probePause
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

// probed takes down how a probe went, by the neighbour's time as a part of what was allowed.
func (l *laggards) probed(id string, worth float64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.byID[id]
	switch {
	case t == nil:
	case worth <= 1:
		t.lags, t.worth, t.pause, t.cleared = false, 0, probeLeast, now
	case worth > probeClear:
		t.pause = max(t.pause, probeRarer*probeRare)
		t.next = now.Add(t.pause)
		t.pause = min(probeRarer*t.pause, probePause)
	default:
		t.next = now.Add(t.pause)
		t.pause = min(2*t.pause, probePause)
	}
}

// probe asks a laggard for some bytes of the NAR, which nobody waits for.
func (p *plan) probe(peer Peer) {
	all, size := p.f.all, p.f.v.NarSize()
	rate, _ := all.pace.rates()
	if size < slices.Max(probeBytes) || rate == 0 || !all.laggards.due(peer.ID(), time.Now()) {
		return
	}
	all.wg.Go(func() {
		ctx, cancel := context.WithTimeout(all.ctx, probeMost)
		defer cancel()
		var worth float64
		for k, n := range probeBytes {
			allowed := probeAllows + time.Duration(float64(n)/rate*float64(time.Second))
			if worth > probeClear || k > 0 && allowed > probeMost/2 {
				break
			}
			worth = max(worth, p.f.probe(ctx, peer, n, allowed))
		}
		all.laggards.probed(peer.ID(), worth, time.Now())
	})
}

// probe returns how long a neighbour takes for the NAR's last n bytes as a part of what it is allowed.
func (f *flight) probe(ctx context.Context, peer Peer, n int64, allowed time.Duration) (worth float64) {
	size, begun := f.v.NarSize(), time.Now()
	body, err := peer.NAR(ctx, f.hash, f.v.NarHash(), size, size-n, size)
	if err == nil {
		stop := context.AfterFunc(ctx, func() { body.Close() })
		buf := legBuffers.Get().(*[]byte)
		for left := n; left > 0 && err == nil; left -= int64(len(*buf)) {
			_, err = io.ReadFull(body, (*buf)[:min(left, int64(len(*buf)))])
		}
		legBuffers.Put(buf)
		stop()
		body.Close()
	}
	took := time.Since(begun)
	worth = took.Seconds() / allowed.Seconds()
	switch {
	case err != nil:
		worth = max(worth, 2)
	case f.all.uplink.overloaded(): // it may be this machine's own slowness
		worth = min(worth, 1)
	}
	f.all.log.Debug("probed a slow peer", "peer", peer.ID(), "bytes", n, "ms", took.Milliseconds(), "allowed", allowed.Milliseconds(), "err", err)
	return worth
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
	if p.f.all.laggards.has(peer.ID()) {
		p.probe(peer)
		return true
	}
	return peer.Cost(p.f.v.NarSize()) > p.tooLong()
}

// allowed is how long a neighbour may take for n bytes of the NAR before the central cache is the better choice for all of it.
func (p *plan) allowed(n int64) time.Duration {
	unknown := float64(lookRate)
	if p.f.v.NarSize() >= chainLeast {
		unknown = helpRate
	}
	return lookAllows + time.Duration(lookRatio*float64(p.f.upstreamTakes(n, unknown)))
}

// mindLaggards looks how those neighbours do that have all of the NAR and are asked for it: the bytes of a laggard, and of one
// that turns out to be slow, are brought by others too.
func (p *plan) mindLaggards() {
	able := p.upstreamAble()
	now, all := time.Now(), p.f.all
	known := all.pace.known()
	judge := able && !all.uplink.overloaded() // else it may be this machine's own slowness
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	for l := range p.f.legs {
		p.f.clock(l, false)
		src, whole := l.src.(peerSource)
		if !whole || p.announced(src.ID()) {
			continue
		}
		lags := all.laggards.has(src.ID())
		if age := now.Sub(l.started); judge && !lags && age >= max(firstLook, min(4*src.RTT(), peerSilenceMost)) {
			got := all.laggards.count(src.ID(), 0) - l.before
			needs := float64(l.end-l.pos) / float64(max(got, 1)) * age.Seconds()
			worth := needs / p.allowed(p.f.v.NarSize()).Seconds()
			if got == 0 {
				worth = min(worth, muchSlower) // it may be about to begin
			}
			if lags = all.laggards.look(src.ID(), worth, false, known); lags {
				all.log.Debug("the central cache is quicker than a peer", "peer", src.ID(), "worth", worth, "got", got, "ms", age.Milliseconds(), "known", known)
			}
		}
		l.lags = lags && able
	}
	p.spare(now)
}

// spare ends those legs of laggards whose bytes a central cache, which has answered, will have brought before them: until then
// they would only take room on a link that both share. mu is held.
func (p *plan) spare(now time.Time) {
	for l := range p.f.legs {
		if !l.lags || l.got > 0 && float64(l.end-l.pos) < l.rate(now)*p.f.upstreamTakes(p.f.v.NarSize(), lookRate).Seconds() {
			continue
		}
		for o := range p.f.legs {
			if !o.src.fromPeer() && !o.dismissed && o.body != nil && !o.hangs(now) && o.pos <= l.pos && l.end <= o.end {
				l.dismissed = true
				l.cancel()
				break
			}
		}
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
	if !whole || err == nil || p.announced(peer.ID()) || errors.Is(err, ErrAbsent) || errors.Is(err, ErrBusy) || errors.Is(err, context.Canceled) {
		return
	}
	if !p.f.all.uplink.overloaded() { // else it may be this machine's own slowness
		p.f.all.laggards.note(peer.ID())
	}
}

// judgePace takes down how quickly a neighbour brought got bytes.
func (p *plan) judgePace(l *leg, got int64) {
	peer, whole := l.src.(peerSource)
	took := time.Since(l.started)
	if !whole || p.announced(peer.ID()) || p.f.all.uplink.overloaded() || got < rateLeast && took < lookAllows || !p.upstreamAble() {
		return
	}
	all := p.f.all.laggards.count(peer.ID(), 0) - l.before // several at a time share its link
	needs := took.Seconds() * float64(got) / float64(max(all, 1))
	p.f.all.laggards.look(peer.ID(), needs/p.allowed(got).Seconds(), true, p.f.all.pace.known())
}
