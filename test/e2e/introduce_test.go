//go:build linux

package e2e

import (
	"testing"
	"time"
)

// Three LANs with a router between, through which no multicast goes. Machines 2 and 3 name machine 1 and nobody
// else; it introduces them, and they need it no more.
func TestAStaticPeerIntroducesMachinesOfOtherLANs(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 3, more: []string{"-k", "3"}})
	root := l.w.corpus.roots["openssh-client"]
	want := l.w.corpus.closure(root)
	hub, second, third := l.machine[1], l.machine[2], l.machine[3]
	second.preload(root)
	l.killUpstream()
	hub.startAgent(agentConfig{})
	begin := "[peers]\nstatic = [\"" + hub.ip + "\"]\n"
	second.startAgent(agentConfig{toml: begin})
	began := time.Now()
	third.startAgent(agentConfig{toml: begin})
	third.agent.knows(second.agent, len(want))
	logTook(t, "started, introduced and told what the other has", time.Since(began))
	id := second.agent.status().PeerID
	for _, p := range third.agent.status().Peers {
		if p.ID == id && (p.Via != "introduced" || p.IntroducedBy != hub.agent.status().PeerID) {
			t.Errorf("%+v", p)
		}
	}
	hub.agent.kill()
	succeeded(t, third.realise(root))
	third.hasExactly(want)
}
