//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// This file has the means by which doctor_test.go breaks machines.

// ip runs the ip command in a namespace: "m1", "sw", "up".
func (l *lab) ip(where string, args ...string) {
	l.t.Helper()
	out, err := exec.Command("ip", append([]string{"-n", l.prefix + "-" + where}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Errorf("ip %s in %s: %v: %s", strings.Join(args, " "), where, err, out)
	}
}

// ownVLAN takes machine n off the common switch and gives it a network of its own, behind the same router.
func (l *lab) ownVLAN(n int) {
	port, m := fmt.Sprintf("m%d", n), l.machine[n]
	l.ip("sw", "link", "set", port, "nomaster")
	l.ip("sw", "addr", "add", "10.77.200.254/24", "dev", port)
	l.ip(port, "addr", "flush", "dev", "eth0", "scope", "global")
	m.ip = fmt.Sprintf("10.77.200.%d", n)
	l.ip(port, "addr", "add", m.ip+"/24", "dev", "eth0")
	l.ip(port, "route", "replace", "default", "via", "10.77.200.254")
}

// nft loads rules in the machine; what it returns takes them back.
func (m *machine) nft(t *testing.T, rules string) (open func()) {
	t.Helper()
	run := func(text string) {
		cmd := exec.Command("ip", "netns", "exec", m.lab.prefix+fmt.Sprintf("-m%d", m.n), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(text + "\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("nft: %v: %s", err, out)
		}
	}
	run(rules)
	return func() { run("flush ruleset") }
}

// firewall adds rules for what comes in.
func (m *machine) firewall(t *testing.T, rules string) func() func() {
	return func() func() {
		return m.nft(t, "table inet doctor { chain in { type filter hook input priority 0; "+rules+"; }; }")
	}
}

// inside runs a command with the agent's view of file systems.
func (a *agent) inside(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("nsenter", append([]string{"-m", "-t", strconv.Itoa(a.cmd.Process.Pid)}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	for _, pid := range a.children() { // it has the same view, unless it made its own
		if ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid)); ns == "" {
			t.Errorf("the agent's process %d has no view", pid)
		}
	}
}

// listen opens a port in the machine.
func (m *machine) listen(addr string) (net.Listener, error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer home.Close()
	there, err := os.Open("/run/netns/" + m.lab.prefix + fmt.Sprintf("-m%d", m.n))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
		return nil, e // and the thread, still locked, ends with its goroutine
	}
	runtime.UnlockOSThread()
	return ln, err
}

// web is some other program's port.
type web struct{ srv *http.Server }

func newWeb(m *machine, addr string) *web {
	return serveIn(m, addr, http.NotFoundHandler())
}

func serveIn(m *machine, addr string, h http.Handler) *web {
	m.lab.t.Helper()
	ln, err := m.listen(addr)
	if err != nil {
		m.lab.t.Fatal(err)
	}
	w := &web{&http.Server{Handler: h}}
	go w.srv.Serve(ln)
	m.lab.t.Cleanup(w.Close)
	return w
}

func (w *web) Close() { w.srv.Close() }

// standIn is a central cache that has nothing, and gets strange. mu guards what follows it.
type standIn struct {
	m   *machine
	url string
	web *web

	mu    sync.Mutex
	delay time.Duration
	skew  time.Duration
}

func newStandIn(m *machine) *standIn {
	s := &standIn{m: m, url: "http://127.0.0.1:9400"}
	s.open()
	return s
}

func (s *standIn) open() { s.web = serveIn(s.m, "127.0.0.1:9400", s) }

// ServeHTTP implements http.Handler.
func (s *standIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	delay, skew := s.delay, s.skew
	s.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
	}
	w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
	if r.URL.Path != "/nix-cache-info" {
		http.NotFound(w, r)
		return
	}
	fmt.Fprint(w, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
}

func (s *standIn) be(delay, skew time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay, s.skew = delay, skew
}

func (s *standIn) well() { s.be(0, 0) }

func (s *standIn) slow() func() { s.be(1300*time.Millisecond, 0); return s.well }

func (s *standIn) fromTheFuture() func() { s.be(0, time.Hour); return s.well }

func (s *standIn) gone() func() {
	s.web.Close()
	return s.open
}

// daemon is a nix-daemon in the machine.
type daemon struct {
	t   *testing.T
	cmd *exec.Cmd
}

func (a *agent) nixDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t, a.m.lab.command(context.Background(), "", fmt.Sprint(a.m.n), "nix-daemon")}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nix-daemon runs", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", d.cmd.Process.Pid))
		return strings.TrimSpace(string(b)) == "nix-daemon"
	})
	return d
}

// touch makes a file newer than the daemon.
func (d *daemon) touch(name string) {
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(name, later, later); err != nil {
		d.t.Error(err)
	}
}

func (d *daemon) stop() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	d.cmd.Wait()
}

// launchSecond starts another agent in the machine, of another user, with another substituter's port and
// the same peer port.
func (m *machine) launchSecond(t *testing.T) *agent {
	t.Helper()
	was := m.agent
	defer func() { m.agent = was }()
	dir := filepath.Join(m.dir, "second")
	for _, d := range []string{"home", "state", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a := &agent{m: m, dir: dir, cfg: agentConfig{listen: "127.0.0.1:6495", asRoot: true}}
	if err := os.WriteFile(filepath.Join(dir, "flurry.toml"), []byte(a.cfg.text(m.lab.w.corpus.key)), 0o644); err != nil {
		t.Fatal(err)
	}
	a.launch()
	eventually(t, "the second agent answers", func() bool {
		_, err := a.tryStatus()
		return err == nil
	})
	return a
}
