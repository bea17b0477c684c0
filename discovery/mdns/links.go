package mdns

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"
)

const (
	// maxLinks bounds the interfaces in use at once: Linux lets one socket join 20 groups.
	maxLinks = 16
	// maxIPs bounds the IP addresses of one machine on one link, ours or another's: each makes two
	// multiaddrs, and a hint holds 16.
	maxIPs = 8
)

// notLAN are beginnings of names that containers, virtual machines and tunnels give their interfaces.
// Names alone decide: a veth that its owner called eth0 is that machine's LAN.
var notLAN = []string{
	"docker", "veth", "br-", "virbr", "cni", "flannel", "cali", "podman", "lxc", "lxd", "incus", "vnet",
	"ve-", "vb-", "nerdctl", "cilium", "kube", "weave", "vmnet", "vboxnet",
	"tun", "tap", "wg", "utun", "tailscale", "zt",
}

// DefaultNetworks are the private ranges: RFC 1918, and both families' link-local and unique local
// addresses. 100.64.0.0/10 is not among them: behind it are a carrier's other customers.
func DefaultNetworks() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("fc00::/7"),
		netip.MustParsePrefix("fe80::/10"),
	}
}

// link is an interface in use, with those of its addresses that may be announced on it: IPv4, then
// IPv6, then IPv6 link-local, without zones.
type link struct {
	ifi   net.Interface
	addrs []netip.Addr
}

func (l link) equal(o link) bool {
	return l.ifi.Index == o.ifi.Index && l.ifi.Name == o.ifi.Name && slices.Equal(l.addrs, o.addrs)
}

// has reports whether the link has an address of that family.
func (l link) has(f family) bool { return slices.ContainsFunc(l.addrs, f.contains) }

// family is an IP version.
type family int

const (
	ipv4Family family = 4
	ipv6Family family = 6
)

func (f family) String() string {
	if f == ipv4Family {
		return "IPv4"
	}
	return "IPv6"
}

func (f family) contains(a netip.Addr) bool { return a.Is4() == (f == ipv4Family) }

// interfaces are those of links that have an address of the family: joining a group elsewhere fails
// or sends from an unrelated address.
func (f family) interfaces(links []link) []net.Interface {
	var out []net.Interface
	for _, l := range links {
		if l.has(f) {
			out = append(out, l.ifi)
		}
	}
	return out
}

// picker decides which interfaces and addresses count.
type picker struct {
	only     []string // interface names; empty = automatic
	networks []netip.Prefix
	// byDefault: nobody chose the networks.
	byDefault bool
}

func newPicker(only []string, networks []netip.Prefix) picker {
	if len(networks) == 0 {
		return picker{only: only, networks: DefaultNetworks(), byDefault: true}
	}
	masked := make([]netip.Prefix, len(networks))
	for i, n := range networks {
		masked[i] = n.Masked()
	}
	return picker{only: only, networks: masked}
}

// scan looks at the system's interfaces as they are now.
func (p picker) scan() ([]link, error) {
	ifis, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var links []link
	for _, ifi := range ifis {
		if !p.wants(ifi) { // before asking for addresses: hosts of many containers have hundreds
			continue
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			continue // it has just gone
		}
		if l, ok := p.link(ifi, parseAddrs(addrs)); ok && len(links) < maxLinks {
			links = append(links, l)
		}
	}
	return links, nil
}

// wants decides by what an interface is, before its addresses.
func (p picker) wants(ifi net.Interface) bool {
	if ifi.Flags&net.FlagUp == 0 || ifi.Flags&net.FlagRunning == 0 {
		return false
	}
	if len(p.only) > 0 {
		return slices.Contains(p.only, ifi.Name) && (ifi.Flags&net.FlagLoopback == 0 || len(p.only) == 1)
	}
	if ifi.Flags&(net.FlagLoopback|net.FlagPointToPoint) != 0 || ifi.Flags&net.FlagMulticast == 0 {
		return false
	}
	return !slices.ContainsFunc(notLAN, func(prefix string) bool { return strings.HasPrefix(ifi.Name, prefix) })
}

// link returns the interface with the addresses that may be announced there; false if there is none.
func (p picker) link(ifi net.Interface, addrs []netip.Addr) (link, bool) {
	loopback := ifi.Flags&net.FlagLoopback != 0
	l := link{ifi: ifi}
	private, public := false, false
	for _, a := range addrs {
		switch {
		case p.allows(a) || loopback && a.IsLoopback():
			l.addrs = append(l.addrs, a)
			private = private || !a.IsLinkLocalUnicast()
		case a.Is4():
			public = true
		}
	}
	// Every IPv6 interface has a link-local address, a hosted server's public one too. There it says
	// nothing about who listens, so by default it does not outweigh a public IPv4 address.
	if len(l.addrs) == 0 || p.byDefault && public && !private {
		return link{}, false
	}
	slices.SortFunc(l.addrs, compareAddrs)
	l.addrs = slices.Compact(l.addrs)
	l.addrs = l.addrs[:min(len(l.addrs), maxIPs)]
	return l, true
}

// allows reports whether the address is in one of the networks.
func (p picker) allows(a netip.Addr) bool {
	return slices.ContainsFunc(p.networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// compareAddrs orders IPv4 before IPv6 before IPv6 link-local, whose zone the receiver must guess.
func compareAddrs(a, b netip.Addr) int {
	rank := func(x netip.Addr) int {
		switch {
		case x.Is4():
			return 0
		case !x.IsLinkLocalUnicast():
			return 1
		default:
			return 2
		}
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b))
}

func parseAddrs(addrs []net.Addr) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				out = append(out, ip.Unmap().WithZone(""))
			}
		}
	}
	return out
}
