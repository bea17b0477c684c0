package substituter

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"

	"github.com/flurry-nix/flurry/verify"
)

// Bounds of working ahead of Nix.
const (
	aheadNarInfos  = 16      // questions under way at once, as many as Nix itself asks
	aheadQueue     = 1 << 14 // references waiting to be asked for; more are left to Nix
	askedMost      = 1 << 14 // paths that Nix asked about lately
	askedFresh     = 10 * time.Minute
	aheadNARs      = 6                // NARs under way that Nix has not asked for yet
	aheadBytes     = 512 << 20        // bytes of NARs fetched or under way that Nix has not asked for yet
	aheadAbandoned = 15 * time.Second // without a request of Nix's the rest of a closure is not fetched
)

// ahead works ahead of Nix. Nix asks all narinfos of a closure, then wants NARs, each only once its
// references are valid, old versions one at a time: the link would be idle most of the time. So
// references' narinfos are fetched as soon as a path is known, and after the first NAR of a closure
// the others are fetched, in the order in which Nix will want them, within bounds. A narinfo question alone fetches no NAR.
type ahead struct {
	finder  *finder
	flights *flights
	store   Store
	narinfo chan verify.StoreHash
	kick    chan struct{}

	mu     sync.Mutex // guards all below
	asked  *lru.Cache[verify.StoreHash, askedPath]
	queue  []*found // as Nix will want them
	queued map[verify.Hash]bool
	last   time.Time // of Nix's latest NAR request
}

type askedPath struct {
	got *found
	at  time.Time
}

func newAhead(f *finder, fl *flights, store Store) (*ahead, error) {
	asked, err := lru.New[verify.StoreHash, askedPath](askedMost)
	if err != nil {
		return nil, err
	}
	return &ahead{
		finder: f, flights: fl, store: store, asked: asked, queued: map[verify.Hash]bool{},
		narinfo: make(chan verify.StoreHash, aheadQueue), kick: make(chan struct{}, 1),
	}, nil
}

// run works until ctx ends.
func (a *ahead) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for range aheadNarInfos {
		g.Go(func() error { return a.askNarInfos(ctx) })
	}
	g.Go(func() error { return a.fetchNARs(ctx) })
	return g.Wait()
}

// answered notes that Nix was told of a path; its references will be asked for next.
func (a *ahead) answered(got *found) {
	if a.store.Has(got.v.Path().Hash()) {
		return // and so are its references
	}
	a.mu.Lock()
	a.asked.Add(got.v.Path().Hash(), askedPath{got, a.finder.now()})
	a.mu.Unlock()
	a.expect(got.v)
}

// expect queues the references of a path that are not known yet.
func (a *ahead) expect(v *verify.Verified) {
	for _, ref := range v.References() {
		h, err := verify.ParseStoreHash(ref[:verify.StoreHashLen])
		if err != nil || h == v.Path().Hash() || a.store.Has(h) || a.finder.memory.Contains(h) {
			continue
		}
		select {
		case a.narinfo <- h:
		default:
			return
		}
	}
}

func (a *ahead) askNarInfos(ctx context.Context) error {
	for {
		select {
		case h := <-a.narinfo:
			if a.finder.memory.Contains(h) {
				continue
			}
			if got, err := a.finder.find(ctx, h); err == nil {
				a.expect(got.v)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// wanted notes that Nix asked for a NAR: if the path is part of a closure that Nix asked about, the
// closure's other NARs will be wanted soon.
func (a *ahead) wanted(got *found) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.finder.now()
	a.abandon(now)
	a.last = now
	if !a.queued[got.v.NarHash()] {
		a.queued[got.v.NarHash()] = true
		for _, next := range a.closureAround(got.v.Path().Hash()) {
			if hash := next.v.NarHash(); !a.queued[hash] {
				a.queued[hash] = true
				a.queue = append(a.queue, next)
			}
		}
	}
	a.nudge()
}

// abandon forgets closures that Nix has left alone; when it comes back for one, its NARs may be gone again. mu is held.
func (a *ahead) abandon(now time.Time) {
	if now.Sub(a.last) > aheadAbandoned {
		a.queue = nil
		clear(a.queued)
	}
}

func (a *ahead) nudge() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// closureAround returns what Nix asked about lately and needs for whatever needs h, in the order in which it
// will want the NARs: the closure of h's referrers. mu is held.
func (a *ahead) closureAround(h verify.StoreHash) []*found {
	fresh := a.finder.now().Add(-askedFresh)
	known := map[verify.StoreHash]*found{}
	referrers := map[verify.StoreHash][]verify.StoreHash{}
	for _, from := range a.asked.Keys() {
		p, ok := a.asked.Peek(from)
		if !ok || p.at.Before(fresh) || a.store.Has(from) {
			continue
		}
		known[from] = p.got
		for _, to := range references(p.got.v) {
			referrers[to] = append(referrers[to], from)
		}
	}
	seen := map[verify.StoreHash]bool{h: true}
	spread := func(from []verify.StoreHash, next func(verify.StoreHash) []verify.StoreHash) []verify.StoreHash {
		for i := 0; i < len(from); i++ {
			for _, n := range next(from[i]) {
				if !seen[n] && known[n] != nil {
					seen[n] = true
					from = append(from, n)
				}
			}
		}
		return from
	}
	all := spread([]verify.StoreHash{h}, func(at verify.StoreHash) []verify.StoreHash { return referrers[at] })
	all = spread(all, func(at verify.StoreHash) []verify.StoreHash {
		if known[at] == nil { // h itself may be unknown
			return nil
		}
		return references(known[at].v)
	})
	var order []*found
	for _, at := range all {
		if at != h {
			order = append(order, known[at])
		}
	}
	return nixOrder(order)
}

// nixOrder sorts paths as Nix will want their NARs: each after its references, of those that are ready the
// smallest by name; what becomes ready takes part from the next choice but one on. (So does Nix's worker, whose goals
// lie in a set sorted by name; seen of Nix 2.8, which fetches one at a time. Later ones fetch several, in that order.)
func nixOrder(paths []*found) []*found {
	type goal struct {
		got     *found
		key     string
		waiting int // references that are not fetched yet
		above   []*goal
	}
	goals := make(map[verify.StoreHash]*goal, len(paths))
	for _, p := range paths {
		goals[p.v.Path().Hash()] = &goal{got: p, key: p.v.Path().Name() + "$" + p.v.Path().String()}
	}
	var ready, late []*goal // ready is sorted, the smallest last
	wake := func(list ...*goal) {
		for _, g := range list {
			i, _ := slices.BinarySearchFunc(ready, g, func(a, b *goal) int { return cmp.Compare(b.key, a.key) })
			ready = slices.Insert(ready, i, g)
		}
	}
	for _, g := range goals {
		for _, to := range references(g.got.v) {
			if below := goals[to]; below != nil {
				below.above = append(below.above, g)
				g.waiting++
			}
		}
	}
	for _, g := range goals {
		if g.waiting == 0 {
			wake(g)
		}
	}
	order := make([]*found, 0, len(paths))
	for len(ready)+len(late) > 0 {
		if len(ready) == 0 {
			wake(late...)
			late = nil
		}
		g := ready[len(ready)-1]
		ready = ready[:len(ready)-1]
		wake(late...)
		late = nil
		order = append(order, g.got)
		for _, r := range g.above {
			if r.waiting--; r.waiting == 0 {
				late = append(late, r)
			}
		}
	}
	return order
}

// references returns the store hashes that a path refers to, itself excepted.
func references(v *verify.Verified) []verify.StoreHash {
	var out []verify.StoreHash
	for _, ref := range v.References() {
		if h, err := verify.ParseStoreHash(ref[:verify.StoreHashLen]); err == nil && h != v.Path().Hash() {
			out = append(out, h)
		}
	}
	return out
}

// fetchNARs starts flights for the queue as room allows.
func (a *ahead) fetchNARs(ctx context.Context) error {
	tick := time.NewTicker(uplinkEvery)
	defer tick.Stop()
	for {
		for a.startNext() {
		}
		var again <-chan time.Time // an idle agent is not woken
		if a.waiting() {
			again = tick.C
		}
		select {
		case <-a.kick:
		case <-a.flights.changed:
		case <-again:
		case <-ctx.Done():
			return nil
		}
	}
}

// waiting tells whether NARs wait for room.
func (a *ahead) waiting() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.queue) > 0
}

// startNext starts one flight, or returns false if there is none to start now.
func (a *ahead) startNext() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.abandon(a.finder.now())
	for len(a.queue) > 0 {
		next := a.queue[0]
		if a.store.Has(next.v.Path().Hash()) {
			a.queue = a.queue[1:]
			continue
		}
		if !a.flights.roomAhead(next.v.NarSize()) {
			return false
		}
		a.queue = a.queue[1:]
		a.flights.prefetch(next.v)
		return true
	}
	return false
}
