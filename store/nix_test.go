package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/flurry-nix/flurry/verify"
)

// nixStore is a store and database made and changed by the nix commands of this machine, in a
// directory of its own.
type nixStore struct {
	t    testing.TB
	root string
}

func newNixStore(t testing.TB) *nixStore {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // for unprivileged readers
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n := &nixStore{t, dir}
	conf := "substituters =\nsandbox = false\nbuild-users-group =\nexperimental-features = nix-command\nrequire-sigs = false\n"
	n.file("nix.conf", conf)
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", dir).Run() }) // store paths are read-only
	return n
}

func (n *nixStore) file(name, content string) string {
	n.t.Helper()
	path := filepath.Join(n.root, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
	return path
}

func (n *nixStore) chroot() string   { return filepath.Join(n.root, "chroot") }
func (n *nixStore) database() string { return filepath.Join(n.chroot(), "nix/var/nix/db/db.sqlite") }
func (n *nixStore) config() Config {
	return Config{RealDir: filepath.Join(n.chroot(), "nix/store"), Database: n.database()}
}

func (n *nixStore) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+n.root, "HOME="+n.root, "NIX_REMOTE=")
	return cmd
}

// nix runs a nix command on the store and returns what it prints.
func (n *nixStore) nix(name string, args ...string) string {
	n.t.Helper()
	cmd := n.command(name, append(args, "--store", n.chroot())...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("%s %s: %v: %s", name, args, err, &problem)
	}
	return strings.TrimSpace(string(out))
}

// add adds an unsigned path.
func (n *nixStore) add(name string) verify.StorePath {
	n.t.Helper()
	p, err := verify.ParseStorePath(n.nix("nix-store", "--add", n.file(name, "content of "+name)))
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// addRef adds an unsigned text that refers to others.
func (n *nixStore) addRef(name string, refs ...verify.StorePath) verify.StorePath {
	n.t.Helper()
	quoted := ""
	for _, r := range refs {
		quoted += fmt.Sprintf(" ${builtins.storePath %s}", r)
	}
	out := n.nix("nix-instantiate", "--eval", "--read-write-mode", "--expr", fmt.Sprintf("builtins.toFile %q \"%s\"", name, quoted))
	p, err := verify.ParseStorePath(strings.Trim(out, `"`))
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (n *nixStore) sign(k signer, paths ...verify.StorePath) {
	n.t.Helper()
	args := []string{"store", "sign", "-k", n.file(k.name, k.secret())}
	for _, p := range paths {
		args = append(args, p.String())
	}
	n.nix("nix", args...)
}

func (n *nixStore) collect(p verify.StorePath) {
	n.t.Helper()
	n.nix("nix-store", "--delete", p.String())
}

// hold starts a Nix process that has the database open until release.
func (n *nixStore) hold() (release, kill func()) {
	n.t.Helper()
	cmd := n.command("nix-store", "--serve", "--store", n.chroot())
	in, err := cmd.StdinPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	// The greeting of nix-store --serve: two numbers each way; it has opened the store by then.
	const magic, version = 0x390c9deb, 0x205
	hello := binary.LittleEndian.AppendUint64(nil, magic)
	hello = binary.LittleEndian.AppendUint64(hello, version)
	if _, err := in.Write(hello); err != nil {
		n.t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 16)); err != nil {
		n.t.Fatalf("nix-store --serve does not greet: %v", err)
	}
	ended := false
	end := func(f func()) func() {
		return func() {
			if !ended {
				ended = true
				f()
				cmd.Wait()
			}
		}
	}
	release, kill = end(func() { in.Close() }), end(func() { cmd.Process.Kill() })
	n.t.Cleanup(release)
	return release, kill
}

// sql changes the database as Nix never would.
func (n *nixStore) sql(script string) {
	n.t.Helper()
	c, err := sqlite.OpenConn(n.database(), sqlite.OpenReadWrite)
	if err != nil {
		n.t.Fatal(err)
	}
	defer c.Close()
	c.SetBusyTimeout(10 * time.Second)
	if err := sqlitex.ExecuteScript(c, script, nil); err != nil {
		n.t.Fatal(err)
	}
}

// lock holds the database exclusively until release.
func (n *nixStore) lock() (release func()) {
	n.t.Helper()
	c, err := sqlite.OpenConn(n.database(), sqlite.OpenReadWrite)
	if err != nil {
		n.t.Fatal(err)
	}
	c.SetBusyTimeout(10 * time.Second)
	if err := sqlitex.ExecuteScript(c, "pragma locking_mode = exclusive; update ValidPaths set registrationTime = 2", nil); err != nil {
		n.t.Fatal(err)
	}
	return func() { c.Close() }
}

type signer struct {
	name string
	key  ed25519.PrivateKey
}

func newSigner(name string) signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return signer{name, key}
}

func (s signer) secret() string { return s.name + ":" + base64.StdEncoding.EncodeToString(s.key) }
func (s signer) public() string {
	return s.name + ":" + base64.StdEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey))
}

func keysOf(t testing.TB, public, private []signer) *verify.Keys {
	t.Helper()
	var lists [2][]string
	for i, l := range [][]signer{public, private} {
		for _, s := range l {
			lists[i] = append(lists[i], s.public())
		}
	}
	k, err := verify.NewKeys(lists[0], lists[1])
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// running is a Store whose Run is under way.
type running struct {
	*Store
	looks chan error
	have  *haveSet
}

// start runs a Store until the test ends.
func start(t testing.TB, cfg Config, keys *verify.Keys) *running {
	t.Helper()
	return startWith(t, cfg, keys, 0)
}

func startWith(t testing.TB, cfg Config, keys *verify.Keys, recheck time.Duration) *running {
	t.Helper()
	s := &running{Store: New(cfg, keys), looks: make(chan error, 1)}
	s.have = follow(s.Store)
	s.run.recheck = recheck
	s.run.onLook = func(err error) {
		select {
		case s.looks <- err:
		default:
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	<-s.Ready()
	return s
}

// until waits, look by look, until ok holds.
func (s *running) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-s.looks:
		case <-limit:
			t.Fatalf("never came: %s; %+v", what, s.Stats())
		}
	}
}

// judged waits until every signature has been checked.
func (s *running) judged(t testing.TB, paths int) {
	t.Helper()
	s.until(t, fmt.Sprintf("%d paths checked", paths), func() bool {
		st := s.Stats()
		return st.Err == nil && st.Paths == paths && st.Unchecked == 0
	})
}

// The test binary runs itself as an unprivileged user with this in its environment.
const helperEnv = "FLURRY_STORE_TEST_HELPER"

func TestMain(m *testing.M) {
	if config := os.Getenv(helperEnv); config != "" {
		helper(config)
		return
	}
	goleak.VerifyTestMain(m)
}

// helper answers the question "Info or Has for this hash" on stdin after each look's Stats on stdout.
func helper(config string) {
	var h struct {
		Config Config
		Keys   []string
	}
	if err := json.Unmarshal([]byte(config), &h); err != nil {
		panic(err)
	}
	keys, err := verify.NewKeys(h.Keys, nil)
	if err != nil {
		panic(err)
	}
	s := New(h.Config, keys)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the parent
		cancel()
	}()
	out := json.NewEncoder(os.Stdout)
	s.run.onLook = func(error) {
		st := s.Stats()
		r := helperReport{Stats: st, UID: os.Getuid(), Access: st.Access.String(), Paths: map[string]verify.Scope{}}
		if r.Stats.Err != nil {
			r.Err, r.Stats.Err = st.Err.Error(), nil
		}
		for i := range s.idx.recs {
			rec := &s.idx.recs[i]
			if info, err := s.Info(ctx, rec.hash); err == nil {
				r.Paths[info.StorePath.String()] = rec.scope
			}
		}
		out.Encode(r)
	}
	s.Run(ctx)
}

type helperReport struct {
	Stats  Stats
	UID    int
	Access string
	Err    string
	Paths  map[string]verify.Scope // those that Info gives
}

// unprivileged is a Store in another process, of a user who owns nothing here.
type unprivileged struct {
	t       testing.TB
	reports chan helperReport
}

func startUnprivileged(t testing.TB, cfg Config, keys ...signer) *unprivileged {
	t.Helper()
	h := struct {
		Config Config
		Keys   []string
	}{Config: cfg}
	for _, k := range keys {
		h.Keys = append(h.Keys, k.public())
	}
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), helperEnv+"="+string(b))
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	} else {
		t.Fatal("run this test as root: it needs a second, unprivileged user")
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	u := &unprivileged{t, make(chan helperReport, 64)}
	go func() {
		defer close(u.reports)
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var r helperReport
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Errorf("helper: %s", lines.Bytes())
				return
			}
			u.reports <- r
		}
	}()
	t.Cleanup(func() {
		in.Close()
		for range u.reports {
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("unprivileged helper: %v", err)
		}
	})
	return u
}

// until returns the first report for which ok holds.
func (u *unprivileged) until(what string, ok func(helperReport) bool) helperReport {
	u.t.Helper()
	limit := time.After(20 * time.Second)
	var last helperReport
	for {
		select {
		case r, more := <-u.reports:
			if !more {
				u.t.Fatalf("helper ended before: %s; %+v", what, last)
			}
			if last = r; ok(r) {
				return r
			}
		case <-limit:
			u.t.Fatalf("never came: %s; %+v", what, last)
		}
	}
}
