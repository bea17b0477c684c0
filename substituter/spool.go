package substituter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
)

// memorySpool is the largest NAR that is collected in memory, bytes.
const memorySpool = 4 << 20

// spool collects the bytes of one NAR, in memory or in a file. Bytes once written do not change, so
// readers of the written part need no lock against the writer of the rest.
type spool struct {
	mem  []byte
	file spoolFile
	size int64 // bytes
	left *room // for all spools
}

// spoolFile is a file of the spool directory; tests have some that fail.
type spoolFile interface {
	io.WriterAt
	io.ReaderAt
	io.Closer
	Name() string
	Truncate(size int64) error
}

func createSpoolFile(dir string) (spoolFile, error) { return os.CreateTemp(dir, "nar-*") }

// room is what all spools may still take together, in bytes.
type room struct{ memory, disk atomic.Int64 }

// errNoRoom: what spools may take is taken, or the disk is full.
var errNoRoom = errors.New("no room for a NAR; free disk space or raise limits.cache_size")

func take(from *atomic.Int64, n int64) bool {
	if from.Add(-n) >= 0 {
		return true
	}
	from.Add(n)
	return false
}

// newSpool makes room for size bytes, which a key signed. Small NARs are collected in memory while there
// is some left, others in a file; where no file can be had, larger ones in memory, too.
func newSpool(create func() (spoolFile, error), size int64, left *room) (*spool, error) {
	inMemory := func() *spool { return &spool{mem: make([]byte, size), size: size, left: left} }
	if size <= memorySpool && take(&left.memory, size) {
		return inMemory(), nil
	}
	err := errNoRoom
	if take(&left.disk, size) {
		var f spoolFile
		if f, err = create(); err == nil {
			return &spool{file: f, size: size, left: left}, nil
		}
		left.disk.Add(size)
		err = diskError(err)
	}
	if size > memorySpool && take(&left.memory, size) {
		return inMemory(), nil
	}
	return nil, err
}

// diskError tells a full disk from other trouble.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", errNoRoom, err)
	}
	return fmt.Errorf("spool a NAR: %w; make the state directory writable", err)
}

// writeAt stores p at off.
func (s *spool) writeAt(p []byte, off int64) error {
	if s.mem != nil {
		copy(s.mem[off:], p)
		return nil
	}
	if _, err := s.file.WriteAt(p, off); err != nil {
		return diskError(err)
	}
	return nil
}

// readAt reads bytes that were written.
func (s *spool) readAt(p []byte, off int64) error {
	if s.mem != nil {
		copy(p, s.mem[off:])
		return nil
	}
	_, err := s.file.ReadAt(p, off)
	return err
}

// view returns n bytes at off, all written before; buf is what it may reuse.
func (s *spool) view(off, n int64, buf *[]byte) ([]byte, error) {
	if s.mem != nil {
		return s.mem[off : off+n], nil
	}
	if int64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	_, err := s.file.ReadAt((*buf)[:n], off)
	return (*buf)[:n], err
}

// writeTo sends bytes [off, off+n), all written before, to w. Each call has a file offset of its own,
// so that the kernel can send the file without copying. It then sends the file's pages themselves, perhaps long
// after this returns: a file is for one NAR only, and is not written any more once Nix got some of it.
func (s *spool) writeTo(w io.Writer, off, n int64) (int64, error) {
	if s.mem != nil {
		k, err := w.Write(s.mem[off : off+n])
		return int64(k), err
	}
	if _, ok := w.(io.ReaderFrom); !ok {
		return s.copyTo(w, off, n)
	}
	f, err := os.Open(s.file.Name())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(w, io.LimitReader(f, n))
}

// copyTo is writeTo for a writer that cannot take a file.
func (s *spool) copyTo(w io.Writer, off, n int64) (written int64, err error) {
	buf := legBuffers.Get().(*[]byte)
	defer legBuffers.Put(buf)
	for written < n {
		k := min(n-written, int64(len(*buf)))
		if _, err := s.file.ReadAt((*buf)[:k], off+written); err != nil {
			return written, err
		}
		m, err := w.Write((*buf)[:k])
		written += int64(m)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// drop gives a file's place on the disk back before its readers are gone: they find it short.
func (s *spool) drop() {
	if s.file != nil {
		s.file.Truncate(0)
	}
}

// close gives the room back. Readers must be gone.
func (s *spool) close() {
	if s.mem != nil {
		s.left.memory.Add(s.size)
		s.mem = nil
		return
	}
	s.left.disk.Add(s.size)
	os.Remove(s.file.Name())
	s.file.Close()
}
