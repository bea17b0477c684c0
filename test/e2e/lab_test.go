//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that should take well under a second. It is generous
// because CI machines stall; no test asserts it.
const patience = 30 * time.Second

// labConfig describes a lab. Rates are in tc's syntax; "" is unlimited.
type labConfig struct {
	machines     int
	upstreamRate string
	linkRate     string   // each machine's own link, both ways
	more         []string // options of lab-up
}

// lab is some machines and an nginx that stands for the central cache, at upstreamURL.
type lab struct {
	t       testing.TB
	w       world
	prefix  string
	dir     string
	machine []*machine // numbered from 1; machine[0] is nil
	env     []string
	reaper  *exec.Cmd
	leash   io.Closer // its end tells the reaper to end the lab
}

const upstreamURL = "http://10.77.0.1:8080"

var (
	labsMu   sync.Mutex // guards labs and labCount
	labs     = map[*lab]bool{}
	labCount int
)

func newLab(t testing.TB, cfg labConfig) *lab {
	t.Helper()
	w := needWorld(t)
	labsMu.Lock()
	labCount++
	l := &lab{t: t, w: w, prefix: fmt.Sprintf("fe2e%d-%d", os.Getpid(), labCount)}
	labsMu.Unlock()
	l.dir = filepath.Join(w.base, l.prefix)
	l.env = append(os.Environ(), "LAB_PREFIX="+l.prefix, "LAB_DIR="+l.dir)
	l.startReaper()
	t.Cleanup(l.down)

	args := []string{"-c", w.corpus.dir}
	if cfg.upstreamRate != "" {
		args = append(args, "-r", cfg.upstreamRate)
	}
	if cfg.linkRate != "" {
		args = append(args, "-l", cfg.linkRate)
	}
	args = append(args, cfg.more...)
	l.upArgs(append(args, strconv.Itoa(cfg.machines))...)
	l.machine = make([]*machine, cfg.machines+1)
	for i := 1; i <= cfg.machines; i++ {
		ip, err := os.ReadFile(filepath.Join(l.dir, fmt.Sprintf("m%d", i), "ip"))
		if err != nil {
			t.Fatal(err)
		}
		l.machine[i] = &machine{lab: l, n: i, ip: strings.TrimSpace(string(ip)), dir: filepath.Join(l.dir, fmt.Sprintf("m%d", i))}
		l.machine[i].substituters(agentURL)
	}
	return l
}

// upArgs runs lab-up, which adds what is missing.
func (l *lab) upArgs(args ...string) {
	l.t.Helper()
	cmd := exec.Command(filepath.Join(l.w.scripts, "lab-up"), args...)
	cmd.Env = l.env
	if out, err := cmd.CombinedOutput(); err != nil {
		l.t.Fatalf("lab-up: %v\n%s", err, out)
	}
}

// startReaper starts the process that ends the lab when told to, or when this process dies; then it
// removes all that the process leaves.
func (l *lab) startReaper() {
	l.reaper = exec.Command("sh", "-c", `read -r _; "$0" && { kill -0 "$1" 2>/dev/null || rm -rf "$2"; }`,
		filepath.Join(l.w.scripts, "lab-down"), strconv.Itoa(os.Getpid()), l.w.base)
	l.reaper.Env = l.env
	l.reaper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // not in the way of a ^C
	in, err := l.reaper.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	l.leash = in
	if err := l.reaper.Start(); err != nil {
		l.t.Fatal(err)
	}
	labsMu.Lock()
	labs[l] = true
	labsMu.Unlock()
}

func (l *lab) down() {
	labsMu.Lock()
	mine := labs[l]
	delete(labs, l)
	labsMu.Unlock()
	if !mine {
		return
	}
	for _, m := range l.machine {
		if m != nil && m.agent != nil {
			m.agent.report()
		}
	}
	l.leash.Close()
	if err := l.reaper.Wait(); err != nil {
		l.t.Errorf("lab-down: %v", err)
	}
}

func endAllLabs() {
	labsMu.Lock()
	defer labsMu.Unlock()
	for l := range labs {
		l.leash.Close()
	}
	for l := range labs {
		l.reaper.Wait()
		delete(labs, l)
	}
}

// command prepares a command in a machine ("1", "up", "sw"), as a user where one is given.
func (l *lab) command(ctx context.Context, user, where string, args ...string) *exec.Cmd {
	var a []string
	if user != "" {
		a = append(a, "-u", user)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(l.w.scripts, "lab-exec"), append(append(a, where), args...)...)
	cmd.Env = l.env
	cmd.Dir = l.dir
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the output open
	return cmd
}

// killUpstream ends the central cache at once, cutting what it is sending.
func (l *lab) killUpstream() {
	l.t.Helper()
	for _, pid := range l.pids("up") {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.TrimSpace(string(comm)) == "nginx" { // its shell then cleans up
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	eventually(l.t, "upstream is gone", func() bool { return len(l.pids("up")) == 0 })
}

func (l *lab) startUpstream() {
	l.t.Helper()
	l.upArgs("-c", l.w.corpus.dir, strconv.Itoa(len(l.machine)-1))
}

func (l *lab) pids(where string) (pids []int) {
	l.t.Helper()
	out, err := exec.Command("ip", "netns", "pids", l.prefix+"-"+where).Output()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, f := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			l.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// upstreamRequests is what the central cache has been asked for by a machine so far: method and URI.
func (l *lab) upstreamRequests(m *machine) (reqs []string) {
	l.t.Helper()
	for _, r := range l.upstreamLog() {
		if r.client == m.ip {
			reqs = append(reqs, r.method+" "+r.uri)
		}
	}
	return reqs
}

type upstreamRequest struct {
	client, method, uri string
	status              int
	bytes               int64
}

func (l *lab) upstreamLog() (reqs []upstreamRequest) {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, "upstream.log"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, "\t")
		if len(f) < 6 {
			continue
		}
		status, _ := strconv.Atoi(f[4])
		n, _ := strconv.ParseInt(f[5], 10, 64)
		reqs = append(reqs, upstreamRequest{client: f[1], method: f[2], uri: f[3], status: status, bytes: n})
	}
	return reqs
}

// cut takes a machine's cable out; mend puts it back.
func (m *machine) cut()  { m.cable("down") }
func (m *machine) mend() { m.cable("up") }

func (m *machine) cable(state string) {
	m.lab.t.Helper()
	out, err := exec.Command("ip", "-n", m.lab.prefix+"-sw", "link", "set", fmt.Sprintf("m%d", m.n), state).CombinedOutput()
	if err != nil {
		m.lab.t.Fatalf("ip link set: %v\n%s", err, out)
	}
}

// received is how many bytes have come to the machine over its cable.
func (m *machine) received() int64 {
	m.lab.t.Helper()
	received, _ := m.traffic()
	return received
}

// traffic is what came to the machine and left it, in bytes on its link.
func (m *machine) traffic() (received, sent int64) {
	m.lab.t.Helper()
	out, err := exec.Command("ip", "-n", m.lab.prefix+"-sw", "-s", "-j", "link", "show", "dev", fmt.Sprintf("m%d", m.n)).Output()
	if err != nil {
		m.lab.t.Fatal(err)
	}
	var links []struct {
		Stats64 struct {
			TX, RX struct{ Bytes int64 }
		}
	}
	if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
		m.lab.t.Fatalf("ip -s -j link: %v: %s", err, out)
	}
	return links[0].Stats64.TX.Bytes, links[0].Stats64.RX.Bytes
}

// eventually waits until something is so, and fails the test when it never is.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	if !within(patience, so) {
		t.Fatalf("still not so after %v: %s", patience, what)
	}
}

// within polls until something is so or the time is up.
func within(d time.Duration, so func() bool) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); ; <-tick.C {
		if so() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}
