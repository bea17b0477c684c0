//go:build !linux

package nar

import "golang.org/x/sys/unix"

// identity tells whether a root is still the same object. Inode numbers alone are soon reused; the time
// of the last change of the inode stands in for the time of birth, since store paths do not change.
type identity struct {
	device, inode uint64
	changed       unix.Timespec
}

// identify returns the identity of fd itself if name is empty, or of name in directory fd.
func identify(fd int, name string) (identity, error) {
	var st unix.Stat_t
	err := retry(func() error {
		if name == "" {
			return unix.Fstat(fd, &st)
		}
		return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	})
	return identity{device: uint64(st.Dev), inode: st.Ino, changed: st.Ctim}, err
}
