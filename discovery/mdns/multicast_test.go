package mdns

import (
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestAMachineThatJoinsIsFoundWithoutAnyRoute(t *testing.T) {
	l := newLab(t)
	w := l.wire("w")
	a := l.machine("a").plug("eth0", w, "10.9.0.1/24")
	b := l.machine("b").plug("eth0", w, "10.9.0.2/24")
	for _, name := range []string{"a", "b"} {
		if out := l.ip(name, "route", "show", "default"); strings.TrimSpace(out) != "" {
			t.Fatalf("machine %s has a default route: %s", name, out)
		}
	}
	first := a.agent("A", agentConfig{})
	second := b.agent("B", agentConfig{Port: 7000})
	first.finds(second, including("/ip4/10.9.0.2/tcp/7000"))
	second.finds(first, including("/ip4/10.9.0.1/tcp/6491"))
	third := b.agent("C", agentConfig{Port: 7001}) // two agents on one machine
	third.finds(first, including("/ip4/10.9.0.1/tcp/6491"))
	third.finds(second, including("/ip4/10.9.0.2/udp/7000/quic-v1"))
	second.finds(third, including("/ip4/10.9.0.2/tcp/7001"))
}

func TestAChangedAddressIsNoticed(t *testing.T) {
	l := newLab(t)
	w := l.wire("w")
	a := l.machine("a").plug("eth0", w, "10.9.0.1/24").agent("A", agentConfig{})
	b := l.machine("b").plug("eth0", w, "10.9.0.2/24").agent("B", agentConfig{})
	a.finds(b, including("/ip4/10.9.0.2/tcp/6491"))
	l.ip("b", "address", "delete", "10.9.0.2/24", "dev", "eth0")
	l.ip("b", "address", "add", "10.9.0.77/24", "dev", "eth0")
	a.finds(b, including("/ip4/10.9.0.77/tcp/6491", "/ip4/10.9.0.2/"))
}

func TestAMachineWhoseNetworkComesLateIsFound(t *testing.T) {
	l := newLab(t)
	w := l.wire("w")
	a := l.machine("a").plug("eth0", w, "10.9.0.1/24").agent("A", agentConfig{})
	late := l.machine("b")
	b := late.agent("B", agentConfig{})
	c := l.machine("c").plug("eth0", w, "10.9.0.3/24").agent("C", agentConfig{})
	a.finds(c, including("/ip4/10.9.0.3/tcp/6491"))
	a.neverFound(b)
	late.plug("eth0", w, "10.9.0.2/24")
	a.finds(b, including("/ip4/10.9.0.2/tcp/6491"))
	b.finds(a, including("/ip4/10.9.0.1/tcp/6491"))
}

func TestIPv6AloneSuffices(t *testing.T) {
	l := newLab(t)
	w := l.wire("w")
	a := l.machine("a").plug("eth0", w, "fd00:9::1/64").agent("A", agentConfig{})
	b := l.machine("b").plug("lan0", w).agent("B", agentConfig{}) // link-local only
	zoned := func(ifname string) func([]string) bool {
		return func(addrs []string) bool {
			return len(addrs) == 2 && strings.HasPrefix(addrs[0], "/ip6zone/"+ifname+"/ip6/fe80::")
		}
	}
	a.finds(b, zoned("eth0"))
	b.finds(a, including("/ip6/fd00:9::1/tcp/6491"))
}

func TestEachLinkIsToldItsOwnAddresses(t *testing.T) {
	l := newLab(t)
	w1, w2 := l.wire("w1"), l.wire("w2")
	middle := l.machine("m").plug("eth0", w1, "10.9.1.1/24").plug("eth1", w2, "10.9.2.1/24").agent("M", agentConfig{})
	left := l.machine("l").plug("eth0", w1, "10.9.1.2/24").agent("L", agentConfig{})
	right := l.machine("r").plug("eth0", w2, "10.9.2.2/24").agent("R", agentConfig{})
	left.finds(middle, including("/ip4/10.9.1.1/tcp/6491", "/ip4/10.9.2."))
	right.finds(middle, including("/ip4/10.9.2.1/tcp/6491", "/ip4/10.9.1."))
	middle.finds(left, including("/ip4/10.9.1.2/tcp/6491"))
	middle.finds(right, including("/ip4/10.9.2.2/tcp/6491"))
	left.neverFound(right)
}

func TestContainersInterfacesAreLeftAloneUnlessListed(t *testing.T) {
	l := newLab(t)
	lan, inner := l.wire("w"), l.wire("c")
	host := l.machine("h").plug("eth0", lan, "10.9.1.1/24").plug("veth12", inner, "172.17.0.1/16")
	a := host.agent("A", agentConfig{})
	neighbour := l.machine("n").plug("eth0", lan, "10.9.1.2/24").agent("N", agentConfig{})
	container := l.machine("i").plug("eth0", inner, "172.17.0.2/16").agent("K", agentConfig{})
	neighbour.finds(a, including("/ip4/10.9.1.1/tcp/6491", "/ip4/172."))
	// A second agent of the same host, told to use it, shows that the container would have heard.
	b := host.agent("B", agentConfig{Port: 7000, Interfaces: []string{"veth12"}})
	container.finds(b, including("/ip4/172.17.0.1/tcp/7000", "/ip4/10."))
	b.finds(container, including("/ip4/172.17.0.2/tcp/6491"))
	container.neverFound(a)
	neighbour.neverFound(b)
}

func TestNothingIsSaidOnForeignNetworksThoughOthersListenThere(t *testing.T) {
	l := newLab(t)
	lan, public := l.wire("w"), l.wire("p")
	a := l.machine("h").plug("eth0", lan, "10.9.1.1/24").plug("eth1", public, "203.0.113.1/24").
		agent("A", agentConfig{AlsoJoin: []string{"eth1"}})
	everywhere := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
	stranger := l.machine("s").plug("eth0", public, "203.0.113.2/24").agent("S", agentConfig{Networks: everywhere})
	neighbour := l.machine("n").plug("eth0", lan, "10.9.1.2/24").agent("N", agentConfig{})
	neighbour.finds(a, including("/ip4/10.9.1.1/tcp/6491", "/ip4/203."))
	other := l.machine("o").plug("eth0", public, "203.0.113.3/24").agent("Z", agentConfig{Networks: everywhere})
	stranger.finds(other, including("/ip4/203.0.113.3/tcp/6491"))
	other.finds(stranger, including("/ip4/203.0.113.2/tcp/6491")) // so its question was heard
	stranger.neverFound(a)
	other.neverFound(a)
	neighbour.finds(a, including("/ip4/10.9.1.1/tcp/6491", "/ip4/203."))
}

func TestAFloodOfInventedPeersIsBounded(t *testing.T) {
	l := newLab(t)
	w := l.wire("w")
	a := l.machine("a").plug("eth0", w, "10.9.0.1/24").agent("A", agentConfig{})
	b := l.machine("b").plug("eth0", w, "10.9.0.2/24").agent("B", agentConfig{})
	a.finds(b, including("/ip4/10.9.0.2/tcp/6491"))
	l.machine("f").plug("eth0", w, "10.9.0.66/24").flood(t, 20_000)
	c := l.machine("c").plug("eth0", w, "10.9.0.3/24").agent("C", agentConfig{})
	a.finds(c, including("/ip4/10.9.0.3/tcp/6491"))
	a.mu.Lock()
	told := len(a.found)
	a.mu.Unlock()
	t.Logf("told %d times; heap at most %d KiB", told, a.peakHeap()>>10)
	if told < 100 {
		t.Errorf("the flood did not arrive: told %d times", told)
	}
	if limit := tellBurst + 60*tellRate; told > limit {
		t.Errorf("told %d times, limit %d", told, limit)
	}
	if a.peakHeap() > 64<<20 {
		t.Errorf("heap grew to %d MiB", a.peakHeap()>>20)
	}
}

// flood sends n announcements from the machine, each of another instance that does not exist.
func (m *machine) flood(t *testing.T, n int) {
	t.Helper()
	text, err := json.Marshal(agentConfig{Flood: n})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", m.prefix+m.name, os.Args[0])
	cmd.Env = append(os.Environ(), agentEnv+"="+string(text))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("flooding: %v: %s", err, out)
	}
}
