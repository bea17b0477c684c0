package substituter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/singleflight"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// Patience with narinfo questions. Nix wants an answer in well under a second and no error, ever.
const (
	findPatience     = 3500 * time.Millisecond // all sources together; then it is a miss
	findBusy         = 30 * time.Second        // while a central cache sends other things
	findHeard        = 2500 * time.Millisecond // ago, at most: in a queue that overflows one connection may get nothing for seconds
	peerHedgeLeast   = 100 * time.Millisecond  // a busy LAN peer answers within that; after that much silence of a peer the next source is asked too
	peerHedgeMost    = 300 * time.Millisecond
	startGrace       = 3 * time.Second // after the start; neighbours are found again within it
	startPoll        = 50 * time.Millisecond
	peersAsked       = 3       // of those that claim to have a path
	memoryNarInfos   = 1 << 15 // verified narinfos held, about 1 KiB each
	memoryNegatives  = 1 << 14
	memoryNegativeOK = 30 * time.Second // a definite miss is not looked up again on disk for so long
)

// found is a verified narinfo and who can serve the NAR by it.
type found struct {
	v        *verify.Verified
	upstream Upstream // whose narinfo it is; nil if a peer's or the local store's
	text     string   // the answer to Nix
}

// newFound renders the answer to Nix. What a peer wrote into unsigned fields (Deriver, System, CA) is not
// passed on: Nix refuses a path with a wrong CA.
func newFound(v *verify.Verified, up Upstream) *found {
	reader := verify.ScopeNone
	if up == nil {
		reader = verify.ScopeGroup
	}
	url := binarycache.NARURL(v.Path().Hash(), v.NarHash())
	return &found{v: v, upstream: up, text: v.For(reader, url, "none").String()}
}

// finder turns store hashes into verified narinfos. Safe for concurrent use.
type finder struct {
	storeDir  string
	keys      *verify.Keys
	store     Store
	peers     Peers
	upstreams []Upstream
	internet  Internet // nil without it
	disk      *narInfoCache
	memory    *lru.Cache[verify.StoreHash, *found]
	misses    *lru.Cache[verify.StoreHash, time.Time]
	calls     singleflight.Group
	log       *slog.Logger
	now       func() time.Time
	started   time.Time

	upstreamRequests atomic.Int64
	wired            func(n int64, public bool) // of the narinfos that central caches sent
	records          records                    // of answers to narinfo questions
}

// find returns the narinfo of h. Errors wrap [ErrAbsent] if every source said no; any other means that
// some could not be asked in time. Concurrent calls for one h share the work; a caller that leaves
// does not end it.
func (f *finder) find(ctx context.Context, h verify.StoreHash) (*found, error) {
	if got, err := f.recall(h); got != nil || err != nil {
		return got, err
	}
	call := f.calls.DoChan(h.String(), func() (any, error) { return f.lookupAndKeep(ctx, h) })
	select {
	case r := <-call:
		return answerOf(r.Val, r.Err)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// findHere is find for a caller that waits for the answer, however long; it spares a goroutine.
func (f *finder) findHere(h verify.StoreHash) (*found, error) {
	if got, err := f.recall(h); got != nil || err != nil {
		return got, err
	}
	v, err, _ := f.calls.Do(h.String(), func() (any, error) { return f.lookupAndKeep(context.Background(), h) })
	return answerOf(v, err)
}

func answerOf(v any, err error) (*found, error) {
	if err != nil {
		return nil, err
	}
	return v.(*found), nil
}

// recall answers from memory; it returns neither if it does not know.
func (f *finder) recall(h verify.StoreHash) (*found, error) {
	if got, ok := f.memory.Get(h); ok {
		return got, nil
	}
	if f.knownMiss(h) {
		return nil, ErrAbsent
	}
	return nil, nil
}

func (f *finder) lookupAndKeep(ctx context.Context, h verify.StoreHash) (*found, error) {
	ctx, cancel := f.patiently(context.WithoutCancel(ctx))
	defer cancel()
	got, err := f.lookup(ctx, h)
	if err != nil {
		return nil, err
	}
	f.memory.Add(h, got)
	return got, nil
}

// patiently bounds a question. A central cache that sends other things meanwhile has a busy link, as when a
// whole office starts at once; its answer is on its way, and a miss would fail a build.
func (f *finder) patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	sends := func(up Upstream) bool { return up.Sends(findHeard) }
	last := time.Now().Add(findBusy)
	var look *time.Timer
	look = time.AfterFunc(time.Hour, func() {
		if time.Now().Before(last) && slices.ContainsFunc(f.upstreams, sends) {
			look.Reset(findHeard / 8)
			return
		}
		cancel(context.DeadlineExceeded)
	})
	look.Reset(findPatience)
	return ctx, func() { cancel(context.Canceled); look.Stop() }
}

// knownMiss tells whether h was found absent a moment ago and no neighbour has claimed it since.
func (f *finder) knownMiss(h verify.StoreHash) bool {
	at, ok := f.misses.Get(h)
	return ok && f.now().Sub(at) < memoryNegativeOK && !f.store.Has(h) && len(f.peers.Holders(h.Digest(), 0)) == 0
}

// lookup asks the store, the disk, and then the network.
func (f *finder) lookup(ctx context.Context, h verify.StoreHash) (*found, error) {
	if f.store.Has(h) {
		if info, err := f.store.Info(ctx, h); err == nil {
			if v, err := f.keys.Verify(info); err == nil {
				return newFound(v, nil), nil
			}
		}
	}
	entry, ok := f.disk.get(h)
	if ok && !entry.absent {
		if got := f.revive(h, entry); got != nil {
			return got, nil
		}
	}
	holders := f.peers.Holders(h.Digest(), 0)
	if ok && entry.absent && len(holders) == 0 {
		f.misses.Add(h, f.now())
		return nil, ErrAbsent
	}
	got, err := f.ask(ctx, h, holders, nil)
	if err != nil && !errors.Is(err, ErrAbsent) && f.awaitHolder(ctx, h) {
		return f.ask(ctx, h, f.peers.Holders(h.Digest(), 0), nil)
	}
	return got, err
}

// awaitHolder waits, right after the start, for a neighbour that has the path: a miss sticks in Nix for an
// hour, and neighbours need a moment to be found again.
func (f *finder) awaitHolder(ctx context.Context, h verify.StoreHash) bool {
	for {
		if len(f.peers.Holders(h.Digest(), 0)) > 0 {
			return true
		}
		if f.now().Sub(f.started) > startGrace {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(startPoll):
		}
	}
}

// revive verifies a cached text again.
func (f *finder) revive(h verify.StoreHash, e cached) *found {
	for _, up := range f.upstreams {
		if up.URL() == e.from {
			if v, err := up.Parse(h, e.text); err == nil {
				return newFound(v, up)
			}
		}
	}
	n, err := verify.ParseNarInfo(e.text)
	if err != nil {
		return nil
	}
	v, err := f.verifyClaim(h, n)
	if err != nil {
		return nil
	}
	return newFound(v, nil)
}

// verifyClaim checks a narinfo that did not come from an upstream.
func (f *finder) verifyClaim(h verify.StoreHash, n *verify.NarInfo) (*verify.Verified, error) {
	if n.StorePath.Hash() != h || n.StorePath.Dir() != f.storeDir {
		return nil, fmt.Errorf("narinfo of another path: %w", verify.ErrMalformed)
	}
	return f.keys.Verify(n)
}

// question is one source that can be asked for a narinfo.
type question struct {
	hedge time.Duration // after this much silence the next one is asked too
	ask   func(ctx context.Context) (*found, error)
}

// ask asks peers and upstreams, the next one as soon as one fails or is slow; the first that gives a
// narinfo that accept likes (nil: any) wins.
func (f *finder) ask(ctx context.Context, h verify.StoreHash, holders []Peer, accept func(*verify.Verified) bool) (*found, error) {
	var list []question
	for _, p := range firstOf(holders, peersAsked) {
		list = append(list, f.peerQuestion(p, h))
	}
	for _, up := range f.records.order(f.upstreams, f.now()) {
		list = append(list, f.upstreamQuestion(up, h))
	}
	if f.internet != nil { // those told that they have it, and are slower than a central cache that answers
		for _, p := range firstOf(f.internet.Told(h.Digest(), 0), peersAsked) {
			list = append(list, f.peerQuestion(p, h))
		}
	}
	got, errs := race(ctx, list, accept)
	if got != nil {
		return got, nil
	}
	for _, err := range errs[min(len(holders), peersAsked):] {
		if !errors.Is(err, ErrAbsent) {
			return nil, fmt.Errorf("no source has it and an upstream could not be asked: %w", err)
		}
	}
	if accept == nil && len(f.upstreams) > 0 {
		f.disk.putAbsent(h)
		f.misses.Add(h, f.now())
	}
	return nil, ErrAbsent
}

func firstOf(list []Peer, n int) []Peer { return list[:min(len(list), n)] }

func (f *finder) peerQuestion(p Peer, h verify.StoreHash) question {
	hedge := min(max(4*p.RTT(), peerHedgeLeast), peerHedgeMost)
	return question{hedge, func(ctx context.Context) (*found, error) {
		asked := time.Now()
		n, err := p.NarInfo(ctx, h.Digest())
		if err != nil {
			switch silent := time.Since(asked); {
			case errors.Is(err, ErrAbsent), errors.Is(err, ErrBusy):
			case ctx.Err() == nil:
				p.Flaky(err)
			case silent >= hedge:
				p.Flaky(fmt.Errorf("no answer to a question for %v", silent.Round(time.Millisecond)))
			}
			return nil, err
		}
		v, err := f.verifyClaim(h, n)
		if err != nil {
			p.Useless(fmt.Errorf("narinfo of no use: %w", err)) // perhaps only of a key that is not ours
			return nil, fmt.Errorf("peer %s: %w", p.ID(), err)
		}
		f.disk.put(h, fromPeer, n.String())
		return newFound(v, nil), nil
	}}
}

func (f *finder) upstreamQuestion(up Upstream, h verify.StoreHash) question {
	r := f.records.of(up)
	hedge := r.patience(4, hedgeLeast, hedgeMost)
	return question{hedge, func(ctx context.Context) (*found, error) {
		asked := time.Now()
		got, err := f.fromUpstream(ctx, up, h)
		switch took := time.Since(asked); {
		case err == nil, errors.Is(err, ErrAbsent):
			r.fine(took)
		case ctx.Err() == nil:
			r.trouble(f.now())
			up.Trouble(err)
		case took >= hedge: // another source was quicker
			r.trouble(f.now())
			up.Trouble(fmt.Errorf("no answer to a question for %v", took.Round(time.Millisecond)))
		}
		return got, err
	}}
}

// fromUpstream asks one upstream for its own narinfo, the only place that its NAR URL may come from.
func (f *finder) fromUpstream(ctx context.Context, up Upstream, h verify.StoreHash) (*found, error) {
	f.upstreamRequests.Add(1)
	v, text, err := up.NarInfo(ctx, h)
	if err != nil {
		return nil, err
	}
	f.wired(int64(len(text)), v.Scope() == verify.ScopePublic)
	f.disk.put(h, up.URL(), text)
	return newFound(v, up), nil
}

// ofUpstream returns up's narinfo of h, from memory or disk if it was asked before.
func (f *finder) ofUpstream(ctx context.Context, up Upstream, h verify.StoreHash) (*found, error) {
	if got, ok := f.memory.Get(h); ok && got.upstream == up {
		return got, nil
	}
	if e, ok := f.disk.get(h); ok && !e.absent && e.from == up.URL() {
		if v, err := up.Parse(h, e.text); err == nil {
			return newFound(v, up), nil
		}
	}
	return f.fromUpstream(ctx, up, h)
}

// findNAR returns a narinfo of h whose NAR has narHash. Nix may hold a narinfo that differs from the
// one remembered here: then sources are asked again.
func (f *finder) findNAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash) (*found, error) {
	got, err := f.find(ctx, h)
	if err != nil || got.v.NarHash() == narHash {
		return got, err
	}
	ctx, cancel := f.patiently(ctx)
	defer cancel()
	return f.ask(ctx, h, f.peers.Holders(h.Digest(), 0), func(v *verify.Verified) bool { return v.NarHash() == narHash })
}

// forget drops what is remembered of h after a source that should have had its NAR did not.
func (f *finder) forget(h verify.StoreHash) {
	f.memory.Remove(h)
	f.disk.drop(h)
}

// clear forgets negative answers, or all.
func (f *finder) clear(all bool) (positive, negative int, err error) {
	f.misses.Purge()
	if all {
		f.memory.Purge()
	}
	return f.disk.clear(all)
}

var errOtherBuild = fmt.Errorf("another build of the path: %w", ErrAbsent)

// race asks the questions in order, each as soon as its predecessor failed or was silent for its
// hedge time. It returns the first answer that accept likes, or one error for each question.
func race(ctx context.Context, list []question, accept func(*verify.Verified) bool) (*found, []error) {
	if len(list) == 1 { // nobody to race with
		got, err := list[0].ask(ctx)
		if err == nil && accept != nil && !accept(got.v) {
			err = errOtherBuild
		}
		if err != nil {
			return nil, []error{err}
		}
		return got, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		i   int
		got *found
		err error
	}
	results := make(chan result, len(list))
	errs := make([]error, len(list))
	for i := range errs {
		errs[i] = context.DeadlineExceeded
	}
	hedge := time.NewTimer(0)
	defer hedge.Stop()
	started, open := 0, 0
	for {
		select {
		case <-ctx.Done():
			return nil, errs
		case r := <-results:
			open--
			if r.err == nil && (accept == nil || accept(r.got.v)) {
				return r.got, nil
			}
			if r.err == nil {
				r.err = errOtherBuild
			}
			errs[r.i] = r.err
			hedge.Reset(0)
		case <-hedge.C:
			if started == len(list) {
				break
			}
			i := started
			started, open = started+1, open+1
			hedge.Reset(list[i].hedge)
			go func() {
				got, err := list[i].ask(ctx)
				results <- result{i, got, err}
			}()
		}
		if open == 0 && started == len(list) {
			return nil, errs
		}
	}
}
