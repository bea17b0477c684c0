package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// stamp is what stat tells of the database's files: equal stamps mean equal contents, unless one was
// taken within a clock tick of a write (see recent).
type stamp struct {
	db, wal, journal fileStamp
	shm              bool // there is a -shm
}

type fileStamp struct {
	dev, ino uint64
	size     int64
	mtime    int64 // ns since 1970
}

// takeStamp stats the files; it opens none.
func takeStamp(path string) (st stamp, err error) {
	fi, err := os.Stat(path)
	if err != nil {
		return st, err
	}
	if !fi.Mode().IsRegular() {
		return st, fmt.Errorf("%s: %w", path, errNotFile)
	}
	st.db = stampOf(fi)
	for suffix, side := range map[string]*fileStamp{"-wal": &st.wal, "-journal": &st.journal} {
		fi, err := os.Stat(path + suffix)
		if err == nil && fi.Size() > 0 { // an empty one is as good as none
			*side = stampOf(fi)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return st, err
		}
	}
	_, err = os.Stat(path + "-shm")
	st.shm = err == nil
	return st, nil
}

func stampOf(fi fs.FileInfo) fileStamp {
	f := fileStamp{size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
		f.dev, f.ino = uint64(sys.Dev), sys.Ino
	}
	return f
}

// contents returns the stamp without what does not concern the contents.
func (st stamp) contents() stamp { st.shm = false; return st }

// recent tells whether a write soon before now may have left no trace in the stamp: kernels note
// file times in ticks of up to 10 ms.
func (st stamp) recent(now time.Time) bool {
	const tick = 20 * time.Millisecond
	for _, f := range []fileStamp{st.db, st.wal, st.journal} {
		if age := now.UnixNano() - f.mtime; f.mtime != 0 && age < int64(tick) && age > -int64(tick) {
			return true
		}
	}
	return false
}
