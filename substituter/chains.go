package substituter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

const (
	// chainLeast is the size in bytes from which on a NAR's chain is kept, offered and asked for. Below,
	// fetching the whole again is as cheap as a repair.
	chainLeast = 8 << 20
	chainBytes = 32 << 20 // of all chains on disk: those of 1 TiB of NARs
	chainCount = 4096     // files
	chainQueue = 16       // NARs of the store whose chain somebody waits for
	chainStep  = 4 << 20  // bytes hashed before others get the processor
	chainPause = 50 * time.Millisecond
)

// chains keeps the chains of verified NARs on disk, the least recently used dropped first, and computes
// those of store paths that are asked for, one at a time and on at most half a processor. A file holds
// the chain's form and SHA-256 of that behind the NarHash: what rotted is not offered. Even so a chain
// read from here is a claim, as any other. Safe for concurrent use.
type chains struct {
	dir  string // "" keeps none
	log  *slog.Logger
	jobs chan *chainJob

	mu      sync.Mutex
	kept    *simplelru.LRU[verify.Hash, int] // length of each file
	bytes   int
	running map[verify.Hash]*chainJob
}

// chainJob is one chain to be computed; done is closed when that was tried.
type chainJob struct {
	v    *verify.Verified
	open func(context.Context) (binarycache.Content, error)
	done chan struct{}
}

// newChains opens the directory, which exists.
func newChains(dir string, log *slog.Logger) (*chains, error) {
	c := &chains{dir: dir, log: log, jobs: make(chan *chainJob, chainQueue), running: map[verify.Hash]*chainJob{}}
	kept, err := simplelru.NewLRU(chainCount, func(h verify.Hash, n int) {
		c.bytes -= n
		os.Remove(c.file(h))
	})
	if err != nil {
		return nil, err
	}
	c.kept = kept
	if dir == "" {
		return c, nil
	}
	c.load()
	return c, nil
}

// load takes over what a predecessor left, oldest first.
func (c *chains) load() {
	entries, _ := os.ReadDir(c.dir)
	type old struct {
		h    verify.Hash
		n    int
		used time.Time
	}
	var list []old
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".chain")
		h, err := verify.ParseHashBase32(name)
		info, ierr := e.Info()
		if !ok || err != nil || ierr != nil {
			os.Remove(filepath.Join(c.dir, e.Name()))
			continue
		}
		list = append(list, old{h, int(info.Size()), info.ModTime()})
	}
	slices.SortFunc(list, func(a, b old) int { return a.used.Compare(b.used) })
	for _, o := range list {
		c.add(o.h, o.n)
	}
}

func (c *chains) file(h verify.Hash) string { return filepath.Join(c.dir, h.Base32()+".chain") }

// add notes a file and drops others for it; mu is held, or nobody else knows c yet.
func (c *chains) add(h verify.Hash, n int) {
	if old, ok := c.kept.Peek(h); ok {
		c.bytes -= old
	}
	c.kept.Add(h, n)
	for c.bytes += n; c.bytes > chainBytes; {
		c.kept.RemoveOldest()
	}
}

// get returns the form of the chain of a NAR of size bytes.
func (c *chains) get(h verify.Hash, size int64) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.kept.Get(h); !ok {
		return nil, false
	}
	b, err := os.ReadFile(c.file(h))
	if err == nil && len(b) == verify.ChainLen(size)+sha256.Size {
		form := b[:len(b)-sha256.Size]
		if _, err := verify.ParseChain(form, size); err == nil && bytes.Equal(b[len(form):], chainSum(h, form)) {
			now := time.Now()
			os.Chtimes(c.file(h), now, now)
			return form, true
		}
	}
	c.kept.Remove(h)
	return nil, false
}

// put keeps the chain of a NAR that was verified. It is not synced: a torn file is not offered.
func (c *chains) put(h verify.Hash, size int64, chain verify.Chain) {
	if c.dir == "" || size < chainLeast || verify.ChainLen(size)+sha256.Size > chainBytes {
		return
	}
	form := chain.Bytes(size)
	b := append(form, chainSum(h, form)...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.kept.Get(h); ok {
		return
	}
	tmp := c.file(h) + ".new"
	err := os.WriteFile(tmp, b, 0o600)
	if err == nil {
		err = os.Rename(tmp, c.file(h))
	}
	if err != nil {
		c.log.Warn("a chain could not be kept; is the state directory's disk full?", "err", err)
		return
	}
	c.add(h, len(b))
}

func chainSum(h verify.Hash, form []byte) []byte {
	sum := sha256.New()
	sum.Write(h[:])
	sum.Write(form)
	return sum.Sum(nil)
}

// of returns the form of the chain of v's NAR, computed from what open returns if it is not kept.
// [ErrBusy] means that too many are waited for, [ErrAbsent] that it has none.
func (c *chains) of(ctx context.Context, v *verify.Verified, open func(context.Context) (binarycache.Content, error)) ([]byte, error) {
	if v.NarSize() < chainLeast || c.dir == "" {
		return nil, ErrAbsent
	}
	if form, ok := c.get(v.NarHash(), v.NarSize()); ok {
		return form, nil
	}
	job, err := c.enqueue(v, open)
	if err != nil {
		return nil, err
	}
	select {
	case <-job.done:
	case <-ctx.Done():
		return nil, ErrBusy // it goes on; the next one who asks finds it
	}
	if form, ok := c.get(v.NarHash(), v.NarSize()); ok {
		return form, nil
	}
	return nil, ErrAbsent
}

// enqueue has a chain computed, once for all who ask.
func (c *chains) enqueue(v *verify.Verified, open func(context.Context) (binarycache.Content, error)) (*chainJob, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if job := c.running[v.NarHash()]; job != nil {
		return job, nil
	}
	job := &chainJob{v, open, make(chan struct{})}
	select {
	case c.jobs <- job:
		c.running[v.NarHash()] = job
		return job, nil
	default:
		return nil, ErrBusy
	}
}

// run computes what is asked for until ctx ends.
func (c *chains) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case job := <-c.jobs:
			if err := c.compute(ctx, job); err != nil && ctx.Err() == nil {
				c.log.Debug("no chain", "err", err)
			}
			c.mu.Lock()
			delete(c.running, job.v.NarHash())
			c.mu.Unlock()
			close(job.done)
		}
	}
}

// compute hashes a NAR of the store and keeps its chain if it is the signed one.
func (c *chains) compute(ctx context.Context, job *chainJob) error {
	content, err := job.open(ctx)
	if err != nil {
		return err
	}
	w := &idleHash{check: verify.NewChecker(job.v.NarHash(), job.v.NarSize()), since: time.Now()}
	if _, err := content.WriteRange(ctx, w, 0, content.Size()); err != nil {
		return err
	}
	if err := w.check.Finish(); err != nil {
		return err
	}
	c.put(job.v.NarHash(), job.v.NarSize(), w.check.Chain())
	return nil
}

// idleHash rests as long as it worked.
type idleHash struct {
	check *verify.Checker
	n     int
	since time.Time
}

func (w *idleHash) Write(p []byte) (int, error) {
	n, err := w.check.Write(p)
	if w.n += n; w.n >= chainStep {
		time.Sleep(min(time.Since(w.since), chainPause))
		w.n, w.since = 0, time.Now()
	}
	return n, err
}

// StoreChain returns the form of the chain of a path of the local store, which the caller may share,
// computing it if need be; [ErrAbsent] if it has none, [ErrBusy] if it takes longer than ctx.
func (s *Server) StoreChain(ctx context.Context, v *verify.Verified) ([]byte, error) {
	return s.flights.chains.of(ctx, v, func(ctx context.Context) (binarycache.Content, error) {
		return s.store.NAR(ctx, v.Path().Hash())
	})
}

// LandedChain returns the form of the chain of a publicly signed NAR that landed and is not in the store
// yet, or [ErrAbsent].
func (s *Server) LandedChain(h verify.StoreHash, narHash verify.Hash) ([]byte, error) {
	s.flights.mu.Lock()
	f := s.flights.byHash[narHash]
	s.flights.mu.Unlock()
	if f == nil || f.hash != h || f.v.Scope() != verify.ScopePublic {
		return nil, ErrAbsent
	}
	f.mu.Lock()
	landed := f.done && f.err == nil
	f.mu.Unlock()
	if form, ok := s.flights.chains.get(narHash, f.v.NarSize()); ok && landed {
		return form, nil
	}
	return nil, ErrAbsent
}
