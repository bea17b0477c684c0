package p2p

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/time/rate"
)

// Limits of what a peer may tell about what it has.
const (
	maxFrame      = 1 + snapshotHeader + 2*maxFingerprints // bytes, type included
	maxHello      = 4 << 10
	maxUnknown    = 64 << 10         // of a frame from a later version, which is skipped
	haveReadTime  = 2 * time.Minute  // from a frame's first byte to its last
	haveHelloTime = 10 * time.Second // from the stream's begin to the greeting's end
	haveRate      = 256 << 10        // bytes a second of have-set streams, in the long run
	haveBurst     = 3 * maxFrame     // and at once: snapshots at connecting, at a pause and its end
	haveFrameCost = 64               // bytes that a frame counts at least: tiny ones cost time, too
	haveOpenCost  = 64 << 10         // bytes that opening a stream counts
)

var errTooMuch = errors.New("more have-set traffic than any store causes")

// receiveHave reads what a peer has, for as long as it tells. A newer stream replaces an older one.
func (h *Host) receiveHave(s network.Stream) {
	defer s.Reset()
	p := h.peers.get(s.Conn().RemotePeer())
	if p == nil || !h.befriend(p) {
		return
	}
	p.mu.Lock()
	if p.haveBudget == nil {
		p.haveBudget = rate.NewLimiter(haveRate, haveBurst)
	}
	p.mu.Unlock()
	if !p.haveBudget.AllowN(time.Now(), haveOpenCost) {
		return
	}
	if before := p.swapHave(s); before != nil {
		before.Reset()
	}
	r := haveReader{h: h, p: p, s: s, r: bufio.NewReaderSize(s, 4<<10)}
	err := r.run()
	h.log.Debug("peer's have-set ended", "peer", p.name, "err", err)
	r.current(func() {
		h.memory.forget(p)
		p.setHave(nil)
	})
}

// swapHave makes s, or none, the stream that p's have-set comes from, and returns the former one.
func (p *Peer) swapHave(s network.Stream) network.Stream {
	p.haveMu.Lock()
	defer p.haveMu.Unlock()
	return p.setHave(s)
}

// setHave is swapHave with haveMu held.
func (p *Peer) setHave(s network.Stream) (before network.Stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, p.haveStream = p.haveStream, s
	return before
}

// haveReader is one have-set stream of a peer.
type haveReader struct {
	h *Host
	p *Peer
	s network.Stream
	r *bufio.Reader
}

// current calls fn if no newer stream took this one's place and the peer is still connected.
func (r *haveReader) current(fn func()) bool {
	r.p.haveMu.Lock()
	defer r.p.haveMu.Unlock()
	r.p.mu.Lock()
	ok := r.p.haveStream == r.s
	r.p.mu.Unlock()
	if ok {
		fn()
	}
	return ok
}

func (r *haveReader) run() error {
	r.s.SetReadDeadline(time.Now().Add(haveHelloTime))
	for first := true; ; first = false {
		n, err := binary.ReadUvarint(r.r)
		if err != nil {
			return err
		}
		if n == 0 || n > maxFrame {
			return fmt.Errorf("%w: frame of %d bytes", errFilter, n)
		}
		if !first {
			r.s.SetReadDeadline(time.Now().Add(haveReadTime))
		}
		if !r.p.haveBudget.AllowN(time.Now(), max(int(n), haveFrameCost)) {
			return errTooMuch
		}
		kind, err := r.r.ReadByte()
		if err != nil {
			return err
		}
		if first != (kind == frameHello) {
			return fmt.Errorf("%w: frame %d where a stream begins or goes on", errFilter, kind)
		}
		if err := r.frame(kind, int64(n)-1); err != nil {
			return err
		}
		r.s.SetReadDeadline(time.Time{}) // silence means that nothing changed
	}
}

// frame reads a frame's body of n bytes and acts on it.
func (r *haveReader) frame(kind byte, n int64) error {
	switch kind {
	case frameHello:
		return r.hello(n)
	case frameSnapshot:
		return r.snapshot(n)
	case frameDelta:
		return r.delta(n)
	}
	if n > maxUnknown {
		return fmt.Errorf("%w: unknown frame of %d bytes", errFilter, n)
	}
	return r.skip(n)
}

func (r *haveReader) hello(n int64) error {
	body, err := r.body(n, maxHello)
	if err != nil {
		return err
	}
	var m hello
	if err := json.Unmarshal(body, &m); err != nil {
		return fmt.Errorf("%w: %w", errFilter, err)
	}
	if m.StoreDir != r.h.cfg.StoreDir {
		return errors.New("peer has another store directory")
	}
	return nil
}

func (r *haveReader) snapshot(n int64) error {
	size := r.p.have.size()
	room := func(bytes int64) (ok bool) {
		r.current(func() { ok = r.h.memory.load(r.p, size+bytes, r.s) })
		return ok
	}
	f, count, err := readSnapshot(r.r, n, room)
	if errors.Is(err, errNoRoom) {
		r.current(func() { r.h.memory.drop(r.p, n) })
		return r.skip(n - snapshotHeader)
	}
	if err != nil {
		return err
	}
	if !r.current(func() { r.p.have.replace(f, count); r.settle() }) {
		return network.ErrReset
	}
	r.h.chatter("peer shares", "peer", r.p.name, "paths", count)
	return nil
}

func (r *haveReader) delta(n int64) error {
	return readDelta(r.r, n, func(added, removed []uint64) (err error) {
		if !r.current(func() {
			if err = r.p.have.apply(added, removed); err == nil {
				r.settle()
			}
		}) {
			return network.ErrReset
		}
		return err
	})
}

// settle claims the memory that the have-set takes as it is now, or drops it.
func (r *haveReader) settle() {
	if n := r.p.have.size(); !r.h.memory.claim(r.p, n) {
		r.h.memory.drop(r.p, n)
	}
}

// body reads n bytes, at most most.
func (r *haveReader) body(n, most int64) ([]byte, error) {
	if n > most {
		return nil, fmt.Errorf("%w: frame of %d bytes", errFilter, n)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r.r, body)
	return body, err
}

func (r *haveReader) skip(n int64) error {
	_, err := io.CopyN(io.Discard, r.r, n)
	return err
}
