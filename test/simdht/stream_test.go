package simdht

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// conn is one end of a connection; mu guards streams.
type conn struct {
	from, to *node
	other    *conn
	dir      network.Direction
	opened   time.Time
	closed   atomic.Bool

	mu      sync.Mutex
	streams map[*stream]bool
}

// join makes the connection known at its end; false if there is one or the node is gone.
func (c *conn) join() bool {
	n := c.from
	n.mu.Lock()
	if n.down {
		n.mu.Unlock()
		return false
	}
	old := n.conns[c.to.id]
	n.conns[c.to.id] = c
	list := n.notifiees
	n.mu.Unlock()
	if old != nil {
		old.closed.Store(true)
	}
	for _, f := range list {
		f.Connected(n.Network(), c)
	}
	return true
}

// Close ends the connection: at this end at once, at the other half a round trip later.
func (c *conn) Close() error {
	c.end()
	other := c.other
	time.AfterFunc(c.from.w.roundTrip(c.from, c.to)/2, other.end)
	return nil
}

func (c *conn) end() {
	if c.closed.Swap(true) {
		return
	}
	n := c.from
	n.mu.Lock()
	mine := n.conns[c.to.id] == c
	if mine {
		delete(n.conns, c.to.id)
	}
	list, down := n.notifiees, n.down
	n.mu.Unlock()
	c.mu.Lock()
	open := c.streams
	c.streams = nil
	c.mu.Unlock()
	for s := range open {
		s.Reset()
	}
	for _, f := range list {
		f.Disconnected(n.Network(), c)
	}
	if mine && !down {
		n.ps.UpdateAddrs(c.to.id, peerstore.ConnectedAddrTTL, peerstore.RecentlyConnectedAddrTTL)
		n.connected.Emit(event.EvtPeerConnectednessChanged{Peer: c.to.id, Connectedness: network.NotConnected})
	}
}

func (c *conn) CloseWithError(network.ConnErrorCode) error { return c.Close() }
func (c *conn) ID() string                                 { return fmt.Sprintf("%p", c) }
func (c *conn) GetStreams() []network.Stream               { return nil }
func (c *conn) IsClosed() bool                             { return c.closed.Load() }
func (c *conn) As(any) bool                                { return false }
func (c *conn) LocalPeer() peer.ID                         { return c.from.id }
func (c *conn) RemotePeer() peer.ID                        { return c.to.id }
func (c *conn) RemotePublicKey() ic.PubKey                 { return nil }
func (c *conn) ConnState() network.ConnectionState         { return network.ConnectionState{} }
func (c *conn) LocalMultiaddr() ma.Multiaddr               { return c.from.addr }
func (c *conn) RemoteMultiaddr() ma.Multiaddr              { return c.to.addr }
func (c *conn) Scope() network.ConnScope                   { return &network.NullScope{} }

func (c *conn) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Direction: c.dir, Opened: c.opened}}
}

func (c *conn) NewStream(ctx context.Context) (network.Stream, error) {
	return nil, fmt.Errorf("not simulated")
}

// pipe is one direction of a stream; mu guards queue.
type pipe struct {
	delay time.Duration
	wake  chan struct{}
	reset chan struct{} // closed when its reader has been told that the stream broke
	broke sync.Once

	mu    sync.Mutex
	queue []packet
}

type packet struct {
	at   time.Time
	data []byte // nil is the end
}

func (p *pipe) push(b []byte) {
	p.mu.Lock()
	p.queue = append(p.queue, packet{time.Now().Add(p.delay), b})
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pipe) Read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		wait := time.Duration(-1)
		if len(p.queue) > 0 {
			head := &p.queue[0]
			if wait = time.Until(head.at); wait <= 0 {
				if head.data == nil {
					p.mu.Unlock()
					return 0, io.EOF
				}
				k := copy(b, head.data)
				if head.data = head.data[k:]; len(head.data) == 0 {
					p.queue = p.queue[1:]
				}
				p.mu.Unlock()
				return k, nil
			}
		}
		p.mu.Unlock()
		var arrival <-chan time.Time
		if wait > 0 {
			arrival = time.After(wait)
		}
		select {
		case <-p.reset:
			return 0, network.ErrReset
		case <-p.wake:
		case <-arrival:
		}
	}
}

func (p *pipe) abort() { p.broke.Do(func() { close(p.reset) }) }

// stream is one end of a stream.
type stream struct {
	conn    *conn
	proto   protocol.ID
	in, out *pipe
}

func newStreams(c *conn, proto protocol.ID) (near, far *stream) {
	delay := c.from.w.roundTrip(c.from, c.to) / 2
	there := &pipe{delay: delay, wake: make(chan struct{}, 1), reset: make(chan struct{})}
	back := &pipe{delay: delay, wake: make(chan struct{}, 1), reset: make(chan struct{})}
	near = &stream{conn: c, proto: proto, in: back, out: there}
	far = &stream{conn: c.other, proto: proto, in: there, out: back}
	near.conn.keep(near)
	far.conn.keep(far)
	return near, far
}

func (c *conn) keep(s *stream) {
	c.mu.Lock()
	if c.streams == nil {
		c.streams = map[*stream]bool{}
	}
	c.streams[s] = true
	c.mu.Unlock()
}

func (c *conn) forget(s *stream) {
	c.mu.Lock()
	delete(c.streams, s)
	c.mu.Unlock()
}

func (s *stream) Read(b []byte) (int, error) { return s.in.Read(b) }

func (s *stream) Write(b []byte) (int, error) {
	select {
	case <-s.in.reset:
		return 0, network.ErrReset
	default:
	}
	if s.conn.IsClosed() {
		s.Reset()
		return 0, network.ErrReset
	}
	k := kindOf(b)
	s.conn.from.traffic.out[k].add(len(b))
	s.conn.from.w.traffic.out[k].add(len(b))
	if s.conn.from.gone() || s.conn.to.gone() {
		return len(b), nil // lost
	}
	if k == addProvider {
		s.conn.to.keep(b)
	}
	s.out.push(append([]byte(nil), b...))
	return len(b), nil
}

func (s *stream) CloseWrite() error { s.out.push(nil); return nil }
func (s *stream) Close() error      { s.conn.forget(s); return s.CloseWrite() }
func (s *stream) CloseRead() error  { return nil }

// Reset is heard at the other end at once, unless this machine is off.
func (s *stream) Reset() error {
	s.in.abort()
	s.conn.forget(s)
	if !s.conn.from.gone() {
		s.out.abort()
	}
	return nil
}

func (s *stream) ResetWithError(network.StreamErrorCode) error { return s.Reset() }

func (s *stream) ID() string                       { return fmt.Sprintf("%p", s) }
func (s *stream) Protocol() protocol.ID            { return s.proto }
func (s *stream) SetProtocol(id protocol.ID) error { s.proto = id; return nil }
func (s *stream) Stat() network.Stats              { return network.Stats{} }
func (s *stream) Conn() network.Conn               { return s.conn }
func (s *stream) Scope() network.StreamScope       { return &network.NullScope{} }
func (s *stream) SetDeadline(time.Time) error      { return nil }
func (s *stream) SetReadDeadline(time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(time.Time) error { return nil }

// kinds of messages are those of the DHT's, by number, and others.
const (
	addProvider  = 2
	getProviders = 3
	findNode     = 4
	ping         = 5
	rest         = 6
	kinds        = 7
)

// kindOf reads a message's type: it is the first field behind the length.
func kindOf(b []byte) int {
	for i, c := range b {
		if c < 0x80 {
			if i+2 < len(b) && b[i+1] == 0x08 && b[i+2] < rest {
				return int(b[i+2])
			}
			break
		}
	}
	return rest
}

func (c *count) add(n int) {
	c.messages.Add(1)
	c.bytes.Add(int64(n))
}
