package doctor

import (
	"os"

	"golang.org/x/sys/unix"
)

// LookAtDisk tells how much room there is in dir.
func LookAtDisk(name, dir string) Disk {
	d := Disk{Name: name, Dir: dir, FreeInodes: -1}
	var fs unix.Statfs_t
	if d.Err = unix.Statfs(dir, &fs); d.Err != nil {
		return d
	}
	d.Free = int64(fs.Bavail) * int64(fs.Bsize)
	if fs.Files > 0 { // some file systems make inodes as needed
		d.FreeInodes = int64(fs.Ffree)
	}
	return d
}

// deviceOf tells file systems and directories apart.
func deviceOf(name string) [2]uint64 {
	var st unix.Stat_t
	if unix.Stat(name, &st) != nil {
		return [2]uint64{}
	}
	return [2]uint64{uint64(st.Dev), st.Ino}
}

// Readable tells whether the files of a directory can be listed and opened.
func Readable(dir string) error {
	if err := unix.Access(dir, unix.R_OK|unix.X_OK); err != nil {
		return &os.PathError{Op: "read", Path: dir, Err: err}
	}
	return nil
}
