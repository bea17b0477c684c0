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
	for _, line := range strings.Fields(a.cli("id").out) {
		if strings.HasPrefix(line, "/ip4/"+a.m.ip+"/tcp/") {
			return line
		}
	}
	a.m.lab.t.Fatalf("no address of m%d is public", a.m.n)
	return ""
}

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
	internet := func(m *machine) internetStatus { return m.agent.status().Internet }
	relayed := relay.ip + "/tcp/6491/p2p/"
	began := time.Now()
	eventually(t, "reachability is known and paths are announced, NATed ones under a relay's address", func() bool {
		return internet(seeder).Reachable && !internet(second).Reachable &&
			internet(seeder).ProvidedKeys == len(want) && internet(second).ProvidedKeys == 1 &&
			internet(second).Agents >= 2 && internet(third).Agents >= 2 && strings.Contains(second.agent.cli("id").out, relayed)
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
	id, how := second.agent.status().PeerID, ""
	for _, p := range third.agent.status().Peers {
		if p.ID == id {
			how = strings.Join(p.Addrs, " ")
		}
	}
	t.Logf("over %s", how)
	if how == "" {
		t.Error("it did not come from there")
	}

	t.Logf("%+v %+v %+v", internet(seeder), internet(second), internet(other))
	relay.agent.kill()
	began = time.Now()
	realiseInTheEnd(t, other, root)
	logTook(t, "without the agent that all began with", time.Since(began))
	other.hasExactly(want)
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
