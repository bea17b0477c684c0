package p2p

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/flurry-nix/flurry/verify"
)

// Frames of /flurry/have/1.
const (
	frameHello    = 1
	frameSnapshot = 2
	frameDelta    = 3

	maxFrame      = snapshotHeader + 2*maxFingerprints + 64 // bytes
	maxHello      = 4 << 10
	journalLen    = 8192                  // changes kept; a peer further behind gets a snapshot
	deltaGather   = 50 * time.Millisecond // changes come in bursts: one frame for many
	haveWriteTime = 30 * time.Second
	haveTries     = 6 // a peer that has just started may not know the protocol yet
)

// hello opens a have-set stream.
type hello struct {
	Version  int    `json:"version"`
	Agent    string `json:"agent"`
	StoreDir string `json:"store_dir"`
}

// journal is the recent history of the catalog. mu guards all fields.
type journal struct {
	mu     sync.Mutex
	first  int64 // number of ring's oldest change
	ring   []journalEntry
	news   chan struct{} // closed at the next change
	closed bool
}

type journalEntry struct {
	ChangedKey
	removed bool
}

func newJournal() *journal { return &journal{news: make(chan struct{})} }

// add appends a change and wakes those who wait.
func (j *journal) add(c Change) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, k := range c.Added {
		j.ring = append(j.ring, journalEntry{k, false})
	}
	for _, k := range c.Removed {
		j.ring = append(j.ring, journalEntry{k, true})
	}
	if over := len(j.ring) - journalLen; over > 0 {
		j.ring = append([]journalEntry(nil), j.ring[over:]...)
		j.first += int64(over)
	}
	j.wake()
}

// reset makes every peer get a new snapshot.
func (j *journal) reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.first += int64(len(j.ring)) + 1
	j.ring = nil
	j.wake()
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	j.wake()
}

func (j *journal) wake() {
	close(j.news)
	j.news = make(chan struct{})
}

// end returns the number that the next change will get.
func (j *journal) end() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.first + int64(len(j.ring))
}

// since waits for changes from number seq on. ok is false if they are no longer all known.
func (j *journal) since(ctx context.Context, seq int64) (list []journalEntry, ok bool, err error) {
	for {
		j.mu.Lock()
		if j.closed {
			j.mu.Unlock()
			return nil, false, net.ErrClosed
		}
		if seq < j.first {
			j.mu.Unlock()
			return nil, false, nil
		}
		if list = j.ring[seq-j.first:]; len(list) > 0 {
			j.mu.Unlock()
			return list, true, nil
		}
		news := j.news
		j.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, false, ctx.Err()
		case <-news:
		}
	}
}

// sendHave tells p what this machine has, until the connection ends.
func (h *Host) sendHave(ctx context.Context, p *Peer) {
	s, err := h.openHave(ctx, p)
	if err != nil {
		return // not an agent, or gone
	}
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	ended, cancel := context.WithCancel(ctx)
	go func() { // the reader sends nothing: its end is the end of the connection
		io.Copy(io.Discard, io.LimitReader(s, 1))
		cancel()
	}()
	err = h.writeHave(ended, s, p)
	s.Reset()
	<-ended.Done()
	if ctx.Err() == nil && h.isConnected(p.id) {
		h.log.Debug("have-set stream ended", "peer", p.ID(), "err", err)
	}
}

func (h *Host) openHave(ctx context.Context, p *Peer) (s network.Stream, err error) {
	for try := range haveTries {
		if s, err = h.host.NewStream(network.WithNoDial(ctx, "have-set"), p.id, protoHave); err == nil || !h.isConnected(p.id) {
			return s, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond << try):
		}
	}
	return nil, err
}

func (h *Host) writeHave(ctx context.Context, s network.Stream, p *Peer) error {
	greeting, err := json.Marshal(hello{1, h.cfg.UserAgent, h.cfg.StoreDir})
	if err != nil {
		return err
	}
	if err := writeFrame(s, frameHello, greeting); err != nil {
		return err
	}
	for snapshot, seq, sent := true, int64(0), 0; ; {
		if snapshot {
			seq = h.journal.end()
			var keys []uint64
			if !h.paused.Load() {
				keys = h.catalog.Keys(p.scope())
			}
			frame, err := encodeSnapshot(nil, keys)
			if err != nil {
				return err
			}
			if err := writeFrame(s, frameSnapshot, frame); err != nil {
				return err
			}
			snapshot, sent = false, 0
		}
		list, ok, err := h.journal.since(ctx, seq)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(deltaGather):
		}
		if ok {
			list, ok, err = h.journal.since(ctx, seq)
		}
		if err != nil {
			return err
		}
		if sent += len(list); !ok || h.paused.Load() || sent > maxDeltaKeys/4 {
			snapshot = true
			continue
		}
		seq += int64(len(list))
		if added, removed := netChange(list, p.scope()); len(added)+len(removed) > 0 {
			if err := writeFrame(s, frameDelta, encodeDelta(nil, added, removed)); err != nil {
				return err
			}
		}
	}
}

// netChange leaves each key's last change, and only those that the reader may learn of.
func netChange(list []journalEntry, reader verify.Scope) (added, removed []uint64) {
	last := make(map[uint64]bool, len(list))
	for _, e := range list {
		if e.Scope >= reader {
			last[e.Key] = e.removed
		}
	}
	for k, gone := range last {
		if gone {
			removed = append(removed, k)
		} else {
			added = append(added, k)
		}
	}
	return added, removed
}

// receiveHave reads what a peer has, for as long as it tells.
func (h *Host) receiveHave(s network.Stream) {
	defer s.Reset()
	p := h.peers.get(s.Conn().RemotePeer())
	if p == nil {
		return
	}
	err := h.readHave(bufio.NewReaderSize(s, 16<<10), p)
	h.log.Debug("peer's have-set ended", "peer", p.ID(), "err", err)
	p.have.replace(nil, 0)
}

func (h *Host) readHave(r *bufio.Reader, p *Peer) error {
	for {
		kind, body, err := readFrame(r)
		if err != nil {
			return err
		}
		switch kind {
		case frameHello:
			var m hello
			if err := json.Unmarshal(body, &m); err != nil {
				return err
			}
			if m.StoreDir != h.cfg.StoreDir {
				return fmt.Errorf("peer has another store directory")
			}
		case frameSnapshot:
			f, count, err := decodeSnapshot(body)
			if err != nil {
				return err
			}
			p.have.replace(f, count)
			h.log.Info("peer shares", "peer", p.ID(), "paths", count)
		case frameDelta:
			added, removed, err := decodeDelta(body)
			if err != nil {
				return err
			}
			if err := p.have.apply(added, removed); err != nil {
				return err
			}
		}
	}
}

func writeFrame(s network.Stream, kind byte, body []byte) error {
	s.SetWriteDeadline(time.Now().Add(haveWriteTime))
	b := binary.AppendUvarint(make([]byte, 0, len(body)+8), uint64(len(body)+1))
	b = append(append(b, kind), body...)
	_, err := s.Write(b)
	return err
}

// readFrame reads one frame; what it allocates grows with what arrives, not with what was announced.
func readFrame(r *bufio.Reader) (kind byte, body []byte, err error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, nil, err
	}
	if n == 0 || n > maxFrame {
		return 0, nil, fmt.Errorf("%w: frame of %d bytes", errFilter, n)
	}
	if kind, err = r.ReadByte(); err != nil {
		return 0, nil, err
	}
	if kind == frameHello && n > maxHello {
		return 0, nil, fmt.Errorf("%w: hello of %d bytes", errFilter, n)
	}
	body, err = io.ReadAll(io.LimitReader(r, int64(n)-1))
	if err == nil && uint64(len(body)) != n-1 {
		err = io.ErrUnexpectedEOF
	}
	return kind, body, err
}
