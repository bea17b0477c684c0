package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"

	"github.com/flurry-nix/flurry/discovery"
)

// Protocols of the wire, see the package documentation.
const (
	protoHTTP protocol.ID = "/flurry/1"
	protoHave protocol.ID = "/flurry/have/1"
)

// Config of a Host. The zero value listens nowhere and works as a client.
type Config struct {
	Listen    []string // host:port, for TCP and for QUIC over UDP; host may be empty
	StoreDir  string   // what nix-cache-info says to peers
	UserAgent string   // such as "flurry/1.0"
	// MaxConnections trims the number of connections; 0 means 256.
	MaxConnections int
	Log            *slog.Logger
	// Now is the clock of bans and back-offs; nil means time.Now.
	Now func() time.Time
}

// Host is this agent among its peers. Make it with New, let it work with Run.
type Host struct {
	cfg     Config
	log     *slog.Logger
	now     func() time.Time
	host    host.Host
	catalog Catalog
	peers   peerTable
	client  *http.Client
	journal *journal
	dialer  *dialer
	paused  atomic.Bool // no sharing: every request is a miss and the have-set empty

	wg sync.WaitGroup // have-set streams
}

// New opens the listeners. It fails only if none of them could be opened.
func New(cfg Config, id *Identity, catalog Catalog) (*Host, error) {
	h := &Host{cfg: cfg, log: cfg.Log, now: cfg.Now, catalog: catalog}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.now == nil {
		h.now = time.Now
	}
	h.peers = peerTable{host: h, byID: map[peer.ID]*Peer{}}
	addrs, err := listenAddrs(cfg.Listen)
	if err != nil {
		return nil, err
	}
	limit := cfg.MaxConnections
	if limit <= 0 {
		limit = 256
	}
	manager, err := connmgr.NewConnManager(limit*3/4, limit)
	if err != nil {
		return nil, fmt.Errorf("peers: %w", err)
	}
	h.host, err = libp2p.New(
		libp2p.Identity(id.key),
		libp2p.ListenAddrs(addrs...),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Transport(libp2pquic.NewTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New), // TLS alone: 1.3 times as fast as Noise
		libp2p.ConnectionManager(manager),
		libp2p.ConnectionGater(&gater{&h.peers}),
		libp2p.DialRanker(rankDials),
		libp2p.UserAgent(cfg.UserAgent),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
	)
	if err != nil {
		return nil, fmt.Errorf("listen for peers on %v: %w; is another agent running? set peers.listen to a free port", cfg.Listen, err)
	}
	h.client = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return h.openStream(ctx, addr)
		},
		DisableCompression:     true,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: serverHeaderBytes,
		ReadBufferSize:         64 << 10,
	}, CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("peers do not redirect") }}
	h.journal = newJournal()
	h.dialer = newDialer(h)
	return h, nil
}

// openStream opens a stream to a connected peer; addr is "<peer id>:80". It never dials.
func (h *Host) openStream(ctx context.Context, addr string) (net.Conn, error) {
	name, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	id, err := peer.Decode(name)
	if err != nil {
		return nil, err
	}
	return gostream.Dial(network.WithNoDial(ctx, "peers are dialled elsewhere"), h.host, id, protoHTTP)
}

// ID returns this agent's peer id.
func (h *Host) ID() string { return h.host.ID().String() }

// Addrs returns the addresses that peers can dial, as multiaddrs with the peer id.
func (h *Host) Addrs() []string {
	var out []string
	for _, a := range h.host.Addrs() {
		out = append(out, a.String()+"/p2p/"+h.ID())
	}
	return out
}

// Port returns the TCP port that is listened on, 0 if none.
func (h *Host) Port() int {
	for _, a := range h.host.Network().ListenAddresses() {
		if s, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			var port int
			fmt.Sscan(s, &port)
			return port
		}
	}
	return 0
}

// Run serves and dials until ctx ends, then closes all connections. finders say where peers may be.
func (h *Host) Run(ctx context.Context, finders ...discovery.Finder) error {
	g, gctx := errgroup.WithContext(ctx)
	unwatch := h.catalog.Watch(h.journal.add)
	h.host.Network().Notify(&network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { h.connected(gctx, c) },
		DisconnectedF: func(_ network.Network, c network.Conn) { h.disconnected(c) },
	})
	h.host.SetStreamHandler(protoHave, h.receiveHave)
	for _, c := range h.host.Network().Conns() { // those that were quicker than the notifier
		h.connected(gctx, c)
	}
	g.Go(func() error { return h.serve(gctx) })
	g.Go(func() error { return h.dialer.run(gctx) })
	g.Go(func() error { return h.watchLiveness(gctx) })
	for _, f := range finders {
		g.Go(func() error { return f.Run(gctx, h.dialer.found) })
	}
	g.Go(func() error {
		<-gctx.Done()
		unwatch()
		h.journal.close()
		return h.host.Close()
	})
	err := g.Wait()
	h.client.CloseIdleConnections()
	h.wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Pause stops (true) or resumes (false) sharing. Fetching from peers goes on.
func (h *Host) Pause(on bool) {
	if h.paused.Swap(on) != on {
		h.journal.reset()
	}
}

// connected starts to tell a new peer what this machine has.
func (h *Host) connected(ctx context.Context, c network.Conn) {
	p := h.peers.get(c.RemotePeer())
	if p == nil {
		c.Close()
		return
	}
	p.mu.Lock()
	first := p.connectedAt.IsZero()
	if first {
		p.connectedAt = h.now()
		p.failures, p.suspectUntil = 0, time.Time{}
	}
	p.via = h.dialer.viaOf(p.id, p.via)
	p.mu.Unlock()
	if !first {
		return
	}
	h.peers.setConnected(p, true)
	h.wg.Go(func() { h.sendHave(ctx, p) })
}

// disconnected forgets what a peer said it has, once its last connection is gone.
func (h *Host) disconnected(c network.Conn) {
	id := c.RemotePeer()
	if h.host.Network().Connectedness(id) == network.Connected {
		return
	}
	p := h.peers.get(id)
	if p == nil {
		return
	}
	p.mu.Lock()
	was := !p.connectedAt.IsZero()
	p.connectedAt, p.group = time.Time{}, false
	p.mu.Unlock()
	if !was {
		return
	}
	h.peers.setConnected(p, false)
	p.have.replace(nil, 0)
	h.log.Info("peer left", "peer", p.ID())
	h.dialer.lost(id)
}

// expel closes a peer's connections and stops dialling it.
func (h *Host) expel(p *Peer) {
	p.have.replace(nil, 0)
	h.wg.Go(func() { h.host.Network().ClosePeer(p.id) })
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

func discardLog() *stdlog.Logger { return stdlog.New(io.Discard, "", 0) }
