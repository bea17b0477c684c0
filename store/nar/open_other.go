//go:build !linux

package nar

import "golang.org/x/sys/unix"

// rawOpenAt opens name, which ends in NUL.
func rawOpenAt(dir int, name []byte, flags int) (int, error) {
	return unix.Openat(dir, string(name[:len(name)-1]), flags, 0)
}
