package substituter

import (
	"testing"
	"testing/synctest"
	"time"
)

// A neighbour that nothing is known of and that is much slower than the central cache holds Nix up for a moment once,
// and is asked for nothing more that Nix waits for.
func TestASlowNeighbourHoldsNixUpOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib)
		slow := w.peer("slow", behaviour{corrupt: -1, piece: 8 << 10, perRead: 32 * time.Millisecond}) // 250 kB/s
		slow.stays = true
		w.upstream("x", behaviour{corrupt: -1, perRead: 10 * time.Millisecond}) // 6 MB/s
		s := w.start()
		if n := s.flights.stats.FromPeers.Load(); n != 0 {
			t.Fatal(n)
		}
		for k := range 4 {
			before, start := s.flights.stats.FromPeers.Load(), time.Now()
			w.wantNAR(get(s, w.narURL()))
			took, alone := time.Since(start), 160*time.Millisecond
			if k == 0 {
				alone += 2*firstLook + pollEvery
			}
			if took > alone+20*time.Millisecond {
				t.Errorf("NAR %d took %v, %v from the central cache alone", k, took, alone)
			}
			if got := s.flights.stats.FromPeers.Load() - before; k > 0 && got > 0 {
				t.Errorf("NAR %d: %d bytes from the slow neighbour", k, got)
			}
			s.flights.clear()
			time.Sleep(3 * time.Second) // probes are answered
		}
		if !s.flights.laggards.has("slow") {
			t.Error("it counts as quick after probes that took longer than the central cache")
		}
		if len(slow.convicts) > 0 {
			t.Error(slow.convicts)
		}
	})
}

// A neighbour is held against a central cache that was never asked, too: with slow ones it is asked for one NAR, and known from then on,
// with quick ones it never is.
func TestTheCentralCacheIsFoundOutWhereNeighboursAreSlow(t *testing.T) {
	for name, tt := range map[string]struct {
		neighbour, cache time.Duration // between pieces of 64 KiB
		asked            bool          // the cache, for the first NAR
		after            bool          // and for the next one
	}{
		"slow, cache quicker":      {64 * time.Millisecond, 10 * time.Millisecond, true, true},   // 1 MB/s, 6 MB/s
		"slow, cache slower":       {64 * time.Millisecond, 100 * time.Millisecond, true, false}, // 1 MB/s, 0.6 MB/s
		"quick":                    {4 * time.Millisecond, 2 * time.Millisecond, false, false},   // 16 MB/s
		"a little slower than it ": {12 * time.Millisecond, 10 * time.Millisecond, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, mib)
				w.peer("n", behaviour{corrupt: -1, perRead: tt.neighbour}).stays = true
				up := w.upstream("x", behaviour{corrupt: -1, perRead: tt.cache})
				s := w.start()
				w.wantNAR(get(s, w.narURL()))
				if n := len(up.asked()); n > 1 || (n == 1) != tt.asked {
					t.Errorf("the central cache was asked %d times", n)
				}
				if nar, wire := s.flights.pace.rates(); (nar > 0 && wire > 0) != tt.asked {
					t.Errorf("its rates are taken for %.0f and %.0f bytes a second", nar, wire)
				}
				for range 2 {
					s.flights.clear()
					time.Sleep(3 * time.Second) // a probe is answered
					if tt.asked {
						w.wantNAR(get(s, w.narURL()))
					}
				}
				s.flights.clear()
				time.Sleep(3 * time.Second)
				before := s.flights.stats.FromUpstream.Load()
				w.wantNAR(get(s, w.narURL()))
				if got := s.flights.stats.FromUpstream.Load() - before; got != 0 && got != mib || (got > 0) != tt.after {
					t.Errorf("%d bytes of the next NAR from the central cache", got)
				}
			})
		})
	}
}

// One that was slow and is not any more shows so without Nix waiting for it, and then spares the uplink again.
func TestALaggardThatIsQuickAgainIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib)
		w.peer("was slow", honest)
		w.upstream("x", behaviour{corrupt: -1, perRead: 10 * time.Millisecond})
		s := w.start()
		s.flights.laggards.note("was slow")
		w.wantNAR(get(s, w.narURL()))
		if got := s.flights.stats.FromPeers.Load(); got > 0 {
			t.Errorf("%d bytes from a laggard", got)
		}
		s.flights.clear()
		time.Sleep(time.Second)
		w.wantNAR(get(s, w.narURL())) // the central cache's rate is known, so that it is probed
		s.flights.clear()
		time.Sleep(time.Second)
		before := s.flights.stats.FromPeers.Load()
		w.wantNAR(get(s, w.narURL()))
		if got := s.flights.stats.FromPeers.Load() - before; got != mib {
			t.Errorf("%d bytes from a neighbour that is quick again, want all", got)
		}
	})
}

// Whoever is slow is better than nobody.
func TestALaggardServesWhereTheCentralCacheDoesNot(t *testing.T) {
	for name, up := range map[string]behaviour{"refuses": {corrupt: -1, refuse: true}, "has it not": {corrupt: -1, absent: true}, "hangs": {corrupt: -1, hangOpen: true}, "stalls": {corrupt: -1, stopAt: 100, stall: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, mib)
				w.peer("laggard", behaviour{corrupt: -1, perRead: 50 * time.Millisecond})
				w.upstream("x", up)
				s := w.start()
				s.flights.laggards.note("laggard")
				start := time.Now()
				w.wantNAR(get(s, w.narURL()))
				if took := time.Since(start); took > limitUnseen {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// Probes that fail get rare; one that goes well ends it, and a later lapse begins anew.
func TestProbesGetRare(t *testing.T) {
	var l laggards
	now := time.Now()
	if l.due("a", now) {
		t.Error("a probe of somebody unknown")
	}
	l.note("a")
	now = time.Now()
	for _, want := range []time.Duration{probeLeast, 2 * probeLeast, 4 * probeLeast} {
		if !l.due("a", now) {
			t.Fatal("no probe")
		}
		if l.due("a", now) {
			t.Error("two at once")
		}
		l.probed("a", 1.2, now)
		if l.due("a", now.Add(want-1)) {
			t.Errorf("a probe before %v", want)
		}
		now = now.Add(want)
	}
	for range 20 {
		l.probed("a", 1.2, now)
	}
	if l.due("a", now.Add(probePause-1)) || !l.due("a", now.Add(probePause)) {
		t.Error("probes should come every", probePause, "in the end")
	}
	if !l.look("a", 0.1, true, true) {
		t.Error("bytes that came in time clear it; Nix may have waited")
	}
	l.probed("a", 1, now)
	if l.has("a") {
		t.Error("a quick probe does not clear it")
	}
	if l.note("a"); l.due("a", time.Now().Add(probeRare)) || !l.due("a", time.Now().Add(probeRarer*probeRare)) {
		t.Error("the probe after a lapse that follows on one that cleared it should be late")
	}
	l.probed("a", 1, time.Now().Add(-probePause))
	if l.note("a"); !l.due("a", time.Now()) {
		t.Error("no probe after a lapse long after")
	}
}

// Those of one that is slower by far are rare from the first on, as they may take room on the central cache's own link.
func TestProbesOfTheSlowestAreRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l laggards
		if !l.look("a", 2*muchSlower, false, true) {
			t.Fatal("not a laggard")
		}
		began := time.Now()
		for n, want := range []time.Duration{probeRare, probeRare + probeRarer*probeRare} {
			for !l.due("a", time.Now()) {
				time.Sleep(100 * time.Millisecond)
			}
			if got := time.Since(began); got != want {
				t.Errorf("probe %d after %v, want %v", n, got, want)
			}
			l.probed("a", 2*muchSlower, time.Now())
		}
	})
}

// A moment's slowness of a neighbour that was quick does not make it a laggard; lasting slowness does.
func TestAHiccupMakesNoLaggard(t *testing.T) {
	var l laggards
	for range 3 {
		l.look("a", 0.1, true, true)
	}
	if l.look("a", 1.5, true, true) {
		t.Error("one slow NAR of a quick neighbour")
	}
	if !l.look("a", 1.5, true, true) {
		t.Error("slow NARs one after the other are let pass")
	}
}

// spreadSite has neighbours that answer after so long.
type spreadSite struct {
	Site
	answers map[string]time.Duration
}

func (s spreadSite) Spread(slow func(id string) bool) (most time.Duration) {
	for id, d := range s.answers {
		if !slow(id) {
			most = max(most, d)
		}
	}
	return most
}

func TestClaimsDoNotWaitForALaggardsAnswers(t *testing.T) {
	site := spreadSite{answers: map[string]time.Duration{"quick": 20 * time.Millisecond, "laggard": time.Second}}
	var a flights
	if d := a.settleOfAhead(site); d != settleAheadMost {
		t.Error("one of whom nothing bad is known is not waited for:", d)
	}
	a.laggards.note("laggard")
	if d := a.settleOfAhead(site); d != settleAhead*20*time.Millisecond {
		t.Error("a claim settles for", d)
	}
}

// Once the central cache has answered, a laggard's bytes only take room on the link; where the central cache then stops, the laggard is
// asked again.
func TestALaggardIsLetGoOnceTheCentralCacheHasAnswered(t *testing.T) {
	laggard := behaviour{corrupt: -1, piece: 18 << 10, perRead: 20 * time.Millisecond}                                        // 0.9 MB/s
	cache := behaviour{corrupt: -1, again: true, late: 300 * time.Millisecond, piece: 8 << 10, perRead: 4 * time.Millisecond} // 2 MB/s
	stops := cache
	stops.stopAt, stops.stall = mib, true
	for name, tt := range map[string]struct {
		cache       behaviour
		least, most int64 // from the laggard
	}{
		"goes on": {cache, 64 << 10, 256 << 10},
		"stops":   {stops, mib, 2 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 2*mib)
				w.peer("laggard", laggard).stays = true
				w.upstream("x", tt.cache)
				s := w.start()
				start := time.Now()
				w.wantNAR(get(s, w.narURL()))
				if got := s.flights.stats.FromPeers.Load(); got < tt.least || got > tt.most {
					t.Errorf("%d bytes from the laggard, want %d to %d", got, tt.least, tt.most)
				}
				if took := time.Since(start); took > limitUnseen {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

// What a queue lets pass at once makes nobody quick.
func TestABurstClearsNoLaggard(t *testing.T) {
	for burst, clears := range map[int]bool{300 << 10: false, 2 * mib: true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 2*mib)
			w.peer("bursts", behaviour{corrupt: -1, burst: burst, piece: 24 << 10, perRead: 10 * time.Millisecond}).stays = true // 2.4 MB/s
			w.upstream("x", behaviour{corrupt: -1, perRead: 8 * time.Millisecond})                                               // 8 MB/s
			s := w.start()
			s.flights.laggards.note("bursts")
			for range 2 {
				w.wantNAR(get(s, w.narURL()))
				s.flights.clear()
				time.Sleep(time.Second)
			}
			if got := s.flights.stats.FromPeers.Load(); got > 0 != clears {
				t.Errorf("bursts of %d bytes: %d bytes from a laggard", burst, got)
			}
		})
	}
}
