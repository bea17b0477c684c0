//go:build linux

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// client is one keep-alive connection that asks as Nix's curl does and throws bodies away. It is the
// same for every server and costs as little as a client can, so that the servers' differences show.
type client struct {
	addr string
	conn net.Conn
	br   *bufio.Reader
	req  []byte
	buf  []byte
}

const requestTail = "\r\nUser-Agent: curl/8.14.1 Nix/2.31.2\r\nAccept: */*\r\nAccept-Encoding: deflate, gzip, br, zstd\r\n\r\n"

func dial(addr string) (*client, error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &client{addr: addr, conn: conn, br: bufio.NewReaderSize(conn, 16<<10), buf: make([]byte, 256<<10)}, nil
}

func (c *client) close() { c.conn.Close() }

// answer is what one request brought.
type answer struct {
	status int
	bytes  int64
	first  time.Duration // to the first byte of the answer
}

// get asks for one file.
func (c *client) get(name string) (a answer, err error) {
	c.req = append(append(append(append(append(c.req[:0], "GET /"...), name...), " HTTP/1.1\r\nHost: "...), c.addr...), requestTail...)
	start := time.Now()
	if _, err := c.conn.Write(c.req); err != nil {
		return a, err
	}
	line, err := c.br.ReadSlice('\n')
	if err != nil {
		return a, fmt.Errorf("%s: %w", name, err)
	}
	a.first = time.Since(start)
	if len(line) < 12 {
		return a, errors.New("no status line")
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return a, err
	}
	length := int64(-1)
	for {
		line, err := c.br.ReadSlice('\n')
		if err != nil {
			return a, err
		}
		if len(line) <= 2 {
			break
		}
		const field = "content-length: "
		if len(line) > len(field) && bytes.EqualFold(line[:len(field)], []byte(field)) {
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(line[len(field):])), 10, 64); err != nil {
				return a, err
			}
		}
	}
	if length < 0 {
		return a, errors.New("an answer without Content-Length")
	}
	a.bytes = length
	k, err := c.br.Discard(int(min(length, int64(c.br.Buffered()))))
	for left := length - int64(k); left > 0 && err == nil; left -= int64(k) {
		k, err = c.conn.Read(c.buf[:min(left, int64(len(c.buf)))])
	}
	if err != nil {
		return a, fmt.Errorf("%s: %w", name, err)
	}
	return a, nil
}

// fetch asks for names in turn on n connections, each as soon as its last answer is there, times times,
// and returns how long that took. Every answer must have the status, and sizes[i] bytes if given.
func fetch(addr string, n, times int, names []string, status int, sizes []int64) (time.Duration, error) {
	clients := make([]*client, n)
	for i := range clients {
		c, err := dial(addr)
		if err != nil {
			return 0, err
		}
		defer c.close()
		clients[i] = c
		if _, err := c.get("nix-cache-info"); err != nil { // the connection is set up on both sides
			return 0, err
		}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, n)
	start := time.Now()
	for j, c := range clients {
		wg.Go(func() {
			for errs[j] == nil {
				i := int(next.Add(1)) - 1
				if i >= times*len(names) {
					return
				}
				i %= len(names)
				a, err := c.get(names[i])
				switch {
				case err != nil:
					errs[j] = err
				case a.status != status:
					errs[j] = fmt.Errorf("%s: status %d", names[i], a.status)
				case sizes != nil && a.bytes != sizes[i]:
					errs[j] = fmt.Errorf("%s: %d bytes, want %d", names[i], a.bytes, sizes[i])
				}
			}
		})
	}
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}
