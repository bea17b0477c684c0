//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// publicAddress picks the address of an agent that others may begin with.
func (a *agent) publicAddress() string {
	a.m.lab.t.Helper()
	return a.address("/ip4/" + a.m.ip + "/tcp/")
}

func (a *agent) address(prefix string) string {
	a.m.lab.t.Helper()
	for _, line := range strings.Fields(a.cli("id").out) {
		if strings.HasPrefix(line, prefix) {
			return line
		}
	}
	a.m.lab.t.Fatalf("m%d has no address %s…", a.m.n, prefix)
	return ""
}

// reachedAt is where m's agent is connected with another, "" if it is not.
func (m *machine) reachedAt(other *machine) string {
	m.lab.t.Helper()
	id := other.agent.status().PeerID
	for _, p := range m.agent.status().Peers {
		if p.ID == id {
			return strings.Join(p.Addrs, " ")
		}
	}
	return ""
}

func (m *machine) internet() internetStatus { return m.agent.status().Internet }

// Four LANs and a relay, each behind another address of the internet; LANs 2 and 3 are behind a NAT. Without the
// central cache, what only LAN 1 has reaches LAN 2, and what only LAN 2 has reaches LAN 3; then the agent that
// all began with dies, and LAN 5 still gets what LAN 1 has.
func TestPathsTravelBetweenLANsAcrossTheInternet(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 5, more: []string{"-k", "5", "-p", "-N", "2 3"}})
	root, rare := l.w.corpus.roots["openssh-client"], l.w.corpus.find(t, "vim-runtime-").path
	want := l.w.corpus.closure(root)
	seeder, second, third, relay, other := l.machine[1], l.machine[2], l.machine[3], l.machine[4], l.machine[5]
	seeder.preload(root)
	second.preload(rare)
	relay.startAgent(agentConfig{toml: "[internet]\nenable = true\nserve_relay = true\n"})
	begin := fmt.Sprintf("[internet]\nenable = true\nupload = \"0\"\nmin_nar_size = 1\nbootstrap = [%q]\n", relay.agent.publicAddress())
	for _, m := range []*machine{seeder, second, third, other} {
		m.startAgent(agentConfig{toml: begin})
	}
	relayed := relay.ip + "/tcp/6491/p2p/"
	began := time.Now()
	eventually(t, "reachability is known and paths are announced, NATed ones under a relay's address", func() bool {
		return seeder.internet().Reachable && !second.internet().Reachable &&
			seeder.internet().ProvidedKeys == len(want) && second.internet().ProvidedKeys == 1 &&
			second.internet().Agents >= 2 && third.internet().Agents >= 2 && other.internet().Agents >= 2 && strings.Contains(second.agent.cli("id").out, relayed)
	})
	logTook(t, "the internet is ready after", time.Since(began))
	for _, m := range []*machine{second, third, other} { // signed narinfos come first: nobody looks up what it cannot name
		succeeded(t, m.do("nix", "path-info", "-r", "--store", agentURL, root, rare))
	}
	l.killUpstream()

	began = time.Now()
	realiseInTheEnd(t, second, root)
	logTook(t, "from LAN 1 to the NATed LAN 2 without upstream", time.Since(began))
	if s := second.agent.status(); s.Bytes.FromUpstream != 0 || s.Internet.BytesFrom == 0 {
		t.Errorf("%+v", s)
	}

	began = time.Now()
	realiseInTheEnd(t, third, rare)
	logTook(t, "from the NATed LAN 2 to the NATed LAN 3", time.Since(began))
	how := third.reachedAt(second)
	t.Logf("over %s", how)
	if how == "" {
		t.Error("it did not come from there")
	}

	t.Logf("%+v %+v %+v", seeder.internet(), second.internet(), other.internet())
	relay.agent.kill()
	began = time.Now()
	realiseInTheEnd(t, other, root)
	logTook(t, "without the agent that all began with", time.Since(began))
	other.hasExactly(want)

	other.agent.kill()
	other.wipe()
	began = time.Now()
	other.agent.start()
	eventually(t, "an agent that starts anew finds those that it met before", func() bool { return other.internet().Agents > 0 })
	logTook(t, "finding others again after a restart", time.Since(began))
	realiseInTheEnd(t, other, root)
	logTook(t, "and the closure from them", time.Since(began))
	other.hasExactly(want)
}

// Two LANs behind NATs that give each connection another port, so that no hole can be punched.
func TestARelayCarriesWhatNoHoleLetsThrough(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 3, more: []string{"-k", "3", "-p", "-N", "2 3", "-S"}})
	rare := l.w.corpus.find(t, "vim-runtime-").path
	relay, second, third := l.machine[1], l.machine[2], l.machine[3]
	second.preload(rare)
	relay.startAgent(agentConfig{toml: "[internet]\nenable = true\nserve_relay = true\n"})
	begin := fmt.Sprintf("[internet]\nenable = true\nupload = \"0\"\nbootstrap = [%q]\n", relay.agent.publicAddress())
	second.startAgent(agentConfig{toml: begin})
	third.startAgent(agentConfig{toml: begin})
	eventually(t, "the path is announced under the relay's address", func() bool {
		return second.internet().ProvidedKeys == 1 && third.internet().Agents >= 1 && strings.Contains(second.agent.cli("id").out, relay.ip+"/tcp/6491/p2p/")
	})
	succeeded(t, third.do("nix", "path-info", "--store", agentURL, rare))
	l.killUpstream()
	began := time.Now()
	realiseInTheEnd(t, third, rare)
	logTook(t, "through the relay", time.Since(began))
	if how := third.reachedAt(second); !strings.Contains(how, "/p2p-circuit") || strings.Contains(how, " ") {
		t.Errorf("they are connected at %q", how)
	}
}

// Three LANs that reach each other over IPv6 alone.
func TestAgentsMeetOverIPv6(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 3, more: []string{"-k", "3", "-p", "-6"}})
	root := l.w.corpus.roots["openssh-client"]
	want := l.w.corpus.closure(root)
	first, seeder, other := l.machine[1], l.machine[2], l.machine[3]
	seeder.preload(root)
	first.startAgent(agentConfig{toml: "[internet]\nenable = true\nserve_relay = true\n"})
	begin := fmt.Sprintf("[internet]\nenable = true\nupload = \"0\"\nmin_nar_size = 1\nbootstrap = [%q]\n", first.agent.address("/ip6/2a10:1::1/tcp/"))
	seeder.startAgent(agentConfig{toml: begin})
	other.startAgent(agentConfig{toml: begin})
	eventually(t, "paths are announced", func() bool {
		return seeder.internet().Reachable && seeder.internet().ProvidedKeys == len(want) && other.internet().Agents >= 1
	})
	succeeded(t, other.do("nix", "path-info", "-r", "--store", agentURL, root))
	l.killUpstream()
	realiseInTheEnd(t, other, root)
	other.hasExactly(want)
	if how := other.reachedAt(seeder); !strings.Contains(how, "/ip6/2a10:2::2/") || strings.Contains(how, "/ip4/") {
		t.Errorf("they are connected at %q", how)
	}
}

// What comes over a slow link to an agent of the internet comes compressed, and is the same.
func TestOverASlowLinkNARsComeCompressed(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 2, more: []string{"-k", "2", "-p"}})
	root := l.w.corpus.roots["openssh-client"]
	seeder, other := l.machine[1], l.machine[2]
	seeder.preload(root)
	seeder.startAgent(agentConfig{toml: "[internet]\nenable = true\nserve_relay = true\nupload = \"20Mbit/s\"\n"})
	other.startAgent(agentConfig{toml: fmt.Sprintf("[internet]\nenable = true\nprefer = \"offload\"\nbootstrap = [%q]\n", seeder.agent.publicAddress())})
	eventually(t, "it has joined", func() bool { return other.internet().Agents == 1 && seeder.internet().ProvidedKeys > 0 })
	realiseInTheEnd(t, other, root)
	other.hasExactly(l.w.corpus.closure(root))
	s, sent := other.agent.status(), seeder.agent.status()
	t.Logf("%d bytes of NARs, %d on the wire", s.Bytes.FromPeers, s.Wire.FromPeers)
	if s.Internet.BytesFrom == 0 || s.Wire.FromPeers > s.Bytes.FromPeers*3/4 {
		t.Errorf("%d bytes of NARs from far, %d from peers, %d on the wire", s.Internet.BytesFrom, s.Bytes.FromPeers, s.Wire.FromPeers)
	}
	if sent.Wire.ToPeers > sent.Bytes.ToPeers*3/4 {
		t.Errorf("%d bytes of NARs sent, %d on the wire", sent.Bytes.ToPeers, sent.Wire.ToPeers)
	}
}

// realiseInTheEnd tries a few times: without a central cache a first NAR may be given up while records lead
// nowhere and a hole is being punched.
func realiseInTheEnd(t *testing.T, m *machine, root string) {
	t.Helper()
	var r result
	for try := 1; try <= 4; try++ {
		if r = m.realise(root); r.code == 0 {
			break
		}
		t.Logf("try %d: exit status %d", try, r.code)
	}
	succeeded(t, r)
}
