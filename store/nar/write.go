package nar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// bufSize, bytes: what is gathered before one write. Few writes for small files, yet within L2; four whole
	// frames of yamux, each 64 KiB with its head.
	bufSize = 4 * (64<<10 - 12)
	// largeFile, bytes: from this size on a file is handed to the writer itself (sendfile) where the
	// writer can take it; below, one read into the buffer is cheaper than the extra system calls.
	largeFile = 64 << 10
	// copyStep, bytes: how much the writer is handed at once, so that an ended context is noticed.
	copyStep = 8 << 20
)

// underWay counts calls of WriteRange: where there are several, no processor is idle.
var underWay atomic.Int32

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, bufSize); return &b }}

// WriteRange writes length bytes of the archive, from byte off on, to w, and returns how many were
// written. Fewer come with an error, which wraps [ErrChanged] or fs.ErrNotExist if the tree is no
// longer what it was, [ErrRange] if the range does not lie within [0, Size]. Bytes before an error are
// as the archive has them. If w is an io.ReaderFrom, large files are given to it as an
// *io.LimitedReader over a syscall.Conn, for which TCP connections and HTTP responses use sendfile.
// An ended ctx is noticed between writes; a w that blocks for ever is the caller's to unblock.
func (n *NAR) WriteRange(ctx context.Context, w io.Writer, off, length int64) (int64, error) {
	if off < 0 || length < 0 || off > n.size || length > n.size-off {
		return 0, fmt.Errorf("bytes %d+%d of %d: %w", off, length, n.size, ErrRange)
	}
	if length == 0 {
		return 0, nil
	}
	defer underWay.Add(-1)
	if alone := underWay.Add(1) == 1; alone && length > bufSize && runtime.GOMAXPROCS(0) > 1 {
		if list, smalls := n.segments(off, off+length); smalls > 1 {
			return n.writeAhead(ctx, w, list)
		}
	}
	s := n.newStream(ctx, w)
	defer s.release()
	s.pos, s.end = off, off+length
	if err := s.run(); err != nil {
		return s.written, fmt.Errorf("NAR of %s: %w", n.path(), err)
	}
	return s.written, nil
}

// Append appends the whole archive to b. The error wraps [ErrChanged] or fs.ErrNotExist if the tree is no longer
// the one that was walked, as [NAR.Same] tells; no look is needed before.
func (n *NAR) Append(ctx context.Context, b []byte) ([]byte, error) {
	was := len(b)
	s := stream{NAR: n, ctx: ctx, buf: slices.Grow(b, int(n.size)+1), current: -1, end: n.size} // small wants room for one byte more
	err := s.read()
	s.leave(0)
	if err == nil && !s.opened && !n.Same() { // nothing but links and empty directories
		err = ErrChanged
	}
	if err != nil {
		return b[:was], fmt.Errorf("NAR of %s: %w", n.path(), err)
	}
	return s.buf, nil
}

func (n *NAR) newStream(ctx context.Context, w io.Writer) *stream {
	pooled := buffers.Get().(*[]byte)
	s := &stream{NAR: n, ctx: ctx, w: w, pooled: pooled, buf: (*pooled)[:0], current: -1}
	s.from, _ = w.(io.ReaderFrom)
	return s
}

// release closes what is open and gives the buffer back.
func (s *stream) release() {
	s.leave(0)
	*s.pooled = s.buf[:0]
	buffers.Put(s.pooled)
}

// stream is a WriteRange under way, or the helper of one. Invariant: pos is the archive offset
// after what is in buf.
type stream struct {
	*NAR
	ctx      context.Context
	w        io.Writer
	from     io.ReaderFrom // w, if it can
	pooled   *[]byte       // whose bytes buf has
	buf      []byte        // never grows past its capacity
	pos, end int64
	written  int64

	dirs    []dir // open directories, the root first, down to current
	current int32 // entry of the innermost
	text    []byte
	opened  bool // the root was, and is the one that was walked
}

type dir struct {
	entry int32
	fd    int
}

// run writes up to end.
func (s *stream) run() error {
	if err := s.read(); err != nil {
		return err
	}
	return s.flush()
}

// read goes on to end and leaves in buf what found room there.
func (s *stream) read() error {
	if s.pos == s.end {
		return nil
	}
	for i := s.entryAt(s.pos); s.pos < s.end; i++ {
		e := &s.entries[i]
		at, err := s.head(i)
		if err != nil {
			return err
		}
		size := e.contents()
		isFile := e.kind == kindRegular || e.kind == kindExecutable
		if isFile && s.pos < s.end && (s.pos < at+size || size == 0 && s.pos == at) {
			if err := s.file(i, s.pos-at, min(at+size, s.end)-s.pos); err != nil {
				return err
			}
		}
		s.text = s.appendTail(s.text[:0], i)
		if err := s.literal(at + size); err != nil {
			return err
		}
	}
	return nil
}

// head emits what is wanted of the text of entry i before its contents, and returns where they begin.
func (s *stream) head(i int) (int64, error) {
	e := &s.entries[i]
	if most := e.maxHead(); s.pos == e.start && most <= min(int64(cap(s.buf)-len(s.buf)), s.end-s.pos) { // nearly always
		was := len(s.buf)
		s.buf = s.appendHead(s.buf, i)
		s.pos += int64(len(s.buf) - was)
		return s.pos, nil
	}
	s.text = s.appendHead(s.text[:0], i)
	return e.start + int64(len(s.text)), s.literal(e.start)
}

// literal emits the part of text, which stands at offset at, that is wanted.
func (s *stream) literal(at int64) error {
	t := s.text
	if skip := s.pos - at; skip > 0 {
		t = t[min(skip, int64(len(t))):]
	}
	t = t[:min(int64(len(t)), s.end-s.pos)]
	for len(t) > 0 {
		if len(s.buf) == cap(s.buf) {
			if err := s.flush(); err != nil {
				return err
			}
		}
		k := copy(s.buf[len(s.buf):cap(s.buf)], t)
		s.buf = s.buf[:len(s.buf)+k]
		s.pos += int64(k)
		t = t[k:]
	}
	return nil
}

func (s *stream) flush() error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	if len(s.buf) == 0 {
		return nil
	}
	k, err := s.w.Write(s.buf)
	s.written += int64(k)
	if err == nil && k < len(s.buf) {
		err = io.ErrShortWrite
	}
	s.buf = s.buf[:0]
	return err
}

// file emits length bytes of the contents of entry i from byte off on.
func (s *stream) file(i int, off, length int64) (err error) {
	e := &s.entries[i]
	var fd int
	if e.parent < 0 {
		fd, err = s.openRoot(0)
	} else if err = s.enter(e.parent); err == nil {
		fd, err = openAt(s.dirs[len(s.dirs)-1].fd, s.names[e.name:][:e.length+1], 0)
	}
	if err != nil {
		return fmt.Errorf("open %q: %w", s.name(e), err)
	}
	switch {
	case s.from != nil && length >= largeFile:
		err = s.large(fd, e.size, off, length)
	case off == 0 && length == e.size && length < largeFile:
		err = s.small(fd, int(length))
	default:
		err = s.part(fd, e.size, off, length)
	}
	unix.Close(fd)
	if err != nil {
		return fmt.Errorf("%q: %w", s.name(e), err)
	}
	return nil
}

// small reads a whole small file. Asking for one byte more shows in the same call whether it grew.
func (s *stream) small(fd, length int) error {
	if cap(s.buf)-len(s.buf) <= length {
		if err := s.flush(); err != nil {
			return err
		}
	}
	p := s.buf[len(s.buf) : len(s.buf)+length+1]
	got := 0
	for got < len(p) {
		var k int
		err := retry(func() (err error) { k, err = unix.Read(fd, p[got:]); return err })
		if err != nil {
			return changed(err)
		}
		if k == 0 {
			break
		}
		if got += k; got == length {
			break // a regular file gives less than asked for only at its end
		}
	}
	if got != length {
		return fmt.Errorf("%w: its size was %d", ErrChanged, length)
	}
	s.buf = s.buf[:len(s.buf)+length]
	s.pos += int64(length)
	return nil
}

// part reads through the buffer.
func (s *stream) part(fd int, size, off, length int64) error {
	if err := expect(fd, size); err != nil {
		return err
	}
	for length > 0 {
		if len(s.buf) == cap(s.buf) {
			if err := s.flush(); err != nil {
				return err
			}
		}
		p := s.buf[len(s.buf):cap(s.buf)]
		p = p[:min(int64(len(p)), length)]
		var k int
		err := retry(func() (err error) { k, err = unix.Pread(fd, p, off); return err })
		if err != nil {
			return changed(err)
		}
		if k == 0 {
			return fmt.Errorf("%w: it shrank", ErrChanged)
		}
		s.buf = s.buf[:len(s.buf)+k]
		s.pos, off, length = s.pos+int64(k), off+int64(k), length-int64(k)
	}
	return expect(fd, size)
}

// file is an open file as far as sendfile, or copying, needs one. An *os.File would ask the poller for it, in
// vain, and be watched by the garbage collector.
type file int

// Read implements io.Reader.
func (f file) Read(p []byte) (n int, err error) {
	err = retry(func() (err error) { n, err = unix.Read(int(f), p); return err })
	if n == 0 && err == nil && len(p) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// SyscallConn implements syscall.Conn.
func (f file) SyscallConn() (syscall.RawConn, error) { return rawFile(f), nil }

type rawFile int

// Read implements syscall.RawConn.
func (f rawFile) Read(do func(fd uintptr) bool) error {
	for !do(uintptr(f)) {
	}
	return nil
}

// Control implements syscall.RawConn.
func (f rawFile) Control(do func(fd uintptr)) error { do(uintptr(f)); return nil }

// Write implements syscall.RawConn.
func (f rawFile) Write(func(fd uintptr) bool) error { return errors.ErrUnsupported }

// large lets the writer take the file by itself.
func (s *stream) large(fd int, size, off, length int64) error {
	if err := expect(fd, size); err != nil {
		return err
	}
	if off > 0 {
		if _, err := unix.Seek(fd, off, io.SeekStart); err != nil {
			return err
		}
	}
	if err := s.flush(); err != nil {
		return err
	}
	for length > 0 {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		step := min(length, copyStep)
		k, err := s.from.ReadFrom(&io.LimitedReader{R: file(fd), N: step})
		s.written += k
		s.pos, length = s.pos+k, length-k
		if err != nil {
			return err
		}
		if k < step {
			return fmt.Errorf("%w: it shrank", ErrChanged)
		}
	}
	return expect(fd, size)
}

// expect checks that fd is a regular file of the given size.
func expect(fd int, size int64) error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size != size {
		return fmt.Errorf("%w: its size was %d", ErrChanged, size)
	}
	return nil
}

// changed explains errors that reading a regular file does not give.
func changed(err error) error {
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	return err
}

// enter makes the directory of entry i the innermost open one.
func (s *stream) enter(i int32) error {
	if i == s.current {
		return nil
	}
	var chain []int32 // from i up to what is already open
	keep := 0
	for j := i; j >= 0 && keep == 0; j = s.entries[j].parent {
		for k := len(s.dirs) - 1; k >= 0 && s.dirs[k].entry >= j; k-- {
			if s.dirs[k].entry == j {
				keep = k + 1
			}
		}
		if keep == 0 {
			chain = append(chain, j)
		}
	}
	s.leave(keep)
	for k := len(chain) - 1; k >= 0; k-- {
		j := chain[k]
		e := &s.entries[j]
		var fd int
		var err error
		if e.parent < 0 {
			fd, err = s.openRoot(unix.O_DIRECTORY)
		} else {
			fd, err = openAt(s.dirs[len(s.dirs)-1].fd, s.names[e.name:][:e.length+1], unix.O_DIRECTORY)
		}
		if err != nil {
			return err
		}
		s.dirs = append(s.dirs, dir{j, fd})
		s.current = j
	}
	return nil
}

// leave closes all but the outermost keep directories.
func (s *stream) leave(keep int) {
	for len(s.dirs) > keep {
		last := len(s.dirs) - 1
		unix.Close(s.dirs[last].fd)
		s.dirs = s.dirs[:last]
	}
	s.current = -1
	if keep > 0 {
		s.current = s.dirs[keep-1].entry
	}
}

// openRoot opens the root and makes sure that it is the one that was walked.
func (s *stream) openRoot(flags int) (int, error) {
	fd, err := openAt(unix.AT_FDCWD, s.root, flags)
	if err != nil {
		return -1, err
	}
	id, err := identify(fd, "")
	if err == nil && id != s.id {
		err = fmt.Errorf("%w: another one is in its place", ErrChanged)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	s.opened = true
	return fd, nil
}
