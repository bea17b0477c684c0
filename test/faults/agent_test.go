//go:build linux

package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// patience is how long anything may take that is no part of a measurement.
const patience = 30 * time.Second

// agent is a running `flurry agent` on loopback.
type agent struct {
	dir      string // configuration, state, socket and log; survives restarts
	binary   string
	cmd      *exec.Cmd
	ended    chan struct{}
	url      string
	peerPort int
}

// agentConfig says whom an agent knows.
type agentConfig struct {
	key       string
	upstreams []string
	static    []string
	store     string // a chroot store to share; "" for none
}

// newAgent starts an agent with an empty state below dir.
func newAgent(binary, dir string, cfg agentConfig) (*agent, error) {
	port, peerPort, err := freePorts()
	if err != nil {
		return nil, err
	}
	a := &agent{dir: dir, binary: binary, url: fmt.Sprintf("http://127.0.0.1:%d", port), peerPort: peerPort}
	var b strings.Builder
	fmt.Fprintf(&b, "[state]\ndir = %q\n[log]\nlevel = \"debug\"\n", filepath.Join(dir, "state"))
	fmt.Fprintf(&b, "[substituter]\nlisten = [\"127.0.0.1:%d\"]\n", port)
	if cfg.store == "" {
		b.WriteString("[store]\ndatabase = \"\"\n")
	} else {
		fmt.Fprintf(&b, "[store]\ndatabase = %q\nreal_dir = %q\n", cfg.store+"/nix/var/nix/db/db.sqlite", cfg.store+"/nix/store")
	}
	fmt.Fprintf(&b, "[peers]\nlisten = [\"127.0.0.1:%d\"]\nmdns = false\nstatic = [", a.peerPort)
	for _, s := range cfg.static {
		fmt.Fprintf(&b, "%q, ", s)
	}
	b.WriteString("]\n")
	for _, u := range cfg.upstreams {
		fmt.Fprintf(&b, "[[upstream]]\nurl = %q\nkeys = [%q]\npublic = true\n", u, cfg.key)
	}
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "flurry.toml"), []byte(b.String()), 0o600); err != nil {
		return nil, err
	}
	return a, a.start()
}

// freePorts returns two different ports; one after the other might be the same.
func freePorts() (a, b int, err error) {
	var ports [2]int
	for i := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, 0, err
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports[0], ports[1], nil
}

// start starts the agent, again after a stop, and waits until it answers.
func (a *agent) start() error {
	log, err := os.OpenFile(filepath.Join(a.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	a.cmd = exec.Command(a.binary, "agent", "--config", filepath.Join(a.dir, "flurry.toml"))
	a.cmd.Env = append(environment(), "RUNTIME_DIRECTORY="+filepath.Join(a.dir, "run"), "HOME="+a.dir)
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := a.cmd.Start(); err != nil {
		return err
	}
	a.ended = make(chan struct{})
	go func() { a.cmd.Wait(); close(a.ended) }()
	return until("the agent answers", func() bool {
		select {
		case <-a.ended:
			return false
		default:
		}
		resp, err := http.Get(a.url + "/nix-cache-info")
		if err != nil {
			return false
		}
		resp.Body.Close()
		_, err = a.status()
		return err == nil && resp.StatusCode == http.StatusOK
	})
}

// environment is this process's without settings of flurry's.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "FLURRY_") })
}

// stop ends the agent as a service manager does.
func (a *agent) stop() {
	a.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(patience):
	}
	syscall.Kill(-a.cmd.Process.Pid, syscall.SIGKILL) // its group, which is ours alone
	<-a.ended
}

// until waits for something that needs no measuring.
func until(what string, ok func() bool) error {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return nil
		}
	}
	return errors.New("never happened: " + what)
}

// report is what the status says, as far as this program looks.
type report struct {
	PeerID    string       `json:"peer_id"`
	Peers     []peerReport `json:"peers"`
	Upstreams []struct {
		URL       string `json:"url"`
		Reachable bool   `json:"reachable"`
		LastError string `json:"last_error"`
	} `json:"upstreams"`
	Store struct {
		Shareable int `json:"shareable_paths"`
	} `json:"store"`
}

type peerReport struct {
	ID     string   `json:"id"`
	Addrs  []string `json:"addrs"`
	Via    string   `json:"via"`
	Paths  int      `json:"paths"`
	State  string   `json:"state"`
	Reason string   `json:"reason"`
}

// ask runs a command of flurry's against this agent.
func (a *agent) ask(args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.binary, append(args, "--socket", filepath.Join(a.dir, "run", "flurry.sock"))...)
	cmd.Env = append(environment(), "HOME="+a.dir)
	return cmd.Output()
}

func (a *agent) status() (r report, err error) {
	out, err := a.ask("status", "--json")
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(out, &r)
}

// addrs are the agent's for peers, as `flurry id` prints them.
func (a *agent) addrs() ([]string, error) {
	r, err := a.status()
	return []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/%s", a.peerPort, r.PeerID)}, err
}

// peer returns what the agent says of a peer, nil if nothing.
func (a *agent) peer(ok func(peerReport) bool) *peerReport {
	r, err := a.status()
	if err != nil {
		return nil
	}
	for _, p := range r.Peers {
		if ok(p) {
			return &p
		}
	}
	return nil
}

// log returns what the agent logged at level info and above.
func (a *agent) log() string {
	b, _ := os.ReadFile(filepath.Join(a.dir, "log"))
	var out []string
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, "level=DEBUG") {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// realise makes real Nix fetch a path and all it needs into a new store below dir, from the URL alone.
func realise(dir, url, key, path string, limit time.Duration) (exit int, took time.Duration, out string) {
	conf := filepath.Join(dir, "nix.conf.d")
	os.MkdirAll(conf, 0o700)
	os.WriteFile(filepath.Join(conf, "nix.conf"), []byte(fmt.Sprintf(
		"substituters = %s\ntrusted-public-keys = %s\nbuild-users-group =\nsandbox = false\n", url, key)), 0o600)
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nix-store", "--store", filepath.Join(dir, "root"), "-r", path)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+conf, "HOME="+dir, "XDG_CACHE_HOME="+filepath.Join(dir, "cache"), "NIX_REMOTE=")
	cmd.WaitDelay = time.Second
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	start := time.Now()
	err := cmd.Run()
	took = time.Since(start)
	if ctx.Err() != nil {
		return -1, took, b.String() + "\nstill not done after " + limit.String()
	}
	if err != nil {
		return cmd.ProcessState.ExitCode(), took, b.String()
	}
	return 0, took, b.String()
}
