package substituter

import (
	"testing"
	"testing/synctest"
	"time"
)

// feed lets d pass with bytes per second flowing.
func (u *uplink) feed(total *int64, d time.Duration, rate float64) {
	for range int(d / uplinkEvery) {
		*total += int64(rate * uplinkEvery.Seconds())
		u.sample(*total)
	}
}

func TestABusyUplinkIsNoReasonToAskTwice(t *testing.T) {
	var u uplink
	var total int64
	if _, room := u.estimate(1e6); room {
		t.Error("an uplink never seen is said to have room")
	}
	u.feed(&total, 5*time.Second, 6e6)
	if _, room := u.estimate(1e6); room {
		t.Error("a full uplink is said to have room")
	}
	u.feed(&total, 3*time.Second, 0.6e6)
	d, room := u.estimate(5e6)
	if !room || d < 800*time.Millisecond || d > 1200*time.Millisecond {
		t.Errorf("a tenth is in use: room %v, 5 MB in %v, want about 1 s", room, d)
	}
}

func TestTrialsThatDoNotPayGetRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ts trials
		n := 0
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			p := &plan{}
			if !ts.may(p) {
				continue
			}
			ts.begin(p)
			if ts.may(&plan{}) {
				t.Fatal("two trials at once")
			}
			time.Sleep(trialTime)
			ts.end(p, false, true)
			n++
		}
		if n < 5 || n > 12 {
			t.Errorf("%d trials in 10 minutes", n)
		}
		p := &plan{}
		time.Sleep(trialMost)
		ts.begin(p)
		ts.end(p, true, true)
		if ts.begin(p); !ts.may(&plan{}) {
			t.Error("once it paid, others still wait")
		}
	})
}

// A neighbour with a slow way to the central cache keeps nobody long.
func TestASlowLeaderIsOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 16*mib, slowUplink)
		for _, s := range o.servers { // both have seen what the uplink can do, and are overloaded at first
			s.flights.uplink.steady, s.flights.uplink.lagged = 16e6, time.Now()
		}
		leader := 0
		if outranks(o.world.path.Hash().Digest(), "m1", "m0") {
			leader = 1
		}
		o.ups[leader].become(behaviour{corrupt: -1, perRead: 400 * time.Millisecond}) // 1/100
		early := int64(-1)
		time.AfterFunc(lagCounts-time.Second, func() { early = o.servers[1-leader].Stats.Beside.Slow.Load() })
		took := o.fill(t)
		if took > lagCounts+12*time.Second { // alone: 1 s; following to the end: 100 s
			t.Errorf("took %v", took)
		}
		if early != 0 {
			t.Errorf("%d counted as slow by a machine that may be what is slow", early)
		}
		if n := o.servers[1-leader].Stats.Beside.Slow.Load(); n != 1 {
			t.Errorf("%d counted as slow, want 1", n)
		}
	})
}

// The same where nobody has seen what the uplink can do: it is tried, unless the follower knows by itself that the central cache is no quicker.
func TestALeaderThatMayBeSlowIsTried(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute under the race detector")
	}
	for _, c := range []struct{ slow, known bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		synctest.Test(t, func(t *testing.T) {
			slow := c.slow
			o := newOffice(t, 3, 64*mib, behaviour{corrupt: -1, perRead: 62500 * time.Microsecond}) // 1 MiB/s
			for _, s := range o.servers {
				if took := 8 * time.Second; c.known && slow {
					s.flights.pace.note(8*mib, 8*mib, took/16)
				} else if c.known {
					s.flights.pace.note(8*mib, 8*mib, took)
				}
			}
			fast := slowUplink
			for i, u := range o.ups {
				if i != o.first() && slow {
					u.become(fast)
				}
			}
			took := o.fill(t)
			if opens := o.upstreamOpens(); opens > 3 || (opens < 2) == (slow || !c.known) {
				t.Errorf("slow: %v, known: %v, the upstream was asked %d times", slow, c.known, opens)
			}
			if limit := 15 * time.Second; slow && took > limit {
				t.Errorf("%v, longer than %v", took, limit)
			}
			var got int64
			for _, s := range o.servers {
				got += s.Stats.FromUpstream.Load()
			}
			if !slow && got > 70*mib {
				t.Errorf("%d MiB came from the upstream", got/mib)
			}
		})
	}
}

// first is the machine that goes to the central cache when all ask at once.
func (o *office) first() (best int) {
	for i := range o.sites {
		if outranks(o.world.path.Hash().Digest(), o.sites[i].id, o.sites[best].id) {
			best = i
		}
	}
	return best
}

// One burst, or neighbours' late news of what they got long ago, is no rate that the uplink is expected to keep.
func TestABurstIsNotWhatTheUplinkGives(t *testing.T) {
	var u uplink
	total := int64(0)
	for i := range 60 {
		if total += 100_000; i == 20 {
			total += 3_000_000
		}
		u.sample(total)
	}
	if !u.busy() {
		t.Error("after a burst a full uplink counts as idle")
	}
	if _, ok := u.estimate(1); ok {
		t.Error("after a burst there is room")
	}
}

// Others' NARs fill the uplink, so that the first byte of this one takes long: no reason to ask for it twice.
func TestAClaimHoldsWhileTheUplinkIsBusy(t *testing.T) {
	for _, busy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o := newOffice(t, 3, mib/4, behaviour{corrupt: -1, perRead: 2 * time.Second, piece: mib / 4})
			other := o.sites[0].bus.join("other")
			for _, s := range o.servers {
				s.flights.uplink.steady = 6e6
			}
			done := make(chan struct{})
			go func() { // 4 MB/s
				for {
					select {
					case <-done:
						return
					case <-time.After(uplinkEvery / 5):
					}
					other.mu.Lock()
					if busy {
						other.fetched += int64(4e6 * uplinkEvery.Seconds() / 5)
					}
					other.mu.Unlock()
				}
			}()
			time.Sleep(uplinkWindow * uplinkEvery * 2)
			o.fill(t)
			close(done)
			if opens := o.upstreamOpens(); (opens == 1) != busy {
				t.Errorf("uplink busy: %v; the upstream was asked %d times", busy, opens)
			}
		})
	}
}

// An agent that gets no processor hears late of what others have: their silence is its own.
func TestAnOverloadedAgentIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib)
		b := &bus{delay: time.Millisecond}
		site, mute := b.join("me"), b.join("mute")
		w.site = site
		w.upstream("x", honest)
		s := w.start()
		site.server = s
		mute.Tell(w.path.Hash().Digest(), Progress{Stage: StageFetching}, true)
		time.Sleep(time.Second)
		s.flights.uplink.lagged = time.Now()
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took < 2*claimPatience || took > lagCounts+time.Second {
			t.Errorf("took %v, want about %v", took, lagCounts)
		}
	})
}

// What Nix has not asked for is not fetched twice, however slow the machine that brings it.
func TestWhatNobodyWaitsForIsNotAskedBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 4*mib, behaviour{corrupt: -1, perRead: 400 * time.Millisecond})
		for i, s := range o.servers {
			s.flights.uplink.steady = 16e6
			got, err := s.finder.find(t.Context(), o.world.path.Hash())
			if err != nil {
				t.Fatal(err)
			}
			if i != o.first() {
				time.Sleep(time.Second)
			}
			s.flights.prefetch(got.v)
		}
		time.Sleep(time.Minute)
		for i, s := range o.servers {
			if n := s.Stats.Beside.Slow.Load(); n != 0 || s.flights.inFlight() != 0 {
				t.Errorf("m%d: asked beside %d times, %d NARs still on their way", i, n, s.flights.inFlight())
			}
		}
		if opens := o.upstreamOpens(); opens != 1 {
			t.Errorf("the upstream was asked %d times", opens)
		}
	})
}

// Where a whole site starts at once its narinfos alone fill the uplink.
func TestNarInfosCountAsUseOfTheUplink(t *testing.T) {
	w := newWorld(t, mib)
	w.upstream("x", honest)
	s := w.start()
	if _, err := s.finder.find(t.Context(), w.path.Hash()); err != nil {
		t.Fatal(err)
	}
	if n := s.flights.uplink.public.Load(); n < 100 {
		t.Errorf("%d bytes were counted", n)
	}
}
