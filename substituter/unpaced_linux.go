package substituter

import (
	"net"

	"golang.org/x/sys/unix"
)

// unpaced takes a connection within this machine out of a congestion control that paces what it sends, as BBR
// does: loopback has no queue to spare, and waiting for timers halves the rate. Reno may be chosen by every
// process. A kernel that has none leaves the connection as it was.
func unpaced(c *net.TCPConn) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") })
	}
}
