package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

func TestWithoutDatabaseThereIsNoStore(t *testing.T) {
	s := start(t, Config{}, &verify.Keys{})
	var h verify.StoreHash
	if s.Has(h) || s.Shared(h, verify.ScopeGroup) || len(s.Keys(verify.ScopeGroup)) > 0 {
		t.Error("something in no store")
	}
	if _, err := s.Info(t.Context(), h); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	if _, err := s.NAR(t.Context(), h); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	if st := s.Stats(); st != (Stats{}) {
		t.Errorf("%+v", st)
	}
}

func TestInfoIsWhatNixKnows(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	key := newSigner("test-1")
	a, b := n.add("a.txt"), n.add("b.txt")
	c := n.addRef("c.txt", b, a)
	n.sign(key, c)
	n.sql(fmt.Sprintf("insert into Refs select id, id from ValidPaths where path = '%s'", a))
	s := start(t, n.config(), &verify.Keys{})
	info, err := s.Info(t.Context(), c.Hash())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{a.Base(), b.Base()}
	slices.Sort(want)
	if info.StorePath != c || !slices.Equal(info.References, want) || info.URL != "" || info.Compression != "" || len(info.Sigs) != 1 {
		t.Errorf("%+v", info)
	}
	if keysOf(t, []signer{key}, nil).ScopeOf(info) != verify.ScopePublic {
		t.Error("Nix's signature does not hold for what was read")
	}
	archive, err := s.NAR(t.Context(), c.Hash())
	if err != nil {
		t.Fatal(err)
	}
	check := verify.NewChecker(info.NarHash, info.NarSize)
	if _, err := archive.WriteRange(t.Context(), check, 0, archive.Size()); err != nil || check.Finish() != nil {
		t.Error(err, check.Finish())
	}
	if info, err = s.Info(t.Context(), a.Hash()); err != nil || !slices.Equal(info.References, []string{a.Base()}) || len(info.Sigs) > 0 || info.CA == "" {
		t.Errorf("unsigned, refers to itself: %+v, %v", info, err)
	}
	if _, err = s.Info(t.Context(), verify.StoreHash{1}); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	if _, err = s.NAR(t.Context(), verify.StoreHash{1}); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
}

func TestOnlyGoodSignaturesOfConfiguredKeysAreShared(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	public, private, foreign := newSigner("public-1"), newSigner("private-1"), newSigner("foreign-1")
	impostor := signer{public.name, newSigner("x").key}
	paths := map[string]verify.StorePath{}
	for _, name := range []string{"unsigned", "public", "private", "both", "foreign", "impostor", "ultimate", "tampered", "junk", "borrowed"} {
		paths[name] = n.add(name)
	}
	n.sign(public, paths["public"], paths["both"], paths["tampered"])
	n.sign(private, paths["private"], paths["both"])
	n.sign(foreign, paths["foreign"])
	n.sign(impostor, paths["impostor"])
	set := func(name, assignment string) {
		n.sql(fmt.Sprintf("update ValidPaths set %s where path = '%s'", assignment, paths[name]))
	}
	set("ultimate", "ultimate = 1")
	set("tampered", "narSize = narSize + 8")
	set("junk", "sigs = 'junk public-1: public-1:AAAA :'")
	set("borrowed", "sigs = (select sigs from ValidPaths where path = '"+paths["public"].String()+"')")
	n.sql(`insert into ValidPaths (path, hash, registrationTime, narSize, sigs)
	         select '/nix/store/../etc/x', hash, 0, narSize, sigs from ValidPaths where path like '%-public';
	       insert into ValidPaths (path, hash, registrationTime, narSize, sigs)
	         select '/other' || path, hash, 0, narSize, sigs from ValidPaths where path like '%-public';
	       insert into ValidPaths (path, hash, registrationTime, narSize, sigs)
	         select path || '-alias', hash, 0, narSize, sigs from ValidPaths where path like '/nix/%-public'`)

	s := start(t, n.config(), keysOf(t, []signer{public}, []signer{private}))
	s.judged(t, len(paths))
	for name, p := range paths {
		want := map[string]verify.Scope{"public": verify.ScopePublic, "both": verify.ScopePublic, "private": verify.ScopeGroup}[name]
		for _, reader := range []verify.Scope{verify.ScopeNone, verify.ScopeGroup, verify.ScopePublic} {
			may := reader != verify.ScopeNone && want >= reader
			if got := s.Shared(p.Hash(), reader); got != may {
				t.Errorf("%s shared with %d: %v", name, reader, got)
			}
			if h, got := s.ByDigest(p.Hash().Digest(), reader); got != may || got && h != p.Hash() {
				t.Errorf("%s by digest with %d: %v", name, reader, got)
			}
			if got := slices.Contains(s.Keys(reader), p.Hash().Digest().Key()); got != may {
				t.Errorf("%s among keys for %d: %v", name, reader, got)
			}
		}
		if !s.Has(p.Hash()) {
			t.Errorf("has no %s", name)
		}
		if info, err := s.Info(t.Context(), p.Hash()); err != nil || info.StorePath != p {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	if st := s.Stats(); st.Public != 2 || st.Group != 1 || st.Malformed != 3 || st.Shareable() != 3 {
		t.Errorf("%+v", st)
	}
}

// haveSet follows a store as a have-set does.
type haveSet struct {
	mu   sync.Mutex
	keys map[uint64]verify.Scope
	bad  []string
}

func follow(s *Store) *haveSet {
	h := &haveSet{keys: map[uint64]verify.Scope{}}
	s.Subscribe(func(c Change) {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, e := range c.Removed {
			if h.keys[e.Key] != e.Scope {
				h.bad = append(h.bad, "removed what was not there: "+e.Hash.String())
			}
			delete(h.keys, e.Key)
		}
		for _, e := range c.Added {
			if _, twice := h.keys[e.Key]; twice || e.Scope == verify.ScopeNone || e.Key != e.Hash.Digest().Key() {
				h.bad = append(h.bad, "added wrongly: "+e.Hash.String())
			}
			h.keys[e.Key] = e.Scope
		}
	})
	return h
}

func (h *haveSet) equals(s *Store) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	keys := s.Keys(verify.ScopeGroup)
	for _, k := range keys {
		if _, ok := h.keys[k]; !ok {
			return false
		}
	}
	return len(keys) == len(h.keys) && len(h.bad) == 0
}

func TestAdditionsAndRemovalsAreNoticed(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	key := newSigner("test-1")
	first := n.add("first")
	n.sign(key, first)
	s := start(t, n.config(), keysOf(t, []signer{key}, nil))
	s.judged(t, 1)
	var added []verify.StorePath
	for i := range 4 {
		added = append(added, n.add(fmt.Sprint("added", i)))
	}
	s.judged(t, 5)
	n.sql("create table keep (path, sigs)") // signed as a substituted path is: in the row from the start
	n.sign(key, added...)
	n.sql("insert into keep select path, sigs from ValidPaths")
	for _, p := range added {
		n.collect(p)
	}
	s.until(t, "removals", func() bool { return s.Stats().Paths == 1 })
	for i, p := range added[:2] {
		n.add(fmt.Sprint("added", i))
		n.sql("update ValidPaths set sigs = (select sigs from keep k where k.path = ValidPaths.path)")
		s.until(t, "again", func() bool { return s.Has(p.Hash()) })
	}
	n.collect(first)
	n.add("another") // one gone, one come: the number of rows is the same
	s.until(t, "swap", func() bool { return !s.Has(first.Hash()) && s.Stats().Paths == 3 })
	s.judged(t, 3)
	if s.Shared(first.Hash(), verify.ScopeGroup) || !s.have.equals(s.Store) {
		t.Errorf("told %v, %v; keys %v", s.have.keys, s.have.bad, s.Keys(verify.ScopeGroup))
	}
	if _, err := s.Info(t.Context(), first.Hash()); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	if _, err := s.NAR(t.Context(), first.Hash()); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
}

func TestSignaturesAddedAndRemovedLaterAreSeenAtTheRecheck(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	public, private := newSigner("test-1"), newSigner("test-2")
	a, b := n.add("a"), n.add("b")
	n.sign(public, a)
	s := startWith(t, n.config(), keysOf(t, []signer{public}, []signer{private}), 100*time.Millisecond)
	s.until(t, "a", func() bool { return s.Shared(a.Hash(), verify.ScopePublic) })
	n.sign(private, b)
	s.until(t, "b", func() bool { return s.Shared(b.Hash(), verify.ScopeGroup) })
	n.sign(public, b)
	s.until(t, "b for all", func() bool { return s.Shared(b.Hash(), verify.ScopePublic) })
	n.sql("update ValidPaths set sigs = null where path = '" + a.String() + "'")
	s.until(t, "a withdrawn", func() bool { return !s.Shared(a.Hash(), verify.ScopeGroup) })
	if !s.Has(a.Hash()) || !s.have.equals(s.Store) {
		t.Errorf("told %v, %v", s.have.keys, s.have.bad)
	}
}

func TestDatabaseReplacedIsReadAnew(t *testing.T) {
	t.Parallel()
	n, other := newNixStore(t), newNixStore(t)
	key := newSigner("test-1")
	mine, theirs := n.add("mine"), other.add("theirs")
	n.sign(key, mine)
	other.sign(key, theirs)
	s := start(t, n.config(), keysOf(t, []signer{key}, nil))
	s.judged(t, 1)
	if err := os.Rename(other.database(), n.database()); err != nil {
		t.Fatal(err)
	}
	s.until(t, "the other's path", func() bool { return s.Shared(theirs.Hash(), verify.ScopePublic) })
	if s.Has(mine.Hash()) || !s.have.equals(s.Store) {
		t.Errorf("told %v, %v", s.have.keys, s.have.bad)
	}
}

// troubles are what can happen to a database: how to mend it, and what the error has to say.
func troubles() map[string]func(n *nixStore) (mend func(), words []string) {
	sqlite := func(n *nixStore, s string) func() { return func() { n.sql(s) } }
	return map[string]func(n *nixStore) (mend func(), words []string){
		"missing": func(n *nixStore) (func(), []string) {
			os.Rename(n.database(), n.database()+".x")
			return func() { os.Rename(n.database()+".x", n.database()) }, []string{"does not exist", "store.database"}
		},
		"directory": func(n *nixStore) (func(), []string) {
			os.Rename(n.database(), n.database()+".x")
			os.Mkdir(n.database(), 0o755)
			return func() { os.Remove(n.database()); os.Rename(n.database()+".x", n.database()) }, []string{"not a database file", "store.database"}
		},
		"corrupt": func(n *nixStore) (func(), []string) {
			os.Rename(n.database(), n.database()+".x")
			os.WriteFile(n.database(), bytes.Repeat([]byte("not a database. "), 4096), 0o644)
			return func() { os.Rename(n.database()+".x", n.database()) }, []string{"corrupt", "integrity_check", "backup"}
		},
		"empty": func(n *nixStore) (func(), []string) {
			os.Rename(n.database(), n.database()+".x")
			os.WriteFile(n.database(), nil, 0o644)
			return func() { os.Rename(n.database()+".x", n.database()) }, []string{"lacks tables", "as root"}
		},
		"older schema": func(n *nixStore) (func(), []string) {
			n.sql("alter table ValidPaths rename column sigs to old")
			return sqlite(n, "alter table ValidPaths rename column old to sigs"), []string{"lacks tables or columns", "upgrade"}
		},
		"older schema by its file": func(n *nixStore) (func(), []string) {
			file := filepath.Join(filepath.Dir(n.database()), "schema")
			os.WriteFile(file, []byte("9"), 0o644)
			n.sql("update ValidPaths set registrationTime = 1")
			return func() { os.WriteFile(file, []byte("10"), 0o644) }, []string{"older schema", "as root"}
		},
		"newer schema by its file": func(n *nixStore) (func(), []string) {
			file := filepath.Join(filepath.Dir(n.database()), "schema")
			os.WriteFile(file, []byte("11"), 0o644)
			n.sql("update ValidPaths set registrationTime = 1")
			return func() { os.WriteFile(file, []byte("10"), 0o644) }, []string{"newer schema", "upgrade flurry"}
		},
		"locked": func(n *nixStore) (func(), []string) {
			release := n.lock()
			return release, []string{"is locked", "fuser"}
		},
	}
}

func TestTroubleIsNamedSurvivedAndOvercome(t *testing.T) {
	t.Parallel()
	key := newSigner("test-1")
	for name, f := range troubles() {
		for _, before := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, known before: %v", name, before), func(t *testing.T) {
				t.Parallel()
				n := newNixStore(t)
				p := n.add("path")
				n.sign(key, p)
				var s *running
				var mend func()
				var words []string
				if before {
					s = start(t, n.config(), keysOf(t, []signer{key}, nil))
					s.judged(t, 1)
					mend, words = f(n)
				} else {
					mend, words = f(n)
					s = start(t, n.config(), keysOf(t, []signer{key}, nil))
				}
				s.until(t, "error", func() bool { return s.Stats().Err != nil })
				text := s.Stats().Err.Error()
				for _, w := range append(words, n.database()) {
					if !strings.Contains(text, w) {
						t.Errorf("%q says nothing of %q", text, w)
					}
				}
				if strings.Contains(text, "\n") {
					t.Errorf("%q is not one line", text)
				}
				if s.Has(p.Hash()) != before || s.Shared(p.Hash(), verify.ScopePublic) != before {
					t.Error("what is known is not what was known")
				}
				if _, err := s.NAR(t.Context(), p.Hash()); (err == nil) != before {
					t.Errorf("NAR: %v", err)
				}
				if _, err := s.Info(t.Context(), p.Hash()); err == nil || errors.Is(err, ErrAbsent) {
					t.Errorf("Info: %v", err)
				}
				mend()
				s.judged(t, 1)
				if !s.Shared(p.Hash(), verify.ScopePublic) {
					t.Error("not shared after mending")
				}
			})
		}
	}
}

func TestRunLeavesNoConnectionOpen(t *testing.T) {
	n := newNixStore(t)
	p := n.add("path")
	s := New(n.config(), &verify.Keys{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	<-s.Ready()
	if _, err := s.Info(ctx, p.Hash()); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if open := openBelow(n.root); len(open) > 0 {
		t.Errorf("open: %q", open)
	}
}

func TestImmutableReadBesideAWriterIsNotBelieved(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	n.add("path")
	d := newDatabase(n.database(), verify.DefaultStoreDir)
	st, err := takeStamp(d.path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.open(st, AccessImmutable)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n.sql("update ValidPaths set registrationTime = 3")
	now, err := takeStamp(d.path)
	if err != nil || !d.torn(c) || c.usable(now) {
		t.Error("a file written since is taken for the one that was opened", err)
	}
}

func TestCancelledSubscriberIsToldNothingMore(t *testing.T) {
	s := New(Config{}, &verify.Keys{})
	var got []string
	cancelA := s.Subscribe(func(Change) { got = append(got, "a") })
	s.Subscribe(func(Change) { got = append(got, "b") })
	s.tell(Change{Added: make([]Entry, 1)})
	cancelA()
	cancelA()
	s.tell(Change{Added: make([]Entry, 1)})
	s.tell(Change{})
	if !slices.Equal(got, []string{"a", "b", "b"}) {
		t.Error(got)
	}
}
