package substituter

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// steady is an honest peer of 64 MB/s with a chain.
var steady = behaviour{corrupt: -1, perRead: time.Millisecond, chain: trueChain}

// everyChunk corrupts a byte of each chunk.
func everyChunk(b behaviour, size int) behaviour {
	for off := 1000; off < size; off += verify.ChunkSize {
		b.alsoCorrupt = append(b.alsoCorrupt, off)
	}
	return b
}

// wantVerdicts checks who was convicted; names of the guilty.
func wantVerdicts(t *testing.T, w *world, guilty ...string) {
	t.Helper()
	for _, p := range w.peers.list {
		if convicted := len(p.convicts) > 0; convicted != slices.Contains(guilty, p.id) {
			t.Errorf("%s convicted: %v", p.id, p.convicts)
		}
	}
}

func TestLiarsAmongManyCostAChunkNotTheNAR(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 64 * mib
		w := newWorld(t, size)
		for i := range 8 {
			b := steady
			if i == 2 || i == 5 {
				b = everyChunk(b, size)
			}
			w.peer(fmt.Sprint("p", i), b)
		}
		s := w.start()
		start := time.Now()
		w.wantNAR(get(s, w.narURL()))
		if took := time.Since(start); took > 300*time.Millisecond {
			t.Errorf("took %v, six honest ones need 171 ms", took)
		}
		// Two runs a liar: the second is asked for before the first is judged.
		if more := s.Stats.FromPeers.Load() - size; more > 4*runFirst {
			t.Errorf("%d bytes were fetched twice", more)
		}
		wantVerdicts(t, w, "p2", "p5")
	})
}

func TestWithoutOrWithWrongChainsNothingIsWorse(t *testing.T) {
	const size = 9 * mib
	other := func(w *world) verify.Chain {
		h := verify.NewChainHash()
		h.Write(make([]byte, size))
		_, c := h.Sum()
		return c
	}
	cases := map[string]func(*world) verify.Chain{
		"none":               nil,
		"another NAR's":      other,
		"of nothing":         func(*world) verify.Chain { return make(verify.Chain, 8) },
		"too short":          func(w *world) verify.Chain { return trueChain(w)[:7] },
		"too long":           func(w *world) verify.Chain { return append(trueChain(w), verify.State{}) },
		"first state wrong":  func(w *world) verify.Chain { c := trueChain(w); c[0][0] ^= 1; return c },
		"last state wrong":   func(w *world) verify.Chain { c := trueChain(w); c[7][0] ^= 1; return c },
		"two states swapped": func(w *world) verify.Chain { c := trueChain(w); c[3], c[5] = c[5], c[3]; return c },
	}
	for name, chain := range cases {
		for liars := 1; liars <= 5; liars += 4 { // among 5, those that are asked first
			if testing.Short() && liars > 1 {
				continue
			}
			t.Run(fmt.Sprint(name, " ", liars), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, size)
					for i := range 5 {
						b := steady
						if i < liars {
							b.chain = chain
						}
						w.peer(fmt.Sprint("p", i), b)
					}
					s := w.start()
					w.wantNAR(get(s, w.narURL()))
					wantVerdicts(t, w)
					if more := s.Stats.FromPeers.Load() - size; more > size {
						t.Errorf("%d bytes were fetched twice", more)
					}
				})
			})
		}
	}
}

// TestLiarsThatAgreeConvictNobodyElse: several identities send the same wrong bytes and claim the chain
// that fits them up to a point; no claim of theirs can lead to the signed hash.
func TestLiarsThatAgreeConvictNobodyElse(t *testing.T) {
	const size = 9*mib + 500
	for _, liars := range []int{2, 5} {
		for _, upTo := range []int{1, 5, 9} { // chunks of theirs, the rest is right
			t.Run(fmt.Sprint(liars, " ", upTo), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, size)
					theirs := slices.Clone(w.nar)
					for i := range upTo * mib {
						theirs[i] ^= 0x33
					}
					h := verify.NewChainHash()
					h.Write(theirs)
					_, c := h.Sum()
					b := steady
					b.other, b.chain = theirs, func(w *world) verify.Chain { return slices.Concat(c[:upTo-1], trueChain(w)[upTo-1:]) }
					for i := range liars {
						w.peer(fmt.Sprint("liar", i), b)
					}
					for i := range 3 {
						w.peer(fmt.Sprint("honest", i), steady)
					}
					w.wantNAR(get(w.start(), w.narURL()))
					for _, p := range w.peers.list {
						if p.other == nil && len(p.convicts) > 0 {
							t.Errorf("%s is convicted for others' lies: %v", p.id, p.convicts)
						}
					}
				})
			})
		}
	}
}

// TestAWrongWholeIsMendedByALateChain: nobody had a chain while the NAR came; when it turns out wrong as
// a whole, one shows which chunk to fetch again.
func TestAWrongWholeIsMendedByALateChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 32 * mib
		w := newWorld(t, size)
		b := steady
		b.chain = nil
		w.peer("old0", b)
		w.peer("liar", func() behaviour { b := b; b.corrupt = 29 * mib; return b }())
		start := time.Now()
		late := steady
		late.perRead = 5 * time.Millisecond
		late.chain = func(w *world) verify.Chain {
			time.Sleep(100*time.Millisecond + 300*time.Millisecond - time.Since(start)) // once all is there
			return trueChain(w)
		}
		w.peer("late", late)
		s := w.start()
		w.wantNAR(get(s, w.narURL()))
		wantVerdicts(t, w, "liar")
		if more := s.Stats.FromPeers.Load() - size; more > 2*mib {
			t.Errorf("%d bytes were fetched twice", more)
		}
	})
}

// TestSwarmsInAllWeathers mixes honest and hostile peers at random: Nix gets the right bytes in bounded
// time, and only peers that sent wrong bytes are convicted.
func TestSwarmsInAllWeathers(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() { // under the race detector hashing takes ten times as long
		seeds = 4
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 3))
				size := chainLeast + rng.IntN(6*mib)
				w := newWorld(t, size)
				theirs := make([]byte, size) // another NAR of the same size
				h := verify.NewChainHash()
				h.Write(theirs)
				_, theirChain := h.Sum()
				honest := 0
				for i := range 2 + rng.IntN(7) {
					b := steady
					b.perRead = time.Duration(1+rng.IntN(8)) * time.Millisecond
					name := fmt.Sprint("liar", i)
					switch rng.IntN(8) {
					case 0: // one wrong byte
						b.corrupt = rng.IntN(size)
					case 1:
						b = everyChunk(b, size)
					case 2: // a lying chain, honest bytes
						name = fmt.Sprint("claims", i)
						b.chain = func(*world) verify.Chain { return theirChain }
					case 3: // another NAR with its chain
						b.other, b.chain = theirs, func(*world) verify.Chain { return theirChain }
					case 4: // the other NAR's head, with a chain of both
						cut := 1 + rng.IntN(len(theirChain))
						b.other = slices.Concat(theirs[:cut*mib], w.nar[cut*mib:])
						b.chain = func(w *world) verify.Chain { return slices.Concat(theirChain[:cut], trueChain(w)[cut:]) }
					case 5: // dies or stalls on its way
						name = fmt.Sprint("weak", i)
						b.stopAt, b.stall = 1+rng.IntN(size), rng.IntN(2) == 0
					case 6:
						name = fmt.Sprint("old", i)
						b.chain = nil
					default:
						name = fmt.Sprint("honest", i)
						honest++
					}
					w.peer(name, b)
				}
				w.upstream("x", behaviour{corrupt: -1, perRead: 4 * time.Millisecond})
				start := time.Now()
				w.wantNAR(get(w.start(), w.narURL()))
				if took := time.Since(start); took > 30*time.Second {
					t.Errorf("took %v", took)
				}
				for _, p := range w.peers.list {
					if lied := p.corrupt >= 0 || p.other != nil || p.alsoCorrupt != nil; !lied && len(p.convicts) > 0 {
						t.Errorf("%s is convicted: %v", p.id, p.convicts)
					}
				}
			})
		})
	}
}

// TestASlowLargeNARStreamsBeforeNixGivesUp: peers alone would need longer than Nix waits for a first
// byte, so a central cache brings the front, which streams, and peers the rest.
func TestASlowLargeNARStreamsBeforeNixGivesUp(t *testing.T) {
	for _, peers := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			const size = 32 * mib
			w := newWorld(t, size)
			slow := steady
			slow.perRead = time.Duration(peers) * 20 * time.Millisecond // all together 10 s
			for i := range peers {
				w.peer(fmt.Sprint("p", i), slow)
			}
			up := w.upstream("x", behaviour{corrupt: -1, perRead: 40 * time.Millisecond}) // 20 s
			w.firstByte = 4 * time.Second
			s := w.start()
			got, err := s.finder.find(t.Context(), w.path.Hash())
			if err != nil {
				t.Fatal(err)
			}
			r, _, err := s.flights.join(got.v, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer r.close()
			start := time.Now()
			if _, err := r.await(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > w.firstByte {
				t.Errorf("%d peers: the first byte came after %v", peers, took)
			}
			var out bytes.Buffer
			if _, err := r.WriteRange(t.Context(), &out, 0, size); err != nil || !bytes.Equal(out.Bytes(), w.nar) {
				t.Errorf("%d peers: %d bytes, %v", peers, out.Len(), err)
			}
			took := time.Since(start)
			if took > 9*time.Second {
				t.Errorf("%d peers: took %v; they alone need 10 s, all together 7 s", peers, took)
			}
			if from := s.Stats.FromUpstream.Load(); from == 0 || from > size/2 {
				t.Errorf("%d peers: %d bytes from upstream", peers, from)
			}
			if len(up.opened) != 1 {
				t.Errorf("%d peers: upstream was asked from %v", peers, up.opened)
			}
		})
	}
}

// TestPeersThatSufficeLeaveTheCentralCacheAlone: that peers work from the end on leaves a gap in front,
// which is no reason to ask upstream.
func TestPeersThatSufficeLeaveTheCentralCacheAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 32*mib)
		for _, id := range []string{"A", "B"} {
			w.peer(id, steady)
		}
		up := w.upstream("x", honest)
		w.wantNAR(get(w.start(), w.narURL()))
		if len(up.asked()) > 0 {
			t.Error("upstream was asked")
		}
	})
}

// TestTheLastBytesAreAskedFromTwo: a source that is slow with the very end is overtaken there.
func TestTheLastBytesAreAskedFromTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 9*mib)
		w.peer("fast", steady)
		slow := steady
		slow.perRead = 150 * time.Millisecond // 16 such make a chunk
		w.peer("slow", slow)
		s := w.start()
		start := time.Now()
		if rec := get(s, w.narURL()); rec == nil || rec.Code != http.StatusOK {
			t.Fatal("not served")
		}
		if took := time.Since(start); took > 450*time.Millisecond {
			t.Errorf("took %v; the slow one alone needs 2.4 s for a chunk", took)
		}
	})
}

// TestAChunkThatNixHasSeenIsNotReplaced: the central cache streams a wrong byte while peers bring the rest and have the right
// chain. The answer is cut, not mended under Nix's eyes, the next one is right, and the peers are not to blame.
func TestAChunkThatNixHasSeenIsNotReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 32 * mib
		w := newWorld(t, size)
		slow := steady
		slow.perRead = 20 * time.Millisecond
		w.peer("p", slow)
		w.peer("q", slow)
		w.upstream("x", behaviour{corrupt: 1000, perRead: 40 * time.Millisecond})
		w.firstByte = 4 * time.Second
		s := w.start()
		start := time.Now()
		if rec := get(s, w.narURL()); rec != nil {
			t.Errorf("ended with %d and %d bytes", rec.Code, rec.Body.Len())
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("cut after %v", took)
		}
		w.wantNAR(get(s, w.narURL()))
		wantVerdicts(t, w)
		if _, distrusted := s.flights.distrust.Load("http://x"); !distrusted {
			t.Error("the central cache is still trusted")
		}
	})
}

// TestFewAreAskedForChains: where nobody has one, not all of a large site are asked.
func TestFewAreAskedForChains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 32*mib)
		b := steady
		b.chain, b.perRead = nil, 10*time.Millisecond
		for i := range 3 * askMost {
			w.peer(fmt.Sprint("p", i), b)
		}
		w.wantNAR(get(w.start(), w.narURL()))
		asked := 0
		for _, p := range w.peers.list {
			asked += p.chains
		}
		if asked != askMost {
			t.Errorf("%d were asked, want %d", asked, askMost)
		}
	})
}
