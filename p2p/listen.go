package p2p

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	ma "github.com/multiformats/go-multiaddr"
)

// openStream opens a stream to a connected peer; addr is "<peer id>:80". It never dials.
func (h *Host) openStream(ctx context.Context, _, addr string) (net.Conn, error) {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	id, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	ctx = network.WithAllowLimitedConn(network.WithNoDial(ctx, "peers are dialled elsewhere"), "nar")
	c, err := gostream.Dial(ctx, h.host, id, protoHTTP)
	if err != nil {
		return nil, err
	}
	return quickClose{c, h}, nil
}

// quickClose is a stream that closes without waiting: on a link that was cut a stream's own Close takes
// 10 s, and whoever gave up a request has turned to another peer.
type quickClose struct {
	net.Conn
	h *Host
}

// Close implements net.Conn.
func (c quickClose) Close() error {
	c.Conn.SetDeadline(time.Unix(1, 0)) // ends reads and writes under way
	c.h.tasks.run(func() { resetStream(c.Conn) })
	return nil
}

// listenAddrs turns host:port into multiaddrs for TCP and QUIC.
func listenAddrs(list []string) ([]ma.Multiaddr, error) {
	var out []ma.Multiaddr
	add := func(ip netip.Addr, port string) error {
		family := "ip4"
		if ip.Is6() {
			family = "ip6"
		}
		for _, tail := range []string{"/tcp/" + port, "/udp/" + port + "/quic-v1"} {
			a, err := ma.NewMultiaddr("/" + family + "/" + ip.String() + tail)
			if err != nil {
				return err
			}
			out = append(out, a)
		}
		return nil
	}
	for _, s := range list {
		name, port, err := net.SplitHostPort(s)
		if err != nil {
			return nil, fmt.Errorf("peers.listen %q: %w; want host:port, such as :6491", s, err)
		}
		ips := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		if name != "" {
			ip, err := netip.ParseAddr(name)
			if err != nil {
				return nil, fmt.Errorf("peers.listen %q: %w; want an IP address before the port", s, err)
			}
			ips = []netip.Addr{ip}
		}
		for _, ip := range ips {
			if err := add(ip, port); err != nil {
				return nil, fmt.Errorf("peers.listen %q: %w", s, err)
			}
		}
	}
	return out, nil
}
