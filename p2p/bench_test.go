package p2p

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/verify"
)

func benchHost(b *testing.B, n int) (h *Host, miss, hit verify.PathDigest) {
	h = bareHost(nil)
	h.memory.most = 1 << 40
	keys := make([]uint64, 50_000)
	for i := range keys {
		keys[i] = uint64(i) * 0x9e3779b97f4a7c15
	}
	copy(hit[:], []byte{1, 2, 3, 4, 5, 6, 7, 8})
	copy(miss[:], []byte{9, 9, 9, 9, 9, 9, 9, 9})
	keys[0] = hit.Key()
	snap, err := encodeSnapshot(nil, keys)
	if err != nil {
		b.Fatal(err)
	}
	for i := range n {
		p := h.peers.get(peer.ID(fmt.Sprint("peer ", i)))
		f, count, err := readSnapshot(bytes.NewReader(snap), int64(len(snap)), always)
		if err != nil {
			b.Fatal(err)
		}
		if i%8 != 0 { // an eighth of them has the path
			f.Seed++
		}
		p.have.replace(f, count)
		p.connectedAt, p.good = time.Now(), 1
		h.peers.setConnected(p, true)
	}
	return h, miss, hit
}

// BenchmarkHolders is the cost of the question that every narinfo asks.
func BenchmarkHolders(b *testing.B) {
	for _, n := range []int{24, 1000} {
		h, miss, hit := benchHost(b, n)
		for name, d := range map[string]verify.PathDigest{"miss": miss, "hit": hit} {
			b.Run(fmt.Sprintf("peers=%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					h.Holders(d, 0)
				}
			})
		}
	}
}

// BenchmarkFirstContact is the time from the hint to a known have-set of 2,000 paths, handshake included.
func BenchmarkFirstContact(b *testing.B) {
	c := newFakeCatalog()
	var x verify.StoreHash
	for i := range uint64(2000) {
		x, _ = c.add(b, i, 1, verify.ScopePublic)
	}
	a := startHostWith(b, Config{ConnectionsPerIP: 1 << 20}, newTestIdentity(b), c)
	for range b.N {
		b.StopTimer()
		h := startHostWith(b, Config{}, newTestIdentity(b), newFakeCatalog())
		b.StartTimer()
		h.dialer.found(discoveryOf(whereIs(a.Host, true)))
		for len(h.Holders(x.Digest(), 0)) == 0 {
			time.Sleep(100 * time.Microsecond)
		}
		b.StopTimer()
		h.stop()
	}
}

// narFrom connects two hosts over loopback; the returned one has the NAR.
func narFrom(t testing.TB, nar []byte) (p *Peer, h verify.StoreHash, sum verify.Hash) {
	t.Helper()
	c := newFakeCatalog()
	h, sum = c.add(t, 1, 1, verify.ScopePublic)
	kept := c.paths[h]
	kept.nar = nar
	c.paths[h] = kept
	has := startHostWith(t, Config{}, newTestIdentity(t), c)
	asks := startHostWith(t, Config{}, newTestIdentity(t), newFakeCatalog(), whereIs(has.Host, true))
	eventually(t, "the peer's claim", func() bool {
		if list := asks.Holders(h.Digest(), 0); len(list) > 0 {
			p = list[0]
		}
		return p != nil
	})
	return p, h, sum
}

// readNAR reads one of size bytes through buf.
func readNAR(p *Peer, h verify.StoreHash, sum verify.Hash, size int64, buf []byte) error {
	body, err := p.NAR(context.Background(), h, sum, size, 0, size)
	if err != nil {
		return err
	}
	defer body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, buf)
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// BenchmarkNAR carries a NAR of 256 MiB between two hosts on loopback, from memory to nowhere. The CPU time is
// that of both.
func BenchmarkNAR(b *testing.B) {
	const size = 256 << 20
	p, h, sum := narFrom(b, make([]byte, size))
	buf := make([]byte, 256<<10)
	b.SetBytes(size)
	b.ReportAllocs()
	before := processCPU()
	for b.Loop() {
		if err := readNAR(p, h, sum, size, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric((processCPU()-before).Seconds()/float64(b.N)/(size/1e9), "cpu-s/GB")
}

func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestANARCostsFewAllocations: serving and reading one, both ends together, allocates a few times for each frame
// of 64 KiB whatever the NAR's size; buffers are used again.
func TestANARCostsFewAllocations(t *testing.T) {
	const size = 32 << 20
	p, h, sum := narFrom(t, make([]byte, size))
	buf := make([]byte, 256<<10)
	n := testing.AllocsPerRun(3, func() {
		if err := readNAR(p, h, sum, size, buf); err != nil {
			t.Fatal(err)
		}
	})
	if frames := float64(size >> 16); n > 6*frames+1000 {
		t.Errorf("%v allocations for %v frames", n, frames)
	}
}
