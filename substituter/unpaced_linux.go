package substituter

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// unpaced takes a connection within this machine out of a congestion control that paces what it sends, as BBR
// does: loopback has no queue to spare, and waiting for timers halves the rate. Reno may be chosen by every
// process. A kernel that has none leaves the connection as it was.
func unpaced(c syscall.RawConn) {
	c.Control(func(fd uintptr) { unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") })
}

// brief bounds how long a system call on the connection waits once it may: to a tick of the kernel, 1 to 10 ms, after
// which Go's poller takes over, as both say EAGAIN. It tells whether that could be done.
func brief(c syscall.RawConn) (ok bool) {
	c.Control(func(fd uintptr) {
		tick := unix.Timeval{Usec: 1000}
		ok = unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tick) == nil &&
			unix.SetsockoptTimeval(int(fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tick) == nil
	})
	return ok
}
