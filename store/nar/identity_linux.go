package nar

import "golang.org/x/sys/unix"

// identity tells whether a root is still the same object: inode numbers alone are soon reused.
type identity struct {
	major, minor uint32
	inode        uint64
	born         unix.StatxTimestamp // zero where the file system does not know
}

// identify returns the identity of fd itself, or of name in directory fd.
func identify(fd int, name string) (identity, error) {
	var st unix.Statx_t
	err := retry(func() error {
		return unix.Statx(fd, name, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st)
	})
	if err != nil {
		return identity{}, err
	}
	id := identity{major: st.Dev_major, minor: st.Dev_minor, inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = st.Btime
	}
	return id, nil
}
