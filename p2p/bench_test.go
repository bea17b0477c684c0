package p2p

import (
	"bytes"
	"fmt"
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
