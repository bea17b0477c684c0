package mdns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grandcat/zeroconf"

	"github.com/flurry-nix/flurry/discovery"
)

// hearing returns a teller of agent A on the given interfaces and what it tells.
func hearing(ifnames ...string) (*teller, *[]discovery.Found) {
	var told []discovery.Found
	self := service{instance: instanceName(testID("A")), peerID: testID("A")}
	t := newTeller(self, newPicker(nil, nil), func(f discovery.Found) { told = append(told, f) })
	var links []link
	for i, name := range ifnames {
		links = append(links, link{net.Interface{Index: i + 1, Name: name, Flags: lan}, ips("10.0.0.1", "fe80::1")})
	}
	t.setLinks(links)
	return t, &told
}

func entry(instance string, change func(*zeroconf.ServiceEntry)) *zeroconf.ServiceEntry {
	e := zeroconf.NewServiceEntry(instance, Service, domain)
	e.Port = 6491
	e.Text = []string{"txtvers=1", "new=thing", "flag", "id=" + testID("B")}
	e.AddrIPv4 = []net.IP{net.IPv4(10, 0, 0, 2)}
	if change != nil {
		change(e)
	}
	return e
}

func TestANeighbourBecomesAHint(t *testing.T) {
	tl, told := hearing("eth0", "eth1")
	tl.heard(entry("abc", func(e *zeroconf.ServiceEntry) {
		e.AddrIPv6 = []net.IP{net.ParseIP("fe80::2"), net.ParseIP("fd00::2")}
	}))
	hosts := []string{"/ip4/10.0.0.2", "/ip6/fd00::2", "/ip6zone/eth0/ip6/fe80::2", "/ip6zone/eth1/ip6/fe80::2"}
	if len(*told) != 1 || !exactly(6491, hosts...)((*told)[0].Addrs) {
		t.Fatalf("told %+v", *told)
	}
	if f := (*told)[0]; f.Via != discovery.ViaMDNS || f.Name != "abc" || f.PeerID != testID("B") || f.Keep {
		t.Errorf("told %+v", f)
	}
}

func TestWhatIsMalformedOrOursIsIgnored(t *testing.T) {
	text := func(s ...string) func(*zeroconf.ServiceEntry) {
		return func(e *zeroconf.ServiceEntry) { e.Text = s }
	}
	addrs := func(s ...string) func(*zeroconf.ServiceEntry) {
		return func(e *zeroconf.ServiceEntry) {
			e.AddrIPv4 = nil
			for _, a := range s {
				e.AddrIPv4 = append(e.AddrIPv4, net.ParseIP(a))
			}
		}
	}
	for what, e := range map[string]*zeroconf.ServiceEntry{
		"our instance":         entry(instanceName(testID("A")), nil),
		"our instance, louder": entry(strings.ToUpper(instanceName(testID("A"))), nil),
		"our peer id":          entry("abc", text("id="+testID("A"))),
		"no name":              entry("", nil),
		"a long name":          entry(strings.Repeat("a", 64), nil),
		"an escaped name":      entry(`a\.b`, nil),
		"a name with a space":  entry("a b", nil),
		"no peer id":           entry("abc", text("txtvers=1")),
		"an empty peer id":     entry("abc", text("id=")),
		"a bad peer id":        entry("abc", text("id=../../etc/passwd")),
		"a second peer id":     entry("abc", text("id=x", "id="+testID("B"))),
		"port 0":               entry("abc", func(e *zeroconf.ServiceEntry) { e.Port = 0 }),
		"a negative port":      entry("abc", func(e *zeroconf.ServiceEntry) { e.Port = -1 }),
		"no address":           entry("abc", addrs()),
		"an empty address":     entry("abc", func(e *zeroconf.ServiceEntry) { e.AddrIPv4 = []net.IP{nil} }),
		"a public address":     entry("abc", addrs("203.0.113.1")),
		"loopback":             entry("abc", addrs("127.0.0.1")),
		"any address":          entry("abc", addrs("0.0.0.0")),
		"multicast":            entry("abc", addrs("224.0.0.251")),
	} {
		tl, told := hearing("eth0")
		tl.heard(e)
		if len(*told) != 0 {
			t.Errorf("%s: told %+v", what, *told)
		}
		tl.heard(entry("good", nil))
		if len(*told) != 1 {
			t.Errorf("after %s a good one is not told", what)
		}
	}
}

func TestManyAddressesAreCutShort(t *testing.T) {
	tl, told := hearing("eth0", "eth1", "eth2")
	tl.heard(entry("abc", func(e *zeroconf.ServiceEntry) {
		for i := range 1000 {
			e.AddrIPv4 = append(e.AddrIPv4, net.IPv4(10, 0, byte(i>>8), byte(i)))
			e.AddrIPv6 = append(e.AddrIPv6, net.ParseIP(fmt.Sprintf("fe80::%x", i+1)))
		}
	}))
	if len(*told) != 1 || len((*told)[0].Addrs) != discovery.MaxAddrs {
		t.Fatalf("told %+v", *told)
	}
	if !slices.Contains((*told)[0].Addrs, "/ip4/10.0.0.1/tcp/6491") {
		t.Errorf("told %v", (*told)[0].Addrs)
	}
}

func TestInventedInstancesAreNotAllTold(t *testing.T) {
	tl, told := hearing("eth0")
	now := time.Unix(1_700_000_000, 0)
	tl.now = func() time.Time { return now }
	for i := range 2 * tellBurst {
		tl.heard(entry(fmt.Sprintf("abc-%d", i), nil))
	}
	if len(*told) != tellBurst {
		t.Errorf("told %d times at once, want %d", len(*told), tellBurst)
	}
	now = now.Add(time.Second)
	for i := range tellBurst {
		tl.heard(entry(fmt.Sprintf("def-%d", i), nil))
	}
	if len(*told) != tellBurst+tellRate {
		t.Errorf("told %d more times a second later, want %d", len(*told)-tellBurst, tellRate)
	}
}

func TestAConfigurationMistakeIsNamed(t *testing.T) {
	for says, cfg := range map[string]Config{
		"is no peer id":   {PeerID: "me"},
		"port 70000":      {PeerID: testID("A"), Port: 70000},
		"port -1":         {PeerID: testID("A"), Port: -1},
		"invalid network": {PeerID: testID("A"), Networks: []netip.Prefix{{}}},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("New(%+v): %v, want %q", cfg, err, says)
		}
	}
}
