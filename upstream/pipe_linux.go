package upstream

import (
	"os"

	"golang.org/x/sys/unix"
)

// enlarge asks for a bigger pipe; a smaller one works, too.
func enlarge(f *os.File) {
	if rc, err := f.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) })
	}
}
