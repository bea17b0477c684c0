package verify

import (
	"crypto/sha256"
	"fmt"
	"slices"
)

// MaxClaims is how many chains of one NAR a [Proof] weighs.
const MaxClaims = 4

// Link is what the bytes of one chunk were seen to do: they lead from one state to another.
type Link struct{ before, after State }

// Proof holds the chunks of one NAR, in whatever order they come, against the chains that somebody
// claims. A chunk fits if it leads from a state that is claimed before it to one that is claimed after
// it, for the last chunk the signed NarHash. Links without a gap up to the last chunk are proven, and so
// are the states between them; when all are, the whole NAR has the signed hash, by computation and
// without any assumption about the claims. One more claim never takes anything away, so a lie among them
// costs a little hashing and nothing else. Not safe for concurrent use.
type Proof struct {
	want   Hash
	size   int64
	claims []Chain
	links  []Link
	kept   []bool
	proven int   // chunks from here on are proven
	state  State // and so is this one before them; the NarHash while there are none
}

// initial is the state of SHA-256 before the first byte.
var initial = stateOf(sha256.New())

// NewProof begins to check chunks of a NAR of the signed hash and size (bytes).
func NewProof(want Hash, size int64) (*Proof, error) {
	if ChainLen(size) == 0 {
		return nil, fmt.Errorf("a NAR of %d bytes has no chain: %w", size, ErrMalformed)
	}
	n := Chunks(size)
	return &Proof{want: want, size: size, links: make([]Link, n), kept: make([]bool, n), proven: n, state: State(want)}, nil
}

// Claim adds what somebody says to be the chain.
func (p *Proof) Claim(c Chain) error {
	if len(c) != len(p.kept)-1 || len(p.claims) >= MaxClaims {
		return fmt.Errorf("chain of %d states, number %d, for a NAR of %d bytes: %w", len(c), len(p.claims)+1, p.size, ErrMalformed)
	}
	p.claims = append(p.claims, c)
	return nil
}

// before returns the states that may be right before chunk i, after those after it.
func (p *Proof) before(i int) []State {
	if i == 0 {
		return []State{initial}
	}
	return p.after(i - 1)
}

func (p *Proof) after(i int) (out []State) {
	switch i + 1 {
	case len(p.kept):
		return []State{State(p.want)}
	case p.proven:
		return []State{p.state}
	}
	for _, c := range p.claims {
		if !slices.Contains(out, c[i]) {
			out = append(out, c[i])
		}
	}
	return out
}

// Fits tells whether the bytes of chunk i lead from a claimed state to a claimed one, or to the proven
// one if that is known, and which.
func (p *Proof) Fits(i int, chunk []byte) (l Link, ok bool) {
	if i < 0 || i >= len(p.kept) {
		return l, false
	}
	from, to := ChunkRange(i, p.size)
	if int64(len(chunk)) != to-from {
		return l, false
	}
	after := p.after(i)
	for _, l.before = range p.before(i) {
		sum := sha256.New()
		resume(sum, l.before, from)
		sum.Write(chunk)
		if i+1 == len(p.kept) {
			l.after = State(sum.Sum(nil))
		} else {
			l.after = stateOf(sum)
		}
		if slices.Contains(after, l.after) {
			return l, true
		}
	}
	return Link{}, false
}

// Keep notes that bytes of chunk i for which Fits returned l are kept. A chunk that fitted mere claims
// and turns out not to lead to the state that is proven now is no longer kept: see [Proof.Kept].
func (p *Proof) Keep(i int, l Link) {
	if i >= p.proven {
		return // known already
	}
	p.links[i], p.kept[i] = l, true
	for p.proven > 0 && p.kept[p.proven-1] {
		last := p.proven - 1
		if p.links[last].after != p.state {
			p.kept[last] = false
			return
		}
		p.state = p.links[last].before
		p.proven--
	}
}

// Adopt keeps chunks whose states were computed from their bytes in order, from the first one on, where
// these states are claimed too.
func (p *Proof) Adopt(computed Chain) {
	before := initial
	for i, after := range computed {
		if slices.Contains(p.before(i), before) && slices.Contains(p.after(i), after) {
			p.Keep(i, Link{before, after})
		}
		before = after
	}
}

// Kept tells whether chunk i fits, as far as is known by now.
func (p *Proof) Kept(i int) bool { return p.kept[i] }

// Proven returns the first chunk from which on all are proven: Chunks(size) if none is, 0 if the whole
// NAR is.
func (p *Proof) Proven() int { return p.proven }

// Chain returns the chain of a NAR that is proven whole.
func (p *Proof) Chain() Chain {
	c := make(Chain, len(p.links)-1)
	for i := range c {
		c[i] = p.links[i].after
	}
	return c
}
