//go:build linux

package faults

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"
)

// blame is what an operator should read about a source.
type blame int

const (
	blameNamed  blame = iota // its trouble is told
	blameBanned              // it sent wrong bytes: a peer is shut out, an upstream's trouble is told
	blameNone                // it did nothing wrong
)

// fault is one way to misbehave. At most one of its functions beside listen and peer is set.
type fault struct {
	name  string
	only  string // kindPeer or kindUpstream; "" for both
	blame blame
	quick bool // part of make test
	// honest: the bytes are right, they only come slowly or late. With no other source they are what
	// Nix gets.
	honest bool
	// compression of the files that it concerns; "" for all.
	compression string

	narinfo   func(s *source, p *storePath, text string) string
	nar       func(s *source, p *storePath, nar []byte) []byte
	onNarInfo func(q *request)
	onNAR     func(q *request)
	any       func(q *request)

	listen        func(s *source) error                                 // an upstream's own way to listen
	peer          func(ctx context.Context, s *source, id string) error // what a peer does besides
	static        func(s *source) (entry string, err error)             // a peer that is only named to the agent
	claimsNothing bool
}

var quiet = log.New(io.Discard, "", 0)

// set replaces a field of a narinfo; an empty value drops it.
func set(text, field, value string) string {
	var out []string
	for line := range strings.Lines(text) {
		if name, _, _ := strings.Cut(line, ": "); name == field {
			if line = ""; value != "" {
				line = field + ": " + value + "\n"
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "")
}

func status(code int, header ...string) func(*request) {
	return func(q *request) {
		for i := 0; i < len(header); i += 2 {
			q.w.Header().Set(header[i], header[i+1])
		}
		http.Error(q.w, "test", code)
	}
}

func flip(at func(n int) int) func(*source, *storePath, []byte) []byte {
	return func(_ *source, _ *storePath, nar []byte) []byte {
		nar[at(len(nar))] ^= 0x55
		return nar
	}
}

// stopAt sends a part of the answer and then does something else.
func stopAt(part func(n int) int, then func(*request)) func(*request) {
	return func(q *request) {
		body := q.begin()
		q.send(body[:part(len(body))])
		then(q)
	}
}

func half(n int) int { return n / 2 }

// dribble sends the answer in small pieces.
func dribble(piece int, every time.Duration) func(*request) {
	return func(q *request) {
		for body := q.begin(); len(body) > 0; {
			n := min(piece, len(body))
			if !q.send(body[:n]) || !q.pause(every) {
				return
			}
			body = body[n:]
		}
	}
}

// endless writes a line for ever after a beginning.
func endless(begin, line string) func(*request) {
	return func(q *request) {
		q.raw(func(c net.Conn) {
			io.WriteString(c, begin)
			piece := []byte(strings.Repeat(line, 64<<10/len(line)))
			for {
				if _, err := c.Write(piece); err != nil {
					return
				}
			}
		})
	}
}

// slowHeader sends an answer's header byte by byte.
func slowHeader(q *request) {
	q.raw(func(c net.Conn) {
		for _, b := range []byte("HTTP/1.1 200 OK\r\nX-Slow: " + strings.Repeat("a", 4000) + "\r\nContent-Length: 1\r\n\r\nx") {
			if _, err := c.Write([]byte{b}); err != nil || !q.pause(50*time.Millisecond) {
				return
			}
		}
	})
}

// reset ends a connection as a crashed machine's kernel does.
func reset(q *request) {
	q.raw(func(c net.Conn) {
		switch c := c.(type) {
		case *net.TCPConn:
			c.SetLinger(0)
		case interface{ Reset() error }:
			c.Reset()
		}
	})
}

func redirect(to string) func(*request) {
	return func(q *request) {
		q.w.Header().Set("Location", strings.ReplaceAll(to, "SELF", q.r.URL.Path))
		q.w.WriteHeader(http.StatusFound)
	}
}

// bomb sends something small that unpacks to 10 GiB: 160 times the same 64 MiB of zeros, which all these
// formats take for one file.
func bomb(label, compression string) func(*request) {
	return func(q *request) {
		if label != "" {
			q.w.Header().Set("Content-Encoding", label)
		}
		member, err := zeros(compression)
		if err != nil {
			q.cut()
		}
		for range 160 {
			if !q.send(member) {
				return
			}
		}
	}
}

var (
	zerosLock sync.Mutex
	zerosMade = map[string][]byte{}
)

// zeros returns 64 MiB of them, compressed.
func zeros(compression string) ([]byte, error) {
	zerosLock.Lock()
	defer zerosLock.Unlock()
	if b := zerosMade[compression]; b != nil {
		return b, nil
	}
	b, err := pack(make([]byte, 64<<20), compression)
	zerosMade[compression] = b
	return b, err
}

// packed makes every path's file one of this compression.
func packed(compression string) func(*source, *storePath, string) string {
	return func(_ *source, _ *storePath, text string) string { return set(text, "Compression", compression) }
}

// blackhole listens and never accepts: once its queue is full, the kernel drops SYNs.
func blackhole(s *source) (addr string, err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return "", err
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return "", err
	}
	if err := syscall.Listen(fd, 0); err != nil {
		return "", err
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		return "", err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	var fill []net.Conn
	for range 4 {
		if c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond); err == nil {
			fill = append(fill, c)
		}
	}
	s.end = func() {
		for _, c := range fill {
			c.Close()
		}
		syscall.Close(fd)
	}
	s.applied.Add(1)
	return addr, nil
}

// refusing returns an address where nothing listens.
func refusing(s *source) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s.applied.Add(1)
	return l.Addr().String(), l.Close()
}

// each accepted connection gets this treatment.
func treat(fn func(s *source, c net.Conn)) func(s *source) (string, error) {
	return func(s *source) (string, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		s.end = func() { l.Close() }
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.applied.Add(1)
				go fn(s, c)
			}
		}()
		return l.Addr().String(), nil
	}
}

func at(address func(*source) (string, error), scheme string) func(*source) error {
	return func(s *source) error {
		addr, err := address(s)
		s.url = scheme + addr
		return err
	}
}

// resetting cuts every connection with a RST.
var resetting = treat(func(_ *source, c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
})

// mute accepts and neither reads nor writes.
var mute = treat(func(s *source, c net.Conn) {
	<-s.stop
	c.Close()
})

// garbler talks nonsense.
var garbler = treat(func(s *source, c net.Conn) {
	defer c.Close()
	b := make([]byte, 64<<10)
	rand.Read(b)
	c.Write(b)
})

func unknownName(s *source) (string, error) {
	s.applied.Add(1)
	return "no-such-host.invalid:6491", nil
}

func junkSig(name string) string {
	return name + ":" + base64.StdEncoding.EncodeToString(make([]byte, 64))
}
