package substituter

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// bus connects the sites of several servers in one process.
type bus struct {
	mu    sync.Mutex
	sites []*busSite
	delay time.Duration // of a message
}

// busSite is one server's Site, and as a Peer what the others read from it.
type busSite struct {
	bus    *bus
	id     string
	server *Server
	perMiB time.Duration // how slowly others read from it
	most   int64         // bytes after which an answer breaks off; 0: never

	mu      sync.Mutex
	dead    bool
	told    map[verify.PathDigest]Progress // by this server, as the others know it
	sent    int
	arrived map[verify.PathDigest]int
	news    map[verify.PathDigest]chan struct{}
	asked   int // requests for bytes
	served  int64
	fetched int64
	flaky   int
	doubts  bool // it leaves the others alone for the moment
	lies    bool
	convict int
	unheard time.Time // before it the others hear nothing of it
}

func (b *bus) join(id string) *busSite {
	s := &busSite{bus: b, id: id, told: map[verify.PathDigest]Progress{}, news: map[verify.PathDigest]chan struct{}{}, arrived: map[verify.PathDigest]int{}}
	b.mu.Lock()
	b.sites = append(b.sites, s)
	b.mu.Unlock()
	return s
}

func (b *bus) others(me *busSite) (out []*busSite) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sites {
		s.mu.Lock()
		if s != me && !s.dead {
			out = append(out, s)
		}
		s.mu.Unlock()
	}
	return out
}

func (s *busSite) Self() string    { return s.id }
func (s *busSite) Neighbours() int { return len(s.bus.others(s)) }
func (s *busSite) IDs() (out []string) {
	for _, o := range s.bus.others(s) {
		out = append(out, o.id)
	}
	return out
}

func (s *busSite) Spread(func(string) bool) time.Duration { return 2 * s.bus.delay }

func (s *busSite) Fetched(own int64) (others int64) {
	s.mu.Lock()
	s.fetched = own
	s.mu.Unlock()
	for _, o := range s.bus.others(s) {
		o.mu.Lock()
		others += o.fetched
		o.mu.Unlock()
	}
	return others
}

func (s *busSite) Tell(d verify.PathDigest, p Progress, now bool) {
	s.mu.Lock()
	s.sent++
	number := s.sent
	s.mu.Unlock()
	delay := s.bus.delay
	if !now {
		delay += 50 * time.Millisecond
	}
	time.AfterFunc(delay, func() {
		s.mu.Lock()
		if number > s.arrived[d] { // messages keep their order
			s.told[d], s.arrived[d] = p, number
		}
		s.mu.Unlock()
		for _, o := range s.bus.others(s) {
			o.mu.Lock()
			if ch := o.news[d]; ch != nil {
				close(ch)
				delete(o.news, d)
			}
			o.mu.Unlock()
		}
	})
}

// cut makes the others hear nothing of s for a while.
func (s *busSite) cut(d time.Duration) {
	s.mu.Lock()
	s.unheard = time.Now().Add(d)
	s.mu.Unlock()
}

func (s *busSite) Flying(d verify.PathDigest) (out []Flying) {
	s.mu.Lock()
	doubts := s.doubts
	s.mu.Unlock()
	for _, o := range s.bus.others(s) {
		o.mu.Lock()
		if p := o.told[d]; p.Stage != StageNone && !time.Now().Before(o.unheard) {
			out = append(out, Flying{Peer: busPeer{o}, Suspect: doubts, Progress: p})
		}
		o.mu.Unlock()
	}
	return out
}

func (s *busSite) News(d verify.PathDigest) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.news[d] == nil {
		s.news[d] = make(chan struct{})
	}
	return s.news[d]
}

type busPeer struct{ *busSite }

func (p busPeer) ID() string         { return p.id }
func (p busPeer) RTT() time.Duration { return time.Millisecond }
func (p busPeer) Good()              {}
func (p busPeer) Useless(error)      {}

func (p busPeer) Cost(int64) time.Duration { return time.Millisecond }
func (p busPeer) Flaky(error)              { p.mu.Lock(); p.flaky++; p.mu.Unlock() }
func (p busPeer) Convict(error)            { p.mu.Lock(); p.convict++; p.mu.Unlock() }

func (p busPeer) NarInfo(context.Context, verify.PathDigest) (*verify.NarInfo, error) {
	return nil, ErrAbsent
}

func (p busPeer) Chain(_ context.Context, h verify.StoreHash, narHash verify.Hash, size int64) (verify.Chain, error) {
	form, err := p.server.LandedChain(h, narHash)
	if err != nil {
		return nil, err
	}
	return verify.ParseChain(form, size)
}

func (p busPeer) NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, _, from, to int64) (io.ReadCloser, error) {
	content, err := p.server.Partial(h, narHash)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.asked++
	lies := p.lies && p.told[h.Digest()].Stage != StageLanded // a relay; who has verified and lies is guilty
	p.mu.Unlock()
	pr, pw := io.Pipe()
	go func() {
		defer content.Close()
		for began := from; from < to; {
			n := min(256<<10, to-from)
			time.Sleep(p.perMiB / 4)
			if p.most > 0 && from-began >= p.most {
				pw.CloseWithError(fmt.Errorf("%s has too much to do", p.id))
				return
			}
			p.mu.Lock()
			dead := p.dead
			p.served += n
			p.mu.Unlock()
			if dead {
				pw.CloseWithError(fmt.Errorf("%s is dead", p.id))
				return
			}
			var buf bytes.Buffer
			if _, err := content.WriteRange(ctx, &buf, from, n); err != nil {
				pw.CloseWithError(err)
				return
			}
			if lies {
				buf.Bytes()[0] ^= 1
			}
			if _, err := pw.Write(buf.Bytes()); err != nil {
				return
			}
			from += n
		}
		pw.Close()
	}()
	return pr, nil
}

// office is n servers on one bus, each with its own way to the same upstream.
type office struct {
	world   *world
	sites   []*busSite
	servers []*Server
	ups     []*fakeUpstream
}

func newOffice(t *testing.T, n, size int, upstream behaviour) *office {
	o := &office{world: newWorld(t, size)}
	b := &bus{delay: time.Millisecond}
	for i := range n {
		site := b.join(fmt.Sprintf("m%d", i))
		site.perMiB = 8 * time.Millisecond
		w := *o.world
		w.dir, w.ups, w.peers = t.TempDir(), nil, &fakePeers{}
		o.ups = append(o.ups, w.upstream("x", upstream))
		w.site = site
		site.server = w.start()
		o.sites, o.servers = append(o.sites, site), append(o.servers, site.server)
	}
	return o
}

// fill asks every server for the NAR at once and returns how long the last one took.
func (o *office) fill(t *testing.T, spare ...int) time.Duration {
	t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for i, s := range o.servers {
		wg.Go(func() {
			rec := get(s, o.world.narURL())
			for _, j := range spare {
				if i == j {
					return
				}
			}
			if rec == nil || rec.Code != http.StatusOK || !bytes.Equal(rec.Body.Bytes(), o.world.nar) {
				what := "cut off"
				if rec != nil {
					what = fmt.Sprint(rec.Code, " ", rec.Body.Len())
				}
				t.Errorf("m%d did not get the NAR: %s", i, what)
			}
		})
	}
	wg.Wait()
	return time.Since(start)
}

func (o *office) upstreamOpens() int {
	n := 0
	for _, u := range o.ups {
		n += len(u.asked())
	}
	return n
}

// slowUplink is 64 KiB each 4 ms, 16 MB/s; neighbours exchange 125 MB/s.
var slowUplink = behaviour{corrupt: -1, perRead: 4 * time.Millisecond}

func TestOneSiteOneDownload(t *testing.T) {
	for _, n := range []int{2, 8} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffice(t, n, 8*mib, slowUplink)
			took := o.fill(t)
			if opens := o.upstreamOpens(); opens != 1 {
				t.Errorf("%d machines: the upstream was asked %d times", n, opens)
			}
			alone := 8 * 16 * 4 * time.Millisecond
			if limit := alone*11/10 + 100*time.Millisecond; took > limit {
				t.Errorf("%d machines: %v, one alone needs %v", n, took, alone)
			}
			for _, s := range o.sites {
				if s.flaky+s.convict > 0 {
					t.Errorf("%s is blamed", s.id)
				}
			}
		})
	}
}

// A neighbour that has it all, serves many and fails now and then is no reason to ask the central cache.
func TestABusyNeighbourThatHasItAllIsFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 8*mib, slowUplink)
		get(o.servers[0], o.world.narURL())
		time.Sleep(time.Second)
		o.sites[0].most = 2 * mib
		o.fill(t)
		if opens := o.upstreamOpens(); opens != 1 {
			t.Errorf("the upstream was asked %d times", opens)
		}
	})
}

// Whoever was late may have been taken for dead, and hears nothing for a moment of the neighbour that it follows.
func TestALateMachineThatLostTouchWaitsForItsLeader(t *testing.T) {
	for _, late := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffice(t, 2, 4*mib, behaviour{corrupt: -1, perRead: 62500 * time.Microsecond}) // 1 MiB/s
			time.AfterFunc(1200*time.Millisecond, func() {
				if late {
					u := &o.servers[1-o.first()].flights.uplink
					u.mu.Lock()
					u.lagged = time.Now()
					u.mu.Unlock()
				}
				o.sites[o.first()].cut(800 * time.Millisecond)
			})
			o.fill(t)
			if opens := o.upstreamOpens(); (opens == 1) != late {
				t.Errorf("late: %v; the upstream was asked %d times", late, opens)
			}
		})
	}
}

func TestFollowersAskForWholeChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, chunks = 4, 4
		o := newOffice(t, n, chunks*mib, behaviour{corrupt: -1, perRead: 50 * time.Millisecond}) // 800 ms for each
		o.fill(t)
		asked := 0
		for _, s := range o.sites {
			asked += s.asked
		}
		if most := (n - 1) * chunks; asked > most {
			t.Errorf("followers made %d requests, want %d at most", asked, most)
		}
	})
}

func TestAFollowerDoesNotWaitLongForAWholeChunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, mib, behaviour{corrupt: -1, perRead: 400 * time.Millisecond}) // 6.4 s for the whole
		o.fill(t)
		if asked := o.sites[0].asked + o.sites[1].asked; asked < 2 || asked > 6 {
			t.Errorf("the follower made %d requests, want one for every two seconds or so", asked)
		}
		if opens := o.upstreamOpens(); opens != 1 {
			t.Errorf("the upstream was asked %d times", opens)
		}
	})
}

func TestPickPartial(t *testing.T) {
	const size = 5*mib/2 + 1
	src := func(s ...span) partialSource { return partialSource{held: s} }
	for _, c := range []struct {
		what  string
		held  partialSource
		busy  spans
		whole bool
		want  span // empty: none
	}{
		{"a piece", src(span{0, 1000}), nil, false, span{0, 1000}},
		{"a piece where chunks are waited for", src(span{0, 1000}), nil, true, span{}},
		{"a chunk and a piece", src(span{0, mib + 1000}), nil, true, span{0, mib}},
		{"the rest of a chunk", src(span{0, mib}), spans{{0, 1000}}, true, span{1000, mib}},
		{"somebody brings the end", src(span{0, 1000}), spans{{500, mib}}, true, span{0, 500}},
		{"the end", src(span{2 * mib, size}), nil, true, span{2 * mib, size}},
		{"two chunks", src(span{0, 2*mib + 5}), nil, true, span{0, 2 * mib}},
		{"all busy", src(span{0, mib}), spans{{0, size}}, true, span{}},
	} {
		got, ok := pickPartial(c.held, c.busy, nil, size, c.whole)
		if c.what == "two chunks" { // which of them is chance
			ok, got = ok && got.to == c.want.to, c.want
		}
		if ok != (c.want.to > 0) || ok && got != c.want {
			t.Errorf("%s: %v, %v; want %v", c.what, got, ok, c.want)
		}
	}
}

func TestTheRarestBytesAreAskedForFirst(t *testing.T) {
	const size = 6 * mib
	src := partialSource{held: spans{{0, size}}}
	all := Flying{Progress: Progress{Held: [][2]int64{{0, size}}}}
	most := Flying{Progress: Progress{Held: [][2]int64{{0, 3 * mib}, {4 * mib, size}}}}
	some := Flying{Progress: Progress{Held: [][2]int64{{0, mib}, {2 * mib, size}}}}
	for range 20 { // among equals it is chance
		if got, _ := pickPartial(src, nil, []Flying{all, most, most, some}, size, true); got.from != 3*mib {
			t.Fatalf("%v is asked for", got)
		}
		if got, _ := pickPartial(src, spans{{3 * mib, 4 * mib}}, []Flying{all, most, most, some}, size, true); got.from != mib {
			t.Fatalf("next, %v is asked for", got)
		}
	}
}

// Each machine of a site is the first for its share of the NARs, and all agree who it is.
func TestTheWorkIsSpreadOverTheMachines(t *testing.T) {
	const machines, nars = 24, 2400
	first := map[string]int{}
	for i := range nars {
		d := verify.StoreHash{byte(i), byte(i >> 8)}.Digest()
		best := ""
		for m := range machines {
			if id := fmt.Sprint("machine ", m); best == "" || outranks(d, id, best) {
				best = id
			}
		}
		first[best]++
	}
	for id, n := range first {
		if n < nars/machines/2 || n > nars/machines*2 {
			t.Errorf("%s is the first for %d of %d NARs", id, n, nars)
		}
	}
	if len(first) != machines {
		t.Errorf("only %d machines do anything", len(first))
	}
}

func TestAnOfficeGoesOnWhenTheOneThatFetchesDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 4, 8*mib, slowUplink)
		var killed int
		go func() {
			time.Sleep(300 * time.Millisecond)
			for i, u := range o.ups {
				if len(u.asked()) > 0 {
					killed = i
					o.sites[i].mu.Lock()
					o.sites[i].dead = true
					o.sites[i].mu.Unlock()
				}
			}
		}()
		took := o.fill(t, 0, 1, 2, 3)
		if opens := o.upstreamOpens(); opens != 2 {
			t.Errorf("the upstream was asked %d times, want once more", opens)
		}
		if took > 4*time.Second {
			t.Errorf("took %v (m%d died)", took, killed)
		}
	})
}

func TestAStalledClaimHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 3, mib, honest)
		for _, u := range o.ups {
			u.become(behaviour{corrupt: -1, stopAt: 1000, stall: true})
		}
		go func() {
			time.Sleep(500 * time.Millisecond)
			for _, u := range o.ups {
				u.become(honest) // those who ask later are lucky
			}
		}()
		if took := o.fill(t); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

func TestARelayThatLiesCostsItsPlaceNotItsStanding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 4, 8*mib, slowUplink)
		for _, s := range o.sites[:2] {
			s.lies = true
		}
		o.fill(t)
		for _, s := range o.sites {
			if s.convict > 0 {
				t.Errorf("%s was convicted for bytes it could not have verified", s.id)
			}
		}
	})
}

func TestPrivatePathsAreNotToldOf(t *testing.T) {
	for _, private := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffice(t, 2, mib, honest)
			if private {
				for _, s := range o.servers {
					s.finder.keys = o.world.privateKeys
				}
				for _, u := range o.ups {
					u.w.keys = o.world.privateKeys
				}
			}
			o.fill(t)
			time.Sleep(time.Second)
			told := false
			for _, s := range o.sites {
				s.mu.Lock()
				told = told || len(s.told) > 0
				s.mu.Unlock()
			}
			if told == private {
				t.Errorf("private: %v, told of: %v", private, told)
			}
			content, err := o.servers[0].Partial(o.world.path.Hash(), o.world.info.NarHash)
			if err == nil {
				content.Close()
			}
			if (err == nil) == private {
				t.Errorf("private: %v, served from the spool: %v", private, err)
			}
		})
	}
}

// slowLAN is a neighbour's link of 16 MB/s: what it holds is under way for long after it has it all.
const slowLAN = 60 * time.Millisecond // for 1 MiB

func TestAMachineThatHasItAllIsReadToTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 32*mib, behaviour{corrupt: -1, perRead: time.Millisecond})
		for _, s := range o.sites {
			s.perMiB = slowLAN
		}
		o.fill(t)
		if opens := o.upstreamOpens(); opens != 1 {
			t.Errorf("the upstream was asked %d times", opens)
		}
	})
}

func TestCrossedClaimsAreCountedAndOneYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 32*mib, slowUplink)
		o.sites[0].bus.delay = 200 * time.Millisecond // longer than a claim settles
		o.fill(t)
		var crossed, got int64
		for _, s := range o.servers {
			crossed += s.Stats.Beside.Crossed.Load()
			got += s.Stats.FromUpstream.Load()
		}
		if crossed != 1 {
			t.Errorf("%d crossed claims were counted, want 1", crossed)
		}
		if got > 44*mib {
			t.Errorf("%d MiB came from the upstream: nobody yielded", got/mib)
		}
	})
}

func TestASpoolStaysUntilNeighboursHeardOfTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, mib, slowUplink)
		o.sites = o.sites[:1]
		all := o.servers
		o.servers = all[:1]
		o.fill(t)
		o.world.store.add(o.world.info, o.world.nar)
		all[0].flights.sweep(time.Minute)
		if !all[0].flights.has(o.world.info.NarHash) {
			t.Error("dropped before neighbours could hear that the store has it")
		}
		time.Sleep(storedGrace + time.Second)
		all[0].flights.sweep(time.Minute)
		if all[0].flights.has(o.world.info.NarHash) {
			t.Error("kept although the store shares it")
		}
	})
}

// Who is far ahead goes on although the other ranks before it: what both fetch is counted all the same.
func TestACrossedClaimThatIsNotGivenUpIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 32*mib, slowUplink)
		o.sites[0].bus.delay = time.Second
		ahead, late := 0, 1
		if outranks(o.world.path.Hash().Digest(), "m0", "m1") {
			ahead, late = 1, 0
		}
		var wg sync.WaitGroup
		wg.Go(func() { o.world.wantNAR(get(o.servers[ahead], o.world.narURL())) })
		time.Sleep(500 * time.Millisecond)
		wg.Go(func() { o.world.wantNAR(get(o.servers[late], o.world.narURL())) })
		wg.Wait()
		if n := o.servers[ahead].Stats.Beside.Crossed.Load() + o.servers[late].Stats.Beside.Crossed.Load(); n != 1 || o.upstreamOpens() != 2 {
			t.Errorf("%d of %d downloads are counted as crossed", n, o.upstreamOpens())
		}
	})
}

// What Nix asked for stays for a minute after its last reader, what was fetched ahead of it for five.
func TestASpoolThatTheStoreDoesNotShowStaysForAWhile(t *testing.T) {
	for _, asked := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, mib)
			w.upstream("x", honest)
			s := w.start()
			stays := time.Minute
			if asked {
				w.wantNAR(get(s, w.narURL()))
			} else {
				stays = lingerIdle
				s.flights.prefetch(w.verified())
			}
			time.Sleep(stays - time.Second)
			if !s.flights.has(w.info.NarHash) {
				t.Errorf("asked for: %v; gone before %v", asked, stays)
			}
			time.Sleep(time.Second + 2*sweepEvery)
			if s.flights.has(w.info.NarHash) {
				t.Errorf("asked for: %v; still there after %v", asked, stays)
			}
		})
	}
}

func TestAClaimHoldsAlthoughItsMakerIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 16*mib, slowUplink)
		go func() {
			time.Sleep(300 * time.Millisecond)
			for _, s := range o.sites {
				s.mu.Lock()
				s.doubts = true
				s.mu.Unlock()
			}
			time.Sleep(time.Second)
			for _, s := range o.sites {
				s.mu.Lock()
				s.doubts = false
				s.mu.Unlock()
			}
		}()
		o.fill(t)
		if opens := o.upstreamOpens(); opens != 1 {
			t.Errorf("the upstream was asked %d times", opens)
		}
	})
}

// Who announces what it does not bring is waited for once, and little from then on.
func TestAClaimThatCameToNothingCostsTheNextOnesPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib)
		second := w.add("b", mib)
		b := &bus{delay: time.Millisecond}
		site, mute := b.join("me"), b.join("mute")
		w.site = site
		w.upstream("x", honest)
		s := w.start()
		site.server = s
		for _, h := range []verify.StoreHash{w.path.Hash(), second.Hash()} {
			mute.Tell(h.Digest(), Progress{Stage: StageFetching}, true)
		}
		time.Sleep(time.Second)
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took < claimPatience || took > claimPatience+300*time.Millisecond {
			t.Errorf("the first NAR took %v, want what a claim is waited for, %v", took, claimPatience)
		}
		start = time.Now()
		_, info := w.of(second.Hash())
		if rec := get(s, binarycache.NARURL(second.Hash(), info.NarHash)); rec == nil || rec.Code != http.StatusOK {
			t.Fatal("no second NAR")
		}
		if took := time.Since(start); took < idlerPatience || took > idlerPatience+300*time.Millisecond {
			t.Errorf("the second NAR took %v, want %v", took, idlerPatience)
		}
	})
}

// Whoever announces progress and sends no byte holds Nix up for a bounded time, once, whatever it announces; so do many of
// them together, also those that come one after the other.
func TestAClaimThatOnlySeemsToGrowHoldsNobodyUp(t *testing.T) {
	const size = 4 * mib
	type spans = [][2]int64
	for what, c := range map[string]struct {
		liars int
		later time.Duration // that each comes after the one before
		held  func(round int64) spans
		most  time.Duration
	}{
		"nothing":             {16, 0, func(int64) spans { return nil }, claimPatience},
		"beyond the NAR":      {16, 0, func(r int64) spans { return spans{{size, size + r}} }, claimPatience},
		"more and less":       {8, 0, func(r int64) spans { return spans{{0, 1000 + r%2}} }, followPatience},
		"a byte more":         {1, 0, func(r int64) spans { return spans{{0, r}} }, followPatience},
		"pieces":              {8, 0, func(r int64) spans { return spans{{r, r + 10}, {mib, mib + 10 + r}} }, followPatience},
		"all, and none":       {8, 0, func(r int64) spans { return spans{{0, size}}[:r%2] }, followPatience},
		"by turns, nothing":   {20, time.Second, func(int64) spans { return nil }, followPatience},
		"by turns, all":       {20, time.Second, func(int64) spans { return spans{{0, size}} }, followPatience},
		"now and then":        {1, 0, func(r int64) spans { return spans{{0, r}} }, followBusy},
		"by turns, something": {20, 400 * time.Millisecond, func(r int64) spans { return spans{{0, 9 * r}} }, followPatience},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, size)
				second := w.add("b", size)
				b := &bus{delay: time.Millisecond}
				w.site = b.join("me")
				w.upstream("x", honest)
				s := w.start()
				other := *w
				other.dir, other.site, other.ups = t.TempDir(), nil, nil
				empty := other.start()
				done := make(chan struct{})
				defer close(done)
				for i := range c.liars {
					liar := b.join(fmt.Sprint("liar", i))
					liar.server = empty
					go func() {
						wait := time.Second/2 + time.Duration(i)*c.later
						for r := int64(0); ; r++ {
							select {
							case <-time.After(wait):
							case <-done:
								return
							}
							for _, p := range []verify.StorePath{w.path, second} {
								liar.Tell(p.Hash().Digest(), Progress{Stage: StageFetching, Held: c.held(r)}, true)
							}
							if what == "now and then" && r%3 == 2 {
								time.Sleep(wait)
								for _, p := range []verify.StorePath{w.path, second} { // and says it again before another claim has settled
									liar.Tell(p.Hash().Digest(), Progress{}, true)
								}
								wait = 3 * time.Millisecond
								continue
							}
							wait = 400 * time.Millisecond
						}
					}()
				}
				time.Sleep(time.Second)
				most := c.most
				for _, h := range []verify.StoreHash{w.path.Hash(), second.Hash()} {
					_, info := w.of(h)
					start := time.Now()
					rec := get(s, binarycache.NARURL(h, info.NarHash))
					if took := time.Since(start); rec == nil || rec.Code != http.StatusOK || took > most+500*time.Millisecond {
						t.Errorf("served: %v, after %v", rec != nil && rec.Code == http.StatusOK, took)
					}
					if c.later == 0 {
						most = claimPatience // from now on they are known
					}
					time.Sleep(3 * time.Second) // the uplink is idle again
				}
			})
		})
	}
}
