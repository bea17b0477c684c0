package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAKilledChildIsReplacedOnTheSamePort(t *testing.T) {
	a := start(t, t.TempDir(), "127.0.0.1:0,[::1]:0", "")
	first := a.awaitReady()
	if first.listeners != 2 {
		t.Errorf("%d listeners, want both", first.listeners)
	}
	resp, err := http.Get("http://" + first.addr + "/half")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	kill(t, first.pid, syscall.SIGKILL)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a half answer ended as if it were whole")
	}
	second := a.awaitReady()
	if second.addr != first.addr || second.pid == first.pid {
		t.Errorf("first %+v, second %+v", first, second)
	}
	if got, err := get(first.addr, "/pid"); got != strconv.Itoa(second.pid) {
		t.Error(got, err)
	}
}

func TestConnectionsThatWaitAreServedByTheSuccessor(t *testing.T) {
	a := start(t, t.TempDir(), "127.0.0.1:0", "")
	first := a.awaitReady()
	kill(t, first.pid, syscall.SIGSTOP)
	awaitStopped(t, first.pid) // accepts no more
	var conns []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", first.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET /pid HTTP/1.1\r\nHost: x\r\n\r\n")
		conns = append(conns, c)
	}
	kill(t, first.pid, syscall.SIGKILL)
	second := a.awaitReady()
	for i, c := range conns {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != strconv.Itoa(second.pid) {
			t.Errorf("connection %d: %q, want %d", i, b, second.pid)
		}
	}
}

// awaitStopped waits until no thread of the process runs any more.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for running := true; running && t.Context().Err() == nil; {
		running = false
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(tasks) == 0 {
			t.Fatal("no such process", err)
		}
		for _, task := range tasks {
			stat, _ := os.ReadFile(task)
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				running = true
			}
		}
	}
}

func TestNobodyIsRefusedWhileChildrenDie(t *testing.T) {
	a := start(t, t.TempDir(), "127.0.0.1:0", "")
	r := a.awaitReady()
	load := startLoad(r.addr)
	for range 5 {
		kill(t, r.pid, syscall.SIGKILL)
		r = a.awaitReady()
	}
	load.stop()
	if load.refused.Load() > 0 || load.served.Load() == 0 {
		t.Errorf("refused %d, served %d", load.refused.Load(), load.served.Load())
	}
}

func TestATakeOverFromAnOrphanLosesNoRequest(t *testing.T) {
	dir := t.TempDir()
	a := start(t, dir, "127.0.0.1:0", "")
	first := a.awaitReady()
	load := startLoad(first.addr)
	kill(t, a.cmd.Process.Pid, syscall.SIGKILL)
	a.wait()
	if got, err := get(first.addr, "/pid"); got != strconv.Itoa(first.pid) {
		t.Fatalf("the orphan does not serve: %q, %v", got, err)
	}
	b := start(t, dir, first.addr, "")
	second := b.awaitReady()
	if got, err := get(first.addr, "/pid"); got != strconv.Itoa(second.pid) {
		t.Errorf("%q, %v; want the new child %d", got, err, second.pid)
	}
	for range a.lines { // ends when the orphan does
	}
	if n := load.cut.Load(); n > 0 {
		t.Errorf("%d requests were cut", n)
	}
	kill(t, second.pid, syscall.SIGKILL) // the new supervisor really has the port
	b.awaitReady()
	load.stop()
	if load.refused.Load() > 0 || load.served.Load() == 0 {
		t.Errorf("refused %d, served %d, cut %d", load.refused.Load(), load.served.Load(), load.cut.Load())
	}
	t.Logf("served %d, cut %d (by the SIGKILL at the end)", load.served.Load(), load.cut.Load())
}

func TestAHungOrphanIsTakenOverToo(t *testing.T) {
	dir := t.TempDir()
	a := start(t, dir, "127.0.0.1:0", "ignore SIGTERM")
	first := a.awaitReady()
	kill(t, a.cmd.Process.Pid, syscall.SIGKILL)
	a.wait()
	resp, err := http.Get("http://" + first.addr + "/half") // keeps Shutdown waiting
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if second := start(t, dir, first.addr, "").awaitReady(); second.addr != first.addr {
		t.Errorf("first %+v, second %+v", first, second)
	}
}

func TestAnOrphanServesOnIfItsSuccessorCannotHaveAllAddresses(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	dir := t.TempDir()
	a := start(t, dir, "127.0.0.1:0", "")
	first := a.awaitReady()
	kill(t, a.cmd.Process.Pid, syscall.SIGKILL)
	a.wait()
	b := start(t, dir, first.addr+","+other.Addr().String(), "")
	if status := b.wait(); status != 1 || !strings.Contains(b.errors(), "cannot listen on "+other.Addr().String()) {
		t.Errorf("status %d: %s", status, b.errors())
	}
	if got, err := get(first.addr, "/pid"); got != strconv.Itoa(first.pid) {
		t.Errorf("%q, %v; want the orphan %d", got, err, first.pid)
	}
}

func TestASecondAgentIsToldOfTheFirst(t *testing.T) {
	dir := t.TempDir()
	a := start(t, dir, "127.0.0.1:0", "")
	first := a.awaitReady()
	want := fmt.Sprintf("another agent is running (pid %d); stop it first, or give this one another state.dir and substituter.listen\n", a.cmd.Process.Pid)
	b := start(t, dir, first.addr, "")
	if status := b.wait(); status != 1 || b.errors() != want {
		t.Errorf("status %d: %s", status, b.errors())
	}
	if got, err := get(first.addr, "/pid"); got != strconv.Itoa(first.pid) {
		t.Error(got, err)
	}
}

func TestASupervisedChildRefusesToHandOver(t *testing.T) {
	dir := t.TempDir()
	a := start(t, dir, "127.0.0.1:0", "")
	a.awaitReady()
	socket := filepath.Join(dir, "handover.sock")
	dialUntilThere(t, socket)
	o, err := findOrphan(t.Context(), socket)
	if e, ok := errors.AsType[*RunningError](err); !ok || e.PID != a.cmd.Process.Pid {
		t.Errorf("orphan %v, error %v; want it to name pid %d", o, err, a.cmd.Process.Pid)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// dialUntilThere waits for a socket that a child opens beside becoming ready.
func dialUntilThere(t *testing.T, socket string) {
	t.Helper()
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("no socket")
		}
	}
}

func TestAPortOfAnotherProgramIsNamed(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	addr := other.Addr().(*net.TCPAddr)
	a := start(t, t.TempDir(), addr.String(), "")
	want := fmt.Sprintf("cannot listen on %s: another program has that port; find it with \"ss -ltnp 'sport = :%d'\" and stop it, or change substituter.listen\n", addr, addr.Port)
	if status := a.wait(); status != 1 || a.errors() != want {
		t.Errorf("status %d: %s", status, a.errors())
	}
	b := start(t, t.TempDir(), "192.0.2.1:6490", "")
	if status := b.wait(); status != 1 || b.errors() != "cannot listen on 192.0.2.1:6490: this machine has no such address; change substituter.listen\n" {
		t.Errorf("status %d: %s", status, b.errors())
	}
}

func TestAChildThatCrashesIsStartedUntilItStays(t *testing.T) {
	dir := t.TempDir()
	start(t, dir, "127.0.0.1:0", "crash thrice").awaitReady()
	if b, _ := os.ReadFile(filepath.Join(dir, "starts")); strings.Count(string(b), "\n") != 4 {
		t.Errorf("started: %s", b)
	}
}

func TestRestartsBeginAtOnceAndNeverWaitLong(t *testing.T) {
	if pauseAfter(0) != 0 {
		t.Error("the first restart waits")
	}
	for n := range 100 {
		if p := pauseAfter(n); p > maxPause || p < pauseAfter(max(0, n-1)) {
			t.Errorf("after %d failures: %s", n, p)
		}
	}
	if pauseAfter(99) != maxPause {
		t.Error("a crash loop is not slowed down")
	}
}

func TestAWrongConfigurationEndsOnlyAFirstStart(t *testing.T) {
	if status := start(t, t.TempDir(), "127.0.0.1:0", "bad config").wait(); status != ExitConfig {
		t.Errorf("status %d", status)
	}
	a := start(t, t.TempDir(), "127.0.0.1:0", "bad config later")
	kill(t, a.awaitReady().pid, syscall.SIGKILL)
	a.awaitReady()
}

func TestReadinessCountsThoughTheChildIsGoneWhenItIsRead(t *testing.T) {
	for range 5 {
		start(t, t.TempDir(), "127.0.0.1:0", "ready and gone, bad config later").awaitReady()
	}
}

func TestAHungChildIsReplaced(t *testing.T) {
	a := start(t, t.TempDir(), "127.0.0.1:0", "", "FLURRY_TEST_WATCHDOG=600ms")
	first := a.awaitReady()
	kill(t, first.pid, syscall.SIGSTOP)
	second := a.awaitReady()
	if got, err := get(second.addr, "/pid"); got != strconv.Itoa(second.pid) || second.addr != first.addr {
		t.Error(got, err)
	}
	if !strings.Contains(a.errors(), "showed no sign of life") {
		t.Errorf("log: %s", a.errors())
	}
}

func TestAChildThatNeverGetsReadyIsReplaced(t *testing.T) {
	a := start(t, t.TempDir(), "127.0.0.1:0", "never ready once", "FLURRY_TEST_WATCHDOG=600ms")
	a.awaitReady()
	if log := a.errors(); !strings.Contains(log, "did not become ready") || !strings.Contains(log, "goroutine ") {
		t.Errorf("neither the reason nor a stack dump in the log: %s", log)
	}
}

func TestReadinessIsPassedOn(t *testing.T) {
	name := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a := start(t, t.TempDir(), "127.0.0.1:0", "", "NOTIFY_SOCKET="+name, "WATCHDOG_USEC=1")
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second)) // so that a failure ends
	hear := func(want string) {
		t.Helper()
		buf := make([]byte, 100)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", want, err)
			}
			if string(buf[:n]) == want {
				return
			}
		}
	}
	hear("READY=1")
	kill(t, a.cmd.Process.Pid, syscall.SIGTERM)
	hear("STOPPING=1")
	if status := a.wait(); status != 0 {
		t.Errorf("status %d", status)
	}
}

func TestSIGTERMEndsBothWithTheChildsStatus(t *testing.T) {
	for mode, want := range map[string]int{"": 0, "status 5": 5, "ignore SIGTERM": 128 + int(syscall.SIGKILL)} {
		t.Run(mode, func(t *testing.T) {
			a := start(t, t.TempDir(), "127.0.0.1:0", mode)
			a.awaitReady()
			began := time.Now()
			kill(t, a.cmd.Process.Pid, syscall.SIGTERM)
			if status := a.wait(); status != want {
				t.Errorf("status %d, want %d", status, want)
			}
			for range a.lines { // ends with the child
			}
			t.Logf("took %s", time.Since(began))
		})
	}
}

func TestASignalThatNobodyHandlesEndsTheAgentInsteadOfRestartingIt(t *testing.T) {
	a := start(t, t.TempDir(), "127.0.0.1:0", "")
	a.awaitReady()
	kill(t, a.cmd.Process.Pid, syscall.SIGHUP)
	if status := a.wait(); status != 128+int(syscall.SIGHUP) {
		t.Errorf("status %d", status)
	}
}

func TestTheSupervisorStaysSmall(t *testing.T) {
	a := start(t, t.TempDir(), "127.0.0.1:0", "")
	a.awaitReady()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	for line := range strings.Lines(string(b)) {
		fmt.Sscanf(line, "RssAnon: %d kB", &kib)
	}
	const limit = 16 << 10 // KiB; what is not shared with the child's copy of the program
	if kib == 0 || kib > limit {
		t.Errorf("%d KiB", kib)
	}
	t.Logf("%d KiB of its own", kib)
}

func TestWithoutASupervisorThereIsNothingToInherit(t *testing.T) {
	t.Setenv("LISTEN_FDS", "1")
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()+1)) // another process's
	if _, ok, err := Listeners(); ok || err != nil {
		t.Error(ok, err)
	}
	if err := ServeHandover(context.Background(), Handover{Socket: "/nonexistent/x"}); err != nil {
		t.Error(err)
	}
}

// load asks all the time, each time on a new connection, and counts what happened.
type load struct {
	served, refused, cut atomic.Int64
	end                  chan struct{}
	wg                   sync.WaitGroup
}

func startLoad(addr string) *load {
	l := &load{end: make(chan struct{})}
	for range 4 {
		l.wg.Go(func() {
			for {
				select {
				case <-l.end:
					return
				default:
				}
				_, err := get(addr, "/pid")
				switch {
				case err == nil:
					l.served.Add(1)
				case errors.Is(err, syscall.ECONNREFUSED):
					l.refused.Add(1)
				default:
					l.cut.Add(1)
				}
			}
		})
	}
	return l
}

func (l *load) stop() {
	close(l.end)
	l.wg.Wait()
}

// A child that dies before it took its listeners leaves them as exec left them.
func TestPassingAListenerOnLeavesItNonBlocking(t *testing.T) {
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 2 {
		f, err := passable(ln)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd := exec.Command("true")
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := ln.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	if cerr := raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("accept(2) would wait, and Close with it")
	}
}

func TestWhileNoChildAnswersTheStandInDoes(t *testing.T) {
	dir := t.TempDir()
	a := start(t, dir, "127.0.0.1:0", "crash later")
	r := a.awaitReady()
	kill(t, r.pid, syscall.SIGKILL) // its successors die at once, for ever
	if err := os.WriteFile(filepath.Join(dir, "stand in"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := get(r.addr, "/pid"); got != "stand-in" {
		t.Errorf("%q, %v; want the stand-in", got, err)
	}
	kill(t, a.cmd.Process.Pid, syscall.SIGTERM)
	a.wait() // with whatever status its last child had
}
