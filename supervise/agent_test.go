package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is also the program under supervision: with FLURRY_TEST_DIR set it behaves as
// "flurry agent" does, and misbehaves as FLURRY_TEST_MODE says.
func TestMain(m *testing.M) {
	if dir := os.Getenv("FLURRY_TEST_DIR"); dir != "" {
		os.Exit(agentMain(dir, os.Getenv("FLURRY_TEST_MODE"), os.Getenv("FLURRY_TEST_ADDR")))
	}
	goleak.VerifyTestMain(m)
}

func agentMain(dir, mode, addr string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	socket := filepath.Join(dir, "handover.sock")
	listeners, ok, err := Listeners()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if !ok {
		watchdog, _ := time.ParseDuration(os.Getenv("FLURRY_TEST_WATCHDOG"))
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT) // as the real program does
		defer stop()
		err := Run(ctx, Config{Addrs: strings.Split(addr, ","), Socket: socket, Watchdog: watchdog,
			StartTimeout: watchdog, Log: log, StandIn: testStandIn(filepath.Join(dir, "stand in"))})
		if e, ok := errors.AsType[*ExitError](err); ok {
			return e.Code
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	return serve(listeners, dir, mode, socket, log)
}

// testStandIn answers whatever waits once the file exists; patience is package standby's.
func testStandIn(file string) func(context.Context, []*net.TCPListener) {
	return func(ctx context.Context, listeners []*net.TCPListener) {
		for _, err := os.Stat(file); err != nil; _, err = os.Stat(file) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "stand-in") })}
		_ = Serve(ctx, srv, []net.Listener{listeners[0]}, 0)
	}
}

func serve(listeners []net.Listener, dir, mode, socket string, log *slog.Logger) int {
	starts := countStart(filepath.Join(dir, "starts"))
	switch mode {
	case "bad config":
		return ExitConfig
	case "bad config later":
		if starts > 1 && starts < 4 {
			return ExitConfig
		}
	case "ready and gone, bad config later":
		if starts == 1 {
			Ready()
			return 2
		}
		if starts < 4 {
			return ExitConfig
		}
	case "crash later":
		if starts > 1 {
			return 2
		}
	case "crash thrice":
		if starts <= 3 {
			return 2
		}
	case "never ready once":
		if starts == 1 {
			time.Sleep(time.Hour) // an empty select would be taken for a deadlock
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if mode == "ignore SIGTERM" {
		ctx = context.Background()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mux := http.NewServeMux()
	mux.HandleFunc("/pid", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/half", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "2")
		_, _ = w.Write([]byte{1})
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	srv := &http.Server{Handler: mux}
	go ServeHandover(ctx, Handover{Socket: socket, Listeners: listeners, Stop: cancel, Log: log})
	go KeepAlive(ctx, func(context.Context) error { return nil })
	Ready()
	fmt.Println("ready", os.Getpid(), listeners[0].Addr(), len(listeners))
	context.AfterFunc(ctx, Stopping)
	if err := Serve(ctx, srv, listeners, 500*time.Millisecond); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if mode == "status 5" {
		return 5
	}
	return 0
}

func countStart(name string) int {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, os.Getpid())
	b, _ := os.ReadFile(name)
	return strings.Count(string(b), "\n")
}

// agent is a running supervisor.
type agent struct {
	t      *testing.T
	cmd    *exec.Cmd
	dir    string
	lines  chan string
	stderr *os.File
}

// ready is what a child says when it serves.
type ready struct {
	pid       int
	addr      string
	listeners int
}

func start(t *testing.T, dir, addr, mode string, env ...string) *agent {
	t.Helper()
	a := &agent{t: t, dir: dir, lines: make(chan string, 64)}
	a.cmd = exec.Command("/proc/self/exe")
	a.cmd.Args[0] = "flurry-test"
	a.cmd.Env = append(os.Environ(), append(env, "FLURRY_TEST_DIR="+dir, "FLURRY_TEST_ADDR="+addr, "FLURRY_TEST_MODE="+mode,
		"GORACE=atexit_sleep_ms=0")...) // the race detector's default of 1 s is longer than an agent may take to end
	var err error
	if a.stderr, err = os.CreateTemp(t.TempDir(), "stderr"); err != nil {
		t.Fatal(err)
	}
	a.cmd.Stderr = a.stderr
	r, w, err := os.Pipe() // not StdoutPipe: an orphan keeps it open
	if err != nil {
		t.Fatal(err)
	}
	a.cmd.Stdout = w
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	go func() {
		for sc := bufio.NewScanner(r); sc.Scan(); {
			a.lines <- sc.Text()
		}
		close(a.lines)
	}()
	t.Cleanup(func() {
		a.cmd.Process.Kill()
		a.cmd.Wait()
		for killAll(dir); !a.drained(); killAll(dir) { // one may have been born meanwhile
		}
		r.Close()
		if t.Failed() {
			t.Logf("stderr:\n%s", a.errors())
		}
	})
	return a
}

// killAll ends every process that was started with this directory, by whomever.
func killAll(dir string) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range all {
		env, _ := os.ReadFile(file) // it may be another user's, or gone
		if strings.Contains("\x00"+string(env), "\x00FLURRY_TEST_DIR="+dir+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// drained waits a moment for the end of what the children say, which comes when the last of them is gone.
func (a *agent) drained() bool {
	timeout := time.After(50 * time.Millisecond)
	for {
		select {
		case _, more := <-a.lines:
			if !more {
				return true
			}
		case <-timeout:
			return false
		}
	}
}

func (a *agent) errors() string {
	b, _ := os.ReadFile(a.stderr.Name())
	return string(b)
}

// awaitReady returns what the next child says.
func (a *agent) awaitReady() (r ready) {
	a.t.Helper()
	for line := range a.lines {
		if n, _ := fmt.Sscanf(line, "ready %d %s %d", &r.pid, &r.addr, &r.listeners); n == 3 {
			return r
		}
	}
	a.t.Fatalf("no agent became ready; stderr:\n%s", a.errors())
	return r
}

// wait returns the supervisor's exit status.
func (a *agent) wait() int {
	a.cmd.Wait()
	return a.cmd.ProcessState.ExitCode()
}

func kill(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// get asks on a connection of its own.
func get(addr, path string) (string, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Get("http://" + addr + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}
