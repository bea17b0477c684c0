package substituter

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

const mib = 1 << 20

func TestNARComesFromWhoeverHasIt(t *testing.T) {
	cases := map[string]struct {
		peers  []behaviour
		ups    []behaviour
		guilty int           // index of the peer that must be convicted, -1 none
		within time.Duration // of simulated time
	}{
		"peer":                            {[]behaviour{honest}, nil, -1, 0},
		"upstream":                        {nil, []behaviour{honest}, -1, 0},
		"peer refuses":                    {[]behaviour{{refuse: true, corrupt: -1}}, []behaviour{honest}, -1, time.Second},
		"peer lost it":                    {[]behaviour{{absent: true, corrupt: -1}}, []behaviour{honest}, -1, time.Second},
		"peer never answers":              {[]behaviour{{hangOpen: true, corrupt: -1}}, []behaviour{honest}, -1, time.Second},
		"peer breaks":                     {[]behaviour{{stopAt: mib, corrupt: -1}}, []behaviour{honest}, -1, time.Second},
		"peer stalls":                     {[]behaviour{{stopAt: mib, stall: true, corrupt: -1}}, []behaviour{honest}, -1, time.Second},
		"peer stalls, another has it":     {[]behaviour{{stopAt: mib, stall: true, corrupt: -1}, honest}, nil, -1, time.Second},
		"upstream breaks":                 {[]behaviour{{refuse: true, corrupt: -1}, honest}, []behaviour{{stopAt: mib, corrupt: -1}}, -1, time.Second},
		"upstream stalls, second goes on": {nil, []behaviour{{stopAt: mib, stall: true, corrupt: -1}, honest}, -1, 3 * time.Second},
		"lone peer lies":                  {[]behaviour{{corrupt: 5}}, []behaviour{honest}, 0, time.Second},
		"peer lies in the last byte":      {[]behaviour{{corrupt: 3*mib - 1}}, []behaviour{honest}, 0, time.Second},
		"liar finished an honest start":   {[]behaviour{{stopAt: mib, corrupt: -1}, {corrupt: 2 * mib}}, []behaviour{honest}, 1, 2 * time.Second},
		"honest one finished a liar's":    {[]behaviour{{stopAt: mib, corrupt: 7}, honest}, []behaviour{honest}, 0, 2 * time.Second},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3*mib)
				for i, b := range c.peers {
					w.peer(string(rune('A'+i)), b)
				}
				for i, b := range c.ups {
					w.upstream(string(rune('x'+i)), b)
				}
				s := w.start()
				start := time.Now()
				if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != http.StatusOK {
					t.Fatal("narinfo:", rec.Code)
				}
				w.wantNAR(get(s, w.narURL()))
				if took := time.Since(start); took > c.within {
					t.Errorf("took %v, want at most %v", took, c.within)
				}
				for i, p := range w.peers.list {
					if convicted := len(p.convicts) > 0; convicted != (i == c.guilty) {
						t.Errorf("peer %d convicted: %v %v", i, convicted, p.convicts)
					}
				}
			})
		})
	}
}

func TestABreakIsMendedAtTheByteWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		w.peer("A", behaviour{stopAt: mib, corrupt: -1})
		b := w.peer("B", honest)
		w.wantNAR(get(w.start(), w.narURL()))
		if len(b.opened) != 1 || b.opened[0] != mib {
			t.Errorf("the second source was asked from %v, want from %d", b.opened, mib)
		}
	})
}

func TestALargeNARComesFromSeveralPeersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 32*mib)
		for _, id := range []string{"A", "B", "C", "D"} {
			w.peer(id, behaviour{corrupt: -1, perRead: time.Millisecond}) // 64 KiB each millisecond: 512 ms alone
		}
		s := w.start()
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("four peers took %v, one alone takes 512 ms", took)
		}
		if got := s.Stats.FromPeers.Load(); got != 32*mib {
			t.Errorf("%d bytes counted, want each byte once", got)
		}
	})
}

func TestASlowPeerHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 32*mib)
		w.peer("slow", behaviour{corrupt: -1, perRead: 20 * time.Millisecond})
		w.peer("fast", behaviour{corrupt: -1, perRead: time.Millisecond})
		s := w.start()
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took > 700*time.Millisecond {
			t.Errorf("took %v, the fast one alone takes 512 ms", took)
		}
	})
}

// What a slow peer has left of a small NAR is too little to be halved: another brings the same again.
func TestASlowPeerHoldsNobodyUpWithASmallNAR(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib/4)
		slow := w.peer("slow", behaviour{corrupt: -1, perRead: 50 * time.Millisecond, piece: 1000})
		w.peer("fast", honest)
		s := w.start()
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if len(slow.opened) == 0 {
			t.Fatal("the slow one was not asked")
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v, the slow one alone takes 13 s", took)
		}
	})
}

func TestAmongManyALiarIsFoundByItsBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 32*mib)
		for _, id := range []string{"A", "B", "C"} {
			w.peer(id, behaviour{corrupt: -1, perRead: time.Millisecond})
		}
		liar := w.peer("liar", behaviour{corrupt: 12 * mib, perRead: time.Millisecond})
		for off := 0; off < 32*mib; off += mib / 2 {
			liar.alsoCorrupt = append(liar.alsoCorrupt, off)
		}
		w.wantNAR(get(w.start(), w.narURL()))
		for _, p := range w.peers.list {
			if convicted := len(p.convicts) > 0; convicted != (p == liar) {
				t.Errorf("%s convicted: %v", p.id, p.convicts)
			}
		}
	})
}

func TestUpstreamBytesStreamButPeerBytesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20*mib) // smaller ones wait, too
		w.upstream("x", behaviour{corrupt: -1, perRead: 10 * time.Millisecond})
		s := w.start()
		w.knows(s)
		got, _ := s.finder.find(t.Context(), w.path.Hash())
		r, _, err := s.flights.join(got.v, 0)
		if err != nil {
			t.Fatal(err)
		}
		end, err := r.await(t.Context(), 0)
		if err != nil || end <= 0 || end >= 20*mib {
			t.Errorf("upstream: first bytes at %d, %v", end, err)
		}
		r.close()
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		w.peer("A", behaviour{corrupt: -1, perRead: 10 * time.Millisecond})
		s := w.start()
		got, err := s.finder.find(t.Context(), w.path.Hash())
		if err != nil {
			t.Fatal(err)
		}
		r, _, err := s.flights.join(got.v, 0)
		if err != nil {
			t.Fatal(err)
		}
		if end, err := r.await(t.Context(), 0); err != nil || end != 3*mib {
			t.Errorf("peer: first bytes at %d, %v; want all at once", end, err)
		}
		r.close()
	})
}

// A connection may die without a word. The only central cache is then asked on another one.
func TestTheOnlyCentralCacheIsAskedAgainWhereAConnectionDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		up := w.upstream("x", honest)
		s := w.start()
		w.knows(s)
		up.become(behaviour{hangOpen: true})
		time.AfterFunc(500*time.Millisecond, func() { up.become(honest) }) // which the question under way does not feel
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// What was fetched ahead of Nix may have used up its patience, or its tries, while nothing could be reached.
// Nix is not told no for that.
func TestNixsPatienceBeginsWhenItAsks(t *testing.T) {
	for name, b := range map[string]behaviour{"hangs": {hangOpen: true}, "refuses": {refuse: true}, "stalls": {corrupt: -1, stopAt: mib, stall: true}} {
		for _, ago := range []time.Duration{600 * time.Millisecond, 4 * time.Second, 20 * time.Second} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3*mib)
				up := w.upstream("x", honest)
				s := w.start()
				w.knows(s)
				got, _ := s.finder.find(t.Context(), w.path.Hash())
				up.become(b)
				s.flights.prefetch(got.v)
				time.Sleep(ago)
				up.become(honest)
				if rec := get(s, w.narURL()); rec == nil || rec.Code != http.StatusOK {
					t.Errorf("%s, %v before: %v", name, ago, rec)
				}
			})
		}
	}
}

func TestWrongBytesNeverEndCleanly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		w.upstream("x", behaviour{corrupt: 3*mib - 1})
		if rec := get(w.start(), w.narURL()); rec != nil && rec.Code == http.StatusOK {
			t.Errorf("a wrong NAR of %d bytes was served as a whole", rec.Body.Len())
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		w.peer("A", behaviour{corrupt: 9})
		rec := get(w.start(), w.narURL())
		if rec == nil || rec.Code != http.StatusNotFound {
			t.Error("a lone liar's NAR is not a plain 404")
		}
	})
}

func TestStreamedWrongBytesCutTheAnswerAndTheRetryIsRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 20*mib)
		w.upstream("x", behaviour{corrupt: 12 * mib, perRead: time.Millisecond})
		w.upstream("y", honest)
		s := w.start()
		if rec := get(s, w.narURL()); rec != nil {
			t.Fatal("wrong bytes already sent, yet the answer went on: ", rec.Code)
		}
		w.wantNAR(get(s, w.narURL()))
	})
}

func TestConcurrentRequestsShareOneFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		up := w.upstream("x", behaviour{corrupt: -1, perRead: 10 * time.Millisecond})
		s := w.start()
		first, leave := context.WithCancel(t.Context())
		go func() { // the first requester goes away early
			defer func() { recover() }()
			r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1/"+w.narURL(), nil).WithContext(first)
			s.Handler(nil).ServeHTTP(httptest.NewRecorder(), r)
		}()
		time.Sleep(100 * time.Millisecond)
		results := make(chan *httptest.ResponseRecorder)
		for range 5 {
			go func() { results <- get(s, w.narURL()) }()
		}
		time.Sleep(50 * time.Millisecond)
		leave()
		for range 5 {
			w.wantNAR(<-results)
		}
		if len(up.opened) != 1 {
			t.Errorf("upstream was asked %d times", len(up.opened))
		}
	})
}

func TestRangesResumeANAR(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		w.peer("A", honest)
		s := w.start()
		rec := get(s, w.narURL(), "Range", "bytes=1000000-")
		if rec == nil || rec.Code != http.StatusPartialContent || !bytes.Equal(rec.Body.Bytes(), w.nar[1000000:]) {
			t.Fatal("a range is not served")
		}
		if got := rec.Header().Get("Content-Range"); got != "bytes 1000000-3145727/3145728" {
			t.Error("Content-Range:", got)
		}
	})
}

func TestNobodyHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		up := w.upstream("x", behaviour{absent: true, corrupt: -1})
		s := w.start()
		for range 3 {
			if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != http.StatusNotFound {
				t.Fatal(rec.Code)
			}
		}
		if up.narInfos != 1 {
			t.Errorf("upstream was asked %d times for a known miss", up.narInfos)
		}
		w.peer("A", honest) // a neighbour gets it: the miss no longer counts
		if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != http.StatusOK {
			t.Error("a neighbour's path is hidden by an old miss:", rec.Code)
		}
	})
}

func TestUnreachableUpstreamIsAMissInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		up := w.upstream("x", behaviour{hangOpen: true, corrupt: -1})
		s := w.start()
		start := time.Now()
		if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != http.StatusNotFound {
			t.Fatal(rec.Code)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Error("took", took)
		}
		up.become(honest)
		if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != http.StatusOK {
			t.Error("an unreachable upstream was taken for a no:", rec.Code)
		}
	})
}

// A central cache whose link is full answers late; a miss would fail a build.
func TestALateAnswerIsWaitedForWhileTheCacheSendsOtherThings(t *testing.T) {
	for name, c := range map[string]struct {
		sends, least, most time.Duration // for how long it sends, and how long the question takes
	}{
		"nothing":  {0, findPatience, 5 * time.Second},
		"8 s":      {8 * time.Second, 8 * time.Second, 8*time.Second + 2*findHeard},
		"for ever": {time.Hour, findBusy, findBusy + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 10)
				up := w.upstream("x", behaviour{hangOpen: true, corrupt: -1})
				s := w.start()
				start := time.Now()
				go func() {
					for ; time.Since(start) < min(c.sends, time.Minute); time.Sleep(findHeard / 4) {
						up.mu.Lock()
						up.heard = time.Now()
						up.mu.Unlock()
					}
				}()
				if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != http.StatusNotFound {
					t.Fatal(rec.Code)
				}
				if took := time.Since(start); took < c.least || took > c.most {
					t.Error("took", took)
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestASuccessorWaitsForNeighboursToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1000)
		w.upstream("x", behaviour{refuse: true, corrupt: -1})
		s := w.start()
		var rec *httptest.ResponseRecorder
		asked := make(chan struct{})
		go func() {
			defer close(asked)
			if get(s, w.path.Hash().String()+".narinfo").Code == http.StatusOK {
				rec = get(s, w.narURL())
			}
		}()
		time.Sleep(time.Second)
		w.peers.add(&fakePeer{w: w, id: "A", behaviour: honest})
		<-asked
		if rec == nil {
			t.Fatal("a miss right after the start, although a neighbour came back")
		}
		w.wantNAR(rec)
	})
}

func TestNarInfosSurviveRestartAndLossOfUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		up := w.upstream("x", honest)
		get(w.start(), w.path.Hash().String()+".narinfo")
		time.Sleep(time.Second) // it is written in the lull
		synctest.Wait()
		up.become(behaviour{refuse: true, corrupt: -1})
		s := w.start()
		rec := get(s, w.path.Hash().String()+".narinfo")
		if rec.Code != http.StatusOK {
			t.Fatal(rec.Code)
		}
		n, err := verify.ParseNarInfo(rec.Body.String())
		if err != nil || n.URL != w.narURL() || n.Compression != "none" {
			t.Error(n, err)
		}
		w.peer("A", honest) // weeks later only a neighbour has the bytes
		w.wantNAR(get(s, w.narURL()))
	})
}

func TestADamagedCacheEntryIsOnlyAQuestionMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		up := w.upstream("x", honest)
		s := w.start()
		get(s, w.path.Hash().String()+".narinfo")
		time.Sleep(time.Second) // it is written soon
		synctest.Wait()
		damaged := appendRecord(nil, cacheWrite{w.path.Hash(), "from http://x\nStorePath: /nix"}, time.Now().Unix())
		if err := os.WriteFile(s.finder.disk.path(), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		if rec := get(w.start(), w.path.Hash().String()+".narinfo"); rec.Code != http.StatusOK || up.narInfos != 2 {
			t.Error(rec.Code, up.narInfos)
		}
	})
}

func TestStrangersGetPublicPathsOfTheStoreOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1000)
		w.upstream("x", honest)
		w.store.add(w.info, w.nar)
		unsigned, nar, info := w.makePath("u", 500)
		info.Sigs = nil
		w.store.add(info, nar)
		s := w.start()
		stranger := func(path string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(http.MethodGet, "http://192.0.2.1:6490/"+path, nil)
			r.RemoteAddr = "192.0.2.9:1234"
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, tcpAddr("192.0.2.1:6490")))
			rec := httptest.NewRecorder()
			s.Handler(nil).ServeHTTP(rec, r)
			return rec
		}
		if rec := stranger(w.path.Hash().String() + ".narinfo"); rec.Code != http.StatusOK {
			t.Error("a public path is refused:", rec.Code)
		}
		if rec := stranger(w.narURL()); rec.Code != http.StatusOK || !bytes.Equal(rec.Body.Bytes(), w.nar) {
			t.Error("a public NAR is refused:", rec.Code)
		}
		if rec := stranger(unsigned.Hash().String() + ".narinfo"); rec.Code != http.StatusNotFound {
			t.Error("an unsigned path is named:", rec.Code)
		}
		if rec := stranger("nar/" + unsigned.Hash().String() + "-" + info.NarHash.Base32() + ".nar"); rec.Code != http.StatusNotFound {
			t.Error("an unsigned NAR is served:", rec.Code)
		}
		w.store = &fakeStore{} // what is only upstream is not fetched for strangers
		if rec := (func() *httptest.ResponseRecorder { s.store = w.store; return stranger(w.narURL()) })(); rec.Code != http.StatusNotFound {
			t.Error("fetched for a stranger:", rec.Code)
		}
	})
}

func TestGuardRefusesWebPages(t *testing.T) {
	g := &guard{hosts: []string{"cache.lan"}, next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {})}
	cases := []struct {
		host   string
		header []string
		ok     bool
	}{
		{"127.0.0.1:6490", nil, true},
		{"localhost:6490", nil, true},
		{"LOCALHOST.", nil, true},
		{"[::1]:6490", nil, true},
		{"192.0.2.1:6490", nil, true}, // the address that the request came in by
		{"192.0.2.2:6490", nil, false},
		{"cache.lan:6490", nil, true},
		{"evil.example:6490", nil, false},
		{"evil.example", nil, false},
		{"localhost.evil.example", nil, false},
		{"127.0.0.1:6490", []string{"Origin", "http://evil.example"}, false},
		{"127.0.0.1:6490", []string{"Origin", "null"}, false},
		{"127.0.0.1:6490", []string{"Origin", "http://127.0.0.1:6490"}, true},
		{"127.0.0.1:6490", []string{"Sec-Fetch-Site", "cross-site"}, false},
		{"127.0.0.1:6490", []string{"Sec-Fetch-Site", "same-site"}, false},
		{"127.0.0.1:6490", []string{"Sec-Fetch-Site", "none"}, true},
	}
	for _, c := range cases {
		r := httptest.NewRequest(http.MethodGet, "http://x/nix-cache-info", nil)
		r.Host = c.host
		for i := 0; i < len(c.header); i += 2 {
			r.Header.Set(c.header[i], c.header[i+1])
		}
		r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, tcpAddr("192.0.2.1:6490")))
		rec := httptest.NewRecorder()
		g.ServeHTTP(rec, r)
		if ok := rec.Code == http.StatusOK; ok != c.ok {
			t.Errorf("Host %q %v: %d", c.host, slices.Clone(c.header), rec.Code)
		}
	}
}
