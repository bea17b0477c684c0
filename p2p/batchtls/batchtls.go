// Package batchtls is libp2p's TLS with fewer system calls. crypto/tls makes one for each record of 16 KiB, both
// ways; here the records of one Write leave together, and those that wait in the socket are read together.
// On the wire nothing differs.
package batchtls

import (
	"context"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	tptu "github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// ID is the protocol ID of libp2p's TLS.
const ID = libp2ptls.ID

// Transport is a sec.SecureTransport.
type Transport struct{ *libp2ptls.Transport }

// New makes a Transport; it is for libp2p.Security.
func New(id protocol.ID, key crypto.PrivKey, muxers []tptu.StreamMuxer) (*Transport, error) {
	t, err := libp2ptls.New(id, key, muxers)
	return &Transport{t}, err
}

// SecureInbound implements sec.SecureTransport.
func (t *Transport) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	b := &batch{Conn: insecure}
	return b.above(t.Transport.SecureInbound(ctx, b, p))
}

// SecureOutbound implements sec.SecureTransport.
func (t *Transport) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	b := &batch{Conn: insecure}
	return b.above(t.Transport.SecureOutbound(ctx, b, p))
}

const (
	// batchSize, bytes: a frame of yamux in four records, each with a header and an authentication tag.
	batchSize = 4 * (16<<10 + 5 + 17)
	// bulkRead, bytes: a read that brings so many is followed by a large one.
	bulkRead = 8 << 10
)

// batches are buffers that connections hold while bytes move, not while they are idle.
var batches = sync.Pool{New: func() any { b := make([]byte, 0, batchSize); return &b }}

// batch is the connection below TLS. TLS serialises its writes, and its reads.
type batch struct {
	net.Conn

	mu   sync.Mutex // guards held and out
	held bool       // more of the same Write follows
	out  *[]byte    // what was held back, nil: nothing
	err  error      // of an earlier write: what follows would have a gap before it

	in   *[]byte // what was read ahead, nil: nothing
	off  int     // what of it TLS has taken
	bulk bool
}

// above returns c with the batch that is below it.
func (b *batch) above(c sec.SecureConn, err error) (sec.SecureConn, error) {
	if err != nil {
		return nil, err
	}
	return &conn{c, b}, nil
}

// conn is the connection above TLS.
type conn struct {
	sec.SecureConn
	below *batch
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.below.hold()
	n, err := c.SecureConn.Write(p)
	if ferr := c.below.flush(); err == nil {
		err = ferr
	}
	return n, err
}

func (b *batch) hold() {
	b.mu.Lock()
	b.held = true
	b.mu.Unlock()
}

// flush sends what was held back.
func (b *batch) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = false
	return b.send()
}

// send sends what is in out; mu is held.
func (b *batch) send() error {
	if b.out == nil {
		return b.err
	}
	if b.err == nil {
		_, b.err = b.Conn.Write(*b.out)
	}
	*b.out = (*b.out)[:0]
	batches.Put(b.out)
	b.out = nil
	return b.err
}

// Write implements net.Conn, for TLS.
func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out != nil && len(*b.out)+len(p) > cap(*b.out) {
		if err := b.send(); err != nil {
			return 0, err
		}
	}
	if !b.held && b.out == nil || len(p) > batchSize {
		return b.Conn.Write(p)
	}
	if b.out == nil {
		b.out = batches.Get().(*[]byte)
	}
	*b.out = append(*b.out, p...)
	return len(p), b.err
}

// Read implements net.Conn, for TLS. While little comes it waits without a buffer.
func (b *batch) Read(p []byte) (n int, err error) {
	if b.in == nil {
		if !b.bulk {
			n, err = b.Conn.Read(p)
			b.bulk = n >= bulkRead
			return n, err
		}
		in := batches.Get().(*[]byte)
		n, err = b.Conn.Read((*in)[:cap(*in)])
		b.bulk = n >= bulkRead
		if n == 0 {
			batches.Put(in)
			return 0, err
		}
		*in = (*in)[:n]
		b.in, b.off = in, 0
	}
	n = copy(p, (*b.in)[b.off:])
	if b.off += n; b.off == len(*b.in) {
		*b.in = (*b.in)[:0]
		batches.Put(b.in)
		b.in = nil
	}
	return n, err
}
