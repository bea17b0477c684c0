package p2p

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

func TestNeighboursHearOfNARsOnTheirWay(t *testing.T) {
	a := startHost(t, newFakeCatalog())
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "connected", func() bool { return a.Neighbours() == 1 && b.Neighbours() == 1 })
	d := verify.StoreHash{1}.Digest()
	heard := func(want Progress) func() bool {
		return func() bool {
			list := b.Flying(d)
			if want.Stage == 0 {
				return len(list) == 0
			}
			return len(list) == 1 && list[0].Peer.ID() == a.ID() && list[0].Stage == want.Stage && slices.Equal(list[0].Held, want.Held)
		}
	}
	news := b.News(d)
	for _, p := range []Progress{{1, nil}, {2, [][2]int64{{0, 10}, {1 << 20, 2 << 20}}}, {}} {
		a.Tell(d, p, true)
		eventually(t, "heard", heard(p))
	}
	<-news
	a.Tell(d, Progress{Stage: 3}, true)
	eventually(t, "heard again", heard(Progress{Stage: 3}))
	b.host.Network().ClosePeer(a.host.ID())
	eventually(t, "after a new connection", func() bool { return b.Neighbours() == 1 && heard(Progress{Stage: 3})() })
}

func TestWhatNobodyWaitsForIsToldTogether(t *testing.T) {
	h := &Host{board: newFlightBoard()}
	_, _, news := h.board.since(0)
	h.Tell(verify.PathDigest{1}, Progress{Stage: 2}, false)
	h.Tell(verify.PathDigest{2}, Progress{Stage: 2}, false)
	eventually(t, "told", func() bool { return isClosed(news) })
	bodies, version, news := h.board.since(0)
	if len(bodies) != 1 || version != 2 || isClosed(news) {
		t.Errorf("%d frames up to version %d, and more: %v", len(bodies), version, isClosed(news))
	}
	h.Tell(verify.PathDigest{3}, Progress{Stage: 1}, true)
	if !isClosed(news) {
		t.Error("what is told at once waits")
	}
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestWhoLeavesIsNoLongerFlying(t *testing.T) {
	a := startHost(t, newFakeCatalog())
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	d := verify.StoreHash{1}.Digest()
	a.Tell(d, Progress{Stage: 2}, true)
	eventually(t, "heard", func() bool { return len(b.Flying(d)) == 1 })
	p := b.Flying(d)[0].Peer
	b.board.forget(p, b.board.opened)
	if len(b.Flying(d)) != 0 || len(b.board.theirs) != 0 || len(b.board.counts) != 0 {
		t.Error("still remembered")
	}
}

// Machines that are overloaded close each other's connections as dead and make new ones: what was told holds meanwhile.
func TestAClaimOutlivesItsConnectionForAMoment(t *testing.T) {
	a := startHost(t, newFakeCatalog())
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	d := verify.StoreHash{1}.Digest()
	a.Tell(d, Progress{Stage: 2}, true)
	eventually(t, "heard", func() bool { return len(b.Flying(d)) == 1 })
	latest := func() int { b.board.mu.Lock(); defer b.board.mu.Unlock(); return b.board.opened }
	before := latest()
	b.host.Network().ClosePeer(a.host.ID())
	eventually(t, "told on a new connection", func() bool {
		if len(b.Flying(d)) != 1 {
			t.Fatal("forgotten with the connection")
		}
		return latest() > before
	})
}

func TestANewStreamsAnnouncementsOutliveTheLastOnes(t *testing.T) {
	b, p := newFlightBoard(), &Peer{}
	first := b.began(p)
	b.heard(p, 1, Progress{Stage: 2})
	b.heard(p, 2, Progress{Stage: 2})
	second := b.began(p)
	b.heard(p, 2, Progress{Stage: 2})
	b.forget(p, first)
	if len(b.theirs[1]) != 0 || len(b.theirs[2]) != 1 {
		t.Errorf("of the past stream's %d are left, of the present one's %d", len(b.theirs[1]), len(b.theirs[2]))
	}
	b.forget(p, second)
	if len(b.theirs)+len(b.counts)+len(b.streams) != 0 {
		t.Error("something is left")
	}
}

func TestOnePeerCannotFillTheBoard(t *testing.T) {
	b, p := newFlightBoard(), &Peer{}
	for i := range uint64(3 * maxFlights) {
		b.heard(p, i, Progress{Stage: 2})
	}
	if len(b.theirs) != maxFlights {
		t.Errorf("%d entries of one peer", len(b.theirs))
	}
	for i := range uint64(3 * maxFlights) {
		b.heard(p, i, Progress{})
	}
	if len(b.theirs)+len(b.counts) != 0 {
		t.Errorf("%d entries left", len(b.theirs))
	}
}

func FuzzFlights(f *testing.F) {
	f.Add(appendFlight(nil, 7, Progress{2, [][2]int64{{0, 5}, {9, 1 << 40}}}))
	f.Add(appendFlight(nil, 0, Progress{}))
	for _, s := range []string{"", "00", "000000000000000001ff", "0000000000000000010180", "00000000000000000101ffffffffffffffffff7f01"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			key, p, rest, err := parseFlight(b)
			if err != nil {
				return
			}
			for _, h := range p.Held {
				if h[0] < 0 || h[1] <= h[0] {
					t.Fatalf("range %v", h)
				}
			}
			k, q, r, err := parseFlight(appendFlight(nil, key, p))
			if err != nil || k != key || q.Stage != p.Stage || !slices.Equal(q.Held, p.Held) || len(r) != 0 {
				t.Fatalf("%v %v came back as %v %v, %v", key, p, k, q, err)
			}
			b = rest
		}
	})
}

func TestPeersTellWhatTheyFetched(t *testing.T) {
	b := newFlightBoard()
	p := &Peer{}
	for _, total := range []uint64{5000, 7000, 7000, 9000} {
		if err := b.heardFetched(p, binary.AppendUvarint(nil, total)); err != nil {
			t.Fatal(err)
		}
	}
	if b.byOthers != 4000 {
		t.Errorf("peers fetched %d bytes while connected, want 4000", b.byOthers)
	}
	for _, bad := range [][]byte{nil, {0x80}, binary.AppendUvarint(nil, 1<<62)} {
		if b.heardFetched(p, bad) == nil {
			t.Errorf("%x was accepted", bad)
		}
	}
}
