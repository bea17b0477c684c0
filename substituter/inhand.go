package substituter

import (
	"sync"
	"sync/atomic"
)

const (
	// legBufferSize is what a leg reads into, bytes. A source's piece gets at least legPiece of it: as much
	// as a stream between peers gives at once.
	legBufferSize = 256 << 10
	legPiece      = 64 << 10
	// inHandMost bounds the pieces of a flight that wait to be hashed, bytes.
	inHandMost = 1 << 20
)

// legBuffer is what a leg reads into. Pieces that the checker still hashes are not overwritten: the leg goes on behind
// them, or in another buffer.
type legBuffer struct {
	b     []byte
	used  int          // by pieces read before; the leg's
	users atomic.Int32 // the leg, and pieces in hand
}

var legBuffers = sync.Pool{New: func() any { return &legBuffer{b: make([]byte, legBufferSize)} }}

func newLegBuffer() *legBuffer {
	b := legBuffers.Get().(*legBuffer)
	b.used = 0
	b.users.Store(1)
	return b
}

// release ends one user's use.
func (b *legBuffer) release() {
	if b.users.Add(-1) == 0 {
		legBuffers.Put(b)
	}
}

// roomy returns a buffer with room for a piece, b itself if it can; it is the leg's, as b was.
func (b *legBuffer) roomy() *legBuffer {
	if b.users.Load() == 1 {
		b.used = 0
	}
	if len(b.b)-b.used >= legPiece {
		return b
	}
	b.release()
	return newLegBuffer()
}

// inHand are pieces that are in the spool, are still in their legs' buffers, too, and follow each other: the checker
// need not read them back. flight.mu guards it.
type inHand struct {
	open   bool  // the checker hashes in order, and takes
	next   int64 // only a piece that begins here
	held   int64 // bytes of pieces
	pieces []piece
}

// piece is bytes of a NAR in a leg's buffer.
type piece struct {
	b   []byte
	buf *legBuffer
}

// offer hands on what was just put into the spool at from; nothing is done if it is not what comes next.
func (h *inHand) offer(from int64, p []byte, buf *legBuffer) {
	if n := int64(len(p)); h.open && from == h.next && h.held+n <= inHandMost {
		buf.users.Add(1)
		h.pieces = append(h.pieces, piece{p, buf})
		h.next += n
		h.held += n
	}
}

// take returns the next piece, if there is one. Else the checker reads back what is in the spool up to next, and
// pieces from there on are taken meanwhile.
func (h *inHand) take(next int64) (p piece, ok bool) {
	h.open = true
	if len(h.pieces) == 0 {
		h.next = next
		return piece{}, false
	}
	p = h.pieces[0]
	h.pieces[0] = piece{}
	h.pieces = h.pieces[1:]
	h.held -= int64(len(p.b))
	return p, true
}

// drop forgets the pieces and takes no more: the checker does not hash in order.
func (h *inHand) drop() {
	for _, p := range h.pieces {
		p.buf.release()
	}
	*h = inHand{}
}
