//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// commandLimit bounds one Nix command. Nix 2.8 waits up to 187 s for refused NARs; anything near that is a failure.
const commandLimit = 100 * time.Second

// machine is one computer of a lab.
type machine struct {
	lab   *lab
	n     int
	ip    string
	dir   string // its home/, nix/ and etc/
	agent *agent // the last one started, nil before
	disk  string // where freshDisk put one
	nix   string // directory of another Nix's commands, "" for the host's
}

// result is what a command did.
type result struct {
	out, err string
	code     int
	took     time.Duration
}

// do runs a command as root in the machine.
func (m *machine) do(args ...string) result {
	m.lab.t.Helper()
	return m.start(args...).wait()
}

// must is do for commands that have to succeed; it returns what they printed.
func (m *machine) must(args ...string) string {
	m.lab.t.Helper()
	r := m.do(args...)
	if r.code != 0 {
		m.lab.t.Fatalf("machine %d: %s: exit status %d\n%s", m.n, strings.Join(args, " "), r.code, tail(r.err, 2000))
	}
	return r.out
}

// running is a command under way.
type running struct {
	m        *machine
	cmd      *exec.Cmd
	out, err bytes.Buffer
	began    time.Time
	cancel   context.CancelFunc
	done     chan error // has the outcome once, when the command ends
}

// start runs a command in the machine and does not wait for it. A command whose name starts with nix
// is the machine's own.
func (m *machine) start(args ...string) *running {
	m.lab.t.Helper()
	if m.nix != "" && strings.HasPrefix(args[0], "nix") {
		args = append([]string{filepath.Join(m.nix, args[0])}, args[1:]...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	r := &running{m: m, cancel: cancel, done: make(chan error, 1), began: time.Now()}
	r.cmd = m.lab.command(ctx, "", fmt.Sprint(m.n), args...)
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.err
	if err := r.cmd.Start(); err != nil {
		cancel()
		m.lab.t.Fatal(err)
	}
	go func() { r.done <- r.cmd.Wait() }()
	return r
}

func (r *running) wait() result {
	r.m.lab.t.Helper()
	err := <-r.done
	res := result{out: r.out.String(), err: r.err.String(), took: time.Since(r.began)}
	r.cancel()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		res.code = exit.ExitCode()
	case err != nil:
		r.m.lab.t.Fatal(err)
	}
	return res
}

// over tells whether the command has ended; wait still returns its result.
func (r *running) over() bool {
	select {
	case err := <-r.done:
		r.done <- err
		return true
	default:
		return false
	}
}

// substituters writes the machine's nix.conf; signatures are required.
func (m *machine) substituters(urls ...string) {
	m.lab.t.Helper()
	conf := fmt.Sprintf(`build-users-group =
sandbox = false
experimental-features = nix-command
connect-timeout = 5
require-sigs = true
substituters = %s
trusted-public-keys = %s
`, strings.Join(urls, " "), m.lab.w.corpus.key)
	if err := os.WriteFile(filepath.Join(m.dir, "etc", "nix.conf"), []byte(conf), 0o644); err != nil {
		m.lab.t.Fatal(err)
	}
}

// realise substitutes a closure through the configured substituters.
func (m *machine) realise(path string) result {
	m.lab.t.Helper()
	return m.do("nix-store", "-r", path)
}

// preload gives the machine a closure without the network, signatures included.
func (m *machine) preload(paths ...string) {
	m.lab.t.Helper()
	m.must(append([]string{"nix-store", "--option", "substituters", "file://" + m.lab.w.corpus.dir + "/cache", "-r"}, paths...)...)
}

// wipe empties the store and forgets what Nix remembers. No agent may be running.
func (m *machine) wipe() {
	m.lab.t.Helper()
	for _, d := range []string{filepath.Join(m.dir, "nix"), filepath.Join(m.dir, "home")} {
		entries, err := os.ReadDir(d)
		if err != nil {
			m.lab.t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(d, e.Name())); err != nil {
				m.lab.t.Fatal(err)
			}
		}
	}
}

// forget drops what Nix remembers of binary caches.
func (m *machine) forget() {
	m.lab.t.Helper()
	if err := os.RemoveAll(filepath.Join(m.dir, "home", ".cache", "nix")); err != nil {
		m.lab.t.Fatal(err)
	}
}

// hasExactly fails the test unless the store holds these paths, with the corpus's hashes, undamaged.
func (m *machine) hasExactly(paths []*corpusPath) {
	m.lab.t.Helper()
	m.must("nix-store", "--verify", "--check-contents")
	var want, names []string
	for _, p := range paths {
		want = append(want, p.path+" "+p.narHash)
	}
	for p := range strings.FieldsSeq(m.must("nix", "path-info", "--all")) {
		if !strings.HasSuffix(p, ".drv") {
			names = append(names, p)
		}
	}
	hashes := strings.Fields(m.must(append([]string{"nix-store", "-q", "--hash"}, names...)...))
	if len(hashes) != len(names) {
		m.lab.t.Fatalf("machine %d: %d hashes of %d paths", m.n, len(hashes), len(names))
	}
	var have []string
	for i, n := range names {
		have = append(have, n+" "+hashes[i])
	}
	slices.Sort(want)
	slices.Sort(have)
	if !slices.Equal(want, have) {
		m.lab.t.Errorf("machine %d has %d paths, want %d:\n%s", m.n, len(have), len(want), difference(want, have))
	}
}

func difference(want, have []string) string {
	var b strings.Builder
	for _, w := range want {
		if !slices.Contains(have, w) {
			fmt.Fprintln(&b, "missing", w)
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			fmt.Fprintln(&b, "unexpected", h)
		}
	}
	return tail(b.String(), 2000)
}

// http returns a client whose connections start in the machine.
func (m *machine) http() *http.Client {
	return &http.Client{
		Timeout:       commandLimit,
		Transport:     &http.Transport{DialContext: m.dial, DisableCompression: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// dial connects to an IP address and port from inside the machine.
func (m *machine) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = m.lab.inside(fmt.Sprintf("m%d", m.n), func() error {
		conn, err = (&net.Dialer{Timeout: patience}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// inside makes a socket in the namespace of a machine ("m1", "up"). A socket keeps the namespace of the
// thread that made it, so only the making has to happen there.
func (l *lab) inside(where string, makeSocket func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + l.prefix + "-" + where)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = makeSocket()
	if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
		return e // and the thread, still locked, ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

func tail(s string, n int) string {
	if s = strings.TrimSpace(s); len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}

// logTook puts a measurement in the test's log.
func logTook(t testing.TB, what string, d time.Duration) {
	t.Helper()
	t.Logf("measured: %-60s %6.2f s", what, d.Seconds())
}
