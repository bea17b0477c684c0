package substituter

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// How long central caches are waited for follows from how quick they lately were, within these bounds; a
// cache that was silent or in trouble is asked after the others for a while.
const (
	hedgeLeast      = 250 * time.Millisecond // before the next source is asked for a narinfo, too
	hedgeMost       = 700 * time.Millisecond // and for a cache that was not asked yet
	silenceLeast    = 500 * time.Millisecond // before another source of a NAR is started beside
	silenceMost     = 2 * time.Second
	aheadLeast      = 100 * time.Millisecond // that the uplink needs for what is under way when another NAR is fetched ahead
	aheadMost       = 500 * time.Millisecond
	troublePause    = 2 * time.Second // for a first trouble; it doubles with each in a row
	troublePauseMax = time.Minute
)

// How long a flight as a whole is waited for.
const (
	// A download whose connection broke goes on by itself; where no byte came since for longer than its first
	// attempt takes, others are asked.
	breakPatience = 300 * time.Millisecond
	// Without a byte for this long a flight that has shown Nix nothing ends: the next substituter is the
	// better chance. One that has shown bytes holds on, since an abort costs Nix the whole NAR.
	limitUnseen = 4500 * time.Millisecond
	lateSilence = 2 * time.Second        // is enough once a flight is that old and has still shown nothing
	lateStall   = 500 * time.Millisecond // and this where everybody broke off
	limitSeen   = 60 * time.Second
	limitBusy   = 15 * time.Second // in place of limitUnseen where silence has a reason, see inHand
)

// record is how one central cache lately answered one kind of question. mu guards the fields below it.
type record struct {
	mu       sync.Mutex
	smooth   time.Duration // of the time to an answer, as TCP smooths round trips (RFC 6298); 0: none yet
	vary     time.Duration
	failures int       // in a row
	until    time.Time // asked after the others until then
}

// usual is how long nearly all answers take at most, 0 if none came yet.
func (r *record) usual() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.smooth + 4*r.vary
}

// patience is several times what is usual, within bounds; the greater one while nothing is known.
func (r *record) patience(times int, least, most time.Duration) time.Duration {
	usual := r.usual()
	if usual == 0 {
		return most
	}
	return min(max(time.Duration(times)*usual, least), most)
}

// fine notes an answer that took so long; 0 if that says nothing.
func (r *record) fine(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures, r.until = 0, time.Time{}
	switch {
	case took <= 0:
	case r.smooth == 0:
		r.smooth, r.vary = took, took/2
	default:
		r.vary += ((r.smooth - took).Abs() - r.vary) / 4
		r.smooth += (took - r.smooth) / 8
	}
}

// trouble notes a failure or silence. One cause that lets many requests down at once counts once.
func (r *record) trouble(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.until) {
		return
	}
	d := min(troublePauseMax, troublePause<<min(r.failures, 10))
	r.failures++
	r.until = now.Add(d/2 + rand.N(d))
}

// suspect tells until when the cache is better asked last; zero if it is as good as any.
func (r *record) suspect(now time.Time) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Before(r.until) {
		return r.until
	}
	return time.Time{}
}

// records are the central caches' by URL; those for narinfos and for NARs are apart, since a cache may
// well answer one kind and hang with the other.
type records struct{ m sync.Map }

func (l *records) of(up Upstream) *record {
	r, _ := l.m.LoadOrStore(up.URL(), &record{})
	return r.(*record)
}

// order returns the caches in their configured order, those in trouble last.
func (l *records) order(list []Upstream, now time.Time) []Upstream {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Upstream) int {
		return l.of(a).suspect(now).Compare(l.of(b).suspect(now))
	})
	return list
}

// broke is when the leg's connection last broke, zero if it never did; mu is held.
func (l *leg) broke() time.Time {
	if up, ok := l.body.(NARBody); ok {
		return up.Broke()
	}
	return time.Time{}
}

// hangs tells whether somebody else should try the leg's bytes; mu is held.
func (l *leg) hangs(now time.Time) bool {
	silent := l.silent(now)
	return l.lags || silent > l.src.patience() || silent > breakPatience && l.broke().After(l.lastByte)
}

// trouble is what to say of a leg that was not needed in the end, nil if nothing; mu is held.
func (l *leg) trouble(now time.Time) error {
	age := now.Sub(l.started)
	switch silent := l.silent(now); {
	case silent > l.src.patience():
		return fmt.Errorf("silent for %v after %d bytes", silent.Round(time.Millisecond), l.got)
	case l.lags && l.flows(now): // it brings bytes, perhaps a moment late: no reason to speak ill of it
		return nil
	case l.lags:
		return fmt.Errorf("slow: %d bytes in %v", l.got, age.Round(time.Millisecond))
	case l.hangs(now):
		return fmt.Errorf("broke off after %d bytes", l.got)
	case l.slow:
		return fmt.Errorf("slow: %d bytes in %v", l.got, age.Round(time.Millisecond))
	}
	return nil
}

// look tells whether all bytes are there and how long none came.
func (f *flight) look() (finished bool, silence time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for l := range f.legs {
		if f.passing(l, now) {
			f.progress = now
		}
	}
	return f.written.front() == f.v.NarSize(), now.Sub(f.progress)
}

// passing tells whether the leg came nearer to its first byte than another did before it since bytes last
// arrived: a compressed NAR cannot be entered in its middle, and a central cache that sends its beginning
// once more is not silent. mu is held.
func (f *flight) passing(l *leg, now time.Time) bool {
	body, ok := l.body.(*wireCounter)
	if !ok || !l.passes {
		return false
	}
	n := body.WireBytes()
	if n < l.passed+progressStep {
		return false
	}
	l.lastByte, l.passed = now, n
	if n < f.passed+progressStep {
		return false
	}
	f.passed = n
	body.count() // its Read returns only when it is there
	return true
}

// engaged returns the sources that are at work, and which of them are central caches that have gone silent:
// these may be asked once more when nobody else is left, as what is dead may be the connection alone, and
// again when Nix asks anew. While the uplink is busy silence says nothing, and where Nix waits too long already
// it is too late.
func (p *plan) engaged() (busy, hanging map[string]bool) {
	busy, hanging = map[string]bool{}, map[string]bool{}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	latest := map[string]*leg{}
	for l := range p.f.legs {
		name := l.src.name()
		hanging[name] = !l.src.fromPeer() && (!busy[name] || latest[name].started.Before(p.f.wanted) && l.started.Before(p.f.wanted))
		if busy[name] = true; latest[name] == nil || l.started.After(latest[name].started) {
			latest[name] = l
		}
	}
	waited := time.Since(p.f.wanted) + p.f.spent
	hopeless := p.f.all.uplink.busy() || p.f.asked && p.f.served == 0 && waited > limitUnseen-lateStall
	for name, l := range latest {
		hanging[name] = !hopeless && hanging[name] && l.silent(time.Now()) > l.src.patience()
	}
	return busy, hanging
}

// overdue tells whether Nix has waited in vain as long as it should.
func (p *plan) overdue() bool {
	p.f.mu.Lock()
	due := p.f.served == 0 && p.f.asked && time.Since(p.f.wanted)+p.f.spent > limitUnseen
	p.f.mu.Unlock()
	return due && !p.inHand()
}

// inHand tells whether there is a reason for silence: others' bytes keep the uplink busy, or a neighbour whose claim
// holds is fetching.
func (p *plan) inHand() bool {
	s := p.site()
	return p.f.all.uplink.busyBeside(p.wired.grown(time.Now(), p.f.wireGot.Load())) || s != nil && p.claim.stage == StageFollowing && p.leader(s) != nil
}

// late tells whether a flight that is overdue is given up although it got bytes now and then: sources that
// break off again and again bring some each time. As long as there is a source that has not let this flight
// down it is the one to hope for: perhaps it was not asked because a neighbour, who just died, was asking it.
// One that merely pauses gets longer the longer it was steady; where all broke off lately a moment is enough.
func (p *plan) late(silence time.Duration) bool {
	if silence <= lateStall || !p.overdue() {
		return false
	}
	now := time.Now()
	p.f.mu.Lock()
	age := now.Sub(p.f.wanted) + p.f.spent
	broke, paused := maps.Clone(p.letDown), map[string]bool{}
	for l := range p.f.legs {
		paused[l.src.name()] = l.silent(now) > lateStall
		if at := l.broke(); at.After(broke[l.src.name()]) {
			broke[l.src.name()] = at
		}
	}
	p.f.mu.Unlock()
	all := true
	for _, s := range p.candidates() {
		if failed := now.Sub(broke[s.name()]) < limitUnseen || p.excluded[s.name()]; !failed {
			if all = false; !paused[s.name()] {
				return false
			}
		}
	}
	return all || silence > max(lateSilence, age/4)
}

// limit is how long the flight may go without a byte.
func (p *plan) limit() time.Duration {
	inHand := p.inHand()
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if p.f.served > 0 || !p.f.asked { // Nix would lose what it has, or waits for nothing
		return limitSeen
	}
	if inHand {
		return limitBusy
	}
	return max(limitUnseen-p.f.spent, limitUnseen/2)
}
