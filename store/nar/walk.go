package nar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// openFlags: never through a link, never waiting for a fifo's writer.
const openFlags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// openAt opens name, which ends in NUL, in directory dir.
func openAt(dir int, name []byte, flags int) (fd int, err error) {
	err = retry(func() (err error) { fd, err = rawOpenAt(dir, name, openFlags|flags); return err })
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		err = fmt.Errorf("%w: %w", ErrChanged, err)
	}
	return fd, err
}

// walker collects entries. It lives for one Open.
type walker struct {
	*NAR
	ctx context.Context
}

func (n *NAR) walk(ctx context.Context) (err error) {
	if n.id, err = identify(unix.AT_FDCWD, n.path()); err != nil {
		return err
	}
	w := &walker{n, ctx}
	return w.node(unix.AT_FDCWD, n.path(), "", -1, 0)
}

// node adds the object called path in directory dir, known as name in the archive, and all below it.
func (w *walker) node(dir int, path, name string, parent int32, depth int) error {
	if len(w.entries) >= maxEntries || len(w.names) > math.MaxUint32-(1<<16) {
		return fmt.Errorf("%w: more than %d entries", ErrUnsupported, maxEntries)
	}
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(dir, path, &st, unix.AT_SYMLINK_NOFOLLOW) })
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	i := int32(len(w.entries))
	e := entry{parent: parent, name: uint32(len(w.names)), length: uint16(len(name)), closes: 2}
	if parent < 0 {
		e.closes = 1 // the root is not inside an "entry ( … )"
	}
	w.names = append(append(w.names, name...), 0)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.kind, e.size = kindRegular, st.Size
		if st.Mode&unix.S_IXUSR != 0 {
			e.kind = kindExecutable
		}
	case unix.S_IFLNK:
		e.kind = kindSymlink
		if e.size, err = w.readLink(dir, path, st.Size); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
	case unix.S_IFDIR:
		w.entries = append(w.entries, e)
		if err := w.directory(dir, path, i, depth); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		return nil
	default:
		return fmt.Errorf("%q: %w: file type %#o", path, ErrUnsupported, st.Mode&unix.S_IFMT)
	}
	w.entries = append(w.entries, e)
	return nil
}

// directory adds what is in the directory that entry i stands for. Its closing parentheses come after
// its last descendant, so that is where they are counted.
func (w *walker) directory(dir int, path string, i int32, depth int) error {
	if depth >= maxDepth {
		return fmt.Errorf("%w: more than %d directories deep", ErrUnsupported, maxDepth)
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fd, err := openAt(dir, append([]byte(path), 0), unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	names, err := w.list(f)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.node(fd, name, name, i, depth+1); err != nil {
			return err
		}
	}
	if len(names) > 0 {
		w.entries[len(w.entries)-1].closes += w.entries[i].closes
		w.entries[i].closes = 0
	}
	return nil
}

// list returns the sorted names in a directory.
func (w *walker) list(f *os.File) ([]string, error) {
	const some = 4096 // names at a time, so that the bound is noticed before memory is spent
	var names []string
	for {
		more, err := f.Readdirnames(some)
		names = append(names, more...)
		if len(w.entries)+len(names) > maxEntries {
			return nil, fmt.Errorf("%w: more than %d entries", ErrUnsupported, maxEntries)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(names)
	return names, nil
}

// readLink appends a link's target to names and returns its length.
func (w *walker) readLink(dir int, path string, size int64) (int64, error) {
	const maxTarget = unix.PathMax // what Linux allows
	if size < 0 || size > maxTarget {
		return 0, fmt.Errorf("%w: link target of %d bytes", ErrUnsupported, size)
	}
	if size == 0 {
		size = maxTarget // some file systems do not say
	}
	b := make([]byte, size+1)
	var got int
	err := retry(func() (err error) { got, err = unix.Readlinkat(dir, path, b); return err })
	if err != nil {
		return 0, err
	}
	if int64(got) > size {
		return 0, ErrChanged
	}
	w.names = append(w.names, b[:got]...)
	return int64(got), nil
}
