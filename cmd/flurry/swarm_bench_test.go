package main

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/discovery/static"
	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/p2p"
	"github.com/flurry-nix/flurry/substituter"
	"github.com/flurry-nix/flurry/verify"
)

// Rates of the swarm's links, bytes per second: a receiver of 1 Gbit/s, seeders of 100 Mbit/s.
const (
	swarmReceiver = 125e6
	swarmSeeder   = 12.5e6
	swarmNAR      = 1 << 30
)

// BenchmarkSwarm is the time of one NAR of 1 GiB over real libp2p connections on loopback, whose ends
// hold their rates by the limits that agents have. CPU is that of all agents together.
func BenchmarkSwarm(b *testing.B) {
	s := newSeed(b)
	alone := s.measure(b, "seeders=1", 1, 0, 0)
	for _, liars := range []int{0, 2} {
		took := s.measure(b, fmt.Sprintf("seeders=8/liars=%d", liars), 8, liars, alone)
		if alone > 0 && took > 0 {
			b.Logf("8 seeders, %d liars: %.2f s, %.2f times as quick as one seeder (%.2f s)", liars, took.Seconds(), alone.Seconds()/took.Seconds(), alone.Seconds())
		}
	}
}

// seed is a signed path whose NAR is random.
type seed struct {
	keys  *verify.Keys
	info  *verify.NarInfo
	nar   []byte
	chain []byte
}

func newSeed(b *testing.B) *seed {
	private := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	keys, err := verify.NewKeys([]string{"bench-1:" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))}, nil)
	if err != nil {
		b.Fatal(err)
	}
	path, err := verify.ParseStorePath("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-bench")
	if err != nil {
		b.Fatal(err)
	}
	s := &seed{keys: keys, nar: make([]byte, swarmNAR)}
	rand.NewChaCha8([32]byte{1}).Read(s.nar)
	h := verify.NewChainHash()
	h.Write(s.nar)
	_, chain := h.Sum()
	s.chain = chain.Bytes(swarmNAR)
	s.info = &verify.NarInfo{StorePath: path, URL: "x", Compression: "none", NarHash: sha256.Sum256(s.nar), NarSize: swarmNAR}
	s.info.Sigs = []string{"bench-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte(s.info.Fingerprint())))}
	return s
}

// measure runs seeders of which some lie in every chunk, and a receiver, and returns its time.
func (s *seed) measure(b *testing.B, name string, seeders, liars int, alone time.Duration) (took time.Duration) {
	b.Run(name, func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			nix, stop := s.receiver(b, seeders, liars)
			var before, after syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			b.StartTimer()
			start := time.Now()
			sum := sha256.New()
			n := fetchNAR(nix, binarycache.NARURL(s.info.StorePath.Hash(), s.info.NarHash), sum)
			took = time.Since(start)
			b.StopTimer()
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			if n != swarmNAR || verify.Hash(sum.Sum(nil)) != s.info.NarHash {
				b.Fatalf("%d bytes, not the NAR", n)
			}
			cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			b.ReportMetric(100*cpu.Seconds()/took.Seconds(), "%CPU")
			b.ReportMetric(float64(nix.Stats.FromPeers.Load())/swarmNAR, "fetched/size")
			if alone > 0 {
				b.ReportMetric(alone.Seconds()/took.Seconds(), "x-one-seeder")
			}
			stop()
		}
	})
	return took
}

// fetchNAR asks as Nix does.
func fetchNAR(nix *substituter.Server, url string, w io.Writer) int64 {
	srv := httptest.NewServer(nix.Handler(nil))
	defer srv.Close()
	resp, err := http.Get(srv.URL + "/" + url)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	n, _ := io.Copy(w, resp.Body)
	return n
}

// receiver returns an agent's substituter that knows all seeders.
func (s *seed) receiver(b *testing.B, seeders, liars int) (*substituter.Server, func()) {
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, seeders+2)
	run := func(f func(context.Context) error) { go func() { ended <- f(ctx) }() }
	host := func(rate p2p.Config, c p2p.Catalog) *p2p.Host {
		id, err := p2p.LoadIdentity(filepath.Join(b.TempDir(), "identity"))
		if err != nil {
			b.Fatal(err)
		}
		rate.Listen, rate.StoreDir, rate.ConnectionsPerIP = []string{"127.0.0.1:0"}, "/nix/store", 256
		h, err := p2p.New(rate, id, c)
		if err != nil {
			b.Fatal(err)
		}
		return h
	}
	var addrs []string
	for i := range seeders {
		h := host(p2p.Config{Upload: swarmSeeder}, &seedCatalog{s, i < liars})
		run(func(ctx context.Context) error { return h.Run(ctx) })
		addrs = append(addrs, h.Addrs()[0])
	}
	finder, err := static.New(addrs, static.Config{})
	if err != nil {
		b.Fatal(err)
	}
	me := host(p2p.Config{Download: throttle.New(swarmReceiver)}, &seedCatalog{})
	run(func(ctx context.Context) error { return me.Run(ctx, discovery.Finder(finder)) })
	nix, err := substituter.New(substituter.Config{StateDir: b.TempDir(), CacheSize: 4 << 30, Site: site{me}}, s.keys, noStore{}, neighbours{me}, nil)
	if err != nil {
		b.Fatal(err)
	}
	run(nix.Run)
	d := s.info.StorePath.Hash().Digest()
	for end := time.Now().Add(30 * time.Second); len(me.Holders(d, 0)) < seeders; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal("the seeders do not come together")
		}
	}
	return nix, func() {
		cancel()
		for range cap(ended) {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
	}
}

// noStore is an empty store.
type noStore struct{}

func (noStore) Has(verify.StoreHash) bool                  { return false }
func (noStore) Shared(verify.StoreHash, verify.Scope) bool { return false }
func (noStore) Info(context.Context, verify.StoreHash) (*verify.NarInfo, error) {
	return nil, substituter.ErrAbsent
}
func (noStore) NAR(context.Context, verify.StoreHash) (binarycache.Content, error) {
	return nil, substituter.ErrAbsent
}
func (noStore) AppendNAR(_ context.Context, b []byte, _ verify.StoreHash, _ int64) ([]byte, error) {
	return b, substituter.ErrAbsent
}

// seedCatalog has the seed's path, or nothing.
type seedCatalog struct {
	*seed
	lies bool
}

func (c *seedCatalog) has(h verify.StoreHash) bool {
	return c.seed != nil && c.info.StorePath.Hash() == h
}

func (c *seedCatalog) Keys(verify.Scope) []uint64 {
	if c.seed == nil {
		return nil
	}
	return []uint64{c.info.StorePath.Hash().Digest().Key()}
}

func (c *seedCatalog) Watch(func(p2p.Change)) func() { return func() {} }

func (c *seedCatalog) NarInfo(_ context.Context, d verify.PathDigest, _ verify.Scope) (*verify.NarInfo, error) {
	if c.seed == nil || c.info.StorePath.Hash().Digest() != d {
		return nil, p2p.ErrAbsent
	}
	return c.info, nil
}

func (c *seedCatalog) NAR(_ context.Context, h verify.StoreHash, narHash verify.Hash, _ verify.Scope) (p2p.Content, error) {
	if !c.has(h) || narHash != c.info.NarHash {
		return nil, p2p.ErrAbsent
	}
	return c, nil
}

func (c *seedCatalog) Chain(_ context.Context, h verify.StoreHash, narHash verify.Hash, _ verify.Scope) ([]byte, error) {
	if !c.has(h) || narHash != c.info.NarHash {
		return nil, p2p.ErrAbsent
	}
	return c.seed.chain, nil
}

func (c *seedCatalog) Size() int64  { return swarmNAR }
func (c *seedCatalog) Close() error { return nil }

// WriteRange writes the NAR; a liar's first byte of each piece is wrong.
func (c *seedCatalog) WriteRange(_ context.Context, w io.Writer, off, n int64) (written int64, err error) {
	if c.lies {
		if _, err := w.Write([]byte{c.nar[off] ^ 1}); err != nil {
			return 0, err
		}
		off, n, written = off+1, n-1, 1
	}
	k, err := w.Write(c.nar[off : off+n])
	return written + int64(k), err
}
