package p2p

import (
	"context"
	"net"
	"sync"

	"github.com/flurry-nix/flurry/verify"
)

const (
	journalLen   = 8192 // changes kept; a peer further behind gets a snapshot
	snapshotSlip = 2048 // changes that a snapshot may be behind and still be sent, with them as a delta
)

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
	if over := len(j.ring) - journalLen; over > journalLen/4 { // not at every change
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

// near tells whether what happened since change seq is known and little.
func (j *journal) near(seq int64) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return seq >= j.first && j.first+int64(len(j.ring))-seq <= snapshotSlip
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

// snapshotCache keeps the newest encoded have-set of each audience: a filter over a large store takes
// a good part of a second, which peers must not be able to ask for again and again. mu guards all
// fields and is held while a filter is built, so that many peers at once cause one.
type snapshotCache struct {
	mu     sync.Mutex
	frames map[verify.Scope]snapshot
}

type snapshot struct {
	seq  int64 // the first change that it may lack
	body []byte
}

// snapshot returns the have-set for an audience as a frame's body, not to be changed, and the number of
// the first change that it may lack.
func (h *Host) snapshot(reader verify.Scope) (snapshot, error) {
	if h.paused.Load() {
		body, err := encodeSnapshot(nil, nil)
		return snapshot{h.journal.end(), body}, err
	}
	c := &h.snapshots
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.frames[reader]; ok && h.journal.near(s.seq) {
		return s, nil
	}
	seq := h.journal.end()
	body, err := encodeSnapshot(nil, h.catalog.Keys(reader))
	if err != nil {
		return snapshot{}, err
	}
	s := snapshot{seq, body}
	if c.frames == nil {
		c.frames = map[verify.Scope]snapshot{}
	}
	c.frames[reader] = s
	return s, nil
}
