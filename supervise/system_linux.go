package supervise

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// self names the running program, the same one even after its file was replaced.
func self() string { return "/proc/self/exe" }

// peer returns the pid at the other end, if it belongs to root or to this process's user.
func peer(conn *net.UnixConn) (pid int, err error) {
	sc, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := sc.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return 0, fmt.Errorf("user %d may not take over", cred.Uid)
	}
	return int(cred.Pid), nil
}

// process is a process that is not our child, by a pidfd: it names the process even after its pid is
// given to another.
type process int

const noProcess process = -1

func openProcess(pid int) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return noProcess, fmt.Errorf("pidfd_open: %w", err)
	}
	return process(fd), nil
}

func (p process) kill() error { return unix.PidfdSendSignal(int(p), unix.SIGKILL, nil, 0) }

func (p process) waitGone(limit time.Duration) (bool, error) {
	until := time.Now().Add(limit)
	for {
		left := max(0, time.Until(until))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		return n > 0, err
	}
}

func (p process) close() {
	if p >= 0 {
		_ = unix.Close(int(p))
	}
}

// notifyName returns a name for the notify socket. It is abstract, so that a killed supervisor leaves
// nothing behind, and drawn by lot; anybody might still write to it, so the kernel says who did.
func notifyName() (name string, remove func(), err error) {
	return "@flurry-notify-" + rand.Text(), func() {}, nil
}

// credentialsSpace is what a sender's credentials take, in bytes.
var credentialsSpace = unix.CmsgSpace(unix.SizeofUcred)

// askForSenders makes the kernel add its senders' credentials to every message.
func askForSenders(conn *net.UnixConn) error {
	sc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	cerr := sc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	if err == nil {
		err = cerr
	}
	return err
}

// credentialsPID returns the pid in m, 0 if m is something else.
func credentialsPID(m *unix.SocketControlMessage) int {
	cred, err := unix.ParseUnixCredentials(m)
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}

// from tells whether the process sent the message.
func (m message) from(pid int) bool { return m.pid == pid }
