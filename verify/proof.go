package verify

import (
	"crypto/sha256"
	"fmt"
)

// Proof holds the chunks of one NAR, in whatever order they come, against a chain that somebody claims.
// A chunk fits if it leads from the claimed state before it to the one after it, which for the last
// chunk is the signed NarHash. Chunks that fit without a gap up to the last one are proven, and so are
// the states before them; when all fit, the whole NAR has the signed hash, by computation and without
// any assumption about the chain.
//
// Fits may be called concurrently with itself; all else needs one owner at a time.
type Proof struct {
	want   Hash
	size   int64
	chain  Chain
	kept   []bool
	proven int
}

// NewProof begins to check chunks against a chain that somebody claims for a NAR of the signed hash and
// size (bytes).
func NewProof(want Hash, size int64, claim Chain) (*Proof, error) {
	if ChainLen(size) == 0 || len(claim) != Chunks(size)-1 {
		return nil, fmt.Errorf("chain of %d states for a NAR of %d bytes: %w", len(claim), size, ErrMalformed)
	}
	n := len(claim) + 1
	return &Proof{want: want, size: size, chain: claim, kept: make([]bool, n), proven: n}, nil
}

// Fits tells whether the bytes of chunk i lead from the claimed state before it to the one after it.
func (p *Proof) Fits(i int, chunk []byte) bool {
	if i < 0 || i >= len(p.kept) {
		return false
	}
	from, to := ChunkRange(i, p.size)
	if int64(len(chunk)) != to-from {
		return false
	}
	sum := sha256.New()
	if i > 0 {
		resume(sum, p.chain[i-1], from)
	}
	sum.Write(chunk)
	if i == len(p.chain) {
		return Hash(sum.Sum(nil)) == p.want
	}
	return stateOf(sum) == p.chain[i]
}

// Keep notes that bytes of chunk i for which Fits was true are kept.
func (p *Proof) Keep(i int) {
	p.kept[i] = true
	for p.proven > 0 && p.kept[p.proven-1] {
		p.proven--
	}
}

// Adopt keeps what needs no second look: chunks that fitted old, where both claim the same states, and
// chunks whose states were computed from their bytes in order from the first one on.
func (p *Proof) Adopt(old *Proof, computed Chain) {
	for i := range p.kept {
		sure := i < len(computed) && computed[i] == p.chain[i] && (i == 0 || computed[i-1] == p.chain[i-1])
		if sure || old != nil && old.kept[i] && p.same(old, i) {
			p.Keep(i)
		}
	}
}

// same tells whether both claim the same states around chunk i.
func (p *Proof) same(other *Proof, i int) bool {
	return (i == 0 || p.chain[i-1] == other.chain[i-1]) && (i == len(p.chain) || p.chain[i] == other.chain[i])
}

// Differs tells whether another claim has other states around chunk i, so that its bytes may fit there.
func (p *Proof) Differs(i int, claim Chain) bool {
	return !p.same(&Proof{chain: claim}, i)
}

// Kept tells whether chunk i fitted.
func (p *Proof) Kept(i int) bool { return p.kept[i] }

// Proven returns the first chunk from which on all are proven: Chunks(size) if none is, 0 if the whole
// NAR is.
func (p *Proof) Proven() int { return p.proven }
