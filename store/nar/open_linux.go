package nar

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawOpenAt opens name, which ends in NUL, as it stands in memory: a Go string and the copy that the library makes of
// it are a good part of what a small file costs outside the kernel.
func rawOpenAt(dir int, name []byte, flags int) (int, error) {
	fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(unsafe.SliceData(name))), uintptr(flags), 0, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
