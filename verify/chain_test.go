package verify

import (
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// chained makes a NAR-sized block of bytes and its chain.
func chained(seed uint64, size int64) ([]byte, Hash, Chain) {
	rng := rand.New(rand.NewPCG(seed, 9))
	nar := make([]byte, size)
	for i := range nar {
		nar[i] = byte(rng.Uint32())
	}
	h := NewChainHash()
	h.Write(nar)
	sum, chain := h.Sum()
	return nar, sum, chain
}

var chainSizes = []int64{1, 100, ChunkSize - 1, ChunkSize, ChunkSize + 1, 3 * ChunkSize, 3*ChunkSize + 77}

func TestAChainProvesEveryChunk(t *testing.T) {
	for _, size := range chainSizes {
		nar, sum, chain := chained(uint64(size), size)
		if want := Hash(sha256.Sum256(nar)); sum != want {
			t.Fatalf("size %d: hash %v, want %v", size, sum, want)
		}
		wire, err := ParseChain(chain.Bytes(size), size)
		if err != nil || !slices.Equal(wire, chain) {
			t.Fatalf("size %d: %d states came back as %d, %v", size, len(chain), len(wire), err)
		}
		p, err := NewProof(sum, size, wire)
		if err != nil {
			t.Fatal(err)
		}
		for k, i := range rand.Perm(Chunks(size)) {
			from, to := ChunkRange(i, size)
			if !p.Fits(i, nar[from:to]) {
				t.Fatalf("size %d: chunk %d does not fit", size, i)
			}
			if p.Proven() == 0 {
				t.Fatalf("size %d: proven after %d chunks", size, k)
			}
			p.Keep(i)
		}
		if p.Proven() != 0 {
			t.Fatalf("size %d: only proven from %d on", size, p.Proven())
		}
	}
}

func TestAChainIsTheSameHoweverTheBytesCome(t *testing.T) {
	nar, sum, chain := chained(1, 2*ChunkSize+5)
	rapid.Check(t, func(t *rapid.T) {
		h := NewChainHash()
		for rest := nar; len(rest) > 0; {
			k := min(len(rest), rapid.IntRange(1, 3*ChunkSize/2).Draw(t, "k"))
			h.Write(rest[:k])
			rest = rest[k:]
		}
		if s, c := h.Sum(); s != sum || !slices.Equal(c, chain) {
			t.Fatal("differs")
		}
	})
}

// TestNoForgeryIsProven: whatever is wrong, no wrong chunk and no wrong state is ever accepted.
func TestNoForgeryIsProven(t *testing.T) {
	const size = 4*ChunkSize + 1000
	nar, sum, chain := chained(2, size)
	other, _, otherChain := chained(3, size)
	rapid.Check(t, func(t *rapid.T) {
		claim := slices.Clone(chain)
		shown := slices.Clone(nar)
		switch rapid.SampledFrom([]string{"state", "bit", "splice", "swap", "chain", "blend"}).Draw(t, "forgery") {
		case "state": // one claimed state is wrong
			i := rapid.IntRange(0, len(claim)-1).Draw(t, "i")
			claim[i][rapid.IntRange(0, 31).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		case "bit":
			shown[rapid.IntRange(0, size-1).Draw(t, "at")] ^= 1
		case "splice": // a chunk of another NAR
			from, to := ChunkRange(rapid.IntRange(0, 4).Draw(t, "i"), size)
			copy(shown[from:to], other[from:to])
		case "swap": // two chunks change places
			i, j := rapid.IntRange(0, 1).Draw(t, "i"), rapid.IntRange(2, 3).Draw(t, "j")
			copy(shown[i*ChunkSize:(i+1)*ChunkSize], nar[j*ChunkSize:(j+1)*ChunkSize])
		case "chain": // another NAR with its own chain
			claim, shown = slices.Clone(otherChain), slices.Clone(other)
		case "blend": // another NAR up to a chunk, its chain up to there
			k := rapid.IntRange(1, 4).Draw(t, "k")
			copy(shown[:k*ChunkSize], other[:k*ChunkSize])
			copy(claim[:k-1], otherChain[:k-1])
		}
		p, err := NewProof(sum, size, claim)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range rapid.Permutation([]int{0, 1, 2, 3, 4}).Draw(t, "order") {
			from, to := ChunkRange(i, size)
			right := slices.Equal(shown[from:to], nar[from:to])
			if p.Fits(i, shown[from:to]) {
				p.Keep(i)
			} else if right && (i == 0 || claim[i-1] == chain[i-1]) && (i == 4 || claim[i] == chain[i]) {
				t.Fatalf("right chunk %d between right states is refused", i)
			}
		}
		if p.Proven() == 0 {
			t.Fatal("a forgery was proven whole")
		}
		for i := p.Proven(); i < 5; i++ {
			from, to := ChunkRange(i, size)
			if !slices.Equal(shown[from:to], nar[from:to]) || i > 0 && claim[i-1] != chain[i-1] {
				t.Fatalf("chunk %d is proven but wrong", i)
			}
		}
	})
}

// TestAdoptingProvesNothingNew: what is taken over from another claim or from states in order is never
// more than what the bytes would have shown.
func TestAdoptingProvesNothingNew(t *testing.T) {
	const size = 4*ChunkSize + 1000
	nar, sum, chain := chained(2, size)
	other, _, otherChain := chained(3, size)
	rapid.Check(t, func(t *rapid.T) {
		mix := func(label string) Chain { // each state right, another NAR's or nonsense
			c := slices.Clone(chain)
			for i := range c {
				switch rapid.IntRange(0, 3).Draw(t, label) {
				case 0:
					c[i] = otherChain[i]
				case 1:
					c[i][0] ^= 1
				}
			}
			return c
		}
		shown := slices.Clone(nar)
		for i := range 5 {
			if rapid.Bool().Draw(t, "other") {
				from, to := ChunkRange(i, size)
				copy(shown[from:to], other[from:to])
			}
		}
		old, err := NewProof(sum, size, mix("old"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			from, to := ChunkRange(i, size)
			if old.Fits(i, shown[from:to]) {
				old.Keep(i)
			}
		}
		front := rapid.IntRange(0, size).Draw(t, "front")
		h := NewChainHash()
		h.Write(shown[:front])
		_, computed := h.Sum()
		p, err := NewProof(sum, size, mix("new"))
		if err != nil {
			t.Fatal(err)
		}
		p.Adopt(old, computed)
		for i := range 5 {
			from, to := ChunkRange(i, size)
			if p.Kept(i) && !p.Fits(i, shown[from:to]) {
				t.Fatalf("chunk %d is kept but does not fit", i)
			}
		}
	})
}

func TestChainsOfTheWrongLengthAreRefused(t *testing.T) {
	const size = 3*ChunkSize + 5
	nar, sum, chain := chained(4, size)
	for _, c := range []Chain{nil, chain[:2], append(slices.Clone(chain), State{})} {
		if _, err := NewProof(sum, size, c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d states: %v", len(c), err)
		}
		if _, err := ParseChain(c.Bytes(size), size); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d states: %v", len(c), err)
		}
	}
	p, err := NewProof(sum, size, chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, chunk := range [][]byte{nil, nar[3*ChunkSize : size-1], append(slices.Clone(nar[3*ChunkSize:]), 0), nar[2*ChunkSize : 3*ChunkSize]} {
		if p.Fits(3, chunk) {
			t.Errorf("%d bytes fit", len(chunk))
		}
	}
	for _, i := range []int{-1, 4} {
		if p.Fits(i, nar[:ChunkSize]) {
			t.Errorf("there is a chunk %d", i)
		}
	}
}

func TestAFormOfAnotherVersionIsNotRead(t *testing.T) {
	const size = 3*ChunkSize + 5
	_, _, chain := chained(4, size)
	for i := range chainHeader {
		b := chain.Bytes(size)
		b[i] ^= 2
		if _, err := ParseChain(b, size); !errors.Is(err, ErrMalformed) {
			t.Errorf("header byte %d changed: %v", i, err)
		}
	}
}

func FuzzParseChain(f *testing.F) {
	f.Add([]byte{}, int64(10))
	f.Add(Chain{{1}, {2}}.Bytes(3*ChunkSize), int64(3*ChunkSize))
	f.Add(Chain{{1}}.Bytes(3*ChunkSize), int64(3*ChunkSize))
	f.Add(Chain{}.Bytes(5), int64(5))
	f.Add([]byte{1}, int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		c, err := ParseChain(b, size)
		if err == nil && (len(c) != Chunks(size)-1 || !slices.Equal(c.Bytes(size), b)) {
			t.Errorf("%d bytes, size %d: %d states", len(b), size, len(c))
		}
	})
}
