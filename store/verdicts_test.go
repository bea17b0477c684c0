package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

// restart makes a store with the verdicts of an earlier one, loads it, and checks no signature.
func restart(t *testing.T, cfg Config, keys *verify.Keys) *Store {
	t.Helper()
	s := New(cfg, keys)
	if err := s.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerdictsOutliveTheProcess(t *testing.T) {
	n := newNixStore(t)
	public, private := newSigner("public-1"), newSigner("private-1")
	a, b, c := n.add("a"), n.add("b"), n.add("c")
	n.sign(public, a)
	n.sign(private, b)
	cfg := n.config()
	cfg.Verdicts = filepath.Join(t.TempDir(), "verdicts")
	keys := keysOf(t, []signer{public}, []signer{private})

	first := restart(t, cfg, keys)
	if st := first.Stats(); st.Unchecked != 3 {
		t.Fatalf("verdicts from nowhere: %+v", st)
	}
	for first.check(t.Context()) {
	}
	first.remember(true)
	if info, err := os.Stat(cfg.Verdicts); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}

	again := restart(t, cfg, keys)
	if st := again.Stats(); st.Unchecked != 0 || st.Public != 1 || st.Group != 1 {
		t.Errorf("%+v", st)
	}
	if !again.Shared(a.Hash(), verify.ScopePublic) || again.Shared(b.Hash(), verify.ScopePublic) || !again.Shared(b.Hash(), verify.ScopeGroup) || again.Shared(c.Hash(), verify.ScopeGroup) {
		t.Error("other verdicts than before")
	}
	if again.check(t.Context()) {
		t.Error("rows are compared although the database is as it was")
	}
	if st := restart(t, cfg, keysOf(t, []signer{private}, nil)).Stats(); st.Unchecked != 3 {
		t.Errorf("verdicts by other keys count: %+v", st)
	}

	n.sql("update ValidPaths set registrationTime = registrationTime + 1")
	again = restart(t, cfg, keys)
	if !again.check(t.Context()) {
		t.Error("the rows are not compared with what was judged although the database was written")
	}
	if again.run.judged {
		t.Error("signatures were checked again although the rows are the same")
	}
	d := n.add("d") // a later path is nobody's verdict
	n.sign(public, d)
	if s := restart(t, cfg, keys); s.Stats().Unchecked != 1 || s.Shared(d.Hash(), verify.ScopePublic) {
		t.Errorf("%+v", s.Stats())
	}
}

func TestAVerdictIsRevisedWhenItsRowChangedMeanwhile(t *testing.T) {
	n := newNixStore(t)
	key := newSigner("public-1")
	a := n.add("a")
	n.sign(key, a)
	cfg := n.config()
	cfg.Verdicts = filepath.Join(t.TempDir(), "verdicts")
	keys := keysOf(t, []signer{key}, nil)
	first := restart(t, cfg, keys)
	for first.check(t.Context()) {
	}
	first.remember(true)
	n.sql("update ValidPaths set sigs = null")
	again := restart(t, cfg, keys)
	for again.check(t.Context()) {
	}
	if again.Shared(a.Hash(), verify.ScopePublic) {
		t.Error("shared without a signature")
	}
}

func TestDamagedVerdictsCountForNothing(t *testing.T) {
	n := newNixStore(t)
	key := newSigner("public-1")
	n.sign(key, n.add("a"))
	cfg := n.config()
	cfg.Verdicts = filepath.Join(t.TempDir(), "verdicts")
	keys := keysOf(t, []signer{key}, nil)
	first := restart(t, cfg, keys)
	for first.check(t.Context()) {
	}
	first.remember(true)
	good, err := os.ReadFile(cfg.Verdicts)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := append([]byte(nil), good...)
		bad[i] ^= 1
		if err := os.WriteFile(cfg.Verdicts, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readVerdicts(cfg.Verdicts, first.basis(first.run.file)); err == nil {
			t.Fatalf("a flipped bit at %d goes unnoticed", i)
		}
		if err := os.WriteFile(cfg.Verdicts, good[:i], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readVerdicts(cfg.Verdicts, first.basis(first.run.file)); err == nil {
			t.Fatalf("a file cut at %d goes unnoticed", i)
		}
	}
	if st := restart(t, cfg, keys).Stats(); st.Unchecked != 1 {
		t.Errorf("%+v", st)
	}
}
