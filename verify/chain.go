package verify

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"fmt"
	"hash"
)

// ChunkSize is the length of a NAR's chunks in bytes; the last one is shorter. It is a multiple of
// SHA-256's block length, so that the hash's state between two chunks is 32 bytes and nothing else.
const ChunkSize = 1 << 20

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

// A chain's form on the wire and on disk: a header of 16 bytes (magic, version, log2 of the chunk size,
// two zeros, the NAR's size as 8 bytes, big-endian) and 32 bytes a state.
const (
	chainMagic  = "flch\x01\x14\x00\x00" // version 1, chunks of 2^20 bytes
	chainHeader = len(chainMagic) + 8
)

// ChainLen is the length of the chain's form of a NAR of size bytes, 0 if such a NAR has none: it is
// empty or too large.
func ChainLen(size int64) int {
	n := Chunks(size) - 1
	if size <= 0 || n > MaxChain {
		return 0
	}
	return chainHeader + n*sha256.Size
}

// Bytes is the form of the chain of a NAR of size bytes.
func (c Chain) Bytes(size int64) []byte {
	b := make([]byte, 0, chainHeader+len(c)*sha256.Size)
	b = binary.BigEndian.AppendUint64(append(b, chainMagic...), uint64(size))
	for i := range c {
		b = append(b, c[i][:]...)
	}
	return b
}

// ParseChain reads the chain of a NAR of size bytes. A form of another version, chunk size or NAR gives
// [ErrMalformed], as does one of the wrong length.
func ParseChain(b []byte, size int64) (Chain, error) {
	if n := ChainLen(size); n == 0 || len(b) != n {
		return nil, fmt.Errorf("chain of %d bytes for a NAR of %d: %w", len(b), size, ErrMalformed)
	}
	if string(b[:len(chainMagic)]) != chainMagic || binary.BigEndian.Uint64(b[len(chainMagic):]) != uint64(size) {
		return nil, fmt.Errorf("chain: %w: another version or another NAR's", ErrMalformed)
	}
	b = b[chainHeader:]
	c := make(Chain, len(b)/sha256.Size)
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
