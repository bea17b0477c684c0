package control

import "golang.org/x/sys/unix"

// peerOf returns the user and the groups at the other end of a unix socket; the kernel tells 16.
func peerOf(fd uintptr) (uid int, groups []uint32, err error) {
	cred, err := unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, nil, err
	}
	n := max(0, min(int(cred.Ngroups), len(cred.Groups)))
	return int(cred.Uid), cred.Groups[:n], nil
}
