//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"
)

func TestAMachineThatJoinsIsUsedAtOnce(t *testing.T) {
	l := newLab(t, labConfig{machines: 2})
	root := l.w.corpus.roots["openssh-client"]
	paths := l.w.corpus.closure(root)
	old, joiner := l.machine[1], l.machine[2]
	old.startAgent(agentConfig{})
	joiner.preload(root)
	l.killUpstream()

	began := time.Now()
	joiner.startAgent(agentConfig{})
	logTook(t, "the joiner answers its own Nix after", time.Since(began))
	old.agent.knows(joiner.agent, len(paths))
	logTook(t, "the joiner's paths are known next door after", time.Since(began))
	succeeded(t, old.realise(root))
	logTook(t, "the joiner's closure is next door after", time.Since(began))
	old.hasExactly(paths)
}

func TestAPathThatArrivesOrGoesIsKnownNextDoor(t *testing.T) {
	l := newLab(t, labConfig{machines: 2})
	m1, m2 := l.machine[1], l.machine[2]
	first, second := l.w.corpus.find(t, "vim-runtime-"), l.w.corpus.find(t, "binutils-common-")
	m1.preload(first.path)
	m1.startAgent(agentConfig{})
	m2.startAgent(agentConfig{})
	m2.agent.knows(m1.agent, 1)

	began := time.Now()
	m1.preload(second.path)
	m2.agent.knows(m1.agent, 2)
	logTook(t, "Nix started, path in the store, and known next door after", time.Since(began))

	m1.must("nix-store", "--delete", "--ignore-liveness", first.path)
	began = time.Now()
	id := m1.agent.status().PeerID
	eventually(t, "a deleted path is withdrawn", func() bool { return m2.agent.offered(id) == 1 })
	logTook(t, "a deleted path is withdrawn next door after", time.Since(began))
	l.killUpstream()
	succeeded(t, m2.realise(second.path))
}

// A neighbour goes while another still has everything; the third must not notice. The cost is the
// difference to the same fill with nobody leaving, which the test prints.
func TestAMachineThatLeavesCostsNobodyTheirPath(t *testing.T) {
	l := newLab(t, labConfig{machines: 3})
	root := l.w.corpus.roots["python3"]
	m1, m2, m3 := l.machine[1], l.machine[2], l.machine[3]
	want := l.w.corpus.closure(root)
	l.killUpstream()
	m1.preload(root)
	m2.preload(root)
	m2.startAgent(agentConfig{})

	fill := func(leave func()) time.Duration {
		t.Helper()
		m3.wipe()
		m1.startAgent(agentConfig{})
		m3.startAgent(agentConfig{})
		m3.agent.knows(m1.agent, len(want))
		m3.agent.knows(m2.agent, len(want))
		leave()
		r := m3.realise(root)
		succeeded(t, r)
		m3.hasExactly(want)
		m3.agent.stop()
		m1.mend()
		m1.agent.kill()
		return r.took
	}
	var stays []time.Duration
	for range 3 {
		stays = append(stays, fill(func() {}))
	}
	slices.Sort(stays)
	for _, c := range []struct {
		how   string
		leave func()
	}{
		{"SIGTERM", func() { m1.agent.signal(syscall.SIGTERM) }},
		{"SIGKILL", func() { m1.agent.kill() }},
		{"cable cut", m1.cut},
	} {
		took := fill(c.leave)
		t.Logf("measured: leaving by %s costs %v (fill %v, nobody leaving %v)", c.how,
			(took - stays[1]).Round(time.Millisecond), took.Round(time.Millisecond), fmt.Sprint(stays))
	}
}
