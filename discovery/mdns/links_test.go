package mdns

import (
	"net"
	"net/netip"
	"slices"
	"testing"
)

const lan = net.FlagUp | net.FlagRunning | net.FlagBroadcast | net.FlagMulticast

func TestOnlyInterfacesThatLookLikeALANAreUsed(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags net.Flags
		only  []string
		want  bool
	}{
		{"eth0", lan, nil, true},
		{"wlp3s0", lan, nil, true},
		{"br0", lan, nil, true},
		{"eth0", lan &^ net.FlagUp, nil, false},
		{"eth0", lan &^ net.FlagRunning, nil, false},
		{"eth0", lan &^ net.FlagMulticast, nil, false},
		{"ppp0", lan | net.FlagPointToPoint, nil, false},
		{"lo", lan | net.FlagLoopback, nil, false},
		{"docker0", lan, nil, false},
		{"veth1a2b", lan, nil, false},
		{"br-0123456789ab", lan, nil, false},
		{"virbr0", lan, nil, false},
		{"cni0", lan, nil, false},
		{"flannel.1", lan, nil, false},
		{"cali123", lan, nil, false},
		{"podman0", lan, nil, false},
		{"lxcbr0", lan, nil, false},
		{"vnet3", lan, nil, false},
		{"tun0", lan, nil, false},
		{"tap0", lan, nil, false},
		{"wg0", lan, nil, false},
		{"wg0", lan | net.FlagPointToPoint, []string{"wg0"}, true},
		{"docker0", lan, []string{"eth0", "docker0"}, true},
		{"docker0", lan &^ net.FlagUp, []string{"docker0"}, false},
		{"eth1", lan, []string{"eth0"}, false},
		{"lo", lan | net.FlagLoopback, []string{"lo"}, true},
		{"lo", lan | net.FlagLoopback, []string{"lo", "eth0"}, false},
	} {
		got := newPicker(c.only, nil).wants(net.Interface{Name: c.name, Flags: c.flags})
		if got != c.want {
			t.Errorf("%s (%v), listed %v: used = %v, want %v", c.name, c.flags, c.only, got, c.want)
		}
	}
}

func TestOnlyAddressesInTheNetworksAreAnnounced(t *testing.T) {
	for _, c := range []struct {
		what     string
		networks []string
		addrs    []string
		want     []string
	}{
		{"a home", nil, []string{"fe80::1", "2001:db8::1", "fd00::1", "192.168.1.2"}, []string{"192.168.1.2", "fd00::1", "fe80::1"}},
		{"a hosted server", nil, []string{"203.0.113.1", "2001:db8::1", "fe80::1"}, nil},
		{"a server with a private network", nil, []string{"203.0.113.1", "10.0.0.1", "fe80::1"}, []string{"10.0.0.1", "fe80::1"}},
		{"IPv6 with public addresses", nil, []string{"2001:db8::1", "fe80::1"}, []string{"fe80::1"}},
		{"a carrier's customer", nil, []string{"100.64.0.1"}, nil},
		{"no DHCP", nil, []string{"169.254.3.4"}, []string{"169.254.3.4"}},
		{"a campus", []string{"203.0.113.7/24"}, []string{"203.0.113.1", "10.0.0.1", "fe80::1"}, []string{"203.0.113.1"}},
		{"elsewhere", []string{"203.0.113.0/24"}, []string{"10.0.0.1"}, nil},
		{"nothing", nil, nil, nil},
		{"twice", nil, []string{"10.0.0.1", "10.0.0.1"}, []string{"10.0.0.1"}},
	} {
		var networks []netip.Prefix
		for _, n := range c.networks {
			networks = append(networks, netip.MustParsePrefix(n))
		}
		l, ok := newPicker(nil, networks).link(net.Interface{Name: "eth0", Flags: lan}, ips(c.addrs...))
		if ok != (c.want != nil) || !slices.Equal(l.addrs, ips(c.want...)) {
			t.Errorf("%s: %v announces %v, want %v", c.what, c.addrs, l.addrs, c.want)
		}
	}
}

func TestAMachineOfManyAddressesAnnouncesAFew(t *testing.T) {
	var many []netip.Addr
	for a := netip.MustParseAddr("10.0.0.1"); len(many) < 100; a = a.Next() {
		many = append(many, a)
	}
	if l, ok := newPicker(nil, nil).link(net.Interface{Flags: lan}, many); !ok || len(l.addrs) != maxIPs {
		t.Errorf("%d addresses, want %d", len(l.addrs), maxIPs)
	}
}

func ips(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// BenchmarkScan measures what the poll costs on this machine.
func BenchmarkScan(b *testing.B) {
	p := newPicker(nil, nil)
	for b.Loop() {
		if _, err := p.scan(); err != nil {
			b.Fatal(err)
		}
	}
}
