// Package supervise keeps the substituter's port alive where no systemd does: a dead port makes Nix
// fail builds or lose minutes, so the port must outlive the agent's process.
//
// The parent ([Run]) binds the listeners, runs the agent as its child and starts it again when it
// dies or hangs. Meanwhile connections wait in the listeners' backlog; none is refused. The child
// finds its listeners with [Listeners], the same way whether a supervisor or systemd passed them. If
// the parent is killed the child goes on serving; the next parent takes the listeners over from that
// orphan ([ServeHandover] is the child's side), again without a gap.
//
// The parent must never do anything else: it reads no configuration, stays small, gives up only if the
// very first child calls its configuration wrong, and takes no connection, but for those that
// [Config].StandIn judges forsaken: a port that is open and silent would stall Nix for minutes.
//
// Conventions: sd_listen_fds(3) for listeners, without LISTEN_PID; sd_notify(3) for readiness and
// watchdog. What differs between Linux and macOS is in system_linux.go and system_darwin.go.
package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ExitConfig is the exit status of a child whose configuration is wrong (EX_CONFIG of sysexits.h).
// Starting such a child again would not help, so before any child was ready it ends the supervisor.
const ExitConfig = 78

// marker is the environment variable that tells a child that it is one; it holds the parent's pid.
const marker = "FLURRY_SUPERVISED"

// fdName is the name of the substituter's listeners in LISTEN_FDNAMES.
const fdName = "substituter"

const (
	defaultWatchdog     = 20 * time.Second       // between signs of life; far below Nix's stall limit of 300 s, above a machine's hiccups
	defaultStartTimeout = time.Minute            // until ready; opening the largest stores takes seconds
	defaultStopTimeout  = 900 * time.Millisecond // SIGTERM must end the agent within 1 s
	abortGrace          = 250 * time.Millisecond // between SIGABRT, for a stack dump, and SIGKILL
	firstPause          = 20 * time.Millisecond  // before the second restart in a row; the first is immediate
	maxPause            = time.Second            // between restarts of a child that keeps dying
	healthyAfter        = 10 * time.Second       // a child that lived so long died of something new
)

// Config says what to supervise. Addrs and Socket are required.
type Config struct {
	Addrs  []string // host:port of the substituter's TCP listeners
	Args   []string // arguments of the child, without the program's name
	Env    []string // of the child; nil means this process's
	Socket string   // absolute path, in a directory of the agent's own, of the child's take-over socket; a lock file is beside it

	Watchdog     time.Duration // longest silence of a ready child; 0 means 20 s
	StartTimeout time.Duration // longest time until a child is ready; 0 means 1 min
	StopTimeout  time.Duration // from the forwarded SIGTERM to SIGKILL; 0 means 0.9 s
	Log          *slog.Logger  // nil discards

	// StandIn answers on the listeners, which it owns, when no child does, until ctx ends. It must leave
	// alone what a living child would take. nil means that connections wait for as long as it takes.
	StandIn func(ctx context.Context, listeners []*net.TCPListener)
}

// ExitError is the status with which the child ended for good and this process should, too.
type ExitError struct{ Code int }

// Error implements error.
func (e *ExitError) Error() string { return fmt.Sprintf("the agent ended with status %d", e.Code) }

// Run binds the listeners and keeps a child serving them until ctx ends or SIGTERM or SIGINT arrives
// (both are passed on, and so is SIGHUP), or the child ends in order. It returns nil after an orderly
// end, an [*ExitError] if the child's status was another than 0, a [*RunningError] if an agent already
// runs here, and a [*BindError] if an address cannot be had.
func Run(ctx context.Context, cfg Config) error {
	s := &supervisor{Config: cfg.withDefaults()}
	lock, err := acquireLock(s.Socket + ".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	listeners, err := s.bindAll(ctx)
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	for _, ln := range listeners {
		f, err := passable(ln)
		if err != nil {
			return err
		}
		defer f.Close()
		s.files = append(s.files, f)
	}
	notify, err := listenNotify()
	if err != nil {
		return err
	}
	defer notify.close()
	s.notify = notify
	s.signals = make(chan os.Signal, 4)
	s.subscribe()
	defer signal.Stop(s.signals)
	defer s.standIn(ctx, listeners)()
	return s.keepRunning(ctx)
}

// standIn starts the stand-in, and returns what ends it.
func (s *supervisor) standIn(ctx context.Context, listeners []*net.TCPListener) (end func()) {
	if s.StandIn == nil {
		return func() {}
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { s.StandIn(ctx, listeners) })
	return func() { stop(); running.Wait() }
}

func (c Config) withDefaults() Config {
	if c.Env == nil {
		c.Env = os.Environ()
	}
	if c.Watchdog == 0 {
		c.Watchdog = defaultWatchdog
	}
	if c.StartTimeout == 0 {
		c.StartTimeout = defaultStartTimeout
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = defaultStopTimeout
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// supervisor is owned by the goroutine that called Run.
type supervisor struct {
	Config
	files   []*os.File
	notify  *notifySocket
	signals chan os.Signal
	ready   bool // some child was
}

// subscribe leaves SIGHUP alone if it is ignored, as under nohup.
func (s *supervisor) subscribe() {
	list := []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGHUP) {
		list = append(list, syscall.SIGHUP)
	}
	signal.Notify(s.signals, list...)
}

func (s *supervisor) keepRunning(ctx context.Context) error {
	failures := 0
	for {
		began := time.Now()
		e, err := s.runChild(ctx)
		if err != nil {
			if !s.ready {
				return fmt.Errorf("start the agent: %w", err)
			}
			e = ending{why: err.Error()}
		}
		if e.final {
			return e.err
		}
		if time.Since(began) >= healthyAfter {
			failures = 0
		}
		pause := pauseAfter(failures)
		failures++
		s.Log.Error("the agent died and is started again; its port stays open", "why", e.why, "lived", time.Since(began).Round(time.Millisecond), "pause", pause)
		select {
		case <-ctx.Done():
			return nil
		case sig := <-s.signals:
			if sig != syscall.SIGHUP {
				return nil
			}
		case <-time.After(pause):
		}
	}
}

// pauseAfter returns how long to wait after so many failures in a row.
func pauseAfter(failures int) time.Duration {
	if failures == 0 {
		return 0
	}
	return min(maxPause, firstPause<<min(failures-1, 10))
}

// ending is how a child's life ended.
type ending struct {
	final bool
	err   error  // if final
	why   string // if not
}

// runChild starts a child and sees it through to its end.
func (s *supervisor) runChild(ctx context.Context) (ending, error) {
	cmd := s.command()
	if err := cmd.Start(); err != nil {
		return ending{}, err
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	c := &child{s: s, cmd: cmd, deadline: time.NewTimer(s.StartTimeout)}
	defer c.deadline.Stop()
	hear := func(m message) {
		if m.from(cmd.Process.Pid) {
			c.heard(m.text)
		}
	}
	done := ctx.Done()
	for {
		select {
		case <-exited:
			s.notify.rest(hear) // its last words may not have been read yet, and count
			return c.ending(), nil
		case sig := <-s.signals:
			c.forward(sig)
		case <-done: // mostly by a signal that comes here, too: that is one wish to stop, not two
			if done = nil; !c.leaving() {
				c.forward(syscall.SIGTERM)
				c.asked = 0
			}
		case m := <-s.notify.messages:
			hear(m)
		case <-c.deadline.C:
			c.overdue()
		}
	}
}

func (s *supervisor) command() *exec.Cmd {
	cmd := exec.Command(self(), s.Args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = s.files
	// A group of its own: a terminal's Ctrl-C reaches the child once, through us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = slices.DeleteFunc(slices.Clone(s.Env), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return name == marker || name == "NOTIFY_SOCKET" || strings.HasPrefix(name, "LISTEN_") || strings.HasPrefix(name, "WATCHDOG_")
	})
	names := strings.Repeat(":"+fdName, len(s.files))[1:]
	cmd.Env = append(cmd.Env, marker+"="+strconv.Itoa(os.Getpid()),
		"LISTEN_FDS="+strconv.Itoa(len(s.files)), "LISTEN_FDNAMES="+names,
		"NOTIFY_SOCKET="+s.notify.name, "WATCHDOG_USEC="+strconv.FormatInt(s.Watchdog.Microseconds(), 10))
	return cmd
}

// child is one running agent; runChild's goroutine owns it.
type child struct {
	s        *supervisor
	cmd      *exec.Cmd
	deadline *time.Timer // its next sign of life, or its end, is due
	ready    bool
	stopping os.Signal // passed on; the end that follows is meant
	asked    int       // signals that told us to stop
	killed   string    // why we ended it
}

func (c *child) forward(sig os.Signal) {
	if sig == syscall.SIGHUP {
		_ = c.cmd.Process.Signal(sig)
		if c.stopping == nil {
			c.stopping = sig
		}
		return
	}
	c.asked++
	if c.leaving() {
		if c.asked > 1 {
			_ = c.cmd.Process.Kill()
		}
		return
	}
	c.stopping = sig
	relay("STOPPING=1") // the child may be gone before its own word of it is read
	c.deadline.Reset(c.s.StopTimeout)
	_ = c.cmd.Process.Signal(sig)
}

func (c *child) heard(text string) {
	relay(text)
	if c.leaving() || c.killed != "" {
		return
	}
	for line := range strings.Lines(text) {
		switch strings.TrimSpace(line) {
		case "READY=1":
			if !c.ready {
				c.ready, c.s.ready = true, true
				debug.FreeOSMemory() // what starting took is not needed again
			}
			c.deadline.Reset(c.s.Watchdog)
		case "WATCHDOG=1":
			if c.ready {
				c.deadline.Reset(c.s.Watchdog)
			}
		case "STOPPING=1":
			c.deadline.Reset(c.s.Watchdog)
		}
	}
}

// leaving tells whether the child was asked to end (SIGHUP need not mean that).
func (c *child) leaving() bool { return c.stopping != nil && c.stopping != syscall.SIGHUP }

// overdue ends a child that shows no life: by SIGABRT first, so that Go prints what it was doing.
func (c *child) overdue() {
	switch {
	case c.leaving():
		c.killed = "did not stop in time"
	case c.killed == "":
		c.killed = "showed no sign of life"
		if !c.ready {
			c.killed = "did not become ready"
		}
		c.s.Log.Error("the agent hangs and is killed", "why", c.killed, "pid", c.cmd.Process.Pid)
		_ = c.cmd.Process.Signal(syscall.SIGABRT)
		c.deadline.Reset(abortGrace)
		return
	}
	_ = c.cmd.Process.Kill()
}

// ending judges the child's end, after it exited.
func (c *child) ending() ending {
	status, _ := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	meant := c.leaving() || status.Signaled() && c.stopping == os.Signal(status.Signal()) // SIGHUP that nobody handled
	switch {
	case code == 0:
		return ending{final: true}
	case meant, code == ExitConfig && !c.s.ready:
		return ending{final: true, err: &ExitError{Code: code}}
	}
	why := c.cmd.ProcessState.String()
	if c.killed != "" {
		why = c.killed
	}
	return ending{why: why}
}

func closeAll(listeners []*net.TCPListener) {
	for _, ln := range listeners {
		_ = ln.Close()
	}
}
