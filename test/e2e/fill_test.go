//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// One machine asks the central cache; the others need nobody but it, before and after all agents restart.
func TestASiteFillsFromOneMachineWithTheCentralCacheOff(t *testing.T) {
	l := newLab(t, labConfig{machines: 3})
	root := l.w.corpus.roots["system"]
	all := l.w.corpus.closure(root)
	m1, m2, m3 := l.machine[1], l.machine[2], l.machine[3]
	for _, m := range l.machine[1:] {
		m.startAgent(agentConfig{})
	}

	r := m1.realise(root)
	if r.code != 0 {
		t.Fatalf("machine 1 from the central cache: exit status %d\n%s", r.code, tail(r.err, 2000))
	}
	logTook(t, "machine 1 from the central cache through its agent", r.took)
	m1.hasExactly(all)
	m1.agent.shares(len(all))
	l.killUpstream()

	fill := func(when string) {
		t.Helper()
		for _, m := range []*machine{m2, m3} {
			m.agent.knows(m1.agent, len(all))
		}
		r2, r3 := m2.start("nix-store", "-r", root), m3.start("nix-store", "-r", root)
		for i, r := range []result{r2.wait(), r3.wait()} {
			if r.code != 0 {
				t.Fatalf("machine %d %s: exit status %d\n%s", i+2, when, r.code, tail(r.err, 2000))
			}
			logTook(t, "machines 2 and 3 together, from machine 1, "+when, r.took)
		}
		for _, m := range []*machine{m2, m3} {
			m.hasExactly(all)
			if reqs := l.upstreamRequests(m); len(reqs) > 0 {
				t.Errorf("machine %d asked the central cache for %q", m.n, reqs)
			}
			if b := m.agent.status().Bytes; b.FromUpstream != 0 || b.FromPeers < narBytes(all) {
				t.Errorf("machine %d's agent had %d bytes of NARs from peers and %d from upstream, want %d and 0", m.n, b.FromPeers, b.FromUpstream, narBytes(all))
			}
		}
	}
	fill("first time")

	for _, m := range l.machine[1:] {
		m.agent.stop()
	}
	for _, m := range []*machine{m2, m3} {
		m.wipe()
		// What an agent keeps of NARs would answer without a neighbour.
		if err := os.RemoveAll(filepath.Join(m.agent.dir, "state", "spool")); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range l.machine[1:] {
		m.agent.start()
	}
	fill("all agents restarted, stores of 2 and 3 empty")
}
