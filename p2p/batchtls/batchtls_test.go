package batchtls

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
)

// countedConn counts the calls that reach a connection.
type countedConn struct {
	net.Conn
	reads, writes atomic.Int64
	broken        atomic.Bool
}

func (c *countedConn) Read(b []byte) (int, error) { c.reads.Add(1); return c.Conn.Read(b) }
func (c *countedConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	if c.broken.Load() {
		return 0, errors.New("broken by test")
	}
	return c.Conn.Write(b)
}

// tlsPair returns two ends over loopback TCP and what is below them.
func tlsPair(t testing.TB) (client, server sec.SecureConn, below, other *countedConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	below, other = &countedConn{Conn: a}, &countedConn{Conn: b}
	transport := func() (*Transport, peer.ID) {
		key, _, err := crypto.GenerateEd25519Key(crand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := New(ID, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return tr, id
	}
	mine, _ := transport()
	theirs, id := transport()
	var wg sync.WaitGroup
	var serr error
	wg.Go(func() { server, serr = theirs.SecureInbound(context.Background(), other, "") })
	client, err = mine.SecureOutbound(context.Background(), below, id)
	wg.Wait()
	if err := errors.Join(err, serr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, below, other
}

// TestRecordsTravelTogether: one frame of four records is one write, bytes arrive as they were sent whatever
// their pieces, and nothing is held back.
func TestRecordsTravelTogether(t *testing.T) {
	client, server, below, _ := tlsPair(t)
	if _, err := client.Write(make([]byte, 1<<20)); err != nil { // TLS begins with small records
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, server, 1<<20); err != nil {
		t.Fatal(err)
	}
	before := below.writes.Load()
	frame := make([]byte, 64<<10)
	for range 10 {
		if _, err := client.Write(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, frame); err != nil {
			t.Fatal(err)
		}
	}
	if n := below.writes.Load() - before; n != 10 {
		t.Errorf("%d writes for 10 frames", n)
	}

	rng := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 4<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	var wg sync.WaitGroup
	for _, ends := range [][2]net.Conn{{client, server}, {server, client}} { // both ways at once
		sizes := make([]int, 0, 1000)
		for left := len(data); left > 0; {
			n := min(left, 1+rng.IntN(1<<rng.IntN(18)))
			sizes = append(sizes, n)
			left -= n
		}
		wg.Go(func() {
			rest := data
			for _, n := range sizes {
				if _, err := ends[0].Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		})
		wg.Go(func() {
			h := sha256.New()
			if _, err := io.CopyN(h, ends[1], int64(len(data))); err != nil {
				t.Error(err)
			}
			if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Error("other bytes arrived")
			}
		})
	}
	wg.Wait()
}

// TestIdleConnectionsHoldNoBuffers: what hostile peers can make us hold is bounded by it.
func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	client, server, _, _ := tlsPair(t)
	buf := make([]byte, 256<<10)
	for _, n := range []int{len(buf), 12, 12} { // bulk, then what pings are
		if _, err := client.Write(buf[:n]); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, buf[:n]); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []sec.SecureConn{client, server} {
		if b := c.(*conn).below; b.in != nil || b.out != nil || b.bulk {
			t.Errorf("in %v, out %v, bulk %v", b.in != nil, b.out != nil, b.bulk)
		}
	}
}

// TestAfterALostWriteNothingFollows: a record after a lost one would be garbage to the other side.
func TestAfterALostWriteNothingFollows(t *testing.T) {
	client, _, below, _ := tlsPair(t)
	below.broken.Store(true)
	if _, err := client.Write(make([]byte, 64<<10)); err == nil {
		t.Error("a lost write is no error")
	}
	below.broken.Store(false)
	before := below.writes.Load()
	if _, err := client.Write([]byte("x")); err == nil || below.writes.Load() != before {
		t.Errorf("error %v, %d writes", err, below.writes.Load()-before)
	}
}

// TestAFrameCostsFewAllocations: two are crypto/tls's own.
func TestAFrameCostsFewAllocations(t *testing.T) {
	client, server, _, _ := tlsPair(t)
	frame := make([]byte, 64<<10)
	pass := func() {
		if _, err := client.Write(frame); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, frame); err != nil {
			t.Fatal(err)
		}
	}
	pass()
	if n := testing.AllocsPerRun(100, pass); n > 4 {
		t.Errorf("%v allocations a frame", n)
	}
}
