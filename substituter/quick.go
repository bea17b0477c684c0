package substituter

import (
	"bytes"
	"cmp"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flurry-nix/flurry/verify"
)

// Nix asks hundreds of narinfos in a row on one connection, and parsing a request, two goroutines and a
// context cost net/http several times what the answer does. So a kept-alive connection from this machine
// is looked at before net/http reads it: a plain question that memory answers is answered at once, all
// else is passed on untouched. What is passed on is never looked at again until its answer has left; and
// a connection on which a request does not arrive in one piece is net/http's alone from then on, so that
// bytes which are the middle of something cannot be taken for a question.

// Listener returns ln with quick answers. Its connections must be served by an http.Server whose
// ConnState is, or calls, [ConnState].
func (s *Server) Listener(ln net.Listener) net.Listener { return quickListener{ln, s} }

// ConnState tells a connection of [Server.Listener] that its answer has left.
func ConnState(c net.Conn, state http.ConnState) {
	if q, ok := c.(*quickConn); ok && state == http.StateIdle && q.state == passed {
		q.state = waiting
	}
}

type quickListener struct {
	net.Listener
	s *Server
}

// Accept implements net.Listener.
func (l quickListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if remote := addrOf(c.RemoteAddr()); !ok || !remote.IsLoopback() && remote != addrOf(c.LocalAddr()) {
		return c, nil
	}
	return &quickConn{TCPConn: tcp, s: l.s}, nil
}

// quickConn is one connection from this machine. Only net/http's goroutines of the connection use it, one
// at a time; it keeps the methods by which they send files.
type quickConn struct {
	*net.TCPConn
	s     *Server
	state connState
	host  []byte // the last Host that was fine
	out   []byte // the answer under way
	date  httpDate
}

type connState uint8

const (
	fresh   connState = iota // no request yet; net/http times the first one
	waiting                  // net/http waits for the next request and has nothing of it
	passed                   // it has a whole request and owes the answer
	plain                    // it is net/http's alone
)

// Read implements net.Conn.
func (c *quickConn) Read(p []byte) (int, error) {
	if c.state == passed && len(p) == 1 {
		return 0, c.awaitEnd()
	}
	for {
		n, err := c.TCPConn.Read(p)
		if n == 0 || c.state == plain {
			return n, err
		}
		if c.state == waiting && err == nil && c.answer(p[:n]) {
			if _, err := c.TCPConn.Write(c.out); err != nil {
				return 0, err
			}
			continue
		}
		// More bytes before the answer has left are a body, or the request after.
		if c.state == passed || !wholeHead(p[:n]) {
			c.state = plain
		} else {
			c.state = passed
		}
		return n, err
	}
}

// awaitEnd blocks until the client is gone, or a deadline passes, and takes no byte. net/http reads one
// byte while a handler is at work, to notice the former; a quick client's next question would be cut up.
func (c *quickConn) awaitEnd() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var end error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		for {
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
			switch {
			case err == unix.EINTR:
				continue
			case err == unix.EAGAIN || n > 0:
				return false
			case err == nil:
				err = io.EOF
			}
			end = err
			return true
		}
	})
	return cmp.Or(err, end)
}

// wholeHead tells whether b is one request's head, from beginning to end.
func wholeHead(b []byte) bool {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	return end >= 0 && end+4 == len(b)
}

// answer renders the answer to the question b into c.out, if it is one that memory answers.
func (c *quickConn) answer(b []byte) bool {
	name, host, ok := plainQuestion(b)
	if !ok {
		return false
	}
	if !bytes.Equal(host, c.host) {
		if !loopbackName(string(host)) {
			return false
		}
		c.host = append(c.host[:0], host...)
	}
	h, err := verify.ParseStoreHash(name)
	if err != nil {
		return false
	}
	s := c.s
	if got, ok := s.finder.memory.Get(h); ok {
		s.Stats.NarInfoHits.Add(1)
		s.ahead.answered(got)
		c.render("HTTP/1.1 200 OK\r\nContent-Type: text/x-nix-narinfo\r\nContent-Length: ", got.text)
		return true
	}
	if s.finder.knownMiss(h) {
		s.Stats.NarInfoMisses.Add(1)
		c.render("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: ", "not found\n")
		return true
	}
	return false
}

func (c *quickConn) render(head, text string) {
	b := append(c.out[:0], head...)
	b = strconv.AppendInt(b, int64(len(text)), 10)
	b = append(b, "\r\nDate: "...)
	b = append(b, c.date.now()...)
	b = append(b, "\r\n\r\n"...)
	c.out = append(b, text...)
}

// httpDate renders the time once a second.
type httpDate struct {
	second int64
	text   []byte
}

func (d *httpDate) now() []byte {
	if now := time.Now(); now.Unix() != d.second {
		d.second, d.text = now.Unix(), now.UTC().AppendFormat(d.text[:0], http.TimeFormat)
	}
	return d.text
}

const narInfoLine = ".narinfo HTTP/1.1\r\n"

// plainQuestion takes apart a GET of a narinfo that has no header but those which Nix sends and which do
// not change the answer. name is the store hash, unchecked.
func plainQuestion(b []byte) (name string, host []byte, ok bool) {
	const nameAt, lineAt = len("GET /"), len("GET /") + verify.StoreHashLen
	if len(b) < lineAt+len(narInfoLine) || string(b[:nameAt]) != "GET /" || string(b[lineAt:lineAt+len(narInfoLine)]) != narInfoLine {
		return "", nil, false
	}
	for rest := b[lineAt+len(narInfoLine):]; ; {
		end := bytes.Index(rest, []byte("\r\n"))
		switch {
		case end < 0:
			return "", nil, false
		case end == 0: // the end of the head, and of all that came
			return string(b[nameAt:lineAt]), host, host != nil && len(rest) == 2
		}
		field, value, found := bytes.Cut(rest[:end], []byte(": "))
		switch rest = rest[end+2:]; {
		case !found:
			return "", nil, false
		case bytes.EqualFold(field, []byte("Host")) && host == nil:
			host = value
		case bytes.EqualFold(field, []byte("User-Agent")), bytes.EqualFold(field, []byte("Accept")), bytes.EqualFold(field, []byte("Accept-Encoding")):
		default:
			return "", nil, false
		}
	}
}

// loopbackName tells whether a Host header names this machine by a loopback name.
func loopbackName(host string) bool {
	name := hostName(host)
	ip, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && ip.IsLoopback()
}
