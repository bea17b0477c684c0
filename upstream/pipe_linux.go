package upstream

import (
	"os"

	"golang.org/x/sys/unix"
)

// enlarge asks for a bigger pipe and tells whether it has pipeSize now; a smaller one works, too.
func enlarge(f *os.File) (ok bool) {
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) {
			size, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize)
			ok = err == nil && size >= pipeSize
		})
	}
	return ok
}

// unread is how many bytes are in a pipe; 0 if that cannot be told.
func unread(f *os.File) (n int) {
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return max(n, 0)
}
