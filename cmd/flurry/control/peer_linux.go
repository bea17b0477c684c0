package control

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const maxGroups = 64 << 10 // NGROUPS_MAX: supplementary groups of one process

// peerOf returns the user and all groups at the other end of a unix socket.
func peerOf(fd uintptr) (uid int, groups []uint32, err error) {
	cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, nil, err
	}
	return int(cred.Uid), append(peerGroups(fd), cred.Gid), nil
}

// peerGroups returns the supplementary groups at the other end (SO_PEERGROUPS, Linux 4.13), none if
// the kernel does not tell.
func peerGroups(fd uintptr) []uint32 {
	groups := make([]uint32, 64)
	for len(groups) <= maxGroups {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4]
		case unix.ERANGE:
			groups = make([]uint32, 2*len(groups))
		default:
			return nil
		}
	}
	return nil
}
