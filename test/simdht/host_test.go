package simdht

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	basicconnmgr "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	ma "github.com/multiformats/go-multiaddr"
	mstream "github.com/multiformats/go-multistream"
)

const (
	dialTimeout = 5 * time.Second // of a machine that is gone: libp2p's for TCP
	dialRounds  = 3               // round trips: TCP, the choice of a protocol, TLS 1.3 with the multiplexer in ALPN
	backoffBase = 5 * time.Second
	backoffMost = 5 * time.Minute
	deadAfter   = 40 * time.Second // until a connection that nothing answers on is closed: yamux asks every 30 s and waits 10
	connsLow    = 192              // marks of p2p's connection manager for limits.connections = 256
	connsHigh   = 224
	connsGrace  = 20 * time.Second
)

var errGone = errors.New("no route to the simulated host")

// node is a machine of the simulated internet: what go-libp2p-kad-dht needs of a libp2p host and no more.
// Peerstore, event bus and connection manager are libp2p's own; connections are entries in two maps, streams
// are queues whose bytes arrive after half the pair's round trip. mu guards the maps and down.
type node struct {
	w      *world
	id     peer.ID
	addr   ma.Multiaddr
	region int
	access time.Duration // half a round trip to its provider

	ps         peerstore.Peerstore
	bus        event.Bus
	cm         connmgr.ConnManager
	mux        *mstream.MultistreamMuxer[protocol.ID]
	identified event.Emitter
	connected  event.Emitter
	moved      event.Emitter

	closing sync.Once

	mu        sync.Mutex
	down      bool
	conns     map[peer.ID]*conn
	handlers  map[protocol.ID]network.StreamHandler
	notifiees []network.Notifiee
	dialling  map[peer.ID]*dial
	backoffs  map[peer.ID]backoff

	traffic traffic
	held    map[uint64]bool // hashes of the ADD_PROVIDER messages received; mu guards it
}

// backoff keeps a node from dialling what it just dialled in vain, as libp2p's swarm does.
type backoff struct {
	until  time.Time
	failed int
}

// dial is one that several wait for.
type dial struct {
	done chan struct{}
	err  error
}

var (
	_ host.Host       = (*node)(nil)
	_ network.Network = (*net)(nil)
)

func newNode(w *world, id peer.ID, addr ma.Multiaddr, region int, access time.Duration) (*node, error) {
	n := &node{
		w: w, id: id, addr: addr, region: region, access: access, bus: eventbus.NewBus(),
		mux:      mstream.NewMultistreamMuxer[protocol.ID](),
		conns:    map[peer.ID]*conn{},
		handlers: map[protocol.ID]network.StreamHandler{},
		dialling: map[peer.ID]*dial{},
		backoffs: map[peer.ID]backoff{},
	}
	var err error
	if n.ps, err = pstoremem.NewPeerstore(); err != nil {
		return nil, err
	}
	n.ps.AddAddr(id, addr, peerstore.PermanentAddrTTL)
	cm, err := basicconnmgr.NewConnManager(connsLow, connsHigh, basicconnmgr.WithGracePeriod(connsGrace))
	if err != nil {
		return nil, err
	}
	n.cm = cm
	n.notifiees = append(n.notifiees, cm.Notifee())
	if n.identified, err = n.bus.Emitter(new(event.EvtPeerIdentificationCompleted)); err != nil {
		return nil, err
	}
	if n.connected, err = n.bus.Emitter(new(event.EvtPeerConnectednessChanged)); err != nil {
		return nil, err
	}
	if n.moved, err = n.bus.Emitter(new(event.EvtPeerProtocolsUpdated)); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *node) ID() peer.ID                      { return n.id }
func (n *node) Peerstore() peerstore.Peerstore   { return n.ps }
func (n *node) Addrs() []ma.Multiaddr            { return []ma.Multiaddr{n.addr} }
func (n *node) Network() network.Network         { return (*net)(n) }
func (n *node) Mux() protocol.Switch             { return n.mux }
func (n *node) ConnManager() connmgr.ConnManager { return n.cm }
func (n *node) EventBus() event.Bus              { return n.bus }

func (n *node) SetStreamHandler(id protocol.ID, h network.StreamHandler) {
	n.mux.AddHandler(id, nil)
	n.mu.Lock()
	n.handlers[id] = h
	n.mu.Unlock()
}

func (n *node) SetStreamHandlerMatch(id protocol.ID, _ func(protocol.ID) bool, h network.StreamHandler) {
	n.SetStreamHandler(id, h)
}

func (n *node) RemoveStreamHandler(id protocol.ID) {
	n.mux.RemoveHandler(id)
	n.mu.Lock()
	delete(n.handlers, id)
	n.mu.Unlock()
}

func (n *node) handler(id protocol.ID) network.StreamHandler {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.handlers[id]
}

// Close takes the machine off the network, as a stop of the agent does.
func (n *node) Close() error {
	for _, c := range n.list() {
		c.Close()
	}
	n.cut()
	n.closing.Do(func() { n.cm.Close(); n.ps.Close() })
	return nil
}

// cut takes the machine off the network as a power cut does: others notice when nothing has answered for
// deadAfter.
func (n *node) cut() {
	n.w.forget(n.addr)
	n.mu.Lock()
	n.down = true
	n.mu.Unlock()
	for _, c := range n.list() {
		time.AfterFunc(deadAfter, c.other.end)
	}
}

func (n *node) gone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down
}

func (n *node) conn(id peer.ID) *conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conns[id]
}

func (n *node) list() []*conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*conn, 0, len(n.conns))
	for _, c := range n.conns {
		out = append(out, c)
	}
	return out
}

// Connect dials unless there is a connection; concurrent callers share the dial.
func (n *node) Connect(ctx context.Context, info peer.AddrInfo) error {
	if len(info.Addrs) > 0 {
		n.ps.AddAddrs(info.ID, info.Addrs, peerstore.TempAddrTTL)
	}
	n.mu.Lock()
	if n.conns[info.ID] != nil {
		n.mu.Unlock()
		return nil
	}
	d := n.dialling[info.ID]
	if d == nil {
		d = &dial{done: make(chan struct{})}
		n.dialling[info.ID] = d
		go func() {
			d.err = n.dial(info.ID)
			n.mu.Lock()
			delete(n.dialling, info.ID)
			n.mu.Unlock()
			close(d.done)
		}()
	}
	n.mu.Unlock()
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// dial takes the time of the handshakes, and of one more exchange in which both learn the other's addresses and
// protocols.
func (n *node) dial(id peer.ID) error {
	n.mu.Lock()
	was := n.backoffs[id]
	n.mu.Unlock()
	if time.Now().Before(was.until) {
		return errGone
	}
	n.traffic.dials.Add(1)
	n.w.traffic.dials.Add(1)
	var other *node
	for _, a := range n.ps.Addrs(id) {
		if m := n.w.at(a); m != nil && m.id == id {
			other = m
		}
	}
	if other == nil || other.gone() || n.gone() {
		n.traffic.failedDials.Add(1)
		n.w.traffic.failedDials.Add(1)
		time.Sleep(dialTimeout)
		n.mu.Lock()
		n.backoffs[id] = backoff{time.Now().Add(min(backoffMost, backoffBase+time.Duration(was.failed*was.failed)*time.Second)), was.failed + 1}
		n.mu.Unlock()
		return errGone
	}
	rtt := n.w.roundTrip(n, other)
	time.Sleep((dialRounds + 1) * rtt)
	a, b := &conn{from: n, to: other, dir: network.DirOutbound}, &conn{from: other, to: n, dir: network.DirInbound}
	a.other, b.other = b, a
	a.opened, b.opened = time.Now(), time.Now()
	if !a.join() {
		return errGone
	}
	b.join()
	n.meet(other)
	other.meet(n)
	return nil
}

// meet is libp2p's identify.
func (n *node) meet(other *node) {
	n.ps.AddAddr(other.id, other.addr, peerstore.ConnectedAddrTTL)
	n.ps.SetProtocols(other.id, other.protocols()...)
	n.connected.Emit(event.EvtPeerConnectednessChanged{Peer: other.id, Connectedness: network.Connected})
	n.identified.Emit(event.EvtPeerIdentificationCompleted{Peer: other.id})
}

func (n *node) protocols() []protocol.ID { return n.mux.Protocols() }

// NewStream connects if need be. The protocol is known from identify, so that its choice takes no round trip.
func (n *node) NewStream(ctx context.Context, id peer.ID, pids ...protocol.ID) (network.Stream, error) {
	if err := n.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
		return nil, err
	}
	c := n.conn(id)
	if c == nil {
		return nil, errGone
	}
	for _, pid := range pids {
		if h := c.to.handler(pid); h != nil {
			s, far := newStreams(c, pid)
			go h(far)
			return s, nil
		}
	}
	return nil, fmt.Errorf("protocols not supported: %v", pids)
}

// net is the node as its network; the rest of it is the node's.
type net node

func (n *net) node() *node                              { return (*node)(n) }
func (n *net) Peerstore() peerstore.Peerstore           { return n.ps }
func (n *net) LocalPeer() peer.ID                       { return n.id }
func (n *net) Close() error                             { return n.node().Close() }
func (n *net) SetStreamHandler(network.StreamHandler)   {}
func (n *net) Listen(...ma.Multiaddr) error             { return nil }
func (n *net) ListenAddresses() []ma.Multiaddr          { return []ma.Multiaddr{n.addr} }
func (n *net) ResourceManager() network.ResourceManager { return &network.NullResourceManager{} }
func (n *net) CanDial(peer.ID, ma.Multiaddr) bool       { return true }
func (n *net) StopNotify(network.Notifiee)              {}

func (n *net) InterfaceListenAddresses() ([]ma.Multiaddr, error) { return n.ListenAddresses(), nil }

func (n *net) NewStream(ctx context.Context, id peer.ID) (network.Stream, error) {
	return n.node().NewStream(ctx, id)
}

func (n *net) DialPeer(ctx context.Context, id peer.ID) (network.Conn, error) {
	if err := n.node().Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
		return nil, err
	}
	if c := n.node().conn(id); c != nil {
		return c, nil
	}
	return nil, errGone
}

func (n *net) ClosePeer(id peer.ID) error {
	if c := n.node().conn(id); c != nil {
		return c.Close()
	}
	return nil
}

func (n *net) Connectedness(id peer.ID) network.Connectedness {
	if n.node().conn(id) != nil {
		return network.Connected
	}
	return network.NotConnected
}

func (n *net) Peers() []peer.ID {
	var out []peer.ID
	for _, c := range n.node().list() {
		out = append(out, c.to.id)
	}
	return out
}

func (n *net) Conns() []network.Conn {
	var out []network.Conn
	for _, c := range n.node().list() {
		out = append(out, c)
	}
	return out
}

func (n *net) ConnsToPeer(id peer.ID) []network.Conn {
	if c := n.node().conn(id); c != nil {
		return []network.Conn{c}
	}
	return nil
}

func (n *net) Notify(f network.Notifiee) {
	n.mu.Lock()
	n.notifiees = append(n.notifiees, f)
	n.mu.Unlock()
}

// keep counts a record that the node was given.
func (n *node) keep(message []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.held == nil {
		n.held = map[uint64]bool{}
	}
	n.held[maphash.Bytes(hashSeed, message)] = true
}

// records is how many different ones the node was given.
func (n *node) records() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.held)
}

var hashSeed = maphash.MakeSeed()

// traffic is what was sent: payload of streams, without what carries it.
type traffic struct {
	dials, failedDials atomic.Int64
	out                [kinds]count
}

type count struct{ messages, bytes atomic.Int64 }
