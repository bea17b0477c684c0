//go:build linux && soak

package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// What the soak allows an agent to have grown by when all is quiet again.
const (
	soakGoroutines = 30
	soakFiles      = 20
	soakResident   = 256 << 20 // bytes, in all: what is asked of an agent under attack
	soakSettle     = 100 * time.Second
	soakContext    = 5 * time.Second // of an agent's log before a failed fill
)

// soak is a lab in which Nix works while everything around it breaks.
type soak struct {
	*lab
	rnd    *rand.Rand
	broken atomic.Int64 // grows when a link or the central cache goes, and when it is back: odd means gone
	fills  atomic.Int64
	paths  atomic.Int64
	tries  atomic.Int64 // fills that failed while their sources were cut off, and were tried again
	slow   atomic.Int64 // nanoseconds of the slowest fill
}

// TestSoak lets three machines with real Nix fill and empty their stores for SOAK (default 30m), while
// agents and supervisors are killed, cables pulled and the central cache taken away. A fill may fail only
// while its sources are cut off. At the end every store verifies, and the agent that was never killed has
// the goroutines, descriptors and memory that it had. SOAK_SEED repeats the order of the blows.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(envOr("SOAK", "30m"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(envOr("SOAK_SEED", fmt.Sprint(time.Now().UnixNano())), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("SOAK=%v SOAK_SEED=%d", length, seed)
	s := &soak{lab: newLab(t, labConfig{machines: 3, upstreamRate: envOr("SOAK_RATE", "50mbit")}), rnd: rand.New(rand.NewPCG(seed, 0))}
	for _, m := range s.machine[1:] {
		m.startAgent(agentConfig{toml: "[log]\nlevel = \"debug\"\n"})
	}
	s.fill(s.machine[1], slices.Sorted(maps.Keys(s.w.corpus.paths))[0], make(chan struct{}))
	before := vitalsOf(t, s.machine[1].agent)
	t.Logf("before: %v", before)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, m := range s.machine[1:] {
		wg.Go(func() { s.work(m, rand.New(rand.NewPCG(seed, uint64(i+1))), stop) })
	}
	blows := s.havoc(length)
	close(stop)
	wg.Wait()
	t.Logf("fills %d (%d paths), retried after a cut %d, slowest %.1f s, blows %v",
		s.fills.Load(), s.paths.Load(), s.tries.Load(), time.Duration(s.slow.Load()).Seconds(), blows)
	all := slices.Sorted(maps.Values(s.w.corpus.roots))
	for _, m := range s.machine[1:] {
		m.forget()
		m.must(append([]string{"nix-store", "-r"}, all...)...)
		m.must("nix-store", "--verify", "--check-contents")
		t.Logf("machine %d: %s paths, all verify", m.n, strings.TrimSpace(m.must("sh", "-c", "nix path-info --all | wc -l")))
	}
	time.Sleep(soakSettle)
	after := vitalsOf(t, s.machine[1].agent)
	t.Logf("after:  %v", after)
	if after.goroutines > before.goroutines+soakGoroutines || after.files > before.files+soakFiles || after.resident > soakResident {
		t.Errorf("the agent grew: %v, then %v", before, after)
	}
	for _, m := range s.machine[2:] {
		t.Logf("machine %d: %v", m.n, vitalsOf(t, m.agent))
	}
	if s.fills.Load() == 0 || len(blows) < 3 {
		t.Error("nothing much happened")
	}
}

func envOr(name, value string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return value
}

// work fills the machine's store with one closure after another, and empties it now and then.
func (s *soak) work(m *machine, rnd *rand.Rand, stop chan struct{}) {
	paths := slices.Sorted(maps.Keys(s.w.corpus.paths))
	for {
		select {
		case <-stop:
			return
		default:
		}
		s.fill(m, paths[rnd.IntN(len(paths))], stop)
		if rnd.IntN(6) == 0 {
			m.must("nix-store", "--gc", "--quiet")
			m.forget()
		}
	}
}

// fill substitutes a closure. It is tried again as long as its failure may come from a cut.
func (s *soak) fill(m *machine, path string, stop chan struct{}) {
	for {
		cut, began := s.broken.Load(), time.Now()
		r := m.realise(path)
		if r.code == 0 {
			s.fills.Add(1)
			s.paths.Add(int64(strings.Count(r.err, "copying path")))
			for old := s.slow.Load(); int64(r.took) > old && !s.slow.CompareAndSwap(old, int64(r.took)); old = s.slow.Load() {
			}
			return
		}
		if cut%2 == 0 && s.broken.Load() == cut {
			s.t.Errorf("%s, machine %d: nothing was cut, and Nix failed after %.1f s: %s", time.Now().Format(time.TimeOnly), m.n, r.took.Seconds(), tail(r.err, 600))
			s.t.Logf("its agent meanwhile:\n%s", m.agent.logSince(began.Add(-soakContext)))
		}
		s.tries.Add(1)
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
			m.forget() // a miss while cut off sticks in Nix for an hour
		}
	}
}

// havoc breaks one thing after another until the time is up, and mends all. It returns how often what.
func (s *soak) havoc(length time.Duration) map[string]int {
	blows := map[string]int{}
	end := time.Now().Add(length)
	for time.Now().Before(end) {
		s.t.Logf("%s %v", time.Now().Format(time.TimeOnly), blows)
		time.Sleep(time.Duration(2000+s.rnd.IntN(8000)) * time.Millisecond)
		m := s.machine[2+s.rnd.IntN(2)] // the first one's agent lives on
		switch s.rnd.IntN(6) {
		case 0:
			blows["agent killed"]++
			m.agent.killServing()
		case 1:
			blows["supervisor killed"]++
			m.agent.signal(syscall.SIGKILL)
			eventually(s.t, "the supervisor is dead", m.agent.gone)
			m.agent.start()
		case 2:
			blows["agent restarted"]++
			s.broken.Add(1) // without systemd's socket nobody holds the port in between
			m.agent.stop()
			m.agent.start()
			s.broken.Add(1)
		case 3:
			blows["cable pulled"]++
			m = s.machine[1+s.rnd.IntN(3)]
			s.whileCut(m.cut, m.mend)
		case 4:
			blows["central cache cut off"]++
			s.whileCut(func() { s.wan("down") }, func() { s.wan("up") })
		case 5:
			blows["central cache killed"]++
			s.whileCut(s.killUpstream, s.startUpstream)
		}
	}
	return blows
}

func (s *soak) whileCut(cut, mend func()) {
	s.broken.Add(1)
	cut()
	time.Sleep(time.Duration(500+s.rnd.IntN(7500)) * time.Millisecond)
	mend()
	time.Sleep(6 * time.Second) // until it counts as mended: TCP and the upstream's breaker need a moment
	s.broken.Add(1)
}

func (s *soak) wan(state string) {
	s.t.Helper()
	if out, err := s.command(s.t.Context(), "", "sw", "ip", "link", "set", "wan", state).CombinedOutput(); err != nil {
		s.t.Fatalf("ip link set wan %s: %v: %s", state, err, out)
	}
}

// logSince is what the agent logged from then on, without what went well.
func (a *agent) logSince(then time.Time) string {
	from := "time=" + then.UTC().Format("2006-01-02T15:04:05.000Z")
	var out strings.Builder
	for line := range strings.Lines(a.logText()) {
		if line >= from && strings.HasPrefix(line, "time=") && !strings.Contains(line, "NAR fetched") {
			out.WriteString(line)
		}
	}
	return tail(out.String(), 30_000)
}
