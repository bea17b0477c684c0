package store

import (
	"os"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

func has(p verify.StorePath, scope verify.Scope) func(helperReport) bool {
	return func(r helperReport) bool {
		got, ok := r.Paths[p.String()]
		return ok && got == scope && r.Err == "" && r.Stats.Unchecked == 0
	}
}

func lacks(p verify.StorePath) func(helperReport) bool {
	return func(r helperReport) bool { _, ok := r.Paths[p.String()]; return !ok && r.Err == "" }
}

func exists(t *testing.T, path string, want bool) {
	t.Helper()
	if _, err := os.Stat(path); (err == nil) != want {
		t.Fatalf("%s: the test's premise does not hold: %v", path, err)
	}
}

// Nix comes and goes; the reader is another user throughout.
func TestUnprivilegedReaderFollowsNixComingAndGoing(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	key := newSigner("test-1")
	early := n.add("early")
	n.sign(key, early)
	exists(t, n.database()+"-wal", false)
	exists(t, n.database()+"-shm", false)

	u := startUnprivileged(t, n.config(), key)
	r := u.until("load without side files", has(early, verify.ScopePublic))
	if os.Getuid() == 0 && r.UID == 0 {
		t.Fatal("the helper is root")
	}
	if r.Access != "immutable" {
		t.Errorf("without side files: %s", r.Access)
	}

	release, _ := n.hold()
	during := n.add("during")
	exists(t, n.database()+"-wal", true)
	r = u.until("added beside a live Nix process", has(during, verify.ScopeNone))
	if r.Access != "read-only" {
		t.Errorf("beside a live Nix process: %s", r.Access)
	}
	n.collect(early)
	u.until("collected beside a live Nix process", lacks(early))
	release()

	late := n.add("late")
	u.until("added by a process of its own", has(late, verify.ScopeNone))
	n.collect(during)
	u.until("collected by a process of its own", lacks(during))
}

func TestUnprivilegedReaderOfWhatAKilledNixLeft(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	key := newSigner("test-1")
	old := n.add("old")
	n.sign(key, old)
	_, kill := n.hold()
	late := n.add("late") // in the log, since the killed process keeps it from being written back
	kill()
	exists(t, n.database()+"-wal", true)
	exists(t, n.database()+"-shm", true)

	t.Run("log and index", func(t *testing.T) {
		u := startUnprivileged(t, n.config(), key)
		u.until("what is in the log", has(late, verify.ScopeNone))
		u.until("what is in the database", has(old, verify.ScopePublic))
	})
	t.Run("log without index", func(t *testing.T) {
		if err := os.Remove(n.database() + "-shm"); err != nil {
			t.Fatal(err)
		}
		u := startUnprivileged(t, n.config(), key)
		r := u.until("what is in the database", has(old, verify.ScopePublic))
		if r.Access != "immutable" || !r.Stats.Stale {
			t.Errorf("%s, stale %v", r.Access, r.Stats.Stale)
		}
		n.nix("nix-store", "--check-validity", late.String()) // recovers the log
		r = u.until("what was in the log", has(late, verify.ScopeNone))
		if r.Stats.Stale {
			t.Error("still called stale")
		}
	})
}

func TestUnreadableDatabaseIsSaidSo(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	p := n.add("path")
	if err := os.Chmod(n.database(), 0o600); err != nil {
		t.Fatal(err)
	}
	u := startUnprivileged(t, n.config())
	r := u.until("error", func(r helperReport) bool { return r.Err != "" })
	if !strings.Contains(r.Err, "may not be opened by this user") || !strings.Contains(r.Err, "0644") {
		t.Error(r.Err)
	}
	if err := os.Chmod(n.database(), 0o644); err != nil {
		t.Fatal(err)
	}
	u.until("recovery", has(p, verify.ScopeNone))
}

func TestUnreadableSideFilesAreReadAround(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	old := n.add("old")
	release, _ := n.hold()
	for _, side := range []string{"-wal", "-shm"} {
		if err := os.Chmod(n.database()+side, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	u := startUnprivileged(t, n.config())
	if r := u.until("load", has(old, verify.ScopeNone)); r.Access != "immutable" {
		t.Error(r.Access)
	}
	late := n.add("late")
	release()
	u.until("added", has(late, verify.ScopeNone))
	n.collect(old)
	u.until("collected", lacks(old))
}

// The reader must not keep Nix from tidying up: the log goes when the last Nix process does.
func TestIdleReaderLetsNixWriteItsLogBack(t *testing.T) {
	t.Parallel()
	n := newNixStore(t)
	n.add("first")
	s := start(t, n.config(), &verify.Keys{})
	release, _ := n.hold()
	p := n.add("second")
	s.until(t, "added", func() bool { return s.Has(p.Hash()) })
	s.until(t, "no connection", func() bool { return len(openBelow(n.root)) == 0 })
	release()
	if fi, err := os.Stat(n.database() + "-wal"); err == nil && fi.Size() > 0 {
		t.Errorf("%d bytes of log remain", fi.Size())
	}
}

// openBelow returns what this process has open below dir.
func openBelow(dir string) (list []string) {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if target, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(target, dir) {
			list = append(list, target)
		}
	}
	return list
}
