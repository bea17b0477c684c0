package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// RunningError says that a live agent has this state directory.
type RunningError struct{ PID int }

// Error implements error.
func (e *RunningError) Error() string {
	return fmt.Sprintf("another agent is running (pid %d); stop it first, or give this one another state.dir and substituter.listen", e.PID)
}

// BindError says that an address of the substituter cannot be had.
type BindError struct {
	Addr string // as configured
	Err  error
}

// Error implements error.
func (e *BindError) Error() string {
	_, port, _ := net.SplitHostPort(e.Addr)
	switch {
	case errors.Is(e.Err, syscall.EADDRINUSE):
		return fmt.Sprintf("cannot listen on %s: another program has that port; find it with \"ss -ltnp 'sport = :%s'\" and stop it, or change substituter.listen", e.Addr, port)
	case errors.Is(e.Err, syscall.EADDRNOTAVAIL):
		return fmt.Sprintf("cannot listen on %s: this machine has no such address; change substituter.listen", e.Addr)
	case errors.Is(e.Err, syscall.EACCES):
		return fmt.Sprintf("cannot listen on %s: not permitted; ports below 1024 need privileges, so change substituter.listen", e.Addr)
	}
	return fmt.Sprintf("cannot listen on %s: %v; change substituter.listen", e.Addr, e.Err)
}

// Unwrap returns the cause.
func (e *BindError) Unwrap() error { return e.Err }

// acquireLock makes this process the only supervisor of its state directory. The kernel releases the
// lock however the process ends; the file stays.
func acquireLock(name string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("%w; change state.dir", err)
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w; change state.dir", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		}
	}
	if err == nil {
		return f, nil
	}
	defer f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		text, _ := io.ReadAll(io.LimitReader(f, 20)) // 20: digits of any pid
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return nil, &RunningError{PID: pid}
	}
	return nil, fmt.Errorf("lock %s: %w", name, err)
}

// bindAll returns a listener for every address: those of an orphan if there is one, which then ends,
// and new ones. The orphan keeps serving if an address cannot be had.
func (s *supervisor) bindAll(ctx context.Context) ([]*net.TCPListener, error) {
	orphan, err := findOrphan(ctx, s.Socket)
	if err != nil {
		return nil, err
	}
	if orphan == nil {
		return s.bind(ctx, nil)
	}
	defer orphan.close()
	listeners, err := s.bind(ctx, orphan)
	if err != nil {
		return nil, err
	}
	s.Log.Info("taking over from an agent whose supervisor was killed", "pid", orphan.pid)
	if err := orphan.dismiss(); err != nil {
		closeAll(listeners)
		return nil, err
	}
	return listeners, nil
}

func (s *supervisor) bind(ctx context.Context, from *orphan) (listeners []*net.TCPListener, err error) {
	for _, addr := range s.Addrs {
		ln := from.take(addr)
		if ln == nil {
			var l net.Listener
			if l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", addr); err != nil {
				closeAll(listeners)
				return nil, &BindError{Addr: addr, Err: err}
			}
			ln = l.(*net.TCPListener)
		}
		listeners = append(listeners, ln)
	}
	return listeners, nil
}

// passable returns ln's descriptor as a file for another process; the caller closes it. What [net.TCPListener.File]
// returns would do, but for [os.File.Fd], which whoever passes it on calls: it makes a descriptor that the poller
// knows blocking, and ln with it, as they share a description. A stand-in that then accepts waits in accept(2), and
// closing ln waits for it. A file that was made while its descriptor blocked is left as it is.
func passable(ln *net.TCPListener) (*os.File, error) {
	f, err := ln.File()
	if err != nil {
		return nil, fmt.Errorf("pass on listener %s: %w", ln.Addr(), err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("pass on listener %s: %w", ln.Addr(), err)
	}
	passed := os.NewFile(uintptr(fd), f.Name())
	if err := unix.SetNonblock(fd, true); err != nil {
		passed.Close()
		return nil, fmt.Errorf("pass on listener %s: %w", ln.Addr(), err)
	}
	return passed, nil
}
