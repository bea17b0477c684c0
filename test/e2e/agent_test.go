//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// Where an agent listens by default.
const (
	agentURL  = "http://127.0.0.1:6490"
	agentPort = "6490"
)

// agentConfig describes an agent; its zero value is an unprivileged one with the lab's central cache
// and defaults for the rest.
type agentConfig struct {
	upstreams []string // URLs, all with the corpus's key; nil is the lab's
	toml      string   // more of the configuration file
	listen    string   // of the substituter, "" is the default
	asRoot    bool
	binary    string   // "" is the one under test
	env       []string // more of its environment, NAME=value
	onDisk    bool     // its state is on the disk of machine.freshDisk
	disk      string   // size of a disk of its own for its state, as tmpfs takes it; "" is the machine's
}

// agent is a running `flurry agent`.
type agent struct {
	m    *machine
	dir  string // its home, state and runtime directories, configuration and log
	cmd  *exec.Cmd
	done chan struct{} // closed when the started process has ended
	cfg  agentConfig
}

// startAgent starts an agent with a state of its own and waits until it answers.
func (m *machine) startAgent(cfg agentConfig) *agent {
	m.lab.t.Helper()
	where := m.dir
	if cfg.onDisk {
		where = m.disk
	}
	dir, err := os.MkdirTemp(where, "agent-")
	if err != nil {
		m.lab.t.Fatal(err)
	}
	a := &agent{m: m, dir: dir, cfg: cfg}
	for _, d := range []string{"home", "state", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			m.lab.t.Fatal(err)
		}
	}
	if cfg.disk != "" {
		state := filepath.Join(dir, "state")
		if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+cfg.disk, "flurry-state", state).CombinedOutput(); err != nil {
			m.lab.t.Fatalf("mount: %v: %s", err, out)
		}
		m.lab.t.Cleanup(func() { exec.Command("umount", "-l", state).Run() })
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		m.lab.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "flurry.toml"), []byte(cfg.text(m.lab.w.corpus.key)), 0o644); err != nil {
		m.lab.t.Fatal(err)
	}
	if !cfg.asRoot {
		a.giveTo("nobody")
	}
	a.start()
	return a
}

func (c agentConfig) text(key string) string {
	var b strings.Builder
	if c.listen != "" {
		fmt.Fprintf(&b, "[substituter]\nlisten = %q\n", c.listen)
	}
	ups := c.upstreams
	if ups == nil {
		ups = []string{upstreamURL}
	}
	for _, u := range ups {
		fmt.Fprintf(&b, "[[upstream]]\nurl = %q\nkeys = [%q]\npublic = true\n", u, key)
	}
	return b.String() + c.toml
}

func (a *agent) giveTo(name string) {
	a.m.lab.t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		a.m.lab.t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for _, d := range []string{"home", "state", "run"} {
		if err := os.Chown(filepath.Join(a.dir, d), uid, gid); err != nil {
			a.m.lab.t.Fatal(err)
		}
	}
}

// start starts the agent, again after a stop or a kill, with the state it had.
func (a *agent) start() {
	a.m.lab.t.Helper()
	a.launch()
	a.ready()
}

// launch starts the agent and does not wait for it.
func (a *agent) launch() {
	t := a.m.lab.t
	t.Helper()
	log, err := os.OpenFile(filepath.Join(a.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	u := "nobody"
	if a.cfg.asRoot {
		u = ""
	}
	args := append([]string{"env", "HOME=" + filepath.Join(a.dir, "home"), "STATE_DIRECTORY=" + filepath.Join(a.dir, "state"),
		"RUNTIME_DIRECTORY=" + filepath.Join(a.dir, "run")}, a.cfg.env...)
	args = append(args, cmp.Or(a.cfg.binary, a.m.lab.w.flurry), "agent", "--config", filepath.Join(a.dir, "flurry.toml"))
	a.cmd = a.m.lab.command(context.Background(), u, fmt.Sprint(a.m.n), args...)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	a.done = done
	cmd := a.cmd
	go func() {
		cmd.Wait()
		close(done)
	}()
	a.m.agent = a
}

func (a *agent) ready() {
	a.m.lab.t.Helper()
	eventually(a.m.lab.t, fmt.Sprintf("machine %d's agent answers", a.m.n), func() bool {
		select {
		case <-a.done:
			a.m.lab.t.Fatalf("machine %d's agent ended: %v", a.m.n, a.cmd.ProcessState)
		default:
		}
		if r, err := a.get("/nix-cache-info"); err != nil || r.status != http.StatusOK {
			return false
		}
		_, err := a.tryStatus()
		return err == nil
	})
}

// stop ends the agent as a service manager does.
func (a *agent) stop() {
	a.m.lab.t.Helper()
	a.signal(syscall.SIGTERM)
	eventually(a.m.lab.t, fmt.Sprintf("machine %d's agent ends on SIGTERM", a.m.n), a.gone)
}

// kill ends all of the agent at once: the supervisor and what it started.
func (a *agent) kill() {
	a.m.lab.t.Helper()
	all := append([]int{a.cmd.Process.Pid}, a.children()...)
	for _, pid := range all {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	eventually(a.m.lab.t, fmt.Sprintf("machine %d's agent is dead", a.m.n), func() bool {
		for _, pid := range all {
			if alive(pid) {
				return false
			}
		}
		return a.gone()
	})
}

// killServing ends the process that serves and leaves its supervisor alone.
func (a *agent) killServing() {
	a.m.lab.t.Helper()
	c := a.children()
	if len(c) == 0 {
		a.m.lab.t.Fatal("the agent has no child: who keeps its port when it dies?")
	}
	for _, pid := range c {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

// signal reaches the started process only: the supervisor, where there is one.
func (a *agent) signal(s syscall.Signal) {
	a.m.lab.t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		a.m.lab.t.Fatal(err)
	}
}

func (a *agent) gone() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

func (a *agent) children() (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", a.cmd.Process.Pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f) // the thread may have ended
		for _, s := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(s); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// alive is false for a zombie too.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z'
}

// report shows the end of the agent's log where the test has failed.
func (a *agent) report() {
	if b, err := os.ReadFile(filepath.Join(a.dir, "log")); err == nil && a.m.lab.t.Failed() {
		a.m.lab.t.Logf("machine %d's agent:\n%s", a.m.n, tail(string(b), 4000))
	}
}

// status is what `flurry status --json` says, as far as the tests look.
type status struct {
	PeerID string `json:"peer_id"`
	Store  struct {
		Paths     int `json:"paths"`
		Shareable int `json:"shareable_paths"`
	} `json:"store"`
	Peers []peerStatus `json:"peers"`
	Bytes struct {
		FromPeers    int64 `json:"from_peers"`
		FromUpstream int64 `json:"from_upstream"`
		ToPeers      int64 `json:"to_peers"`
		ToNix        int64 `json:"to_nix"`
	} `json:"bytes"`
	Wire struct {
		FromPeers int64 `json:"from_peers"`
		ToPeers   int64 `json:"to_peers"`
	} `json:"wire"`
	NAR struct {
		Served   int64 `json:"served"`
		Failed   int64 `json:"failed"`
		Switched int64 `json:"switched_source"`
		Rejected int64 `json:"rejected"`
	} `json:"nar"`
	Internet internetStatus `json:"internet"`
}

type internetStatus struct {
	Reachable    bool  `json:"reachable"`
	ProvidedKeys int   `json:"provided_keys"`
	Agents       int   `json:"agents"`
	BytesFrom    int64 `json:"bytes_from"`
}

type peerStatus struct {
	ID           string   `json:"id"`
	Via          string   `json:"via"`
	IntroducedBy string   `json:"introduced_by"`
	Paths        int      `json:"paths"`
	State        string   `json:"state"`
	Addrs        []string `json:"addrs"`
}

func (a *agent) status() status {
	a.m.lab.t.Helper()
	s, err := a.tryStatus()
	if err != nil {
		a.m.lab.t.Fatal(err)
	}
	return s
}

func (a *agent) tryStatus() (s status, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.m.lab.w.flurry, "status", "--json", "--socket", filepath.Join(a.dir, "run", "flurry.sock"))
	cmd.Env = []string{"HOME=" + filepath.Join(a.dir, "home")}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return s, fmt.Errorf("flurry status: %w: %s", err, stderr.Bytes())
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("flurry status: %w: %s", err, out)
	}
	return s, nil
}

// cli runs a flurry command in the agent's machine, talking to this agent.
func (a *agent) cli(args ...string) result {
	a.m.lab.t.Helper()
	return a.m.do(append([]string{"env", "RUNTIME_DIRECTORY=" + filepath.Join(a.dir, "run"), a.m.lab.w.flurry}, args...)...)
}

// knows waits until the agent has this many paths on offer from another.
func (a *agent) knows(other *agent, paths int) {
	a.m.lab.t.Helper()
	id := other.status().PeerID
	eventually(a.m.lab.t, fmt.Sprintf("machine %d knows machine %d's %d paths", a.m.n, other.m.n, paths), func() bool {
		return a.offered(id) >= paths
	})
}

// offered is how many paths a peer has on offer, 0 for one the agent does not know.
func (a *agent) offered(id string) int {
	s, err := a.tryStatus()
	if err != nil {
		return 0
	}
	for _, p := range s.Peers {
		if p.ID == id {
			return p.Paths
		}
	}
	return 0
}

// shares waits until the agent has noticed this many shareable paths in its own store.
func (a *agent) shares(paths int) {
	a.m.lab.t.Helper()
	eventually(a.m.lab.t, fmt.Sprintf("machine %d shares %d paths", a.m.n, paths), func() bool {
		s, err := a.tryStatus()
		return err == nil && s.Store.Shareable >= paths
	})
}

// answer is an HTTP answer with its whole body.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// get asks the agent from its own machine.
func (a *agent) get(path string) (answer, error) {
	return request(a.m, http.MethodGet, agentURL+path, nil)
}

// request asks from inside a machine. A header named Host sets the request's host.
func request(m *machine, method, url string, header map[string]string) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return answer{}, err
	}
	for k, v := range header {
		if req.Header.Set(k, v); k == "Host" {
			req.Host = v
		}
	}
	resp, err := m.http().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: body}, err
}

// ask is request for tests that need an answer.
func ask(t testing.TB, m *machine, method, url string, header map[string]string) answer {
	t.Helper()
	a, err := request(m, method, url, header)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}
