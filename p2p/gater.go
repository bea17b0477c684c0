package p2p

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/flurry-nix/flurry/discovery"
)

// gater refuses connections before any stream: banned peers by identity, whatever address they come
// from, and strangers from networks that are not to be shared with. mu guards static.
type gater struct {
	h        *Host
	networks []netip.Prefix // nil: everywhere
	refused  atomic.Int64   // connections

	mu     sync.RWMutex
	static map[string]staticPeer // by hint name
}

// staticPeer is one that the operator named: it may be anywhere.
type staticPeer struct {
	id  peer.ID // "" if unknown
	ips []netip.Addr
}

var _ connmgr.ConnectionGater = (*gater)(nil)

func newGater(h *Host) *gater {
	return &gater{h: h, networks: slices.Clone(h.cfg.Networks), static: map[string]staticPeer{}}
}

// learn notes where and who a static peer is.
func (g *gater) learn(f discovery.Found, id peer.ID) {
	if f.Via != discovery.ViaStatic {
		return
	}
	s := staticPeer{id: id}
	for _, text := range f.Addrs {
		if a, err := ma.NewMultiaddr(text); err == nil {
			if ip, ok := ipOf(a); ok {
				s.ips = append(s.ips, ip)
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.static[f.Name]; known || len(g.static) < maxHints {
		g.static[f.Name] = s
	}
}

// ipOf returns the IP address that a multiaddr begins with, without its zone.
func ipOf(a ma.Multiaddr) (netip.Addr, bool) {
	b, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(b)
	ip, _, _ = linkLocal(ip.Unmap())
	return ip, ok
}

// isStatic tells whether id, or ip if it is valid, belongs to a static peer.
func (g *gater) isStatic(id peer.ID, ip netip.Addr) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, s := range g.static {
		if s.id != "" && s.id == id || ip.IsValid() && slices.Contains(s.ips, ip) {
			return true
		}
	}
	return false
}

// inside tells whether the address is in a network that is shared with.
func (g *gater) inside(a ma.Multiaddr) (ip netip.Addr, ok bool) {
	if g.networks == nil {
		return ip, true
	}
	ip, known := ipOf(a)
	if !known {
		return ip, false
	}
	return ip, g.near(ip) || g.h.cfg.Internet != nil && g.h.remotes.public(ip)
}

// near tells whether the address is of the networks in which peers are neighbours.
func (g *gater) near(ip netip.Addr) bool {
	if g.networks == nil {
		return !g.h.remotes.public(ip)
	}
	return ip.IsLoopback() || slices.ContainsFunc(g.networks, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// welcome tells whether a connection between us and an address is wanted. id is "" before the handshake.
func (g *gater) welcome(id peer.ID, a ma.Multiaddr) bool {
	ip, ok := g.inside(a)
	return ok || g.isStatic(id, ip)
}

// expectsRoamers tells whether a static peer is known by its identity: then only the handshake shows
// whether a stranger's address is its new one.
func (g *gater) expectsRoamers() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, s := range g.static {
		if s.id != "" {
			return true
		}
	}
	return false
}

func (g *gater) allowed(id peer.ID) bool {
	p := g.h.peers.lookup(id)
	return p == nil || !p.Banned()
}

func (g *gater) InterceptPeerDial(id peer.ID) bool { return g.allowed(id) }

// InterceptAddrDial also keeps us from addresses that a peer, asked who it is, merely names.
func (g *gater) InterceptAddrDial(id peer.ID, a ma.Multiaddr) bool {
	return g.welcome(id, a) && !g.foreign(id, a)
}

// foreign tells whether a is an address of this site that somebody on the internet named: nobody there
// chooses whom we dial here.
func (g *gater) foreign(id peer.ID, a ma.Multiaddr) bool {
	if g.h.cfg.Internet == nil {
		return false
	}
	ip, ok := ipOf(a)
	if !ok || g.h.remotes.public(ip) {
		return false
	}
	_, asking := g.h.remotes.asking.Load(id)
	return !asking && !g.h.dialer.knowsNear(id)
}

func (g *gater) InterceptAccept(c network.ConnMultiaddrs) bool {
	return g.count(g.welcome("", c.RemoteMultiaddr()) || g.expectsRoamers())
}

func (g *gater) InterceptSecured(_ network.Direction, id peer.ID, c network.ConnMultiaddrs) bool {
	return g.count(g.allowed(id) && g.welcome(id, c.RemoteMultiaddr()))
}

func (g *gater) count(ok bool) bool {
	if !ok {
		g.refused.Add(1)
	}
	return ok
}

func (g *gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
