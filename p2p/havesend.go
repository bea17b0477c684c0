package p2p

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/flurry-nix/flurry/verify"
)

// Frames of /flurry/have/1 and the patience of their sender.
const (
	frameHello    = 1
	frameSnapshot = 2
	frameDelta    = 3

	deltaGather   = 50 * time.Millisecond  // changes come in bursts: one frame for many
	haveWriteTime = 2 * time.Minute        // for one frame, of at most 4.6 MB
	haveOpenTime  = 10 * time.Second       // for a stream and its protocol
	haveRetry     = 250 * time.Millisecond // after a have-set stream broke, at first
	haveRetryMost = time.Minute            // and at most
)

// hello opens a have-set stream.
type hello struct {
	Version  int    `json:"version"`
	Agent    string `json:"agent"`
	StoreDir string `json:"store_dir"`
}

// sendHave tells p what this machine has, until ctx, which is p's session, ends. When p turns out to be
// of the group, its stream is replaced by one for that audience.
func (h *Host) sendHave(ctx context.Context, p *Peer) {
	for wait := haveRetry; ctx.Err() == nil; {
		stream, cancel := context.WithCancel(ctx)
		p.mu.Lock()
		p.resend = cancel
		reader := p.scopeLocked()
		p.mu.Unlock()
		began := time.Now()
		err := h.sendHaveOnce(stream, p, reader)
		again := stream.Err() != nil // somebody wants it anew
		cancel()
		if ctx.Err() != nil {
			return
		}
		if again || time.Since(began) > haveRetryMost {
			wait = haveRetry
		}
		if again {
			continue
		}
		h.log.Debug("have-set stream ended", "peer", p.name, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, haveRetryMost)
	}
}

func (h *Host) sendHaveOnce(ctx context.Context, p *Peer, reader verify.Scope) error {
	opening, cancel := context.WithTimeout(ctx, haveOpenTime)
	defer cancel()
	s, err := h.host.NewStream(network.WithNoDial(opening, "have-set"), p.id, protoHave)
	if err != nil {
		return err
	}
	alive, ended := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	watched := make(chan struct{})
	go func() { // the reader sends nothing: its end is the end of the stream
		defer close(watched)
		io.Copy(io.Discard, io.LimitReader(s, 1))
		ended()
	}()
	err = h.writeHave(alive, s, reader)
	s.Reset()
	<-watched
	return err
}

// writeHave writes a greeting, a snapshot and then changes as they happen.
func (h *Host) writeHave(ctx context.Context, s network.Stream, reader verify.Scope) error {
	greeting, err := json.Marshal(hello{1, h.cfg.UserAgent, h.cfg.StoreDir})
	if err != nil {
		return err
	}
	if err := writeFrame(s, frameHello, greeting); err != nil {
		return err
	}
	for {
		snap, err := h.snapshot(reader)
		if err != nil {
			return err
		}
		if err := writeFrame(s, frameSnapshot, snap.body); err != nil {
			return err
		}
		if err := h.writeChanges(ctx, s, reader, snap.seq); err != nil {
			return err
		}
	}
}

// writeChanges writes the changes from seq on; it returns nil when a new snapshot is due.
func (h *Host) writeChanges(ctx context.Context, s network.Stream, reader verify.Scope, seq int64) error {
	for sent := 0; ; {
		if _, ok, err := h.journal.since(ctx, seq); err != nil || !ok {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(deltaGather):
		}
		list, ok, err := h.journal.since(ctx, seq)
		if err != nil || !ok || h.paused.Load() {
			return err
		}
		if sent += len(list); sent > maxDeltaKeys/4 {
			return nil
		}
		seq += int64(len(list))
		if added, removed := netChange(list, reader); len(added)+len(removed) > 0 {
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

// frameTogether is the largest body, in bytes, that is copied to be written with its head: each write wakes both
// machines.
const frameTogether = 4 << 10

// writeFrame writes the head of a large body, which many peers share, apart from it.
func writeFrame(s network.Stream, kind byte, body []byte) error {
	if len(body) <= frameTogether {
		return writeFrames(s, appendFrame(nil, kind, body))
	}
	if err := writeFrames(s, appendFrameHead(nil, kind, len(body))); err != nil {
		return err
	}
	return writeFrames(s, body)
}

// writeFrames writes whole frames, or a part of one.
func writeFrames(s network.Stream, b []byte) error {
	s.SetWriteDeadline(time.Now().Add(haveWriteTime))
	_, err := s.Write(b)
	return err
}

func appendFrame(b []byte, kind byte, body []byte) []byte {
	return append(appendFrameHead(b, kind, len(body)), body...)
}

func appendFrameHead(b []byte, kind byte, size int) []byte {
	return append(binary.AppendUvarint(b, uint64(size+1)), kind)
}
