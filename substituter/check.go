package substituter

import (
	"context"
	"fmt"

	"github.com/flurry-nix/flurry/verify"
)

// swarm is what a flight knows of its NAR's chunks; flight.mu guards it. The checker holds chunks against
// the claimed chains, the plan decides what becomes of those that misfit.
type swarm struct {
	claims  []verify.Chain   // different ones, in order of arrival
	answers int              // peers that claimed one
	checked spans            // whole chunks that were held against all claims
	misfit  map[int]bool     // those of them that fit none
	proven  int64            // the bytes from here on are proven, if there are claims
	over    bool             // chains do not help; the NAR is judged as a whole
	tries   map[int][]badTry // bytes that were put aside, by chunk
	aside   *spool           // and where they are
	asides  int
}

// badTry is what somebody sent as a chunk and misfitted, at aside's chunk no at.
type badTry struct {
	at    int
	parts []part
}

// checker follows what arrives in the spool until the whole is judged. Without a chain it hashes the
// contiguous front; with one each chunk by itself, in whatever order they come, so that each byte is
// hashed once either way.
type checker struct {
	f     *flight
	front *verify.Checker
	proof *verify.Proof // nil until there is a claim
	taken int           // claims that it knows
	wrong error         // the bytes are known to be wrong as a whole; only chunks can tell which
	buf   []byte
}

// follow returns the verdict on the whole. wrong is an earlier one about the same bytes.
func (f *flight) follow(ctx context.Context, wrong error) error {
	c := &checker{f: f, front: verify.NewChecker(f.v.NarHash(), f.v.NarSize()), wrong: wrong}
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		done, idle, err := c.step()
		if done || err != nil {
			return err
		}
		if !idle {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// step does a piece of work; idle says that there was none.
func (c *checker) step() (done, idle bool, err error) {
	f := c.f
	f.mu.Lock()
	claims, over := f.swarm.claims, f.swarm.over
	f.mu.Unlock()
	switch {
	case over && c.wrong != nil:
		return true, false, c.wrong
	case over:
		if c.proof != nil { // chunks may have been replaced behind the front
			c.proof, c.front = nil, verify.NewChecker(f.v.NarHash(), f.v.NarSize())
		}
		return c.stepFront()
	case len(claims) > c.taken:
		return false, false, c.take(claims)
	case c.proof != nil:
		return c.stepChunk()
	case c.wrong != nil:
		return false, true, nil
	}
	return c.stepFront()
}

// stepFront hashes what follows in order.
func (c *checker) stepFront() (done, idle bool, err error) {
	f := c.f
	f.mu.Lock()
	front, s := f.written.front(), f.spool
	f.mu.Unlock()
	if at := c.front.Written(); at < front {
		piece, err := s.view(at, min(front-at, hashStep), &c.buf)
		if err != nil {
			return false, false, fmt.Errorf("%w: %w", errLocal, err)
		}
		_, err = c.front.Write(piece)
		return false, false, err
	}
	if c.front.Written() < f.v.NarSize() {
		return false, true, nil
	}
	if err := c.front.Finish(); err != nil {
		return false, false, err
	}
	if f.v.NarSize() >= chainLeast {
		f.all.chains.put(f.v.NarHash(), f.v.NarSize(), c.front.Chain())
	}
	return true, false, nil
}

// take adds claims. What fitted goes on fitting; what did not is looked at again.
func (c *checker) take(claims []verify.Chain) (err error) {
	f := c.f
	if c.proof == nil {
		if c.proof, err = verify.NewProof(f.v.NarHash(), f.v.NarSize()); err != nil {
			return err
		}
	}
	for _, claim := range claims[c.taken:] {
		if err := c.proof.Claim(claim); err != nil {
			return err
		}
	}
	if c.taken == 0 && c.wrong == nil {
		c.proof.Adopt(c.front.Chain())
	}
	c.taken = len(claims)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swarm.checked, f.swarm.misfit = nil, map[int]bool{}
	for i := range verify.Chunks(f.v.NarSize()) {
		if c.proof.Kept(i) {
			f.swarm.checked = f.swarm.checked.add(verify.ChunkRange(i, f.v.NarSize()))
		}
	}
	c.noteProven()
	return nil
}

// noteProven tells the plan how far the proof came; mu is held.
func (c *checker) noteProven() {
	from, _ := verify.ChunkRange(c.proof.Proven(), c.f.v.NarSize())
	c.f.swarm.proven = min(from, c.f.v.NarSize())
}

// stepChunk looks at one whole chunk that it has not seen.
func (c *checker) stepChunk() (done, idle bool, err error) {
	f, size := c.f, c.f.v.NarSize()
	if c.proof.Proven() == 0 {
		f.all.chains.put(f.v.NarHash(), size, c.proof.Chain())
		return true, false, nil
	}
	f.mu.Lock()
	i := f.unchecked()
	delete(f.swarm.misfit, i) // nobody takes its bytes away while they are looked at
	s := f.spool
	f.mu.Unlock()
	if i < 0 {
		return false, true, nil
	}
	from, to := verify.ChunkRange(i, size)
	chunk, err := s.view(from, to-from, &c.buf)
	if err != nil {
		return false, false, fmt.Errorf("%w: %w", errLocal, err)
	}
	link, fits := c.proof.Fits(i, chunk)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.swarm.checked = f.swarm.checked.add(from, to)
	if !fits {
		f.swarm.misfit[i] = true
		f.broadcast()
		return false, false, nil
	}
	c.proof.Keep(i, link)
	if next := c.proof.Proven() - 1; next >= 0 && !c.proof.Kept(next) && !f.swarm.misfit[next] {
		f.swarm.checked = f.swarm.checked.cut(verify.ChunkRange(next, size)) // perhaps it fitted a lie
	}
	c.noteProven()
	return false, false, nil
}

// unchecked returns a chunk that is in the spool and was not looked at, the last one first: that is the
// one that can be proven next; -1 if there is none. mu is held.
func (f *flight) unchecked() int {
	size := f.v.NarSize()
	for k := len(f.written) - 1; k >= 0; k-- {
		from := (f.written[k].from + verify.ChunkSize - 1) / verify.ChunkSize * verify.ChunkSize
		to := f.written[k].to
		if to < size {
			to -= to % verify.ChunkSize
		}
		if g, ok := f.swarm.checked.lastGap(from, to); ok {
			return int((g.to - 1) / verify.ChunkSize)
		}
	}
	return -1
}
