package supervise

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// self names the running program by its file, which an upgrade may have replaced.
func self() string {
	name, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return name
}

// peer returns the pid at the other end, if it belongs to root or to this process's user.
func peer(conn *net.UnixConn) (pid int, err error) {
	sc, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Xucred
	if cerr := sc.Control(func(fd uintptr) {
		if cred, err = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED); err == nil {
			pid, err = unix.GetsockoptInt(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERPID)
		}
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("user %d may not take over", cred.Uid)
	}
	return pid, nil
}

// process is a process that is not our child, by its pid: nothing better names it here.
type process int

const noProcess process = -1

// goneEvery is the time between looks whether a process is gone.
const goneEvery = 10 * time.Millisecond

func openProcess(pid int) (process, error) { return process(pid), nil }

func (p process) kill() error { return unix.Kill(int(p), unix.SIGKILL) }

func (p process) waitGone(limit time.Duration) (bool, error) {
	for until := time.Now().Add(limit); ; time.Sleep(goneEvery) {
		if unix.Kill(int(p), 0) == unix.ESRCH {
			return true, nil
		}
		if time.Now().After(until) {
			return false, nil
		}
	}
}

func (p process) close() {}

// notifyName returns a name for the notify socket, in a directory of its own that only this user enters:
// the kernel does not say who sends. Not in TMPDIR, whose length may exceed a socket's name.
func notifyName() (name string, remove func(), err error) {
	dir, err := os.MkdirTemp("/tmp", "flurry-")
	if err != nil {
		return "", nil, fmt.Errorf("make room for the agent's signs of life: %w", err)
	}
	return filepath.Join(dir, "notify"), func() { os.RemoveAll(dir) }, nil
}

const credentialsSpace = 0

func askForSenders(*net.UnixConn) error { return nil }

func credentialsPID(*unix.SocketControlMessage) int { return 0 }

// from trusts the directory's mode.
func (m message) from(int) bool { return true }
