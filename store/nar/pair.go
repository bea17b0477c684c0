package nar

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Trees of small files cost an open, a read and a close each, several times what sending them does. So a helper
// reads those that come next while others are written or sendfile has a large one. Only while no other archive
// is written, as no processor is idle then.

// segment is a part of the archive: bytes [from, to). One that is small is read as a whole before it is
// written; of others each file is handed to the writer.
type segment struct {
	from, to int64
	small    bool
}

// segments divides bytes [off, end), and counts the small ones.
func (n *NAR) segments(off, end int64) (list []segment, smalls int) {
	for i := n.entryAt(off); off < end; i++ {
		next := n.size
		if i+1 < len(n.entries) {
			next = n.entries[i+1].start
		}
		next = min(next, end)
		small := n.entries[i].contents() < largeFile && next-off < bufSize/2
		last := len(list) - 1
		switch {
		case last >= 0 && list[last].small == small && (!small || next-list[last].from < bufSize):
			list[last].to = next
		default:
			list = append(list, segment{off, next, small})
			if small {
				smalls++
			}
		}
		off = next
	}
	return list, smalls
}

// readAhead is how many small segments, of up to bufSize bytes each, may wait for their turn to be written.
const readAhead = 4

// early is a small segment. Whoever takes it first reads it.
type early struct {
	segment
	taken  atomic.Bool
	done   chan struct{} // closed by the helper when it has read it
	pooled *[]byte       // what it read, nil after an error
	err    error
}

// writeAhead writes the segments to w, in order, while a helper reads small ones that come next.
func (n *NAR) writeAhead(ctx context.Context, w io.Writer, list []segment) (written int64, err error) {
	var smalls []*early
	for _, g := range list {
		if g.small {
			smalls = append(smalls, &early{segment: g, done: make(chan struct{})})
		}
	}
	room, stop := make(chan struct{}, readAhead), make(chan struct{})
	var helper sync.WaitGroup
	helper.Go(func() { n.help(ctx, smalls, room, stop) })
	s := n.newStream(ctx, w)
	defer func() {
		close(stop)
		helper.Wait()
		for _, e := range smalls { // what was read in vain, after an error
			e.release()
		}
		s.release()
	}()
	next := 0 // of smalls
	for _, g := range list {
		s.pos, s.end = g.from, g.to
		if !g.small {
			err = s.run()
		} else {
			err = s.take(smalls[next], room)
			next++
		}
		if err != nil {
			return s.written, fmt.Errorf("NAR of %s: %w", n.path(), err)
		}
	}
	return s.written, nil
}

// take writes a small segment.
func (s *stream) take(e *early, room <-chan struct{}) error {
	if e.taken.CompareAndSwap(false, true) {
		return s.run()
	}
	<-e.done
	<-room
	if e.err != nil {
		return e.err
	}
	own := s.buf
	s.buf = *e.pooled
	err := s.flush()
	s.buf = own
	e.release()
	return err
}

func (e *early) release() {
	if e.pooled != nil {
		buffers.Put(e.pooled)
		e.pooled = nil
	}
}

// help reads small segments that nobody has taken, until there are no more or stop is closed.
func (n *NAR) help(ctx context.Context, smalls []*early, room chan<- struct{}, stop <-chan struct{}) {
	s := n.newStream(ctx, nil)
	defer s.release()
	for i := 0; i < len(smalls); i++ {
		select {
		case <-stop:
			return
		case room <- struct{}{}:
		}
		for i < len(smalls) && !smalls[i].taken.CompareAndSwap(false, true) {
			i++
		}
		if i == len(smalls) {
			return
		}
		e := smalls[i]
		s.pos, s.end = e.from, e.to
		if e.err = s.read(); e.err != nil {
			close(e.done)
			return
		}
		*s.pooled = s.buf
		e.pooled = s.pooled
		s.pooled = buffers.Get().(*[]byte)
		s.buf = (*s.pooled)[:0]
		close(e.done)
	}
}
