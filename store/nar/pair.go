package nar

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// Trees of small files cost an open, a read and a close each, several times what sending them does. So two
// goroutines read them, turn and turn about: while one writes its segment, the other reads the next. Only
// while no other archive is written, lest they take turns with that.

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

// progress is handed from one to the other with the right to write.
type progress struct {
	written int64
	err     error
}

// writeInTurns writes the segments to w, in order.
func (n *NAR) writeInTurns(ctx context.Context, w io.Writer, list []segment) (int64, error) {
	turns := [2]chan progress{make(chan progress, 1), make(chan progress, 1)}
	turns[0] <- progress{}
	work := func(me int) {
		s := n.newStream(ctx, w)
		defer s.release()
		for i := me; i < len(list); i += 2 {
			var err error
			s.pos, s.end = list[i].from, list[i].to
			if list[i].small {
				err = s.read()
			}
			p := <-turns[me]
			if p.err == nil {
				if err == nil {
					err = s.run()
				}
				p = progress{p.written + s.written, err}
				s.written = 0
			}
			turns[1-me] <- p
			if p.err != nil {
				return
			}
		}
	}
	var other sync.WaitGroup
	other.Go(func() { work(1) })
	work(0)
	other.Wait()
	var p progress
	select {
	case p = <-turns[0]:
	case p = <-turns[1]:
	}
	if p.err != nil {
		return p.written, fmt.Errorf("NAR of %s: %w", n.root, p.err)
	}
	return p.written, nil
}
