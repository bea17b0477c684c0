package p2p

import (
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/flurry-nix/flurry/discovery"
)

// freshHint is how long what mDNS said is dialled wherever it leads: an mDNS reflector names neighbours of
// other links.
const freshHint = time.Second

// dialable returns the addresses of a hint that may be dialled now. What mDNS said a while ago counts on this machine's
// links only, until it is heard again: after a move a router or a VPN may still lead to the neighbours of before, who
// are none any more.
func (h *Host) dialable(n *hint) []string {
	if n.Via != discovery.ViaMDNS || h.now().Sub(n.heard) <= freshHint {
		return n.Addrs
	}
	links, err := net.InterfaceAddrs()
	if err != nil {
		return n.Addrs
	}
	here, elsewhere := split(n.Addrs, links)
	h.forgetAddrs(n.id, elsewhere)
	return here
}

// forgetAddrs takes addresses out of libp2p's memory, which would dial them together with those that it is given.
func (h *Host) forgetAddrs(id peer.ID, addrs []string) {
	for _, s := range addrs {
		if a, err := ma.NewMultiaddr(s); err == nil && id != "" {
			h.host.Peerstore().SetAddr(id, a, 0)
		}
	}
}

// split sorts multiaddrs by whether they are in one of the networks.
func split(addrs []string, networks []net.Addr) (inside, outside []string) {
	for _, a := range addrs {
		ip, ok := AddrIP(a)
		if ok && slices.ContainsFunc(networks, func(n net.Addr) bool { in, ok := n.(*net.IPNet); return ok && in.Contains(ip.AsSlice()) }) {
			inside = append(inside, a)
		} else {
			outside = append(outside, a)
		}
	}
	return inside, outside
}
