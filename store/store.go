// Package store is a read-only window on the local Nix store: which paths are valid, what the
// database says of each, their NARs, and what comes and goes.
//
// It reads Nix's SQLite database as an ordinary user, beside Nix. It must never write there, never
// hold a read transaction for long (that blocks Nix's checkpoints), never keep a connection open while
// idle (that keeps Nix from checkpointing when its last process ends), and never open the database,
// its -wal or its -shm other than through SQLite (closing any descriptor drops the POSIX locks).
//
// It decides which paths may be shared, by the signatures in the database checked against configured
// keys; the column's presence and the "ultimate" flag count for nothing. In doubt a path is not shared.
//
// Formats: Nix source, src/libstore/schema.sql and local-store.cc (schema 10); SQLite documentation,
// "Write-Ahead Logging" (read-only databases) and "Uniform Resource Identifiers" (mode, immutable).
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/flurry-nix/flurry/store/nar"
	"github.com/flurry-nix/flurry/verify"
)

// ErrAbsent: the path is not valid in this store.
var ErrAbsent = errors.New("not a valid path of this store")

// Config says where the store is. The zero value is a machine without a store.
type Config struct {
	// Dir is the store directory as it stands in paths; "" means /nix/store.
	Dir string
	// RealDir is where Dir's files lie, if elsewhere (a chroot store); "" means Dir.
	RealDir string
	// Database is the path of db.sqlite; "" means that there is no local store.
	Database string
	// Verdicts is a file of the agent's own that keeps what the checks of signatures gave over restarts;
	// "" for none.
	Verdicts string
	// Log may be nil.
	Log *slog.Logger
}

// Store is the local Nix store. Its methods are safe for concurrent use. Has, Shared, ByDigest, Keys
// and Stats answer from memory and never block on I/O; what they know is at most two seconds old
// while [Store.Run] runs and the database can be read.
type Store struct {
	dir, realDir string
	keys         *verify.Keys
	log          *slog.Logger
	db           *database // nil without a local store
	ready        chan struct{}
	readyOnce    sync.Once
	nars         narCache
	verdicts     string   // file; "" for none
	sumKey       sumKey   // of records' sums; of Run's goroutine alone
	run          runState // of Run's goroutine alone

	mu      sync.RWMutex // guards what follows; written only by Run's goroutine, but for subs
	idx     *index
	trouble error
	subs    []*subscription
}

// New returns a Store; it does no I/O. keys decide what may be shared.
func New(cfg Config, keys *verify.Keys) *Store {
	s := &Store{dir: cfg.Dir, realDir: cfg.RealDir, keys: keys, log: cfg.Log, ready: make(chan struct{}),
		verdicts: cfg.Verdicts, sumKey: newSumKey(), idx: newIndex(0)}
	if s.dir == "" {
		s.dir = verify.DefaultStoreDir
	}
	if s.realDir == "" {
		s.realDir = s.dir
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Database == "" {
		s.readyOnce.Do(func() { close(s.ready) })
	} else {
		s.db = newDatabase(cfg.Database, s.dir)
	}
	return s
}

// Ready is closed once the first load is done or has failed, and from the start if there is no
// database. Signatures are checked after it; see Stats.Unchecked.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Has tells whether the store has a valid path of that hash, signed or not.
func (s *Store) Has(h verify.StoreHash) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.idx.find(h) != nil
}

// Info reads what the database says now of the path with that hash, signed or not. URL, Compression
// and System are empty; signatures are as the database has them, unchecked. Errors: [ErrAbsent];
// ctx's; a [*DatabaseError].
func (s *Store) Info(ctx context.Context, h verify.StoreHash) (*verify.NarInfo, error) {
	if s.db == nil {
		return nil, ErrAbsent
	}
	return s.db.info(ctx, h)
}

// Shared tells whether the path with that hash may go to a reader entitled to reader: ScopePublic
// readers get publicly signed paths, ScopeGroup readers privately signed ones too, ScopeNone nothing.
// Whoever serves should still verify what Info says at that moment.
func (s *Store) Shared(h verify.StoreHash, reader verify.Scope) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r := s.idx.find(h)
	return r != nil && shareable(r.scope, reader)
}

// ByDigest finds the path of that digest, if it may go to reader, as in [Store.Shared].
func (s *Store) ByDigest(d verify.PathDigest, reader verify.Scope) (verify.StoreHash, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	// Scope first: the time taken must not tell of paths that the reader may not know.
	r := s.idx.findKey(d.Key(), func(r *record) bool { return shareable(r.scope, reader) && r.hash.Digest() == d })
	if r == nil {
		return verify.StoreHash{}, false
	}
	return r.hash, true
}

// Keys returns the digest keys of all paths that may go to reader, in no order.
func (s *Store) Keys(reader verify.Scope) []uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]uint64, 0, s.idx.shared(reader))
	for i := range s.idx.recs {
		if r := &s.idx.recs[i]; shareable(r.scope, reader) {
			list = append(list, r.key)
		}
	}
	return list
}

func shareable(scope, reader verify.Scope) bool { return reader != verify.ScopeNone && scope >= reader }

// NAR opens the archive of the path with that hash. The error wraps [ErrAbsent] if there is none.
// It needs no database for a path that memory knows.
func (s *Store) NAR(ctx context.Context, h verify.StoreHash) (*nar.NAR, error) {
	s.mu.RLock()
	base := ""
	if r := s.idx.find(h); r != nil {
		base = h.String() + "-" + s.idx.name(r)
	}
	s.mu.RUnlock()
	if base == "" {
		info, err := s.Info(ctx, h)
		if err != nil {
			return nil, err
		}
		base = info.StorePath.Base()
	}
	n, err := s.nars.open(ctx, h, filepath.Join(s.realDir, base))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return n, err
}

// AppendNAR appends the whole archive of the path with that hash, of size bytes, to b. It needs fewer system calls
// than [Store.NAR], and as much memory as the archive has bytes. The error wraps [ErrAbsent] if there is no such
// path; otherwise the path is not of that size, or cannot be read.
func (s *Store) AppendNAR(ctx context.Context, b []byte, h verify.StoreHash, size int64) ([]byte, error) {
	if n := s.nars.kept(h); n != nil && n.Size() == size {
		if out, err := n.Append(ctx, b); err == nil { // which looks whether it is the tree that was walked
			return out, nil
		}
	}
	n, err := s.NAR(ctx, h)
	if err != nil {
		return b, err
	}
	if n.Size() != size {
		return b, fmt.Errorf("a NAR of %d bytes in place of %d", n.Size(), size)
	}
	return n.Append(ctx, b)
}

// Entry is one shareable path in a [Change].
type Entry struct {
	Hash  verify.StoreHash
	Key   uint64 // of its digest
	Scope verify.Scope
}

// Change says which paths became shareable and which no longer are. A path whose scope changed is in
// both lists: first remove, then add.
type Change struct{ Added, Removed []Entry }

type subscription struct{ fn func(Change) }

// Subscribe asks that fn be told of every change from now on, in order, from Run's goroutine; fn must
// not block and must not keep the slices. A change may already be visible in Keys when fn is told:
// subscribe first, then read Keys. cancel may be called at any time, also by fn; fn may be told once
// more while cancel returns.
func (s *Store) Subscribe(fn func(Change)) (cancel func()) {
	sub := &subscription{fn}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs = append(s.subs[:len(s.subs):len(s.subs)], sub)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		kept := make([]*subscription, 0, len(s.subs))
		for _, other := range s.subs {
			if other != sub {
				kept = append(kept, other)
			}
		}
		s.subs = kept
	}
}

func (s *Store) tell(c Change) {
	if len(c.Added) == 0 && len(c.Removed) == 0 {
		return
	}
	s.mu.RLock()
	subs := s.subs
	s.mu.RUnlock()
	for _, sub := range subs {
		sub.fn(c)
	}
}

// Stats says how the store is doing.
type Stats struct {
	Paths     int // valid paths with well-formed names
	Public    int // may go to anybody
	Group     int // may go to the group only
	Unchecked int // signatures not checked yet, so not shared
	Malformed int // rows that are not store paths, or whose hash another path has too
	Access    Access
	// Stale says that the write-ahead log cannot be read, so that the newest paths may be missing until
	// a Nix process opens the database next.
	Stale bool
	// Err is nil, or a [*DatabaseError] that says what keeps the database from being read and what to do.
	Err error
}

// Shareable returns how many paths may go to anyone but this machine.
func (st Stats) Shareable() int { return st.Public + st.Group }

// Stats returns the present state.
func (s *Store) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	x := s.idx
	st := Stats{
		Paths:     len(x.recs) - x.malformed,
		Public:    x.scopes[verify.ScopePublic],
		Group:     x.scopes[verify.ScopeGroup],
		Unchecked: x.unchecked,
		Malformed: x.malformed,
		Err:       s.trouble,
	}
	if s.db != nil {
		st.Access, st.Stale = s.db.lastAccess()
	}
	return st
}
