package p2p

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/p2p/p2ptest"
	"github.com/flurry-nix/flurry/verify"
)

// fakeCatalog serves NARs from memory.
type fakeCatalog struct {
	mu    sync.Mutex
	paths map[verify.StoreHash]fakePath
	watch []func(Change)
	chain func(context.Context) ([]byte, error) // nil: computed
}

type fakePath struct {
	nar   []byte
	scope verify.Scope
	info  *verify.NarInfo
}

func newFakeCatalog() *fakeCatalog { return &fakeCatalog{paths: map[verify.StoreHash]fakePath{}} }

// add makes a path whose NAR is n random bytes.
func (c *fakeCatalog) add(t testing.TB, seed uint64, n int, scope verify.Scope) (verify.StoreHash, verify.Hash) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 1))
	nar := make([]byte, n)
	var h verify.StoreHash
	for i := range nar {
		nar[i] = byte(rng.Uint32())
	}
	for i := range h {
		h[i] = byte(rng.Uint32())
	}
	path, err := verify.ParseStorePath("/nix/store/" + h.String() + "-x")
	if err != nil {
		t.Fatal(err)
	}
	sum := verify.Hash(sha256.Sum256(nar))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paths[h] = fakePath{nar, scope, &verify.NarInfo{StorePath: path, URL: "x", Compression: "none", NarHash: sum, NarSize: int64(n)}}
	for _, fn := range c.watch {
		fn(Change{Added: []ChangedKey{{h.Digest().Key(), scope}}})
	}
	return h, sum
}

func (c *fakeCatalog) remove(h verify.StoreHash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	scope := c.paths[h].scope
	delete(c.paths, h)
	for _, fn := range c.watch {
		fn(Change{Removed: []ChangedKey{{h.Digest().Key(), scope}}})
	}
}

func (c *fakeCatalog) Keys(reader verify.Scope) (keys []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for h, p := range c.paths {
		if p.scope >= reader {
			keys = append(keys, h.Digest().Key())
		}
	}
	return keys
}

func (c *fakeCatalog) Watch(fn func(Change)) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watch = append(c.watch, fn)
	return func() {}
}

func (c *fakeCatalog) NarInfo(_ context.Context, d verify.PathDigest, reader verify.Scope) (*verify.NarInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for h, p := range c.paths {
		if h.Digest() == d && p.scope >= reader {
			return p.info, nil
		}
	}
	return nil, ErrAbsent
}

func (c *fakeCatalog) NAR(_ context.Context, h verify.StoreHash, narHash verify.Hash, reader verify.Scope) (Content, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.paths[h]
	if !ok || p.scope < reader || p.info.NarHash != narHash {
		return nil, ErrAbsent
	}
	return memContent(p.nar), nil
}

// Chain hashes while the asker waits.
func (c *fakeCatalog) Chain(ctx context.Context, h verify.StoreHash, narHash verify.Hash, reader verify.Scope) ([]byte, error) {
	if c.chain != nil {
		return c.chain(ctx)
	}
	content, err := c.NAR(ctx, h, narHash, reader)
	if err != nil {
		return nil, err
	}
	sum := verify.NewChainHash()
	content.WriteRange(ctx, sum, 0, content.Size())
	_, chain := sum.Sum()
	return chain.Bytes(content.Size()), nil
}

type memContent []byte

func (m memContent) Size() int64  { return int64(len(m)) }
func (m memContent) Close() error { return nil }
func (m memContent) WriteRange(_ context.Context, w io.Writer, off, n int64) (int64, error) {
	k, err := w.Write(m[off : off+n])
	return int64(k), err
}

// startHost runs a host on loopback until the test ends.
func startHost(t *testing.T, c Catalog, finders ...discovery.Finder) *Host {
	t.Helper()
	id, err := LoadIdentity(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Listen: []string{"127.0.0.1:0"}, StoreDir: "/nix/store", UserAgent: "flurry/test", ConnectionsPerIP: 256}, id, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx, finders...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error("Run:", err)
		}
	})
	return h
}

// at is a finder that always says the same.
type at discovery.Found

func (a at) Run(ctx context.Context, found func(discovery.Found)) error {
	found(discovery.Found(a))
	<-ctx.Done()
	return nil
}

// whereIs is a static hint at h, with or without its identity.
func whereIs(h *Host, withID bool) at {
	f := discovery.Found{Via: discovery.ViaStatic, Name: "test", Keep: true}
	for _, a := range h.host.Addrs() {
		f.Addrs = append(f.Addrs, a.String())
	}
	if withID {
		f.PeerID = h.ID()
	}
	return at(f)
}

// eventually waits for cond.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatal("never: " + what)
}

func TestANeighbourServesWhatItsHaveSetClaims(t *testing.T) {
	for _, withID := range []bool{true, false} {
		c := newFakeCatalog()
		h1, sum := c.add(t, 1, 3<<20, verify.ScopePublic)
		a := startHost(t, c)
		b := startHost(t, newFakeCatalog(), whereIs(a, withID))

		eventually(t, "b learns what a has", func() bool { return len(b.Holders(h1.Digest(), 0)) == 1 })
		p := b.Holders(h1.Digest(), 0)[0]
		if p.ID() != a.ID() {
			t.Fatalf("holder %s, want %s", p.ID(), a.ID())
		}
		info, err := p.NarInfo(t.Context(), h1.Digest())
		if err != nil || info.NarHash != sum {
			t.Fatal(info, err)
		}
		for _, off := range []int64{0, 1, 2 << 20, 3<<20 - 1} {
			body, err := p.NAR(t.Context(), h1, sum, 3<<20, off, 3<<20)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			body.Close()
			if err != nil || !bytes.Equal(got, c.paths[h1].nar[off:]) {
				t.Fatalf("from %d: %d bytes, %v", off, len(got), err)
			}
		}
		// Later arrivals and removals travel as deltas.
		h2, _ := c.add(t, 2, 10, verify.ScopePublic)
		eventually(t, "an arrival is known", func() bool { return len(b.Holders(h2.Digest(), 0)) == 1 })
		c.remove(h1)
		eventually(t, "a removal is known", func() bool { return len(b.Holders(h1.Digest(), 0)) == 0 })
		if _, err := p.NarInfo(t.Context(), h1.Digest()); !errors.Is(err, ErrAbsent) {
			t.Fatal("removed path:", err)
		}
	}
}

// One filter on connect; what changes then travels as changes, also for who is long connected.
func TestAHaveSetIsSentOnceAndThenItsChanges(t *testing.T) {
	c := newFakeCatalog()
	first, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	r := startRecorder(t, p2ptest.Config{})
	id := connectRecorder(t, r, a)
	for seed := uint64(2); seed < 6; seed++ {
		h, _ := c.add(t, seed, 10, verify.ScopePublic)
		if err := r.Wait(t.Context(), func() bool { return r.EverClaimed(h.Digest()) }); err != nil {
			t.Fatal(err)
		}
	}
	c.remove(first)
	if err := r.Wait(t.Context(), func() bool { return r.Withdrawn(id, first.Digest()) }); err != nil {
		t.Fatal(err)
	}
	if n := r.Snapshots(id); n != 1 {
		t.Errorf("%d filters were sent for six changes", n)
	}
}

// A filter takes little more than two bytes a path, and 24 of them are wrong about one path in a thousand at most.
func TestHaveSetsAreSmallAndSeldomWrong(t *testing.T) {
	const paths, questions, neighbours = 20_000, 10_000, 24
	rng := rand.New(rand.NewPCG(1, 2))
	wrong := 0
	for range neighbours {
		keys := make([]uint64, paths)
		for i := range keys {
			keys[i] = rng.Uint64()
		}
		body, err := encodeSnapshot(nil, keys)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > 5*paths/2 {
			t.Fatalf("%d bytes for %d paths", len(body), paths)
		}
		f, count, err := readSnapshot(bytes.NewReader(body), int64(len(body)), always)
		if err != nil {
			t.Fatal(err)
		}
		var s haveSet
		s.replace(f, count)
		for _, k := range keys[:100] {
			if !s.Has(k) {
				t.Fatal("a path is missing")
			}
		}
		for range questions {
			if s.Has(rng.Uint64()) {
				wrong++
			}
		}
	}
	if wrong > questions/1000 {
		t.Errorf("%d of %d questions would be packets", wrong, questions)
	}
}

func TestGroupPathsStayInvisibleToStrangers(t *testing.T) {
	c := newFakeCatalog()
	public, _ := c.add(t, 1, 10, verify.ScopePublic)
	private, sum := c.add(t, 2, 10, verify.ScopeGroup)
	a := startHost(t, c)
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "b knows the public path", func() bool { return len(b.Holders(public.Digest(), 0)) == 1 })
	later, _ := c.add(t, 3, 10, verify.ScopeGroup)
	marker, _ := c.add(t, 4, 10, verify.ScopePublic)
	eventually(t, "b knows the marker", func() bool { return len(b.Holders(marker.Digest(), 0)) == 1 })
	p := b.Holders(public.Digest(), 0)[0]
	for _, h := range []verify.StoreHash{private, later} {
		if p.Claims(h.Digest()) {
			t.Error("the have-set names a private path")
		}
		if _, err := p.NarInfo(t.Context(), h.Digest()); !errors.Is(err, ErrAbsent) {
			t.Error("narinfo of a private path:", err)
		}
	}
	if _, err := p.NAR(t.Context(), private, sum, 10, 0, 10); !errors.Is(err, ErrAbsent) {
		t.Error("NAR of a private path:", err)
	}
}

func TestPausedHostSharesNothing(t *testing.T) {
	c := newFakeCatalog()
	h, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "known", func() bool { return len(b.Holders(h.Digest(), 0)) == 1 })
	p := b.Holders(h.Digest(), 0)[0]
	a.Pause(true)
	eventually(t, "withdrawn", func() bool { return !p.Claims(h.Digest()) })
	if _, err := p.NarInfo(t.Context(), h.Digest()); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	a.Pause(false)
	eventually(t, "back", func() bool { return p.Claims(h.Digest()) })
}

func TestAPeerThatLeavesIsForgottenAndFoundAgain(t *testing.T) {
	c := newFakeCatalog()
	h, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	b := startHost(t, newFakeCatalog(), whereIs(a, false))
	eventually(t, "known", func() bool { return len(b.Holders(h.Digest(), 0)) == 1 })
	b.host.Network().ClosePeer(a.host.ID())
	eventually(t, "known again", func() bool { return len(b.Holders(h.Digest(), 0)) == 1 })
}

func TestAConvictedPeerIsShutOut(t *testing.T) {
	c := newFakeCatalog()
	h, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "known", func() bool { return len(b.Holders(h.Digest(), 0)) == 1 })
	b.Holders(h.Digest(), 0)[0].Convict(errors.New("test"))
	eventually(t, "disconnected", func() bool { return !b.isConnected(a.host.ID()) })
	if _, err := b.connect(t.Context(), a.host.ID(), whereIs(a, true).Addrs); err == nil {
		t.Error("a banned peer was dialled")
	}
	if len(b.Holders(h.Digest(), 0)) != 0 {
		t.Error("a banned peer is asked")
	}
}
