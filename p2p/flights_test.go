package p2p

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/time/rate"

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
	if len(b.Flying(d)) != 0 || len(b.board.theirs) != 0 || len(b.board.sizes) != 0 {
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
	if len(b.theirs)+len(b.sizes)+len(b.streams) != 0 {
		t.Error("something is left")
	}
}

func TestOnePeerCannotFillTheBoard(t *testing.T) {
	b, p := newFlightBoard(), &Peer{}
	for i := range uint64(3 * boardPeerMost / flightMemory) {
		b.heard(p, i, Progress{Stage: 2})
	}
	if n := len(b.theirs); n != boardPeerMost/flightMemory {
		t.Errorf("%d entries of one peer", n)
	}
	b.heard(p, 5, Progress{3, make([][2]int64, maxHeldSpans)})
	if told := b.theirs[5][p]; told.Stage != 3 || told.Held != nil {
		t.Errorf("without room for its ranges it is remembered as %v", told)
	}
	for i := range uint64(3 * boardPeerMost / flightMemory) {
		b.heard(p, i, Progress{})
	}
	if len(b.theirs)+len(b.sizes) != 0 || b.size != 0 {
		t.Errorf("%d entries left", len(b.theirs))
	}
}

// All peers together cannot fill memory with NARs that nobody has, and who comes last is heard too.
func TestManyPeersCannotFillTheBoard(t *testing.T) {
	b := newFlightBoard()
	held := make([][2]int64, maxHeldSpans)
	var last *Peer
	for i := range uint64(defaultConnections) {
		last = &Peer{}
		first := b.began(last)
		for k := range uint64(2000) {
			b.heard(last, i<<32+k, Progress{2, held})
		}
		if i%3 == 0 { // it begins anew
			b.began(last)
			b.heard(last, i<<32, Progress{Stage: 1})
			b.forget(last, first)
			b.heard(last, i<<32, Progress{2, held})
		}
	}
	var size int64
	for _, of := range b.theirs {
		for _, f := range of {
			size += f.memory()
		}
	}
	if size != b.size || size > boardMost+defaultConnections*boardPeerLeast {
		t.Errorf("%d bytes are remembered, %d counted", size, b.size)
	}
	if got := b.theirs[(defaultConnections-1)<<32][last].Held; len(got) != maxHeldSpans {
		t.Errorf("of who came last %d ranges are remembered", len(got))
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
	b, now := newFlightBoard(), time.Now()
	p := &Peer{}
	for _, total := range []uint64{5000, 7000, 7000, 9000} {
		if err := b.heardFetched(p, binary.AppendUvarint(nil, total), now); err != nil {
			t.Fatal(err)
		}
	}
	if b.byOthers != 4000 {
		t.Errorf("peers fetched %d bytes while connected, want 4000", b.byOthers)
	}
	for _, bad := range [][]byte{nil, {0x80}, binary.AppendUvarint(nil, 1<<62)} {
		if b.heardFetched(p, bad, now) == nil {
			t.Errorf("%x was accepted", bad)
		}
	}
	for range 20 { // liars
		q := &Peer{}
		for _, total := range []uint64{0, 1 << 60} {
			b.heardFetched(q, binary.AppendUvarint(nil, total), now)
		}
	}
	if most := int64(4000 + 20*fetchedMost); b.byOthers < 0 || b.byOthers > most {
		t.Errorf("%d bytes a moment are believed", b.byOthers)
	}
}

// TestFramesOfAnnouncementsAreReadAsTheyCome: in pieces, with what later versions may add; a wrong one ends the stream.
func TestFramesOfAnnouncementsAreReadAsTheyCome(t *testing.T) {
	held := make([][2]int64, maxHeldSpans)
	for i := range held {
		held[i] = [2]int64{1 << 49, 1<<49 + 1<<48}
	}
	var many []byte
	for key := range uint64(100) {
		many = appendFlight(many, key, Progress{2, held})
	}
	fetched := func(n uint64) []byte { return append(binary.AppendUvarint(nil, n), make([]byte, 2*maxFlight)...) }
	good := appendFrame(appendFrame(appendFrame(nil, frameFlights, many), 99, make([]byte, 5000)), frameFetched, fetched(1000))
	good = appendFrame(appendFrame(good, frameFetched, fetched(1700)), frameFlights, appendFlight(nil, 7, Progress{}))
	for what, c := range map[string]struct {
		data []byte
		want error
	}{
		"good":      {good, io.EOF},
		"cut":       {append(slices.Clip(good), appendFrame(nil, frameFlights, many)[:3000]...), io.EOF},
		"malformed": {append(slices.Clip(good), appendFrame(nil, frameFlights, many[:len(many)-1])...), errFlights},
		"too long":  {append(slices.Clip(good), binary.AppendUvarint(nil, maxFlightBody+1)...), errFlights},
		"too much":  {bytes.Repeat(good, 2*flightBurst/len(good)), errTooMuch},
	} {
		h := bareHost(nil)
		h.board = newFlightBoard()
		err := h.readFlights(bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(c.data)), 4<<10), h.peers.get("x"), rate.NewLimiter(flightRate, flightBurst))
		if !errors.Is(err, c.want) && !(what == "cut" && errors.Is(err, io.ErrUnexpectedEOF)) {
			t.Errorf("%s: %v", what, err)
		}
		if got := len(h.board.theirs[8]); got != 1 || what == "good" && (len(h.board.theirs) != 99 || h.board.byOthers != 700) {
			t.Errorf("%s: %d NARs, %d bytes fetched", what, len(h.board.theirs), h.board.byOthers)
		}
	}
}
