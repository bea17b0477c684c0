//go:build linux

package main

import (
	"net"
	"time"
)

// relay passes TCP connections on and delays every byte by delay, each way.
type relay struct {
	ln     net.Listener
	target string
	delay  time.Duration
}

func newRelay(target string, delay time.Duration) (*relay, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{ln, target, delay}
	go r.run()
	return r, nil
}

func (r *relay) addr() string { return r.ln.Addr().String() }
func (r *relay) close()       { r.ln.Close() }

func (r *relay) run() {
	for {
		in, err := r.ln.Accept()
		if err != nil {
			return
		}
		time.AfterFunc(r.delay, func() {
			out, err := net.Dial("tcp", r.target)
			if err != nil {
				in.Close()
				return
			}
			go r.pass(in, out)
			go r.pass(out, in)
		})
	}
}

// pass has no bandwidth of its own: it is as wide as what is on the way.
func (r *relay) pass(from, to net.Conn) {
	type piece struct {
		at    time.Time
		bytes []byte
	}
	way := make(chan piece, 1<<14)
	go func() {
		defer close(way)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if n > 0 {
				way <- piece{time.Now().Add(r.delay), buf[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	defer to.Close()
	defer from.Close()
	for p := range way {
		time.Sleep(time.Until(p.at))
		if _, err := to.Write(p.bytes); err != nil {
			return
		}
	}
}
