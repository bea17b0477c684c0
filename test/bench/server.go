//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// server is a running process tree that answers on addr.
type server struct {
	addr string
	dir  string
	cmd  *exec.Cmd
	done chan struct{}
}

// stop ends the process that this program started, and waits.
func (s *server) stop() {
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		s.cmd.Process.Kill()
		<-s.done
	}
}

// freeAddr is a loopback address that nobody listens on.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// launch starts a program with its output in dir/log and waits until it answers.
func (b *bench) launch(dir, addr string, env []string, name string, args ...string) (*server, error) {
	return b.launchWith(nil, dir, addr, env, name, args...)
}

// launchWith also gives the program open files, from descriptor 3 on.
func (b *bench) launchWith(files []*os.File, dir, addr string, env []string, name string, args ...string) (*server, error) {
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...) // nothing that configures an agent
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for _, f := range files { // handing it on made it block; an nginx worker that came second stood in accept(2) with all its connections
		if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
			return nil, err
		}
	}
	s := &server{addr: addr, dir: dir, cmd: cmd, done: make(chan struct{})}
	go func() { cmd.Wait(); close(s.done) }()
	if err := s.answers(30 * time.Second); err != nil {
		s.stop()
		text, _ := os.ReadFile(log.Name())
		return nil, fmt.Errorf("%s: %w\n%s", name, err, text)
	}
	return s, nil
}

// answers waits for the first answer.
func (s *server) answers(patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		c, err := dial(s.addr)
		if err == nil {
			_, err = c.get("nix-cache-info")
			c.close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			return errors.New("it ended")
		default:
		}
		if time.Now().After(deadline) {
			return err
		}
	}
}

// nginx serves a corpus's static files as the machine is set up.
func (b *bench) nginx(root string) (*server, error) { return b.nginxOn(root, nil) }

// nginxBefore is an nginx that passes every question on to the server at addr, on connections that it keeps.
func (b *bench) nginxBefore(addr string) (*server, error) {
	behind := "upstream behind { server " + addr + "; keepalive 16; }"
	pass := `location / { proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection ""; }`
	return b.nginxWith(behind, pass, nil)
}

// unpacedNginx is one whose connections a congestion control that paces, as BBR does, does not slow down: it
// inherits a socket that says so, as its configuration cannot.
func (b *bench) unpacedNginx(root string) (*server, error) {
	unpaced := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") })
		return err
	}}
	ln, err := unpaced.Listen(b.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	return b.nginxOn(root, ln.(*net.TCPListener))
}

// nginxOn serves as well as nginx can, on ln if it is not nil.
func (b *bench) nginxOn(root string, ln *net.TCPListener) (*server, error) {
	return b.nginxWith("", "root "+root+";", ln)
}

// nginxWith has directives of the http block and of the one server in it.
func (b *bench) nginxWith(http, site string, ln *net.TCPListener) (*server, error) {
	dir, err := os.MkdirTemp(b.tmp, "nginx-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	var env []string
	var files []*os.File
	if ln != nil {
		f, err := ln.File()
		if err != nil {
			return nil, err
		}
		defer f.Close()
		addr, env, files = ln.Addr().String(), []string{"NGINX=3;"}, []*os.File{f}
	}
	text := fmt.Sprintf(`worker_processes auto;
daemon off; pid %[1]s/pid; error_log stderr warn; user root;
events { worker_connections 1024; }
http {
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_timeout 1h; keepalive_requests 100000000;
  open_file_cache max=20000 inactive=1h; open_file_cache_valid 1h; open_file_cache_errors on;
  default_type application/x-nix-nar; types { text/x-nix-narinfo narinfo; }
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  %[3]s
  server { listen %[2]s backlog=1024; log_not_found off; %[4]s }
}
`, dir, addr, http, site)
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return b.launchWith(files, dir, addr, env, "nginx", "-e", "stderr", "-c", conf)
}

// harmonia serves a corpus's store, uncompressed as the others do.
func (b *bench) harmonia(c *corpus) (*server, error) {
	dir, err := os.MkdirTemp(b.tmp, "harmonia-")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "harmonia.toml")
	text := fmt.Sprintf("bind = %q\nworkers = %d\nreal_nix_store = %q\nenable_compression = false\n", addr, runtime.NumCPU(), c.realDir())
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return b.launch(dir, addr, []string{"CONFIG_FILE=" + conf, "RUST_LOG=error"}, b.harmoniaBinary)
}

// agentConfig of a flurry agent on loopback.
type agentConfig struct {
	store    *corpus // nil: no local store
	upstream string  // host:port; "": one that has nothing
	static   string  // a peer's multiaddr
	dir      string  // state of an earlier one; "" makes a new one
	env      []string
	binary   string // "" for the one that is measured

	cacheSize int64 // bytes, where that is more than the default
}

// agent starts a flurry agent and waits until its store is loaded and checked.
func (b *bench) agent(cfg agentConfig) (*server, error) {
	s, err := b.agentNow(cfg)
	if err != nil || cfg.store == nil {
		return s, err
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		st, err := s.status()
		if err == nil && st.Store.Shareable >= len(cfg.store.Paths) {
			return s, nil
		}
		if time.Now().After(deadline) {
			s.stop()
			return nil, fmt.Errorf("the agent's store does not load: %+v %w", st, err)
		}
	}
}

// agentNow starts a flurry agent and waits for its first answer.
func (b *bench) agentNow(cfg agentConfig) (*server, error) {
	dir := cfg.dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp(b.tmp, "agent-"); err != nil {
			return nil, err
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	peers, err := freeAddr()
	if err != nil {
		return nil, err
	}
	up := cfg.upstream
	if up == "" {
		up = emptyUpstream()
	}
	var t strings.Builder
	fmt.Fprintf(&t, "[state]\ndir = %q\n[substituter]\nlisten = [%q]\n[store]\n", filepath.Join(dir, "state"), addr)
	if cfg.store == nil {
		fmt.Fprintln(&t, `database = ""`)
	} else {
		fmt.Fprintf(&t, "database = %q\nreal_dir = %q\n", cfg.store.database(), cfg.store.realDir())
	}
	fmt.Fprintf(&t, "[[upstream]]\nurl = \"http://%s\"\nkeys = [%q]\npublic = true\n[peers]\nlisten = [%q]\nmdns = false\n", up, b.key.public, peers)
	if cfg.static != "" {
		fmt.Fprintf(&t, "static = [%q]\n", cfg.static)
	}
	if cfg.cacheSize > 4<<30 {
		fmt.Fprintf(&t, "[limits]\ncache_size = \"%dMiB\"\n", cfg.cacheSize>>20)
	}
	conf := filepath.Join(dir, "flurry.toml")
	if err := os.WriteFile(conf, []byte(t.String()), 0o644); err != nil {
		return nil, err
	}
	env := append([]string{"HOME=" + dir, "STATE_DIRECTORY=", "RUNTIME_DIRECTORY=" + dir}, cfg.env...)
	return b.launch(dir, addr, env, cmp.Or(cfg.binary, b.flurry), "agent", "--config", conf)
}

// emptyUpstream is a central cache that has nothing; it lives as long as this process.
var emptyUpstream = func() func() string {
	addr := ""
	return func() string {
		if addr == "" {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				panic(err)
			}
			addr = ln.Addr().String()
			go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/nix-cache-info" {
					fmt.Fprint(w, "StoreDir: /nix/store\n")
					return
				}
				http.NotFound(w, r)
			}))
		}
		return addr
	}
}()

// status is what rows need of an agent's report.
type status struct {
	Store struct {
		Shareable int `json:"shareable_paths"`
		Unchecked int `json:"unchecked_paths"`
	} `json:"store"`
	Peers []struct {
		Paths int    `json:"paths"`
		State string `json:"state"`
	} `json:"peers"`
	Bytes struct {
		FromPeers int64 `json:"from_peers"`
	} `json:"bytes"`
}

func (s *server) flurry(b *bench, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(b.ctx, b.flurry, append(args, "--socket", filepath.Join(s.dir, "flurry.sock"))...)
	return cmd.Output()
}

// status asks for the aggregates.
func (s *server) status() (st status, err error) {
	resp, err := http.Get("http://" + s.addr + "/status.json")
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

// knows waits until the agent has a peer that claims that many paths.
func (s *server) knows(b *bench, paths int) error {
	var st status
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		text, err := s.flurry(b, "status", "--json")
		if err != nil {
			continue
		}
		if json.Unmarshal(text, &st) == nil && len(st.Peers) > 0 && st.Peers[0].Paths >= paths {
			return nil
		}
	}
	return fmt.Errorf("the peer's paths do not arrive: %+v", st.Peers)
}

// multiaddr is where the agent's peers reach it over TCP.
func (s *server) multiaddr(b *bench) (string, error) {
	text, err := s.flurry(b, "id")
	if err != nil {
		return "", fmt.Errorf("flurry id: %w", err)
	}
	for _, f := range strings.Fields(string(text)) {
		if strings.HasPrefix(f, "/ip4/127.0.0.1/tcp/") {
			return f, nil
		}
	}
	return "", fmt.Errorf("no TCP address in %q", text)
}

// processes are the ids of the server's process and all below it.
func (s *server) processes() []int {
	list := []int{s.cmd.Process.Pid}
	for i := 0; i < len(list); i++ {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", list[i]))
		for _, t := range tasks {
			text, _ := os.ReadFile(t)
			for _, f := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(f); err == nil {
					list = append(list, pid)
				}
			}
		}
	}
	return list
}

// cpu is what the server's processes have used, user and system, including children that ended.
func (s *server) cpu() time.Duration { return s.ticks(11, 15) } // utime, stime, cutime, cstime

// children is the CPU time of children that it has waited for.
func (s *server) children() time.Duration { return s.ticks(13, 15) }

// ticks sums fields of its processes' stat.
func (s *server) ticks(from, to int) time.Duration {
	var ticks int64
	for _, pid := range s.processes() {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		for i := from; i < to && len(f) > to; i++ {
			n, _ := strconv.ParseInt(f[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// running is the CPU time of the server's living threads, exactly; those that ended are not in it.
func (s *server) running() (d time.Duration) {
	for _, pid := range s.processes() {
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		for _, t := range tasks {
			text, _ := os.ReadFile(t)
			ns, _, _ := strings.Cut(string(text), " ")
			n, _ := strconv.ParseInt(ns, 10, 64)
			d += time.Duration(n)
		}
	}
	return d
}

// memory sums a field of /proc/PID/status such as VmRSS or VmHWM, bytes, over the server's processes.
func (s *server) memory(field string) (n int64) {
	for _, pid := range s.processes() {
		n += memory(pid, field)
	}
	return n
}

// agentMemory is that of the agent itself, without the small process that owns its port, which shares
// most of its memory with it and which systemd's socket units make needless.
func (s *server) agentMemory(field string) int64 {
	list := s.processes()
	return memory(list[len(list)-1], field)
}

func memory(pid int, field string) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for _, line := range strings.Split(string(text), "\n") {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}
