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
		if lags, _ := s.flights.laggards.of("slow"); !lags {
			t.Error("it counts as quick after probes that took longer than the central cache")
		}
		if len(slow.convicts) > 0 {
			t.Error(slow.convicts)
		}
	})
}

// One that was slow and is not any more shows so without Nix waiting for it, and then spares the uplink again.
func TestALaggardThatIsQuickAgainIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib)
		w.peer("was slow", honest)
		w.upstream("x", honest)
		s := w.start()
		s.flights.laggards.note("was slow", true)
		w.wantNAR(get(s, w.narURL()))
		if got := s.flights.stats.FromPeers.Load(); got > 0 {
			t.Errorf("%d bytes from a laggard", got)
		}
		s.flights.clear()
		time.Sleep(time.Second)
		w.wantNAR(get(s, w.narURL()))
		if got := s.flights.stats.FromPeers.Load(); got != mib {
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
				s.flights.laggards.note("laggard", true)
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
	l.note("a", true)
	for _, want := range []time.Duration{probeLeast, 2 * probeLeast, 4 * probeLeast} {
		if !l.due("a", now) {
			t.Fatal("no probe")
		}
		if l.due("a", now) {
			t.Error("two at once")
		}
		l.probed("a", false, now)
		if l.due("a", now.Add(want-1)) {
			t.Errorf("a probe before %v", want)
		}
		now = now.Add(want)
	}
	for range 20 {
		l.probed("a", false, now)
	}
	if l.due("a", now.Add(probePause-1)) || !l.due("a", now.Add(probePause)) {
		t.Error("probes should come every", probePause, "in the end")
	}
	l.note("a", false)
	if lags, _ := l.of("a"); !lags {
		t.Error("bytes that came in time clear it; Nix may have waited")
	}
	l.probed("a", true, now)
	if lags, known := l.of("a"); lags || !known {
		t.Error("a quick probe does not clear it")
	}
	if l.note("a", true); !l.due("a", now) {
		t.Error("no probe after a new lapse")
	}
}
