package substituter

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flurry-nix/flurry/internal/beat"
)

const (
	uplinkEvery  = 250 * time.Millisecond
	uplinkWindow = 8     // intervals that a rate is taken over
	uplinkDecay  = 0.995 // of the best rate, for each interval with traffic: about 2 % a second
	uplinkLeast  = 16e3  // bytes per second; below, nothing is under way
	uplinkIdle   = 4     // intervals with little under way in a row, until there is room for more
	// Whoever was woken so late lately is overloaded: what he takes for others' slowness may be his own.
	lagLeast  = 100 * time.Millisecond
	lagCounts = 5 * time.Second
)

// uplink measures what this machine and its neighbours together get from central caches. It tells a busy
// uplink, where asking a second time helps nobody, from a slow neighbour.
type uplink struct {
	own, public atomic.Int64 // bytes of NARs and narinfos that came here, as sent: all, and those that neighbours may know of

	mu     sync.Mutex // guards all below
	totals []int64    // one for each of the latest intervals
	uses   []float64  // what use was in the latest uplinkWindow intervals
	use    float64    // bytes per second now
	best   float64    // and at most lately, 0 unknown
	steady float64    // the most that two windows in a row reached lately; one burst, or late news of one, is no rate to compare with
	idle   int        // intervals in a row with use of half of that or less
	lagged time.Time
}

// wired counts n bytes from a central cache.
func (u *uplink) wired(n int64, public bool) {
	u.own.Add(n)
	if public {
		u.public.Add(n)
	}
}

// run measures until ctx ends. site may be nil. An idle agent is woken once a second; what came since then counts as having
// come evenly.
func (u *uplink) run(ctx context.Context, site Site) error {
	pause := uplinkEvery
	timer := time.NewTimer(pause)
	defer timer.Stop()
	var before int64
	for last := time.Now(); ; timer.Reset(pause) {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		now := time.Now()
		took := now.Sub(last)
		if took > pause+lagLeast {
			u.mu.Lock()
			u.lagged = now
			u.mu.Unlock()
		}
		last = now
		total := u.own.Load()
		if site != nil {
			total += site.Fetched(u.public.Load())
		}
		intervals := int64(max(1, (took+uplinkEvery/2)/uplinkEvery))
		for k := range intervals {
			u.sample(before + (total-before)*(k+1)/intervals)
		}
		if pause = uplinkEvery; u.still() {
			pause = beat.Next()
		}
		before = total
	}
}

// still tells whether nothing came for a whole window.
func (u *uplink) still() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.totals) >= uplinkWindow && u.totals[0] == u.totals[len(u.totals)-1]
}

// sample notes the bytes that came so far, one interval after the last sample.
func (u *uplink) sample(total int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.totals = append(u.totals, total)
	if len(u.totals) <= uplinkWindow {
		return
	}
	u.use = float64(total-u.totals[0]) / (uplinkWindow * uplinkEvery.Seconds())
	u.totals = u.totals[1:]
	if u.uses = append(u.uses, u.use); len(u.uses) > uplinkWindow {
		if u.use > uplinkLeast {
			u.steady = max(min(u.use, u.uses[0]), u.steady*uplinkDecay)
		}
		u.uses = u.uses[1:]
	}
	if u.use > uplinkLeast {
		u.best = max(u.use, u.best*uplinkDecay)
	}
	if u.idle++; u.use > u.steady/2 {
		u.idle = 0
	}
}

// busy tells whether more than half of what the uplink lately gave is under way now.
func (u *uplink) busy() bool { return u.busyBeside(0) }

// busyBeside is busy without n bytes that came in about the last window.
func (u *uplink) busyBeside(n int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	use := u.use - float64(n)/(uplinkWindow*uplinkEvery.Seconds())
	return use > uplinkLeast && use > u.steady/2
}

// lately tells how much a total grew in about the last window of the uplink.
type lately struct {
	at     []time.Time
	totals []int64
}

// grown notes the total as of now, which is to be called several times a second.
func (l *lately) grown(now time.Time, total int64) int64 {
	for len(l.at) > 1 && now.Sub(l.at[1]) > (uplinkWindow+1)*uplinkEvery {
		l.at, l.totals = l.at[1:], l.totals[1:]
	}
	if len(l.at) == 0 || now.Sub(l.at[len(l.at)-1]) >= uplinkEvery {
		l.at, l.totals = append(l.at, now), append(l.totals, total)
	}
	return total - l.totals[0]
}

// overloaded tells whether this machine's own processors were late not long ago.
func (u *uplink) overloaded() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return time.Since(u.lagged) < lagCounts
}

// carriesLittleBeside tells whether a NAR that comes at rate, in bytes per second as sent, is most of what is
// under way.
func (u *uplink) carriesLittleBeside(rate float64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.use > 0 && u.use < 1.5*rate
}

// rate is what the uplink lately gave at best, in bytes per second.
func (u *uplink) rate() float64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.best == 0 {
		return helpRate
	}
	return u.best
}

// estimate returns how long size more bytes would take beside what is under way now. ok is false where
// the uplink is or just was more than half busy, or nothing is known of it. One low rate
// says little: neighbours that are overloaded tell late what they got, then much at once.
func (u *uplink) estimate(size int64) (d time.Duration, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.steady == 0 || u.idle < uplinkIdle {
		return 0, false
	}
	return time.Duration(float64(size) / (u.steady - u.use) * float64(time.Second)), true
}
