package substituter

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// Reading from machines that are still fetching.
const (
	// partialRun is how much is asked of a machine that itself is still fetching, at once. A follower asks for
	// whole chunks, or for what there is once it has waited pieceWait: each request costs both sides
	// processor time, and its Nix sees nothing before the whole is verified.
	partialRun = 2 * verify.ChunkSize
	pieceWait  = 2 * time.Second
)

// partialSource is a neighbour that is itself still fetching the NAR. Its bytes are provisional: wrong
// ones cost it its place in the order, not its standing, as it cannot have verified them.
type partialSource struct {
	peerSource
	held spans
}

func (s partialSource) convict(err error) { s.Flaky(err) }

// pickPartial chooses a run of bytes, of a NAR of size bytes, that src holds and nobody brings yet: the rarest
// among the neighbours, at random among equals, so that neighbours soon have different parts to exchange. With
// whole it ends where a chunk does, or where somebody brings the next byte.
func pickPartial(src partialSource, busy spans, flying []Flying, size int64, whole bool) (span, bool) {
	type option struct {
		span
		holders int
		tie     uint32
	}
	var best *option
	for _, h := range src.held {
		for at := h.from; at < h.to; {
			g, ok := busy.gap(at, h.to)
			if !ok {
				break
			}
			for from := g.from; from < g.to; {
				end := chunkEnd(from, size)
				to := min(end, g.to)
				o := option{span{from, to}, holders(flying, from), rand.Uint32()}
				if unfinished := to < end && to == h.to; unfinished && whole {
					break
				}
				if best == nil || cmp.Or(cmp.Compare(o.holders, best.holders), cmp.Compare(o.tie, best.tie)) < 0 {
					best = &o
				}
				from = to
			}
			at = g.to
		}
	}
	if best == nil {
		return span{}, false
	}
	if g, ok := busy.gap(best.from, best.from+partialRun); ok { // go on while it is missing and held
		for _, h := range src.held {
			if h.from <= best.from && best.from < h.to {
				to := min(g.to, h.to)
				if whole && to == h.to && to < size {
					to -= to % verify.ChunkSize
				}
				best.to = max(best.to, to)
			}
		}
	}
	return best.span, true
}

// holders counts the neighbours that hold byte at.
func holders(flying []Flying, at int64) int {
	n := 0
	for _, f := range flying {
		for _, h := range f.Held {
			if h[0] <= at && at < h[1] {
				n++
				break
			}
		}
	}
	return n
}

// missing tells whether a neighbour has bytes that are not here; with whole, up to the end of their chunk.
// flight.mu is held.
func (p *plan) missing(n *Flying, whole bool) bool {
	size := p.f.v.NarSize()
	for _, h := range n.Held {
		for at, to := max(0, h[0]), min(h[1], size); at < to; {
			g, ok := p.f.written.gap(at, to)
			if !ok {
				break
			}
			if !whole || g.to < to || g.to >= chunkEnd(g.from, size) {
				return true
			}
			at = g.to
		}
	}
	return false
}

// chunkEnd is where the chunk with byte at ends, in a NAR of size bytes.
func chunkEnd(at, size int64) int64 { return min(at-at%verify.ChunkSize+verify.ChunkSize, size) }

// waitForChunks decides whether a follower waits until neighbours have whole chunks: not if that took long, or
// if the question is how quick they are.
func (p *plan) waitForChunks() {
	p.whole = false
	if p.claim.stage != StageFollowing || !p.try.since.IsZero() {
		p.claim.waited = time.Time{}
		return
	}
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	if !slices.ContainsFunc(p.near, func(n Flying) bool { return !n.Suspect && p.missing(&n, false) }) {
		p.claim.waited = time.Time{}
	} else if p.claim.waited.IsZero() {
		p.claim.waited = time.Now()
	}
	p.whole = p.claim.waited.IsZero() || time.Since(p.claim.waited) < pieceWait
}

// unasked is how many bytes of a chunk that is not whole yet some neighbour has, while that is waited for.
func (p *plan) unasked() (most int64) {
	if !p.whole {
		return 0
	}
	for _, n := range p.near {
		for _, h := range n.Held {
			if n.Stage != StageLanded && h[1] < p.f.v.NarSize() {
				most = max(most, min(h[1]%verify.ChunkSize, h[1]-h[0]))
			}
		}
	}
	return most
}
