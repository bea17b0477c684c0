//go:build linux

package e2e

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ipIn runs the ip command in a machine's namespace, or in that of the switch, "sw".
func (l *lab) ipIn(where string, args ...string) {
	l.t.Helper()
	out, err := exec.Command("ip", append([]string{"-n", l.prefix + "-" + where}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// readdress gives the machine another address, on whichever LAN it is wired to, and takes the old one away. What
// was connected is not told.
func (m *machine) readdress(lan int, host string) {
	m.lab.t.Helper()
	ns, to := fmt.Sprintf("m%d", m.n), fmt.Sprintf("10.77.%d.%s", lan, host)
	m.lab.ipIn(ns, "addr", "flush", "dev", "eth0") // IPv6's, too: over that they would not notice
	m.lab.ipIn(ns, "addr", "add", to+"/24", "dev", "eth0")
	m.lab.ipIn(ns, "route", "replace", "default", "via", fmt.Sprintf("10.77.%d.254", lan))
	m.ip = to
}

// reaches tells whether the agent is connected with a peer, at the IPv4 address of that machine where one is given.
func (a *agent) reaches(id string, m *machine) bool {
	s, err := a.tryStatus()
	if err != nil {
		return false
	}
	for _, p := range s.Peers {
		if p.ID == id {
			return p.State == "connected" && p.Paths > 0 && (m == nil || strings.Contains(strings.Join(p.Addrs, " "), m.ip+"/"))
		}
	}
	return false
}

// A machine gets another address: Nix on it, and next door, goes on at once, and the neighbours find each other
// again within seconds.
func TestANewAddressIsSurvived(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 2})
	seeder, m := l.machine[1], l.machine[2]
	rare, other, third := l.w.corpus.find(t, "vim-runtime-").path, l.w.corpus.find(t, "libexpat1-").path, l.w.corpus.find(t, "libffi8-").path
	seeder.preload(rare)
	seeder.startAgent(agentConfig{})
	m.startAgent(agentConfig{})
	m.agent.knows(seeder.agent, 1)

	seeder.readdress(1, "201")
	moved := time.Now()
	succeeded(t, m.realise(other))
	succeeded(t, seeder.realise(third))
	id := seeder.agent.status().PeerID
	eventually(t, "the neighbour is found at its new address", func() bool { return m.agent.reaches(id, seeder) })
	logTook(t, "the neighbour is found at its new address after", time.Since(moved))
	l.killUpstream()
	succeeded(t, m.realise(rare))
}

// A laptop goes to another LAN. Its Nix is not held up by neighbours that are not there any more, and the new ones
// are used.
func TestAMachineThatRoamsUsesItsNewNeighbours(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 3, more: []string{"-k", "2"}})
	old, far, m := l.machine[1], l.machine[2], l.machine[3] // LANs 1, 2 and 1
	here, there, other := l.w.corpus.find(t, "libexpat1-").path, l.w.corpus.find(t, "vim-runtime-").path, l.w.corpus.find(t, "libffi8-").path
	old.preload(here)
	old.startAgent(agentConfig{})
	far.preload(there)
	far.startAgent(agentConfig{})
	m.startAgent(agentConfig{})
	m.agent.knows(old.agent, 1)
	time.Sleep(2 * time.Second) // it has heard the old neighbour, too, and not just now

	l.ipIn("sw", "link", "set", "m3", "master", "br2")
	m.readdress(2, "3")
	moved := time.Now()
	succeeded(t, m.realise(other))
	succeeded(t, m.realise(here)) // the old neighbour claimed it
	logTook(t, "two commands right after the move took together", time.Since(moved))
	m.agent.knows(far.agent, 1)
	logTook(t, "the new neighbour is known after", time.Since(moved))
	l.killUpstream()
	succeeded(t, m.realise(there))
	id := old.agent.status().PeerID
	gone := func() bool {
		return !slices.ContainsFunc(m.agent.status().Peers, func(p peerStatus) bool { return p.ID == id && p.State == "connected" })
	}
	eventually(t, "the old neighbour is none any more", gone)
	logTook(t, "the old neighbour is none any more after", time.Since(moved))
	for range 20 { // the lab's router leads to it
		time.Sleep(100 * time.Millisecond)
		if !gone() {
			t.Fatal("the old neighbour is back")
		}
	}
}

// A machine sleeps for longer than its neighbours wait for it, and all of its connections die meanwhile without a
// word. Awake again its Nix works at once. What is missing here is the jump of the wall clock; p2p's clock watch has a
// test of its own for that.
func TestAMachineThatSleptWorksAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 2})
	seeder, m := l.machine[1], l.machine[2]
	rare, other, third := l.w.corpus.find(t, "vim-runtime-").path, l.w.corpus.find(t, "libexpat1-").path, l.w.corpus.find(t, "libffi8-").path
	seeder.preload(rare)
	seeder.startAgent(agentConfig{})
	m.startAgent(agentConfig{})
	m.agent.knows(seeder.agent, 1)
	succeeded(t, m.realise(other)) // so that it has connections to the central cache

	id, sleeper := seeder.agent.status().PeerID, m.agent.status().PeerID
	eventually(t, "the neighbour has it, too", func() bool { return seeder.agent.reaches(sleeper, nil) })
	m.cut()
	all := append([]int{m.agent.cmd.Process.Pid}, m.agent.children()...)
	for _, pid := range all {
		syscall.Kill(pid, syscall.SIGSTOP)
	}
	began := time.Now()
	eventually(t, "the neighbour has given it up", func() bool { return !seeder.agent.reaches(sleeper, nil) })
	logTook(t, "asleep for", time.Since(began))
	m.mend()
	for _, pid := range all {
		syscall.Kill(pid, syscall.SIGCONT)
	}
	awake := time.Now()
	succeeded(t, m.realise(third))
	logTook(t, "Nix, right after waking up", time.Since(awake))
	eventually(t, "the neighbour is found again", func() bool { return m.agent.reaches(id, nil) }) // perhaps over IPv6
	logTook(t, "the neighbour is found again after", time.Since(awake))
	l.killUpstream()
	succeeded(t, m.realise(rare))
}
