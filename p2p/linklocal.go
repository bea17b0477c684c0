package p2p

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/tcpreuse"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// libp2p dials no IPv6 link-local addresses: its swarm filters them, and its transports do not know
// /ip6zone. On a cable between two machines there may be nothing else. So between the dialer and the
// transport such an address travels as a stand-in: linkPrefix, the interface's index (16 bits), the
// address's lower half. The stand-in never leaves the process.
var linkPrefix = [6]byte{0xfd, 0x66, 0x6c, 0x75, 0x72, 0x79}

// standIn replaces a link-local address /ip6zone/IF/ip6/fe80::…; all others stay as they are.
func standIn(a ma.Multiaddr) ma.Multiaddr {
	zone, err := a.ValueForProtocol(ma.P_IP6ZONE)
	if err != nil {
		return a
	}
	ip, ok := ipOf(a)
	iface, err := net.InterfaceByName(zone)
	if !ok || !ip.IsLinkLocalUnicast() || !ip.Is6() || err != nil || iface.Index > 0xffff {
		return a
	}
	b := ip.As16()
	copy(b[:], linkPrefix[:])
	binary.BigEndian.PutUint16(b[6:], uint16(iface.Index))
	_, rest := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code != ma.P_IP6ZONE && c.Protocol().Code != ma.P_IP6 })
	head, err := ma.NewMultiaddr("/ip6/" + netip.AddrFrom16(b).String())
	if err != nil {
		return a
	}
	return head.Encapsulate(rest)
}

// linkLocal returns the address that a stand-in's IP stands for.
func linkLocal(ip netip.Addr) (real netip.Addr, index int, ok bool) {
	b := ip.As16()
	if !ip.Is6() || [6]byte(b[:6]) != linkPrefix {
		return ip, 0, false
	}
	index = int(binary.BigEndian.Uint16(b[6:]))
	copy(b[:8], []byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0})
	return netip.AddrFrom16(b), index, true
}

// linkTCP is the TCP transport that knows stand-ins.
type linkTCP struct{ *tcp.TcpTransport }

func newLinkTCP(u transport.Upgrader, r network.ResourceManager, s *tcpreuse.ConnMgr) (*linkTCP, error) {
	t, err := tcp.NewTCPTransport(u, r, s)
	return &linkTCP{t}, err
}

func (t *linkTCP) Dial(ctx context.Context, a ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	return t.DialWithUpdates(ctx, a, p, nil)
}

func (t *linkTCP) DialWithUpdates(ctx context.Context, a ma.Multiaddr, p peer.ID, updates chan<- transport.DialUpdate) (transport.CapableConn, error) {
	if real := realAddr(a); !real.Equal(a) {
		return t.TcpTransport.DialWithUpdates(ctx, real, p, nil) // they would name an address unknown to the swarm
	}
	return t.TcpTransport.DialWithUpdates(ctx, a, p, updates)
}

// realAddr is the reverse of standIn.
func realAddr(a ma.Multiaddr) ma.Multiaddr {
	at, err := manet.ToNetAddr(a)
	if err != nil {
		return a
	}
	to, ok := at.(*net.TCPAddr)
	if !ok {
		return a
	}
	ip, index, ok := linkLocal(to.AddrPort().Addr())
	if !ok {
		return a
	}
	iface, err := net.InterfaceByIndex(index)
	if err != nil {
		return a
	}
	real, err := manet.FromNetAddr(&net.TCPAddr{IP: ip.AsSlice(), Port: to.Port, Zone: iface.Name})
	if err != nil {
		return a
	}
	return real
}
