package substituter

import (
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
	troublePause    = 2 * time.Second // for a first trouble; it doubles with each in a row
	troublePauseMax = time.Minute
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
