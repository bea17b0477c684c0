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
		for _, s := range o.servers { // both have seen what the uplink can do
			s.flights.uplink.best = 16e6
		}
		leader := 0
		if outranks(o.world.path.Hash().Digest(), "m1", "m0") {
			leader = 1
		}
		o.ups[leader].become(behaviour{corrupt: -1, perRead: 400 * time.Millisecond}) // 1/100
		took := o.fill(t)
		if took > 12*time.Second { // alone: 1 s; following to the end: 100 s
			t.Errorf("took %v", took)
		}
		if n := o.servers[1-leader].Stats.Beside.Slow.Load(); n != 1 {
			t.Errorf("%d counted as slow, want 1", n)
		}
	})
}
