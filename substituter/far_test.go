package substituter

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// fakeInternet is agents beyond the site.
type fakeInternet struct {
	mu    sync.Mutex
	found []*fakePeer // what a look-up brings
	told  []*fakePeer // who told what it has
	takes time.Duration
	asked int
}

func (in *fakeInternet) Find(ctx context.Context, _ *verify.Verified) []Peer {
	in.mu.Lock()
	in.asked++
	in.mu.Unlock()
	select {
	case <-time.After(in.takes):
	case <-ctx.Done():
	}
	var out []Peer
	for _, p := range in.found {
		out = append(out, p)
	}
	return out
}

func (in *fakeInternet) Told(verify.PathDigest, int64) []Peer {
	var out []Peer
	for _, p := range in.told {
		out = append(out, p)
	}
	return out
}

func (in *fakeInternet) lookUps() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.asked
}

// remote makes an agent beyond the site, which no have-set of a neighbour names.
func (w *world) remote(id string, b behaviour) *fakePeer {
	return &fakePeer{w: w, id: id, behaviour: b}
}

func (p *fakePeer) requests() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]int64(nil), p.opened...)
}

// slow is an honest source of about 64 KiB per d.
func slow(d time.Duration) behaviour { b := honest; b.perRead = d; return b }

// measured makes the central cache's link one that brings so many bytes a second without help.
func (s *Server) measured(rate float64) {
	g := &s.flights.farGate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state, g.alone, g.nars, g.until = gateOpen, rate, rate, time.Now().Add(time.Hour)
}

func TestAgentsBeyondTheSiteHelpASlowCacheFromItsEnd(t *testing.T) {
	w := newWorld(t, 16<<20)
	w.upstream("cache", slow(10*time.Millisecond)) // 6.5 MB/s: 2.5 s alone
	far := w.remote("far", slow(time.Millisecond))
	in := &fakeInternet{found: []*fakePeer{far}, takes: 50 * time.Millisecond}
	w.internet = in
	s := w.start()
	s.measured(6.5e6)
	w.wantNAR(get(s, w.narURL()))
	reqs := far.requests()
	if len(reqs) == 0 || in.lookUps() != 1 {
		t.Fatalf("%d requests, %d look-ups", len(reqs), in.lookUps())
	}
	if reqs[0] < 12<<20 {
		t.Errorf("it began at %d, not at the end", reqs[0])
	}
	if n := s.Stats.FromInternet.Load(); n < 2<<20 {
		t.Errorf("it brought %d bytes", n)
	}
	if up := s.Stats.FromUpstream.Load() + s.Stats.FromPeers.Load(); up != int64(len(w.nar)) {
		t.Errorf("%d bytes for a NAR of %d", up, len(w.nar))
	}
}

func TestASlowAgentBeyondTheSiteDelaysNothing(t *testing.T) {
	w := newWorld(t, 16<<20)
	w.upstream("cache", slow(5*time.Millisecond)) // 1.3 s alone
	far := w.remote("far", slow(500*time.Millisecond))
	w.internet = &fakeInternet{found: []*fakePeer{far}}
	s := w.start()
	s.measured(13e6)
	began := time.Now()
	w.wantNAR(get(s, w.narURL()))
	if took := time.Since(began); took > 5*time.Second { // its 256 pieces alone would take two minutes
		t.Errorf("took %v", took)
	}
	if len(far.flakies)+len(far.convicts) > 0 {
		t.Error("being slow is held against it")
	}
	if n := len(far.requests()); n != 1 {
		t.Errorf("it was asked %d times; once tells how slow it is", n)
	}
}

func TestAnAgentBeyondTheSiteThatIsKnownToBeSlowIsNotAsked(t *testing.T) {
	w := newWorld(t, 16<<20)
	w.upstream("cache", slow(5*time.Millisecond))
	far := w.remote("far", honest)
	in := &fakeInternet{found: []*fakePeer{far}}
	w.internet = in
	s := w.start()
	s.measured(13e6)
	s.flights.farRates.note("far", 1e5, time.Now())
	w.wantNAR(get(s, w.narURL()))
	if n := len(far.requests()); n != 0 || in.lookUps() != 1 {
		t.Errorf("%d requests, %d look-ups", n, in.lookUps())
	}
}

func TestWhatTheCentralCacheBringsAtOnceIsNotLookedUp(t *testing.T) {
	w := newWorld(t, 2<<20)
	w.upstream("cache", slow(5*time.Millisecond))
	in := &fakeInternet{found: []*fakePeer{w.remote("far", honest)}}
	w.internet = in
	s := w.start()
	s.measured(13e6)
	w.wantNAR(get(s, w.narURL()))
	if in.lookUps() != 0 {
		t.Errorf("%d look-ups", in.lookUps())
	}
}

func TestASilentCentralCacheIsNotWaitedForBeforeALookUp(t *testing.T) {
	w := newWorld(t, 2<<20)
	w.upstream("cache", slow(time.Hour))
	in := &fakeInternet{found: []*fakePeer{w.remote("far", honest)}}
	w.internet = in
	s := w.start()
	s.measured(13e6)
	w.wantNAR(get(s, w.narURL()))
	if in.lookUps() != 1 || s.Stats.FromInternet.Load() == 0 {
		t.Errorf("%d look-ups", in.lookUps())
	}
}

func TestTheRateOfAnAgentBeyondTheSiteIsForgotten(t *testing.T) {
	var r farRates
	now := time.Now()
	r.note("a", 100, now)
	r.note("a", 200, now)
	if got := r.of("a", now); got != 150 {
		t.Errorf("rate %v", got)
	}
	later := now.Add(farRateLife + time.Second)
	if got := r.of("a", later); got != 0 {
		t.Errorf("rate %v after a while", got)
	}
	if r.note("b", 1, later); len(r.byID) != 1 {
		t.Errorf("%d rates are kept", len(r.byID))
	}
}

func TestALyingAgentBeyondTheSiteIsConvicted(t *testing.T) {
	w := newWorld(t, 16<<20)
	w.upstream("cache", slow(10*time.Millisecond))
	lies := slow(time.Millisecond)
	lies.corrupt = len(w.nar) - 1000
	far := w.remote("far", lies)
	w.internet = &fakeInternet{found: []*fakePeer{far}}
	s := w.start()
	s.measured(6.5e6)
	w.wantNAR(get(s, w.narURL()))
	far.mu.Lock()
	defer far.mu.Unlock()
	if len(far.opened) > 0 && len(far.convicts) == 0 {
		t.Error("it was used and is not convicted")
	}
	if len(far.opened) == 0 {
		t.Error("it was not used: the test shows nothing")
	}
}

func TestOffloadSparesTheCentralCache(t *testing.T) {
	w := newWorld(t, 4<<20)
	up := w.upstream("cache", honest)
	w.internet = &fakeInternet{found: []*fakePeer{w.remote("far", honest)}, takes: 100 * time.Millisecond}
	w.offload = true
	s := w.start()
	w.wantNAR(get(s, w.narURL()))
	if len(up.asked()) != 0 || s.Stats.FromInternet.Load() != int64(len(w.nar)) {
		t.Errorf("the cache was asked %d times, %d bytes from the internet", len(up.asked()), s.Stats.FromInternet.Load())
	}
}

func TestOffloadDoesNotWaitForALookUpThatHangs(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.upstream("cache", honest)
	w.internet = &fakeInternet{takes: time.Hour}
	w.offload = true
	s := w.start()
	began := time.Now()
	w.wantNAR(get(s, w.narURL()))
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestWithoutACacheAgentsBeyondTheSiteServeAll(t *testing.T) {
	w := newWorld(t, 3<<20)
	gone := honest
	gone.refuse = true
	w.upstream("cache", gone)
	far := w.remote("far", honest)
	w.internet = &fakeInternet{told: []*fakePeer{far}}
	s := w.start()
	if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != 200 {
		t.Fatalf("status %d", rec.Code)
	}
	w.wantNAR(get(s, w.narURL()))
}

func TestPrivatePathsAreNotLookedForOnTheInternet(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.keys = w.privateKeys
	w.upstream("cache", honest)
	in := &fakeInternet{}
	w.internet = in
	s := w.start()
	w.wantNAR(get(s, w.narURL()))
	if in.lookUps() != 0 {
		t.Error("a private path was looked for")
	}
}

func TestTheGateLetsHelpInOnlyWhileItHelps(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var g farGate
	// run lets bytes come for d, so many a second from the cache as sent, of NARs that compress well or badly by turns,
	// and from beyond the site, only while the gate is open, which takes a quarter of the cache's link.
	run := func(d time.Duration, wire, far float64) (helped time.Duration) {
		const tick = 10 * time.Millisecond
		for i := range int(d / tick) {
			now = now.Add(tick)
			w := wire * tick.Seconds()
			if g.open(now) {
				w *= 0.75
				helped += tick
				g.count(now, int64(far*tick.Seconds()), true)
			}
			shrunk := []float64{1.5, 5}[i/100%2]
			g.wired(int64(w))
			g.count(now, int64(w*shrunk), false)
		}
		return helped
	}
	if helped := run(10*time.Second, 6e6, 1e6); helped == 0 || helped > 3*time.Second {
		t.Errorf("help that is none lasted %v", helped)
	}
	if helped := run(40*time.Second, 6e6, 1e6); helped != 0 {
		t.Errorf("and again %v", helped)
	}
	now = now.Add(gateMost)
	if helped := run(10*time.Second, 6e6, 20e6); helped < 7*time.Second {
		t.Errorf("good help lasted %v", helped)
	}
	if helped := run(10*time.Second, 6e6, 0.5e6); helped > 4*time.Second {
		t.Errorf("help that became bad lasted %v more", helped)
	}
}

func TestLastGapIsTheLast(t *testing.T) {
	for range 1000 {
		const size = 40
		var s spans
		var set [size]bool
		for range rand.IntN(6) {
			from := rand.Int64N(size)
			to := from + rand.Int64N(size-from) + 1
			s = s.add(from, to)
			for i := from; i < to; i++ {
				set[i] = true
			}
		}
		last := -1
		for i, have := range set {
			if !have {
				last = i
			}
		}
		g, ok := s.lastGap(0, size)
		if ok != (last >= 0) || ok && int(g.to) != last+1 {
			t.Fatalf("%v: %v %v, want the end %d", s, g, ok, last+1)
		}
		for i := g.from; ok && i < g.to; i++ {
			if set[i] {
				t.Fatalf("%v: %v is not missing", s, g)
			}
		}
		if ok && g.from > 0 && !set[g.from-1] {
			t.Fatalf("%v: %v begins too late", s, g)
		}
	}
}
