//go:build linux

package faults

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"time"

	"github.com/flurry-nix/flurry/p2p/p2ptest"
	"github.com/flurry-nix/flurry/verify"
)

// Kinds of source.
const (
	kindPeer     = "peer"
	kindUpstream = "upstream"
)

// source serves the corpus, in its way. It is an HTTP handler for both kinds: only the transport and the
// names of files differ.
type source struct {
	c       *corpus
	kind    string
	fault   *fault
	applied atomic.Int64 // how often the fault was shown
	stop    chan struct{}
	key     []byte // of a peer's identity; nil = a new one

	url  string            // of an upstream
	peer *p2ptest.Recorder // of a peer
	end  func()
}

// request is one question to a source whose fault concerns it.
type request struct {
	s    *source
	w    http.ResponseWriter
	r    *http.Request
	path *storePath
	body []byte // the honest answer, whole
}

func newSource(c *corpus, kind string, f *fault) *source {
	return &source{c: c, kind: kind, fault: f, stop: make(chan struct{}), end: func() {}}
}

// close ends the source and whatever hangs in it.
func (s *source) close() {
	close(s.stop)
	s.end()
}

// serveUpstream makes the source an upstream.
func (s *source) serveUpstream() error {
	if s.fault.listen != nil {
		return s.fault.listen(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.serveOn(l)
	return nil
}

func (s *source) serveOn(l net.Listener) {
	server := &http.Server{Handler: s}
	s.url = "http://" + l.Addr().String()
	go server.Serve(l)
	s.end = func() { server.Close() }
}

// serveTLS makes the source an upstream whose certificate nobody signed.
func (s *source) serveTLS() {
	server := httptest.NewUnstartedServer(s)
	server.Config.ErrorLog = quiet
	server.StartTLS()
	s.url = server.URL
	s.end = func() { server.CloseClientConnections(); server.Close() }
}

// servePeer makes the source a peer; it dials the agent and claims all paths.
func (s *source) servePeer(ctx context.Context, addrs []string) error {
	r, err := p2ptest.Start(p2ptest.Config{Forget: true, Key: s.key})
	if err != nil {
		return err
	}
	s.peer, s.end = r, r.Close
	r.Answer(s.ServeHTTP)
	id, err := r.Connect(ctx, addrs...)
	if err != nil {
		return err
	}
	if s.fault.peer != nil {
		if err := s.fault.peer(ctx, s, id); err != nil {
			return err
		}
	}
	if s.fault.claimsNothing {
		return nil
	}
	var digests []verify.PathDigest
	for _, p := range s.c.paths {
		digests = append(digests, p.Hash().Digest())
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.end = func() { cancel(); r.Close() }
	return r.Claim(ctx, id, digests...)
}

// ServeHTTP implements http.Handler.
func (s *source) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if s.fault.any != nil {
		s.applied.Add(1)
		s.fault.any(&request{s: s, w: w, r: r})
		return
	}
	switch {
	case name == "nix-cache-info":
		fmt.Fprintf(w, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n")
	case strings.HasSuffix(name, ".narinfo"):
		s.serveNarInfo(w, r, strings.TrimSuffix(name, ".narinfo"))
	default:
		s.serveNAR(w, r, name)
	}
}

func (s *source) serveNarInfo(w http.ResponseWriter, r *http.Request, name string) {
	for _, p := range s.c.paths {
		if name != p.Hash().String() && name != p.Hash().Digest().String() {
			continue
		}
		text := p.narinfo(s.kind)
		if s.fault.narinfo != nil {
			text = s.fault.narinfo(s, p, text)
			s.applied.Add(1)
		}
		q := &request{s, w, r, p, []byte(text)}
		if s.fault.onNarInfo != nil {
			s.applied.Add(1)
			s.fault.onNarInfo(q)
			return
		}
		q.serve(q.body)
		return
	}
	http.NotFound(w, r)
}

func (s *source) serveNAR(w http.ResponseWriter, r *http.Request, name string) {
	for _, p := range s.c.paths {
		compression := p.compression
		if s.kind == kindPeer {
			compression = "none"
		}
		if name != p.upstreamURL() && !strings.HasPrefix(name, "nar/"+p.Hash().String()+"-") {
			continue
		}
		body := bytes.Clone(p.file)
		if compression == "none" {
			body = bytes.Clone(p.nar)
		}
		if s.fault.nar != nil {
			var err error
			if body, err = pack(s.fault.nar(s, p, bytes.Clone(p.nar)), compression); err != nil {
				http.Error(w, err.Error(), 500)
				return
			}
			s.applied.Add(1)
		}
		q := &request{s, w, r, p, body}
		if s.fault.onNAR != nil {
			s.applied.Add(1)
			s.fault.onNAR(q)
			return
		}
		q.serve(q.body)
		return
	}
	http.NotFound(w, r)
}

// serve answers as an honest server does.
func (q *request) serve(body []byte) {
	q.w.Header().Set("Content-Type", "application/x-nix-nar")
	http.ServeContent(q.w, q.r, "", time.Time{}, bytes.NewReader(body))
}

// begin answers as an honest server begins to, and returns the bytes that should follow.
func (q *request) begin() []byte {
	body := q.body
	status := http.StatusOK
	var from, to int
	if n, _ := fmt.Sscanf(q.r.Header.Get("Range"), "bytes=%d-%d", &from, &to); n > 0 && from < len(body) {
		if n == 1 || to >= len(body) {
			to = len(body) - 1
		}
		q.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(body)))
		body, status = body[from:to+1], http.StatusPartialContent
	}
	q.w.Header().Set("Accept-Ranges", "bytes")
	q.w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	q.w.WriteHeader(status)
	q.flush()
	return body
}

func (q *request) flush() { http.NewResponseController(q.w).Flush() }

// send writes a piece and says whether there is any point in going on.
func (q *request) send(b []byte) bool {
	_, err := q.w.Write(b)
	q.flush()
	return err == nil
}

// hang waits until the other side or the cell gives up.
func (q *request) hang() {
	select {
	case <-q.r.Context().Done():
	case <-q.s.stop:
	}
}

// pause waits; false means that it is over.
func (q *request) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-q.r.Context().Done():
	case <-q.s.stop:
	}
	return false
}

// cut ends the answer without its end.
func (q *request) cut() { panic(http.ErrAbortHandler) }

// raw takes the connection over.
func (q *request) raw(fn func(net.Conn)) {
	c, _, err := http.NewResponseController(q.w).Hijack()
	if err != nil {
		q.cut()
	}
	defer c.Close()
	go func() { <-q.s.stop; c.Close() }()
	fn(c)
}
