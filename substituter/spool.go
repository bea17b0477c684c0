package substituter

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// memorySpool is the largest NAR that is collected in memory, bytes.
const memorySpool = 4 << 20

// spool collects the bytes of one NAR, in memory or in a file. Bytes once written do not change, so
// readers of the written part need no lock against the writer of the rest.
type spool struct {
	mem    []byte
	file   *os.File
	budget *atomic.Int64 // memory left for all spools
}

// newSpool makes room for size bytes, which a key signed. budget is what memory all spools may still
// use; when it is short, or the NAR is large, the bytes go to an unnamed file in dir.
func newSpool(dir string, size int64, budget *atomic.Int64) (*spool, error) {
	if size <= memorySpool {
		if budget.Add(-size) >= 0 {
			return &spool{mem: make([]byte, size), budget: budget}, nil
		}
		budget.Add(size)
	}
	f, err := os.CreateTemp(dir, "nar-*")
	if err != nil {
		return nil, fmt.Errorf("spool a NAR: %w; make room or set limits.cache_size", err)
	}
	return &spool{file: f}, nil
}

// writeAt stores p at off.
func (s *spool) writeAt(p []byte, off int64) error {
	if s.mem != nil {
		copy(s.mem[off:], p)
		return nil
	}
	if _, err := s.file.WriteAt(p, off); err != nil {
		return fmt.Errorf("spool a NAR: %w; make room or set limits.cache_size", err)
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
// so that the kernel can send the file without copying.
func (s *spool) writeTo(w io.Writer, off, n int64) (int64, error) {
	if s.mem != nil {
		k, err := w.Write(s.mem[off : off+n])
		return int64(k), err
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

// close gives the room back. Readers must be gone.
func (s *spool) close() {
	if s.mem != nil {
		s.budget.Add(int64(len(s.mem)))
		s.mem = nil
		return
	}
	os.Remove(s.file.Name())
	s.file.Close()
}
