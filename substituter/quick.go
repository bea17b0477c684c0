package substituter

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// Nix asks hundreds of narinfos in a row on one connection, and parsing a request, two goroutines and a
// context cost net/http several times what the answer does. So a kept-alive connection from this machine
// is looked at before net/http reads it: a plain question for a narinfo, or for a small NAR of the store,
// is answered then and there, all else is passed on untouched. What is passed on is never looked at again
// until its answer has left; and a connection on which a request does not arrive in one piece is
// net/http's alone from then on, so that bytes which are the middle of something cannot be taken for a
// question. To net/http the connection is idle meanwhile: when the agent stops, it closes it, and Nix asks
// the successor.

// quickNAR, bytes: up to here a NAR is written in one piece with its header. Each connection keeps that
// much memory; of larger ones what net/http adds is small.
const quickNAR = 64 << 10

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
	if !ok {
		return c, nil
	}
	if remote := addrOf(c.RemoteAddr()); !remote.IsLoopback() && remote != addrOf(c.LocalAddr()) {
		return tcpConn{tcp}, nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	unpaced(raw)
	return &quickConn{tcpConn: tcpConn{tcp}, raw: raw, brief: brief(raw), s: l.s}, nil
}

// tcpConn lets what net/http hands to it write itself, so that the text between large files of a NAR, which
// sendfile takes, needs one system call and not three.
type tcpConn struct{ *net.TCPConn }

// ReadFrom implements io.ReaderFrom.
func (c tcpConn) ReadFrom(r io.Reader) (int64, error) {
	if w, ok := r.(io.WriterTo); ok {
		return w.WriteTo(c.TCPConn)
	}
	return c.TCPConn.ReadFrom(r)
}

// quickConn is one connection from this machine. Only net/http's goroutines of the connection use it, one
// at a time; it keeps the methods by which they send files.
type quickConn struct {
	tcpConn
	raw   syscall.RawConn
	brief bool // the kernel lets a thread wait for no longer than a moment
	s     *Server
	state connState
	waits bool   // a thread waits in the kernel, that moment
	host  []byte // the last Host that was fine
	out   []byte // the answer under way
	date  httpDate
	told  *found // the narinfo that is the answer; nil if it is another one
	sent  *found // whose NAR is the answer; nil likewise
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
		if c.state != passed {
			c.asked(bytes.HasPrefix(p[:n], []byte("GET /nar/")))
		}
		if c.state == waiting && err == nil {
			done, err := c.answer(p[:n])
			if err == nil && done {
				_, err = c.TCPConn.Write(c.out)
				c.answered(err)
			}
			if err != nil {
				return 0, err
			}
			if done {
				continue
			}
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

// asked notes a question. Where it is for a NAR and the one before was this connection's, too, a thread waits in the
// kernel for a moment, for room to send and for the next question, before Go's poller does: a Nix that asks one after
// the other asks again within some 50 µs, and the poller is three more system calls each time, and puts the runtime's
// monitor to sleep and wakes it. Where several connections ask by turns, the poller costs less than their threads
// would. After a narinfo, too: Go's scheduler looks out for work for about as long as the next question takes, and
// meanwhile the processor does not fall asleep.
func (c *quickConn) asked(nar bool) {
	if wait := c.s.asker.Swap(c) == c && nar; wait != c.waits && c.brief {
		c.waits = wait
		c.raw.Control(func(fd uintptr) { unix.SetNonblock(int(fd), !wait) })
	}
}

// awaitEnd blocks until the client is gone, or a deadline passes, and takes no byte. net/http reads one
// byte while a handler is at work, to notice the former; a quick client's next question would be cut up.
func (c *quickConn) awaitEnd() error {
	var end error
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		for {
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
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

// answer renders the answer to the question b into c.out; done is false if b is for net/http. It takes as
// long as the sources of a narinfo do. After an error the connection is to be closed.
func (c *quickConn) answer(b []byte) (done bool, err error) {
	name, host, ok := plainQuestion(b)
	if !ok {
		return false, nil
	}
	if !bytes.Equal(host, c.host) {
		if !loopbackName(string(host)) {
			return false, nil
		}
		c.host = append(c.host[:0], host...)
	}
	if hash, ok := bytes.CutSuffix(name, []byte(".narinfo")); ok {
		return c.narInfo(hash)
	}
	return c.nar(string(name)), nil
}

func (c *quickConn) narInfo(name []byte) (done bool, err error) {
	h, err := verify.ParseStoreHash(string(name))
	if err != nil {
		return false, nil
	}
	s := c.s
	select {
	case <-s.ready:
	default:
		return false, nil
	}
	got, err := s.finder.findHere(h)
	if err != nil {
		if s.flights.ctx.Err() != nil && !errors.Is(err, ErrAbsent) {
			return false, io.EOF // as in cutIfStopping
		}
		c.render("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: ", s.missed(err))
		return true, nil
	}
	s.Stats.NarInfoHits.Add(1)
	c.told = got
	c.render("HTTP/1.1 200 OK\r\nContent-Type: text/x-nix-narinfo\r\nContent-Length: ", got.text)
	return true, nil
}

// nar renders a small NAR of the local store whose narinfo is in memory, as it is when Nix has just asked
// for it. Whatever is unusual about it is net/http's to tell.
func (c *quickConn) nar(name string) bool {
	s := c.s
	h, narHash, ok := binarycache.ParseNARURL(name)
	if !ok {
		return false
	}
	got, ok := s.finder.memory.Get(h)
	if !ok || got.v.NarHash() != narHash || got.v.NarSize() > quickNAR || !s.store.Has(h) {
		return false
	}
	c.head("HTTP/1.1 200 OK\r\nContent-Type: application/x-nix-nar\r\nAccept-Ranges: bytes\r\nContent-Length: ", int(got.v.NarSize()))
	var err error
	if c.out, err = s.store.AppendNAR(s.flights.ctx, c.out, h, got.v.NarSize()); err != nil {
		return false
	}
	c.sent = got
	return true
}

// answered notes what left, or did not, after Nix has it.
func (c *quickConn) answered(err error) {
	told, sent := c.told, c.sent
	c.told, c.sent = nil, nil
	switch {
	case err != nil:
	case told != nil:
		c.s.ahead.answered(told)
	case sent != nil:
		size := sent.v.NarSize()
		c.s.Stats.FromStore.Add(size)
		c.s.Stats.ToNix.Add(size)
		c.s.servedFromStore(sent.v, 0)
	}
}

func (c *quickConn) render(head, text string) {
	c.head(head, len(text))
	c.out = append(c.out, text...)
}

// head renders the head of an answer of size bytes.
func (c *quickConn) head(head string, size int) {
	b := append(c.out[:0], head...)
	b = strconv.AppendInt(b, int64(size), 10)
	b = append(b, "\r\nDate: "...)
	b = append(b, c.date.now()...)
	c.out = append(b, "\r\n\r\n"...)
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

// plainQuestion takes apart a GET that has no header but those which Nix sends and which do not change the
// answer. name is the path without its slash, unchecked.
func plainQuestion(b []byte) (name, host []byte, ok bool) {
	line, rest, _ := bytes.Cut(b, []byte("\r\n"))
	name, get := bytes.CutPrefix(line, []byte("GET /"))
	name, http := bytes.CutSuffix(name, []byte(" HTTP/1.1"))
	if !get || !http {
		return nil, nil, false
	}
	for {
		end := bytes.Index(rest, []byte("\r\n"))
		switch {
		case end < 0:
			return nil, nil, false
		case end == 0: // the end of the head, and of all that came
			return name, host, host != nil && len(rest) == 2
		}
		field, value, found := bytes.Cut(rest[:end], []byte(": "))
		switch rest = rest[end+2:]; {
		case !found:
			return nil, nil, false
		case bytes.EqualFold(field, []byte("Host")) && host == nil:
			host = value
		case bytes.EqualFold(field, []byte("User-Agent")), bytes.EqualFold(field, []byte("Accept")), bytes.EqualFold(field, []byte("Accept-Encoding")):
		default:
			return nil, nil, false
		}
	}
}

// loopbackName tells whether a Host header names this machine by a loopback name.
func loopbackName(host string) bool {
	name := hostName(host)
	ip, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && ip.IsLoopback()
}
