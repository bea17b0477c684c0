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

// claimed is a proof with claims.
func claimed(t interface{ Fatal(...any) }, sum Hash, size int64, claims ...Chain) *Proof {
	p, err := NewProof(sum, size)
	for _, c := range claims {
		if err == nil {
			err = p.Claim(c)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

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
		p := claimed(t, sum, size, wire)
		for k, i := range rand.Perm(Chunks(size)) {
			from, to := ChunkRange(i, size)
			l, ok := p.Fits(i, nar[from:to])
			if !ok {
				t.Fatalf("size %d: chunk %d does not fit", size, i)
			}
			if p.Proven() == 0 {
				t.Fatalf("size %d: proven after %d chunks", size, k)
			}
			p.Keep(i, l)
		}
		if p.Proven() != 0 || !slices.Equal(p.Chain(), chain) {
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
	isChunk := func(i, n int, b []byte) bool { // of the signed NAR, i of n
		from, to := ChunkRange(i, size)
		return i < Chunks(size) && (i == n-1) == (to == size) && slices.Equal(b, nar[from:to])
	}
	rapid.Check(t, func(t *rapid.T) {
		claim := slices.Clone(chain)
		shown := slices.Clone(nar)
		forgery := rapid.SampledFrom([]string{"state", "bit", "splice", "swap", "chain", "blend", "length"}).Draw(t, "forgery")
		switch forgery {
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
		size := int64(size)
		if forgery == "length" { // the signed hash with another length, as if bytes were missing at the end, or more came
			size += rapid.Int64Range(-2*ChunkSize, 2*ChunkSize).Filter(func(n int64) bool { return n != 0 }).Draw(t, "more")
			shown = append(shown, other...)[:size]
			claim = append(claim, otherChain...)[:Chunks(size)-1]
		}
		p := claimed(t, sum, size, claim)
		n := Chunks(size)
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		for _, i := range rapid.Permutation(order).Draw(t, "order") {
			from, to := ChunkRange(i, size)
			right := isChunk(i, n, shown[from:to])
			if l, ok := p.Fits(i, shown[from:to]); ok {
				p.Keep(i, l)
			} else if right && (i == 0 || claim[i-1] == chain[i-1]) && (i == n-1 || claim[i] == chain[i]) {
				t.Fatalf("right chunk %d between right states is refused", i)
			}
		}
		if p.Proven() == 0 {
			t.Fatal("a forgery was proven whole")
		}
		for i := p.Proven(); i < n; i++ {
			if from, to := ChunkRange(i, size); !isChunk(i, n, shown[from:to]) {
				t.Fatalf("chunk %d is proven but wrong", i)
			}
		}
	})
}

// TestAmongLiesTheTruthIsProven: as long as one claim is right, right bytes are proven whatever the
// other claims are and whatever wrong bytes were kept for a while because they fitted a lie; wrong ones
// never are.
func TestAmongLiesTheTruthIsProven(t *testing.T) {
	const size, n = 3*ChunkSize + 1000, 4
	nar, sum, chain := chained(2, size)
	other, _, otherChain := chained(3, size)
	rapid.Check(t, func(t *rapid.T) {
		claims := []Chain{chain}
		for range rapid.IntRange(0, MaxClaims-1).Draw(t, "lies") {
			claims = append(claims, lie(t, chain, otherChain))
		}
		claims = rapid.Permutation(claims).Draw(t, "claims")
		p := claimed(t, sum, size, claims[0])
		var wrong [n]bool // the bytes that are kept
		for len(claims) > 0 || p.Proven() > 0 {
			if rapid.IntRange(0, 9).Draw(t, "claim") < 3 && len(claims) > 0 || p.Proven() > 0 && !slices.Contains(p.kept, false) {
				if claims = claims[1:]; len(claims) > 0 {
					p.Claim(claims[0])
				}
				continue
			}
			i := rapid.IntRange(0, n-1).Draw(t, "chunk")
			if p.Kept(i) {
				continue
			}
			from, to := ChunkRange(i, size)
			shown := nar[from:to]
			if wrong[i] = rapid.IntRange(0, 3).Draw(t, "liar") == 0; wrong[i] {
				shown = other[from:to]
			}
			if l, ok := p.Fits(i, shown); ok {
				p.Keep(i, l)
			}
			if slices.Contains(wrong[p.Proven():], true) {
				t.Fatalf("proven from %d on, wrong: %v", p.Proven(), wrong)
			}
		}
		if slices.Contains(wrong[:], true) || !slices.Equal(p.Chain(), chain) {
			t.Fatal("proven, but not the NAR")
		}
	})
}

// lie makes a chain of which each state is right, another NAR's or nonsense.
func lie(t *rapid.T, chain, otherChain Chain) Chain {
	c := slices.Clone(chain)
	for i := range c {
		switch rapid.IntRange(0, 3).Draw(t, "lie") {
		case 0:
			c[i] = otherChain[i]
		case 1:
			c[i][0] ^= 1
		}
	}
	return c
}

// TestAdoptingIsAsGoodAsShowing: what is taken over from states in order is what the bytes would show.
func TestAdoptingIsAsGoodAsShowing(t *testing.T) {
	const size = 2*ChunkSize + 1000
	nar, sum, chain := chained(2, size)
	_, _, otherChain := chained(3, size)
	rapid.Check(t, func(t *rapid.T) {
		shown := slices.Clone(nar)
		wrong := rapid.IntRange(0, 3).Draw(t, "wrong") // chunk; 3: none
		if wrong < 3 {
			shown[wrong*ChunkSize] ^= 1
		}
		h := NewChainHash()
		h.Write(shown[:rapid.IntRange(0, size).Draw(t, "front")])
		_, computed := h.Sum()
		p := claimed(t, sum, size, lie(t, chain, otherChain), chain)
		p.Adopt(computed)
		for i := range 3 {
			if want := i < min(len(computed), wrong); p.Kept(i) != want {
				t.Fatalf("chunk %d of %d in order, %d wrong: adopted %v", i, len(computed), wrong, p.Kept(i))
			}
		}
	})
}

func TestChainsOfTheWrongLengthAreRefused(t *testing.T) {
	const size = 3*ChunkSize + 5
	nar, sum, chain := chained(4, size)
	for _, c := range []Chain{nil, chain[:2], append(slices.Clone(chain), State{})} {
		if err := claimed(t, sum, size).Claim(c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d states: %v", len(c), err)
		}
		if _, err := ParseChain(c.Bytes(size), size); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d states: %v", len(c), err)
		}
	}
	p := claimed(t, sum, size, chain)
	for _, chunk := range [][]byte{nil, nar[3*ChunkSize : size-1], append(slices.Clone(nar[3*ChunkSize:]), 0), nar[2*ChunkSize : 3*ChunkSize]} {
		if _, ok := p.Fits(3, chunk); ok {
			t.Errorf("%d bytes fit", len(chunk))
		}
	}
	if _, ok := p.Fits(1, append(nar[ChunkSize:2*ChunkSize:2*ChunkSize], 1, 2, 3)); ok {
		t.Error("a chunk and three bytes more fit")
	}
	for _, i := range []int{-1, 4} {
		if _, ok := p.Fits(i, nar[:ChunkSize]); ok {
			t.Errorf("there is a chunk %d", i)
		}
	}
}

func TestOnlySoManyClaimsAreWeighed(t *testing.T) {
	const size = 3*ChunkSize + 5
	_, sum, chain := chained(4, size)
	p := claimed(t, sum, size)
	for i := range MaxClaims + 1 {
		if err := p.Claim(chain); (err != nil) != (i == MaxClaims) {
			t.Errorf("claim %d: %v", i+1, err)
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

// BenchmarkHash is what noting the states costs over SHA-256 alone, and what checking chunk by chunk does.
func BenchmarkHash(b *testing.B) {
	const size = 64 * ChunkSize
	nar, sum, chain := chained(5, size)
	p := claimed(b, sum, size, chain)
	for name, hash := range map[string]func(){
		"sha256": func() { sha256.Sum256(nar) },
		"chain":  func() { NewChainHash().Write(nar) },
		"chunks": func() {
			for i := range Chunks(size) {
				from, to := ChunkRange(i, size)
				p.Fits(i, nar[from:to])
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				hash()
			}
		})
	}
}
