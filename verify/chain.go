package verify

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// ChunkSize is the length of a NAR's chunks in bytes; the last one is shorter. It is a multiple of
// SHA-256's block length, so that the hash's state between two chunks is 32 bytes and nothing else.
const ChunkSize = 1 << 20

// ErrChunk: the chunk does not lead from the claimed state to the proven one.
var ErrChunk = errors.New("chunk does not fit the chain")

// State is SHA-256's inner state after a whole number of chunks.
type State [sha256.Size]byte

// MaxChain is the largest number of states of a chain that is read: a NAR of 1 TiB.
const MaxChain = 1 << 20

// Chain is the claim of someone who has a whole NAR: the states after each chunk but the last. Chunk i
// is right iff it leads from state i to state i+1, and the last one from its state to the signed
// NarHash; state 0 is SHA-256's own. Proof runs backwards: the NarHash is proven, so a chunk that leads
// from a claimed state to a proven one proves both itself and the claimed state, since other ones would
// be a free-start second preimage of SHA-256. Until then a state is a mere claim, and a chunk that
// misfits it says nothing about who lied.
type Chain []State

// Chunks returns how many chunks a NAR of size bytes has.
func Chunks(size int64) int { return int((size + ChunkSize - 1) / ChunkSize) }

// ChunkRange returns chunk i's bytes [from, to) of a NAR of size bytes.
func ChunkRange(i int, size int64) (from, to int64) {
	from = int64(i) * ChunkSize
	return from, min(from+ChunkSize, size)
}

// Bytes is the chain's form on the wire: 32 bytes a state.
func (c Chain) Bytes() []byte {
	b := make([]byte, 0, len(c)*sha256.Size)
	for i := range c {
		b = append(b, c[i][:]...)
	}
	return b
}

// ParseChain reads the chain of a NAR of size bytes.
func ParseChain(b []byte, size int64) (Chain, error) {
	n := Chunks(size) - 1
	if size <= 0 || n > MaxChain || len(b) != n*sha256.Size {
		return nil, fmt.Errorf("chain of %d bytes for a NAR of %d: %w", len(b), size, ErrMalformed)
	}
	c := make(Chain, n)
	for i := range c {
		copy(c[i][:], b[i*sha256.Size:])
	}
	return c, nil
}

// ChainHash is SHA-256 that notes its state after every chunk. It implements io.Writer.
type ChainHash struct {
	sum   hash.Hash
	n     int64
	chain Chain
}

// NewChainHash starts a hash.
func NewChainHash() *ChainHash { return &ChainHash{sum: sha256.New()} }

// Write implements io.Writer; it never fails.
func (h *ChainHash) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if h.n > 0 && h.n%ChunkSize == 0 {
			h.chain = append(h.chain, stateOf(h.sum)) // there is a next chunk
		}
		k := min(int64(len(p)), ChunkSize-h.n%ChunkSize)
		h.sum.Write(p[:k])
		h.n += k
		p = p[k:]
	}
	return total, nil
}

// Sum returns the hash of what was written and the chain of its states.
func (h *ChainHash) Sum() (Hash, Chain) { return Hash(h.sum.Sum(nil)), h.chain }

// Proof checks the chunks of one NAR, last first. Not safe for concurrent use.
type Proof struct {
	want  Hash
	size  int64
	chain Chain
	next  int // the chunk to be shown; those after it are proven
}

// NewProof begins to check chunks against a chain that somebody claims for a NAR of the signed hash and
// size.
func NewProof(want Hash, size int64, claim Chain) (*Proof, error) {
	if size <= 0 || len(claim) != Chunks(size)-1 {
		return nil, fmt.Errorf("chain of %d states for a NAR of %d bytes: %w", len(claim), size, ErrMalformed)
	}
	return &Proof{want: want, size: size, chain: claim, next: len(claim)}, nil
}

// Next returns the chunk that has to be shown next, -1 when all are proven.
func (p *Proof) Next() int { return p.next }

// Show checks the bytes of chunk Next. nil proves them and the state before them, and moves on to the
// chunk before. ErrChunk means that they, or the claimed state before them, are wrong; another sender's
// bytes may be shown.
func (p *Proof) Show(chunk []byte) error {
	from, to := ChunkRange(p.next, p.size)
	if p.next < 0 || int64(len(chunk)) != to-from {
		return fmt.Errorf("%d bytes for chunk %d: %w", len(chunk), p.next, ErrChunk)
	}
	sum := sha256.New()
	if p.next > 0 {
		resume(sum, p.chain[p.next-1], from)
	}
	sum.Write(chunk)
	ok := false
	if p.next == len(p.chain) {
		ok = Hash(sum.Sum(nil)) == p.want
	} else {
		ok = stateOf(sum) == p.chain[p.next]
	}
	if !ok {
		return fmt.Errorf("chunk %d: %w", p.next, ErrChunk)
	}
	p.next--
	return nil
}

// Layout of SHA-256's encoding.BinaryMarshaler: Go, crypto/sha256. Magic, state, block, length.
const (
	magic256   = "sha\x03"
	marshalled = len(magic256) + sha256.Size + sha256.BlockSize + 8
)

// stateOf returns the state of a hash that was given whole blocks.
func stateOf(h hash.Hash) (s State) {
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil || len(b) != marshalled || string(b[:len(magic256)]) != magic256 {
		panic("verify: crypto/sha256 changed its encoding") // a test would have told
	}
	copy(s[:], b[len(magic256):])
	return s
}

// resume sets a hash to where state is after n bytes, whole blocks.
func resume(h hash.Hash, state State, n int64) {
	b := make([]byte, marshalled)
	copy(b, magic256)
	copy(b[len(magic256):], state[:])
	binary.BigEndian.PutUint64(b[marshalled-8:], uint64(n))
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b); err != nil {
		panic("verify: crypto/sha256 changed its encoding: " + err.Error())
	}
}
