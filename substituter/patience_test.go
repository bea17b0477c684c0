package substituter

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A source that dribbles is as good as silent: another one is asked, and it is named.
func TestADribblingPeerIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		dribbler := w.peer("dribbler", behaviour{corrupt: -1, piece: 1, perRead: 50 * time.Millisecond})
		w.upstream("x", honest)
		s := w.start()
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("one byte at a time held the NAR up for %v", took)
		}
		if len(dribbler.flakies) == 0 || len(dribbler.convicts) > 0 {
			t.Errorf("the dribbler: %v, %v; want it named and not convicted", dribbler.flakies, dribbler.convicts)
		}
	})
}

// One that dribbles faster than silence is overtaken by the central cache.
func TestASlowPeerIsOvertakenByTheCentralCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		slow := w.peer("slow", behaviour{corrupt: -1, piece: 5000, perRead: 100 * time.Millisecond}) // 50 kB/s
		w.upstream("x", honest)
		start := time.Now()
		w.wantNAR(get(w.start(), w.narURL()))
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v; alone the slow peer takes a minute", took)
		}
		if len(slow.flakies) == 0 || !strings.Contains(slow.flakies[0].Error(), "slow") || len(slow.convicts) > 0 {
			t.Errorf("the slow peer: %v, %v", slow.flakies, slow.convicts)
		}
	})
}

// A source that does not let go of its connection holds up nobody.
func TestASourceThatDoesNotLetGoHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		w.peer("clinging", behaviour{corrupt: -1, stopAt: mib, stall: true, letGo: time.Minute})
		w.upstream("x", honest)
		start := time.Now()
		w.wantNAR(get(w.start(), w.narURL()))
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// An upstream that hangs costs its patience once, not with every path, and gets another chance.
func TestAnUpstreamInTroubleIsAskedLastForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib)
		hanging := w.upstream("hanging", behaviour{hangOpen: true})
		w.upstream("good", honest)
		s := w.start()
		start := time.Now()
		w.knows(s)
		synctest.Wait() // the question that lost is taken note of
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v; the patience should have been spent once", took)
		}
		if len(hanging.troubles) == 0 {
			t.Error("nothing is told of an upstream that hangs")
		}
		if order := s.finder.records.order(w.ups, time.Now()); order[0] == Upstream(hanging) {
			t.Error("an upstream that just hung is asked first")
		}
		time.Sleep(2 * troublePauseMax)
		if order := s.finder.records.order(w.ups, time.Now()); order[0] != Upstream(hanging) {
			t.Error("an upstream that hung once never heals")
		}
	})
}

// A short NAR's wrong bytes never reach Nix, whoever sent them.
func TestWrongBytesOfAnUpstreamAreReplacedUnseen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		liar := w.upstream("liar", behaviour{corrupt: 9, perRead: 10 * time.Millisecond})
		w.upstream("good", honest)
		w.wantNAR(get(w.start(), w.narURL()))
		if len(liar.troubles) == 0 || !strings.Contains(liar.troubles[0].Error(), "wrong bytes") {
			t.Errorf("told of the liar: %v", liar.troubles)
		}
	})
}

func TestWithoutAnHonestSourceTheAnswerIsQuickAndSaysSo(t *testing.T) {
	for name, b := range map[string]behaviour{
		"hangs": {hangOpen: true}, "refuses": {refuse: true}, "stalls": {corrupt: -1, stopAt: mib, stall: true},
		"dribbles": {corrupt: -1, piece: 1, perRead: 50 * time.Millisecond}, "lies": {corrupt: 5},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 3*mib)
			up := w.upstream("x", honest)
			s := w.start()
			w.knows(s)
			up.become(b)
			w.peer("p", b)
			start := time.Now()
			rec := get(s, w.narURL())
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%s: the answer took %v", name, took)
			}
			if rec == nil || rec.Code != http.StatusNotFound || !strings.Contains(rec.Body.String(), saysNobodyServes) {
				t.Errorf("%s: %v; want a 404 that says why", name, rec)
			}
		})
	}
}

func TestAPeersUselessNarinfoCostsItsPlaceOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, mib)
		p := w.peer("other keys", honest)
		signed := *w.info
		w.info = &signed
		unsigned := *w.info
		unsigned.Sigs = nil
		p.info = &unsigned
		w.upstream("x", honest)
		if rec := get(w.start(), w.path.Hash().String()+".narinfo"); rec.Code != http.StatusOK {
			t.Fatal(rec.Code)
		}
		if len(p.useless) != 1 || len(p.flakies)+len(p.convicts) > 0 {
			t.Errorf("useless %v, flaky %v, convicted %v", p.useless, p.flakies, p.convicts)
		}
	})
}

func TestADribblingUpstreamIsOvertakenByTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3*mib)
		slow := w.upstream("slow", behaviour{corrupt: -1, piece: 5000, perRead: 250 * time.Millisecond}) // 20 kB/s
		w.upstream("y", honest)
		start := time.Now()
		w.wantNAR(get(w.start(), w.narURL()))
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v; alone the slow upstream takes minutes", took)
		}
		if len(slow.troubles) == 0 {
			t.Error("nothing is told of it")
		}
	})
}

// A central cache that compresses sends again what a peer brought before it died. That is no silence, and
// Nix is not told that nobody has the NAR; one that stops on the way there is.
func TestACacheThatSendsTheBeginningAgainIsWaitedFor(t *testing.T) {
	slowly := behaviour{corrupt: -1, again: true, piece: 8 << 10, perRead: 30 * time.Millisecond} // 7.7 s for the peer's bytes
	stalls := slowly
	stalls.stopAt, stalls.stall = 256<<10, true // after a second
	for name, b := range map[string]behaviour{"comes": slowly, "stalls": stalls} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3*mib)
				up := w.upstream("x", honest)
				s := w.start()
				w.knows(s)
				up.become(b)
				w.peer("dies", behaviour{corrupt: -1, stopAt: 2 * mib})
				start := time.Now()
				rec := get(s, w.narURL())
				took := time.Since(start)
				if b.stall {
					if rec != nil && rec.Code == http.StatusOK || took > time.Second+5*time.Second {
						t.Errorf("%v after %v", rec, took)
					}
					return
				}
				w.wantNAR(rec)
				if took < 7*time.Second {
					t.Errorf("it came in %v: nothing was sent again", took)
				}
			})
		})
	}
}

// What came for a flight itself makes no uplink busy to it, for as long as the uplink remembers it.
func TestOwnBytesDoNotMakeTheUplinkBusy(t *testing.T) {
	const step = 20_000 // bytes for each interval
	u, own, now := &uplink{}, lately{}, time.Now()
	for n := range int64(4 * uplinkWindow) {
		now = now.Add(uplinkEvery)
		total := min(n, uplinkWindow) * step // then it falls silent
		u.sample(total)
		if mine := own.grown(now, total); u.busyBeside(mine) {
			t.Errorf("interval %d: busy beside %d own bytes", n, mine)
		}
		if n == uplinkWindow && (!u.busy() || !u.busyBeside(0)) {
			t.Error("others' bytes would not make it busy")
		}
	}
}
