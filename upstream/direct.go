package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// direct asks for narinfos over HTTP/1.1 without TLS or proxy on the goroutine that wants the answer. net/http's
// transport keeps two more for each connection, and waking them takes longer than all else that the agent does for a
// narinfo, its signature aside. How messages are written and read is net/http's all the same.
type direct struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)

	mu    sync.Mutex // guards all below, and directConn.since
	idle  []*directConn
	era   int // of connections that may be used again
	sweep *time.Timer
}

// directConn is one connection. Whoever took it from the idle ones owns it.
type directConn struct {
	net.Conn
	addr  string
	era   int
	since time.Time // idle since; zero before its first answer
	r     *bufio.Reader
	w     *bufio.Writer
	left  int // bytes that the header under way may still take; negative for a body, which others bound
	heard bool
}

var errLongHeader = fmt.Errorf("header of more than %d bytes", maxHeader)

// Read implements io.Reader for the buffer.
func (c *directConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errLongHeader
	}
	if c.left > 0 {
		p = p[:min(len(p), c.left)]
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard = true
	}
	if c.left > 0 {
		c.left -= n
	}
	return n, err
}

// fits tells whether direct may ask r; proxy is the transport's.
func (d *direct) fits(r *http.Request, proxy func(*http.Request) (*url.URL, error)) bool {
	if r.URL.Scheme != "http" || r.Method != http.MethodGet || r.Body != nil || !strings.HasSuffix(r.URL.Path, ".narinfo") {
		return false
	}
	through, err := proxy(r)
	return through == nil && err == nil
}

// RoundTrip implements http.RoundTripper for requests that fit. A connection goes back to the idle ones when its
// answer was read to the end.
func (d *direct) RoundTrip(r *http.Request) (*http.Response, error) {
	for {
		c, err := d.conn(r.Context(), hostPort(r.URL))
		if err != nil {
			return nil, err
		}
		resp, err := d.ask(c, r)
		if err == nil {
			return resp, nil
		}
		c.Close()
		if c.since.IsZero() || c.heard || r.Context().Err() != nil {
			return nil, err
		} // else the server closed it while the question was on its way
	}
}

func (d *direct) ask(c *directConn, r *http.Request) (*http.Response, error) {
	stop := context.AfterFunc(r.Context(), func() { c.SetDeadline(time.Unix(1, 0)) })
	c.left, c.heard = maxHeader, false
	resp, err := c.exchange(r)
	if err != nil {
		stop()
		return nil, err
	}
	c.left = -1
	resp.Body = &directBody{body: resp.Body, d: d, c: c, stop: stop, last: resp.Close}
	return resp, nil
}

// exchange writes the request and reads the answer's header.
func (c *directConn) exchange(r *http.Request) (*http.Response, error) {
	if err := r.Write(c.w); err != nil {
		return nil, err
	}
	if err := c.w.Flush(); err != nil {
		return nil, err
	}
	for {
		resp, err := http.ReadResponse(c.r, r)
		switch {
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, errors.New("an upgrade that nobody asked for")
		case resp.StatusCode >= 200:
			return resp, nil
		} // else the answer is still to come
	}
}

// conn returns an idle connection, or a new one.
func (d *direct) conn(ctx context.Context, addr string) (*directConn, error) {
	for c := d.take(addr); c != nil; c = d.take(addr) {
		if c.silent() {
			return c, nil
		}
		c.Close()
	}
	d.mu.Lock()
	era := d.era
	d.mu.Unlock()
	conn, err := d.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &directConn{Conn: conn, addr: addr, era: era, w: bufio.NewWriterSize(conn, 1<<10)}
	c.r = bufio.NewReaderSize(c, 4<<10)
	return c, nil
}

// silent tells whether nothing came while c was idle: neither its end nor an answer that nobody waits for, such as a
// time-out's.
func (c *directConn) silent() (silent bool) {
	tcp, ok := c.Conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		silent = err == unix.EAGAIN
		return true
	})
	return silent && err == nil
}

// take returns the connection to addr that was used last; nil if there is none.
func (d *direct) take(addr string) *directConn {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := len(d.idle) - 1; i >= 0; i-- {
		if c := d.idle[i]; c.addr == addr {
			d.idle = slices.Delete(d.idle, i, i+1)
			return c
		}
	}
	return nil
}

// keep makes c idle, or closes it.
func (d *direct) keep(c *directConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.era != d.era || len(d.idle) >= idleConns {
		c.Close()
		return
	}
	c.since = time.Now()
	d.idle = append(d.idle, c)
	if d.sweep == nil {
		d.sweep = time.AfterFunc(idleConnTime, d.closeOld)
	}
}

// closeOld closes what was idle for long. The longest is the first.
func (d *direct) closeOld() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.idle) > 0 && time.Since(d.idle[0].since) >= idleConnTime {
		d.idle[0].Close()
		d.idle = slices.Delete(d.idle, 0, 1)
	}
	if d.sweep = nil; len(d.idle) > 0 {
		d.sweep = time.AfterFunc(idleConnTime-time.Since(d.idle[0].since), d.closeOld)
	}
}

// closeIdle closes idle connections, and those in use once they have their answers.
func (d *direct) closeIdle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.era++
	for _, c := range d.idle {
		c.Close()
	}
	d.idle = nil
	if d.sweep != nil {
		d.sweep.Stop()
		d.sweep = nil
	}
}

// directBody is an answer's body. It is read by one goroutine.
type directBody struct {
	body io.Reader
	d    *direct
	c    *directConn // nil once it is given back or closed
	stop func() bool
	last bool // the connection ends with it
}

// Read implements io.Reader.
func (b *directBody) Read(p []byte) (int, error) {
	if b.c == nil {
		return 0, io.EOF
	}
	n, err := b.body.Read(p)
	if err == io.EOF {
		c := b.c
		b.c = nil
		if b.stop() && !b.last && c.r.Buffered() == 0 {
			b.d.keep(c)
		} else {
			c.Close()
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *directBody) Close() error {
	if b.c != nil {
		b.stop()
		b.c.Close()
		b.c = nil
	}
	return nil
}
