package substituter

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/verify"
)

const (
	idlersMost = 2000            // neighbours that are remembered for claims that came to nothing
	lingerIdle = 5 * time.Minute // of a NAR fetched ahead that nobody has asked for yet
	sweepEvery = 5 * time.Second
	// storedGrace is how long after its last reader a NAR in the spool is kept although the store shares it: a
	// have-set's changes take a moment to reach all neighbours.
	storedGrace = 3 * time.Second
	rateLeast   = 256 << 10               // bytes; a smaller NAR says nothing about throughput
	holdTime    = 1500 * time.Millisecond // of downloading, which Nix waits for rather than see unverified bytes
	holdLeast   = 4 << 20                 // bytes held in any case
	holdLimit   = 64 << 20                // and at most
	holdRate    = 10 << 20                // bytes per second, until it was measured
)

// Stats counts what the substituter did since it started. All bytes are of uncompressed NARs but Wire.
type Stats struct {
	FromPeers, FromUpstream, FromStore, ToNix atomic.Int64
	Wire                                      atomic.Int64 // from upstreams, as sent
	FromInternet                              atomic.Int64 // the part of FromPeers that came from beyond the site
	NarInfoHits, NarInfoMisses                atomic.Int64
	Served, Failed, Switched, Rejected        atomic.Int64 // NARs; changes of source mid-NAR; mismatches
	Beside                                    Beside
}

// received counts n bytes of a NAR.
func (a *flights) received(src source, n int64) {
	_, beyond := src.(farSource)
	if beyond {
		a.stats.FromInternet.Add(n)
	}
	if peer, ok := src.(peerSource); ok {
		a.laggards.count(peer.ID(), n)
	}
	if src.fromPeer() {
		a.stats.FromPeers.Add(n)
	} else {
		a.stats.FromUpstream.Add(n)
	}
	if a.internet != nil && (beyond || !src.fromPeer()) {
		a.farGate.count(time.Now(), n, beyond)
	}
}

// flights is the set of NARs on their way or just landed, by NarHash: the same NAR may belong to
// several paths. mu guards byHash; it is taken before a flight's own locks.
type flights struct {
	dir       string // of spool files
	create    func(dir string) (spoolFile, error)
	site      Site // nil without neighbours
	chains    *chains
	firstByte time.Duration // Nix is to have a byte by then
	linger    time.Duration // a spool stays that long after its last reader: Nix may come back with a Range
	finder    *finder
	stats     *Stats
	log       *slog.Logger
	now       func() time.Time
	room      room // for spools
	noRoom    rate.Sometimes
	uplink    uplink
	trials    trials
	idlers    *lru.Cache[string, struct{}] // names of neighbours whose latest claim came to nothing, until one of them brings bytes
	pace      pace                         // of the central caches
	laggards  laggards                     // neighbours that the central caches are quicker than
	records   records                      // of the central caches' NARs
	distrust  sync.Map                     // upstream URL → time.Time until which it is asked last
	keep      int64                        // bytes of landed spools kept for latecomers

	internet Internet // nil without it
	offload  bool     // agents of the internet before the central cache
	farGate  farGate
	farRates farRates

	air     airtime
	changed chan struct{} // gets a token when a flight landed or was asked for

	mu     sync.Mutex
	byHash map[verify.Hash]*flight
	ctx    context.Context // of all flights; set by run
	wg     sync.WaitGroup
}

// clearSpool removes what a predecessor left behind.
func (a *flights) clearSpool() {
	left, _ := filepath.Glob(filepath.Join(a.dir, "nar-*"))
	for _, f := range left {
		os.Remove(f)
	}
}

// run lets flights fly until ctx ends and drops those that nobody needs any more.
func (a *flights) run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			a.sweep(a.linger)
		case <-ctx.Done():
			a.wg.Wait()
			a.sweep(-1)
			return nil
		}
	}
}

// join returns the flight that fetches v's NAR, a new one if need be, with one more reader, who has waited
// for spent already. fresh says that it is new.
func (a *flights) join(v *verify.Verified, spent time.Duration) (r *reader, fresh bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.byHash[v.NarHash()]
	f, err := a.open(v)
	if err != nil {
		return nil, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers == 0 || !f.asked {
		f.wanted, f.spent = time.Now(), spent
	}
	f.readers++
	f.asked = true
	a.nudge()
	return &reader{f: f, epoch: f.epoch}, f != before, nil
}

// prefetch starts a flight that nobody reads yet.
func (a *flights) prefetch(v *verify.Verified) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.open(v); err != nil {
		a.log.Debug("not fetched ahead", "err", err)
	}
}

// open returns the flight for v's NAR; mu is held.
func (a *flights) open(v *verify.Verified) (*flight, error) {
	old := a.byHash[v.NarHash()]
	if old != nil && old.usable() {
		return old, nil
	}
	if err := a.ctx.Err(); err != nil {
		return nil, err
	}
	s, err := a.newSpool(v.NarSize())
	if err != nil {
		return nil, err
	}
	f := &flight{
		hash: v.Path().Hash(), v: v, all: a,
		changed: make(chan struct{}), legs: map[*leg]bool{},
		spool: s, progress: time.Now(), wanted: time.Now(), idle: a.now(), began: a.now(), hold: v.NarSize() <= a.holdMost(),
	}
	a.byHash[v.NarHash()] = f
	if old != nil { // it failed; a later request deserves a try of its own
		a.wg.Go(func() { a.dropWhenIdle(old) })
	}
	a.wg.Go(func() { f.run(a.ctx) })
	return f, nil
}

// newSpool makes room for size bytes, if need be at the cost of landed NARs, those first that were not
// asked for the longest time; mu is held.
func (a *flights) newSpool(size int64) (*spool, error) {
	for {
		s, err := newSpool(func() (spoolFile, error) { return a.create(a.dir) }, size, &a.room)
		if !errors.Is(err, errNoRoom) || !a.dropOldest() {
			return s, err
		}
	}
}

// dropOldest drops the landed flight that was not used for the longest time; mu is held. It returns false
// if there is none.
func (a *flights) dropOldest() bool {
	var oldest *flight
	for _, f := range a.byHash {
		f.mu.Lock()
		if f.done && f.readers == 0 && f.spool.file != nil && (oldest == nil || f.idle.Before(oldest.idle)) {
			oldest = f
		}
		f.mu.Unlock()
	}
	if oldest == nil {
		return false
	}
	delete(a.byHash, oldest.v.NarHash())
	oldest.mu.Lock()
	oldest.free()
	oldest.mu.Unlock()
	return true
}

// write stores what a leg brought; on a full disk landed NARs make room.
func (a *flights) write(s *spool, p []byte, off int64) error {
	for {
		err := s.writeAt(p, off)
		if !errors.Is(err, errNoRoom) {
			return err
		}
		a.mu.Lock()
		dropped := a.dropOldest()
		a.mu.Unlock()
		if !dropped {
			return err
		}
	}
}

// holdMost is the largest NAR, in bytes, that is shown only once the whole is verified even if it comes from
// a central cache. One wrong byte in what Nix has seen fails its command if it has no other substituter,
// and waiting for a short download costs nearly nothing: the next NARs are on their way meanwhile.
func (a *flights) holdMost() int64 {
	rate, _ := a.pace.rates()
	if rate == 0 {
		rate = holdRate
	}
	return min(max(holdLeast, int64(rate*holdTime.Seconds())), holdLimit)
}

// usable tells whether more readers may join.
func (f *flight) usable() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err == nil && !f.poisoned
}

// roomAhead tells whether another NAR of size bytes may be fetched before Nix asks for it.
func (a *flights) roomAhead(size int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	var unread, left int64 // left is as sent
	flying := 0
	for _, f := range a.byHash {
		f.mu.Lock()
		if !f.done {
			left += f.uplinkLeft()
		}
		if !f.asked {
			unread += f.v.NarSize()
			if !f.done {
				flying++
			}
		}
		f.mu.Unlock()
	}
	enough := int64(a.uplink.rate() * (a.aheadTime() + a.claimTime()).Seconds())
	return flying < aheadNARs && left < enough && (unread == 0 || unread+size <= aheadBytes)
}

// uplinkLeft is how many bytes, as sent, the uplink still has to bring of a NAR: what no machine of the site has. mu is
// held.
func (f *flight) uplinkLeft() int64 {
	size, most := f.v.NarSize(), f.held()
	if f.all.site != nil && f.v.Scope() == verify.ScopePublic {
		for _, n := range f.all.site.Flying(f.hash.Digest()) {
			most = max(most, n.held(size))
		}
	}
	return int64(float64(max(0, size-most)) * float64(f.wireSize()) / float64(max(1, size)))
}

// aheadTime is how long the uplink may need for what is under way when another NAR is begun ahead of Nix: for
// this one's first byte to come before the last one's end. More would hold up what Nix waits for, as they share.
func (a *flights) aheadTime() time.Duration {
	up := a.finder.upstreams
	if len(up) == 0 {
		return aheadMost
	}
	return a.finder.records.of(a.finder.records.order(up, a.now())[0]).patience(2, aheadLeast, aheadMost)
}

// nudge says that something changed; it never blocks.
func (a *flights) nudge() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// leave ends one reader's use of f.
func (a *flights) leave(f *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers--; f.readers == 0 {
		f.idle = a.now()
		f.broadcast()
	}
}

// dropWhenIdle frees a flight that was replaced.
func (a *flights) dropWhenIdle(f *flight) {
	for {
		f.mu.Lock()
		if f.done && f.readers == 0 {
			f.free()
			f.mu.Unlock()
			return
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-a.ctx.Done():
			return
		}
	}
}

// free gives spools back; mu is held, there is no reader and no leg.
func (f *flight) free() {
	f.untell()
	f.spool.close()
	for _, s := range f.trash {
		s.close()
	}
	f.trash = nil
}

// sweep drops landed flights that had no reader for age, and the oldest ones while too much is kept.
func (a *flights) sweep(age time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var kept int64
	var oldest *flight
	for {
		kept, oldest = 0, nil
		for hash, f := range a.byHash {
			f.mu.Lock()
			limit := age
			if !f.asked && age > 0 {
				limit = max(limit, lingerIdle)
			}
			switch idle := f.done && f.readers == 0; {
			case idle && (f.err != nil || a.now().Sub(f.idle) > limit || f.asked && a.stored(f)):
				delete(a.byHash, hash)
				f.free()
			case idle:
				kept += f.v.NarSize()
				if oldest == nil || f.idle.Before(oldest.idle) {
					oldest = f
				}
			}
			f.mu.Unlock()
		}
		if kept <= a.keep || oldest == nil {
			return
		}
		delete(a.byHash, oldest.v.NarHash())
		oldest.mu.Lock()
		if oldest.readers == 0 {
			oldest.free()
		}
		oldest.mu.Unlock()
	}
}

// stored tells whether the store took a landed NAR over, and neighbours have heard so; f.mu is held.
func (a *flights) stored(f *flight) bool {
	has := a.finder.store.Has(f.hash)
	if f.v.Scope() == verify.ScopePublic && a.site != nil {
		has = a.finder.store.Shared(f.hash, verify.ScopePublic) && a.now().Sub(f.idle) > storedGrace
	}
	return has
}

// landed records a finished flight.
func (a *flights) landed(f *flight, parts []part, err error, took time.Duration) {
	a.nudge()
	log := a.log.With("bytes", f.v.NarSize(), "ms", took.Milliseconds())
	if f.v.Scope() == verify.ScopePublic {
		log = log.With("path", f.v.Path().Base())
	}
	if errors.Is(err, errLocal) {
		log.Info("NAR could not be collected", "err", err)
		return
	}
	if err != nil {
		if a.ctx.Err() == nil {
			a.stats.Failed.Add(1)
			if f.v.Scope() != verify.ScopePublic {
				err = errNoSource // the whole of it may name the path
			}
			log.Warn("NAR could not be fetched", "err", err)
		}
		return
	}
	from := map[string]int64{}
	for _, p := range parts {
		from[p.src.name()] += p.len()
	}
	log.Info("NAR fetched", "from", from)
}

// has tells whether a NAR is on its way or in the spool.
func (a *flights) has(hash verify.Hash) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.byHash[hash]
	return f != nil && f.usable()
}

// clear drops landed NARs that nobody reads and returns how many and their bytes.
func (a *flights) clear() (n int, bytes int64) {
	a.mu.Lock()
	for _, f := range a.byHash {
		f.mu.Lock()
		if f.done && f.readers == 0 {
			n, bytes = n+1, bytes+f.v.NarSize()
		}
		f.mu.Unlock()
	}
	a.mu.Unlock()
	a.sweep(-1)
	return n, bytes
}

// inFlight returns how many NARs are being fetched.
func (a *flights) inFlight() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, f := range a.byHash {
		f.mu.Lock()
		if !f.done {
			n++
		}
		f.mu.Unlock()
	}
	return n
}
