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
		wire, err := ParseChain(chain.Bytes(), size)
		if err != nil || !slices.Equal(wire, chain) {
			t.Fatalf("size %d: %d states came back as %d, %v", size, len(chain), len(wire), err)
		}
		p, err := NewProof(sum, size, wire)
		if err != nil {
			t.Fatal(err)
		}
		for p.Next() >= 0 {
			from, to := ChunkRange(p.Next(), size)
			if err := p.Show(nar[from:to]); err != nil {
				t.Fatalf("size %d: %v", size, err)
			}
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
		for p.Next() >= 0 {
			i := p.Next()
			from, to := ChunkRange(i, size)
			if err := p.Show(shown[from:to]); err != nil {
				if !errors.Is(err, ErrChunk) {
					t.Fatal(err)
				}
				if slices.Equal(shown[from:to], nar[from:to]) && (i == 0 || claim[i-1] == chain[i-1]) {
					t.Fatalf("right chunk %d with a right state is refused", i)
				}
				return
			}
			if !slices.Equal(shown[from:to], nar[from:to]) || i > 0 && claim[i-1] != chain[i-1] {
				t.Fatalf("chunk %d is proven but wrong", i)
			}
		}
		t.Fatal("a forgery was proven whole")
	})
}

func TestChainsOfTheWrongLengthAreRefused(t *testing.T) {
	const size = 3*ChunkSize + 5
	nar, sum, chain := chained(4, size)
	for _, c := range []Chain{nil, chain[:2], append(slices.Clone(chain), State{})} {
		if _, err := NewProof(sum, size, c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d states: %v", len(c), err)
		}
		if _, err := ParseChain(c.Bytes(), size); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d states: %v", len(c), err)
		}
	}
	p, err := NewProof(sum, size, chain)
	if err != nil {
		t.Fatal(err)
	}
	for _, chunk := range [][]byte{nil, nar[3*ChunkSize : size-1], append(slices.Clone(nar[3*ChunkSize:]), 0), nar[2*ChunkSize : 3*ChunkSize]} {
		if err := p.Show(chunk); !errors.Is(err, ErrChunk) {
			t.Errorf("%d bytes: %v", len(chunk), err)
		}
	}
}

func FuzzParseChain(f *testing.F) {
	f.Add([]byte{}, int64(10))
	f.Add(make([]byte, 64), int64(3*ChunkSize))
	f.Add(make([]byte, 63), int64(3*ChunkSize))
	f.Add([]byte{1}, int64(-1))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		c, err := ParseChain(b, size)
		if err == nil && (len(c) != Chunks(size)-1 || !slices.Equal(c.Bytes(), b)) {
			t.Errorf("%d bytes, size %d: %d states", len(b), size, len(c))
		}
	})
}
