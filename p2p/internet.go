package p2p

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/host/observedaddrs"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/internal/throttle"
)

// Internet makes a Host reachable from, and able to reach, agents beyond its site. Such a peer is a
// remote: it is asked for NARs that a look-up named it for, and served, but neither side tells the other
// what it has. A neighbour is one that a hint named, that is in Config.Networks, or that began to tell us
// what it has, as a static peer does.
type Internet struct {
	PublicAddresses []string // multiaddrs to announce beside those found out
	Relay           bool     // be reachable through relays where nothing else works
	ServeRelay      bool     // be a relay for others; needs a public address
	Upload          int64    // bytes per second to all remotes together; 0 means unlimited
	// Quiet tells that remotes are to be served no NARs now: this machine runs on battery. nil means never.
	Quiet func() bool
	// Public tells which addresses are the internet's; nil means libp2p's rule, which leaves out private,
	// link-local, loopback and documentation ranges.
	Public func(netip.Addr) bool
}

// Limits of relays and remotes.
const (
	maxCourting     = 32               // remotes that became neighbours because they told us what they have
	relayData       = 64 << 20         // bytes each way over one relayed connection; libp2p's 128 KiB carry no NAR
	relayTime       = 10 * time.Minute // of one relayed connection
	relaySlots      = 256              // machines that may be reached through us
	relayCircuits   = 32               // connections to one of them
	relayBuffer     = 16 << 10
	relayCandidates = 4
	relayAskEvery   = 30 * time.Second
	observers       = 2                       // machines that must see us under an address before it is announced; see docs/decisions
	punchPatience   = 1200 * time.Millisecond // for a relayed connection to become a direct one before it is used
)

// remotes is what a Host needs beyond its site.
type remotes struct {
	upload   *throttle.Throttle
	public   func(netip.Addr) bool
	source   atomic.Pointer[RelaySource]
	reach    atomic.Int32 // network.Reachability
	courting atomic.Int32 // see befriend
	asking   sync.Map     // peer.ID of whoIs's made-up peers
}

// RelaySource names some peers that may serve as relays, as [autorelay.PeerSource].
type RelaySource func(ctx context.Context, n int) <-chan peer.AddrInfo

// isPublicIP is libp2p's rule.
func isPublicIP(ip netip.Addr) bool {
	if !ip.IsValid() {
		return false
	}
	text := discovery.IP(ip)
	a, err := ma.NewMultiaddr(text)
	return err == nil && manet.IsPublicAddr(a)
}

// internetOptions are what libp2p needs for cfg.Internet.
func (h *Host) internetOptions() ([]libp2p.Option, error) {
	in := h.cfg.Internet
	if in == nil {
		return []libp2p.Option{libp2p.DisableRelay()}, nil
	}
	observedaddrs.ActivationThresh = observers // a variable of the library's, with 4: a small network has no four public machines
	var announce []ma.Multiaddr
	for _, s := range in.PublicAddresses {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("internet.public_addresses %q: %w; want a multiaddr, such as /ip4/198.51.100.7/tcp/6491", s, err)
		}
		announce = append(announce, a)
	}
	options := []libp2p.Option{
		libp2p.EnableRelay(),
		libp2p.EnableHolePunching(),
		libp2p.EnableAutoNATv2(),
		libp2p.EnableNATService(),
		libp2p.NATPortMap(),
		libp2p.AddrsFactory(h.announced(announce)),
	}
	if in.Relay && !in.ServeRelay {
		options = append(options, libp2p.EnableAutoRelayWithPeerSource(h.relayCandidates,
			autorelay.WithBootDelay(5*time.Second), autorelay.WithMinInterval(relayAskEvery),
			autorelay.WithNumRelays(2), autorelay.WithMinCandidates(1), autorelay.WithMaxCandidates(relayCandidates)))
	}
	if in.ServeRelay {
		r := relay.DefaultResources()
		r.Limit = &relay.RelayLimit{Duration: relayTime, Data: relayData}
		r.MaxReservations, r.MaxCircuits, r.BufferSize = relaySlots, relayCircuits, relayBuffer
		options = append(options, libp2p.EnableRelayService(relay.WithResources(r)), libp2p.ForceReachabilityPublic())
	}
	return options, nil
}

// announced makes libp2p tell others of public addresses only, and of those that the operator named.
func (h *Host) announced(also []ma.Multiaddr) func([]ma.Multiaddr) []ma.Multiaddr {
	return func(list []ma.Multiaddr) []ma.Multiaddr {
		out := append([]ma.Multiaddr(nil), also...)
		for _, a := range list {
			if ip, ok := ipOf(a); ok && h.remotes.public(ip) {
				out = append(out, a)
			}
		}
		return out
	}
}

func (h *Host) relayCandidates(ctx context.Context, n int) <-chan peer.AddrInfo {
	if f := h.remotes.source.Load(); f != nil {
		return (*f)(ctx, n)
	}
	none := make(chan peer.AddrInfo)
	close(none)
	return none
}

// SetRelaySource says who knows peers that may be relays.
func (h *Host) SetRelaySource(f RelaySource) { h.remotes.source.Store(&f) }

// Libp2p is the host that discovery/dht works on.
func (h *Host) Libp2p() host.Host { return h.host }

// Reachable tells whether machines of the internet were seen to reach this one directly.
func (h *Host) Reachable() bool {
	return network.Reachability(h.remotes.reach.Load()) == network.ReachabilityPublic
}

// watchReachability keeps Reachable true to what AutoNAT finds.
func (h *Host) watchReachability(ctx context.Context) error {
	sub, err := h.host.EventBus().Subscribe(new(event.EvtLocalReachabilityChanged))
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			h.remotes.reach.Store(int32(e.(event.EvtLocalReachabilityChanged).Reachability))
		}
	}
}

// neighbour tells whether the peer is one whom we tell what we have. p.life may be held, p.mu not.
func (h *Host) neighbour(p *Peer) bool {
	if h.cfg.Internet == nil || p.courting.Load() || h.dialer.knows(p.id) {
		return true
	}
	for _, c := range h.host.Network().ConnsToPeer(p.id) {
		if ip, ok := ipOf(c.RemoteMultiaddr()); ok && !isCircuit(c.RemoteMultiaddr()) && h.gater.near(ip) {
			return true
		}
	}
	return false
}

// befriend makes a remote one that is told what we have, and tells us, while there are not too many of them.
func (h *Host) befriend(p *Peer) bool {
	if h.neighbour(p) {
		return true
	}
	if h.remotes.courting.Add(1) > maxCourting {
		h.remotes.courting.Add(-1)
		return false
	}
	if p.courting.Swap(true) {
		h.remotes.courting.Add(-1)
		return true
	}
	h.settle(p.id)
	return true
}

// approach settles a connected peer anew if it has come nearer: a remote that is a neighbour now, or an agent of
// the internet that is found to be in this site.
func (h *Host) approach(p *Peer) {
	p.mu.Lock()
	remote := p.remote
	p.mu.Unlock()
	if remote && h.neighbour(p) || p.far.Load() && h.dialer.knowsNear(p.id) {
		h.settle(p.id)
	}
}

// unfriend ends what befriend began; the peer left.
func (h *Host) unfriend(p *Peer) {
	if p.courting.Swap(false) {
		h.remotes.courting.Add(-1)
	}
}

func isCircuit(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

// Reach connects to a peer that a look-up named, at its addresses of the internet, directly if that is
// possible and else through a relay. The error says why not.
func (h *Host) Reach(ctx context.Context, f discovery.Found) (*Peer, error) {
	id, err := peer.Decode(f.PeerID)
	if err != nil {
		return nil, err
	}
	if h.isBanned(id) {
		return nil, fmt.Errorf("peer %s is shut out", f.PeerID)
	}
	info := peer.AddrInfo{ID: id}
	for _, s := range f.Addrs[:min(len(f.Addrs), discovery.MaxAddrs)] {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		if ip, ok := ipOf(a); ok && !h.remotes.public(ip) {
			continue // whoever wrote the record does not choose whom of our site we dial
		}
		info.Addrs = append(info.Addrs, a)
	}
	if err := h.host.Connect(network.WithAllowLimitedConn(ctx, "nar"), info); err != nil {
		return nil, err
	}
	h.awaitDirect(ctx, id)
	p := h.peers.get(id)
	if p == nil {
		return nil, fmt.Errorf("peer %s: too many peers are known", f.PeerID)
	}
	if !p.Relayed() {
		h.befriend(p) // who has one path of a closure has others: those need no look-up then
	}
	return p, nil
}

// awaitDirect gives hole punching a moment to replace a relayed connection.
func (h *Host) awaitDirect(ctx context.Context, id peer.ID) {
	if h.host.Network().Connectedness(id) != network.Limited {
		return
	}
	deadline := time.NewTimer(punchPatience)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for h.host.Network().Connectedness(id) == network.Limited {
		select {
		case <-ctx.Done():
			return
		case <-deadline.C:
			return
		case <-tick.C:
		}
	}
}

// quiet tells whether p is one of the internet's, which is left alone now.
func (h *Host) quiet(p *Peer) bool {
	in := h.cfg.Internet
	return in != nil && in.Quiet != nil && p.beyond() && in.Quiet()
}

// beyond tells whether the peer is one of the internet.
func (p *Peer) beyond() bool {
	if p.far.Load() {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.remote
}

// Relayed tells whether the peer is reached through a relay only.
func (p *Peer) Relayed() bool { return p.host.host.Network().Connectedness(p.id) == network.Limited }
