//go:build linux

package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The floor is what a server which makes NARs from files cannot do without, on one thread for each connection:
// everything but the contents prepared, it opens, reads and closes the files, relative to their directories, and
// sends small ones together, large ones by sendfile. It looks for no changes, keeps no counts, reads nothing ahead,
// and opens, reads and closes without telling Go's scheduler, as a C program would.

const (
	floorServe = "-serve-floor"
	// floorBuffer and floorLarge, bytes: what one send takes, and from where on a file is sent by sendfile.
	floorBuffer = 256 << 10
	floorLarge  = 64 << 10
)

// floorNAR is a prepared NAR.
type floorNAR struct {
	size  int64
	steps []floorStep
	tail  []byte
}

// floorStep is one file, or a directory of files.
type floorStep struct {
	text []byte // of the NAR before it
	name []byte // ending in NUL: of a directory its whole path, of a file relative to the last directory
	dir  bool
	size int64 // of a file, bytes
}

// floor starts it on a corpus.
func (b *bench) floor(c *corpus) (*server, error) {
	addr, s, err := b.helper(floorServe, c.dir)
	if err != nil {
		return nil, err
	}
	s.addr = addr
	return s, nil
}

func serveFloor(args []string) {
	err := floorRun(args[0])
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func floorRun(dir string) error {
	runtime.GOMAXPROCS(64)
	c := &corpus{dir: dir}
	text, err := os.ReadFile(filepath.Join(dir, "stamp-"+corpusVersion))
	if err == nil {
		err = json.Unmarshal(text, c)
	}
	if err != nil {
		return err
	}
	list, err := os.ReadDir(c.realDir())
	if err != nil {
		return err
	}
	names := map[string]string{} // by hash
	for _, e := range list {
		hash, _, _ := strings.Cut(e.Name(), "-")
		names[hash] = e.Name()
	}
	nars := map[string]*floorNAR{}
	for _, p := range c.Paths {
		n := &floorNAR{size: p.Size}
		w := floorWriter{n: n}
		w.text("nix-archive-1")
		if err := w.node(filepath.Join(c.realDir(), names[p.Hash]), true); err != nil {
			return err
		}
		n.tail = w.before
		nars[p.NARName] = n
	}
	debug.SetGCPercent(-1) // the names that are asked for are little
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr().String())
	for {
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		f, err := conn.(*net.TCPConn).File()
		conn.Close()
		if err != nil {
			return err
		}
		fd := int(f.Fd()) // blocking from here on
		unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
		go func() {
			runtime.LockOSThread()
			floorConn(fd, nars)
			f.Close()
		}()
	}
}

// floorWriter prepares a NAR.
type floorWriter struct {
	n      *floorNAR
	before []byte
	in     string // the directory that is open
}

func (w *floorWriter) text(list ...string) {
	for _, s := range list {
		w.before = binary.LittleEndian.AppendUint64(w.before, uint64(len(s)))
		w.before = append(w.before, s...)
		w.before = append(w.before, make([]byte, -len(s)&7)...)
	}
}

// node adds a tree, in the order of a NAR. The corpora have no links.
func (w *floorWriter) node(path string, root bool) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		dir, name := filepath.Split(path)
		w.text("(", "type", "regular", "contents")
		w.before = binary.LittleEndian.AppendUint64(w.before, uint64(st.Size()))
		if root {
			name = path
		} else if dir != w.in {
			w.n.steps = append(w.n.steps, floorStep{name: append([]byte(dir), 0), dir: true})
			w.in = dir
		}
		w.n.steps = append(w.n.steps, floorStep{text: w.before, name: append([]byte(name), 0), size: st.Size()})
		w.before = make([]byte, -st.Size()&7)
		w.text(")")
		return nil
	}
	w.text("(", "type", "directory")
	list, err := os.ReadDir(path) // sorted
	if err != nil {
		return err
	}
	for _, e := range list {
		w.text("entry", "(", "name", e.Name(), "node")
		if err := w.node(filepath.Join(path, e.Name()), false); err != nil {
			return err
		}
		w.text(")")
	}
	w.text(")")
	return nil
}

// floorConn answers on one connection until it ends.
func floorConn(fd int, nars map[string]*floorNAR) {
	var req [4096]byte
	buf := make([]byte, 0, floorBuffer)
	for {
		k, err := unix.Read(fd, req[:])
		if err != nil || k <= 0 {
			return
		}
		name, _, _ := strings.Cut(string(req[len("GET /"):max(k, len("GET /"))]), " ")
		buf = append(buf[:0], "HTTP/1.1 200 OK\r\nContent-Length: "...)
		n := nars[name]
		if n == nil {
			n = &floorNAR{size: 1, tail: []byte("\n")}
		}
		buf = strconv.AppendInt(buf, n.size, 10)
		buf = append(buf, "\r\n\r\n"...)
		if !floorSend(fd, n, buf) {
			return
		}
	}
}

// raw is a system call that Go's scheduler does not hear of.
func raw(trap, a, b, c, d uintptr) int {
	for {
		r, _, errno := unix.RawSyscall6(trap, a, b, c, d, 0, 0)
		if errno == 0 {
			return int(r)
		}
		if errno != unix.EINTR {
			return -1
		}
	}
}

func floorSend(fd int, n *floorNAR, buf []byte) bool {
	dir := -1
	defer func() {
		if dir >= 0 {
			raw(unix.SYS_CLOSE, uintptr(dir), 0, 0, 0)
		}
	}()
	flush := func() bool {
		for b := buf; len(b) > 0; {
			k, err := unix.Write(fd, b)
			if err != nil && err != unix.EINTR {
				return false
			}
			b = b[max(k, 0):]
		}
		buf = buf[:0]
		return true
	}
	put := func(text []byte) bool {
		if len(text) > cap(buf)-len(buf) && !flush() {
			return false
		}
		buf = append(buf, text...)
		return true
	}
	none := unix.AT_FDCWD
	for i := range n.steps {
		s := &n.steps[i]
		if s.dir {
			if dir >= 0 {
				raw(unix.SYS_CLOSE, uintptr(dir), 0, 0, 0)
			}
			if dir = raw(unix.SYS_OPENAT, uintptr(none), uintptr(unsafe.Pointer(&s.name[0])), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); dir < 0 {
				return false
			}
			continue
		}
		if !put(s.text) {
			return false
		}
		f := raw(unix.SYS_OPENAT, uintptr(dir), uintptr(unsafe.Pointer(&s.name[0])), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if f < 0 {
			return false
		}
		ok := true
		if s.size >= floorLarge {
			ok = flush()
			for left := s.size; left > 0 && ok; {
				k, err := unix.Sendfile(fd, f, nil, int(left))
				left -= int64(max(k, 0))
				ok = k > 0 || err == unix.EINTR
			}
		} else if s.size > 0 {
			if cap(buf)-len(buf) < int(s.size) {
				ok = flush()
			}
			at := len(buf)
			buf = buf[:at+int(s.size)]
			ok = ok && raw(unix.SYS_READ, uintptr(f), uintptr(unsafe.Pointer(&buf[at])), uintptr(s.size), 0) == int(s.size)
		}
		raw(unix.SYS_CLOSE, uintptr(f), 0, 0, 0)
		if !ok {
			return false
		}
	}
	return put(n.tail) && flush()
}
