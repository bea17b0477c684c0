package mdns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/discovery"
)

// hearing returns a teller of agent A and what it tells.
func hearing() (*teller, *[]discovery.Found) {
	var told []discovery.Found
	self := service{instance: instanceName(testID("A")), peerID: testID("A")}
	t := newTeller(self, newPicker(nil, nil), func(f discovery.Found) { told = append(told, f) })
	return t, &told
}

// on is a link of that name.
func on(name string) link {
	return link{net.Interface{Index: 1, Name: name, Flags: lan}, ips("10.0.0.1", "fe80::1")}
}

func heardEntry(instance string, change func(*entry)) entry {
	e := entry{instance: instance, port: 6491, text: []string{"txtvers=1", "new=thing", "flag", "id=" + testID("B")}, addrs: ips("10.0.0.2")}
	if change != nil {
		change(&e)
	}
	return e
}

func TestANeighbourBecomesAHint(t *testing.T) {
	tl, told := hearing()
	tl.heard(heardEntry("abc", func(e *entry) { e.addrs = append(e.addrs, ips("fe80::2", "fd00::2")...) }), on("eth1"))
	hosts := []string{"/ip4/10.0.0.2", "/ip6/fd00::2", "/ip6zone/eth1/ip6/fe80::2"}
	if len(*told) != 1 || !exactly(6491, hosts...)((*told)[0].Addrs) {
		t.Fatalf("told %+v", *told)
	}
	if f := (*told)[0]; f.Via != discovery.ViaMDNS || f.Name != "abc" || f.PeerID != testID("B") || f.Keep {
		t.Errorf("told %+v", f)
	}
}

func TestWhatIsMalformedOrOursIsIgnored(t *testing.T) {
	text := func(s ...string) func(*entry) { return func(e *entry) { e.text = s } }
	addrs := func(s ...string) func(*entry) { return func(e *entry) { e.addrs = ips(s...) } }
	for what, e := range map[string]entry{
		"our instance":         heardEntry(instanceName(testID("A")), nil),
		"our instance, louder": heardEntry(strings.ToUpper(instanceName(testID("A"))), nil),
		"our peer id":          heardEntry("abc", text("id="+testID("A"))),
		"no name":              heardEntry("", nil),
		"a long name":          heardEntry(strings.Repeat("a", 64), nil),
		"an escaped name":      heardEntry(`a\.b`, nil),
		"a name with a space":  heardEntry("a b", nil),
		"no peer id":           heardEntry("abc", text("txtvers=1")),
		"an empty peer id":     heardEntry("abc", text("id=")),
		"a bad peer id":        heardEntry("abc", text("id=../../etc/passwd")),
		"a second peer id":     heardEntry("abc", text("id=x", "id="+testID("B"))),
		"port 0":               heardEntry("abc", func(e *entry) { e.port = 0 }),
		"no address":           heardEntry("abc", addrs()),
		"an empty address":     heardEntry("abc", func(e *entry) { e.addrs = []netip.Addr{{}} }),
		"a public address":     heardEntry("abc", addrs("203.0.113.1")),
		"loopback":             heardEntry("abc", addrs("127.0.0.1")),
		"any address":          heardEntry("abc", addrs("0.0.0.0")),
		"multicast":            heardEntry("abc", addrs("224.0.0.251")),
	} {
		tl, told := hearing()
		tl.heard(e, on("eth0"))
		if len(*told) != 0 {
			t.Errorf("%s: told %+v", what, *told)
		}
		tl.heard(heardEntry("good", nil), on("eth0"))
		if len(*told) != 1 {
			t.Errorf("after %s a good one is not told", what)
		}
	}
}

func TestManyAddressesAreCutShort(t *testing.T) {
	tl, told := hearing()
	tl.heard(heardEntry("abc", func(e *entry) {
		for i := range 1000 {
			e.addrs = append(e.addrs, ips(fmt.Sprintf("10.0.%d.%d", i>>8, i&255), fmt.Sprintf("fe80::%x", i+1))...)
		}
	}), on("eth0"))
	if len(*told) != 1 || len((*told)[0].Addrs) != discovery.MaxAddrs {
		t.Fatalf("told %+v", *told)
	}
	if !slices.Contains((*told)[0].Addrs, "/ip4/10.0.0.1/tcp/6491") {
		t.Errorf("told %v", (*told)[0].Addrs)
	}
}

func TestInventedInstancesAreNotAllTold(t *testing.T) {
	tl, told := hearing()
	now := time.Unix(1_700_000_000, 0)
	tl.now = func() time.Time { return now }
	for i := range 2 * tellBurst {
		tl.heard(heardEntry(fmt.Sprintf("abc-%d", i), nil), on("eth0"))
	}
	if len(*told) != tellBurst {
		t.Errorf("told %d times at once, want %d", len(*told), tellBurst)
	}
	now = now.Add(time.Second)
	for i := range tellBurst {
		tl.heard(heardEntry(fmt.Sprintf("def-%d", i), nil), on("eth0"))
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
