package upstream

import (
	"os"

	"golang.org/x/sys/unix"
)

// pipe returns a pipe that Go's poller does not watch: the kernel wakes a watcher for every 8 KiB that the program prints,
// though nobody reads, which took an eighth of the program's time. Reading and writing block a thread; both end when
// the program does.
func pipe() (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	return os.NewFile(uintptr(fds[0]), "|0"), os.NewFile(uintptr(fds[1]), "|1"), nil
}

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
