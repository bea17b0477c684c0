package p2p

import (
	"context"
	"errors"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/verify"
)

// paceHeader of a request for a NAR says how many bytes per second its reader wants to be sent, all answers
// together. A reader that only read slowly would be sent a window's worth at a time, at the speed of the link.
const paceHeader = "Flurry-Pace"

// chainSuffix makes a NAR's name its chain's.
const chainSuffix = ".chain"

// Limits of the peer-facing server.
const (
	maxChains        = 32               // questions for chains that wait for an answer: from all peers
	maxChainsPerPeer = 4                // and from one
	chainPatience    = 10 * time.Second // for a chain to be computed: below clientHeaderPatence

	serverHeaderBytes    = 8 << 10          // a request's header; ours are under 300 bytes
	serverHeaderPatience = 3 * time.Second  // from the first byte of a request to the end of its header
	serverIdle           = 30 * time.Second // an idle stream costs a goroutine and two buffers
	sendPatience         = time.Minute      // for sendPiece to a reader: below 1 Mbit/s it is cut
	sendPiece            = 8 << 20          // bytes
	paceLeast            = 1 << 20          // bytes per second: who asks for less gets this, and reads as slowly as it likes
)

type (
	peerKey struct{} // of the *Peer in a request's context
	connKey struct{} // and of its *requestConn
)

// requestConn cuts a stream whose peer sends more while its question is being thought about: no client
// of ours does, and 256 KiB of it, a stream's window, would be held for as long as the answer takes.
type requestConn struct {
	net.Conn
	thinking atomic.Bool // from the end of a question to the first byte of its answer
}

func (c *requestConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && c.thinking.Load() {
		resetStream(c.Conn)
		return 0, net.ErrClosed
	}
	return n, err
}

func resetStream(c net.Conn) {
	if s, ok := c.(interface{ Reset() error }); ok {
		s.Reset()
	}
}

// requestListener hands out streams as *requestConn.
type requestListener struct{ net.Listener }

func (l requestListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &requestConn{Conn: c}, nil
}

// serve answers peers until the host closes.
func (h *Host) serve(ctx context.Context) error {
	srv := &http.Server{
		Handler:           http.HandlerFunc(h.handle),
		ReadHeaderTimeout: serverHeaderPatience,
		IdleTimeout:       serverIdle,
		MaxHeaderBytes:    serverHeaderBytes,
		// "OPTIONS *" is answered like any other nonsense.
		DisableGeneralOptionsHandler: true,
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			rc, ok := c.(*requestConn)
			if !ok {
				return ctx
			}
			s, ok := rc.Conn.(interface{ Conn() network.Conn })
			if !ok {
				return ctx
			}
			ctx = context.WithValue(ctx, connKey{}, rc)
			return context.WithValue(ctx, peerKey{}, h.peers.get(s.Conn().RemotePeer()))
		},
		ErrorLog: stdlog.New(io.Discard, "", 0), // a stranger's garbage is not worth a line
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(requestListener{h.requests}); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return err
	}
	return nil
}

// handle answers one request of one peer, from the catalog alone.
func (h *Host) handle(w http.ResponseWriter, r *http.Request) {
	p, _ := r.Context().Value(peerKey{}).(*Peer)
	if r.ContentLength != 0 {
		panic(http.ErrAbortHandler) // no question has a body; reading it would be a favour
	}
	if p == nil || p.Banned() || h.paused.Load() || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
		binarycache.NotFound(w)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	if name == "nix-cache-info" {
		binarycache.WriteText(w, r, "text/x-nix-cache-info", binarycache.Info(h.cfg.StoreDir, 30))
		return
	}
	if digest, ok := strings.CutSuffix(name, ".narinfo"); ok {
		h.handleNarInfo(w, r, p, digest)
		return
	}
	if nar, ok := strings.CutSuffix(name, chainSuffix); ok {
		h.handleChain(w, r, p, nar)
		return
	}
	h.handleNAR(w, r, p, name)
}

func (h *Host) handleNarInfo(w http.ResponseWriter, r *http.Request, p *Peer, digest string) {
	d, err := verify.ParsePathDigest(digest)
	if err != nil {
		binarycache.NotFound(w)
		return
	}
	info, err := h.catalog.NarInfo(r.Context(), d, p.scope())
	if err != nil {
		h.logMiss(p, err)
		binarycache.NotFound(w)
		return
	}
	binarycache.WriteNarInfo(w, r, info)
}

func (h *Host) handleNAR(w http.ResponseWriter, r *http.Request, p *Peer, name string) {
	hash, narHash, ok := binarycache.ParseNARURL(name)
	if !ok {
		binarycache.NotFound(w)
		return
	}
	if h.quiet(p) {
		busy(w)
		return
	}
	w, answered := think(w, r)
	defer answered()
	release, ok := h.slots.take(r.Context(), p)
	if !ok {
		busy(w)
		return
	}
	defer release()
	content, err := h.catalog.NAR(r.Context(), hash, narHash, p.scope())
	if err != nil {
		h.logMiss(p, err)
		binarycache.NotFound(w)
		return
	}
	defer content.Close()
	pace := p.paceFor(r.Header.Get(paceHeader))
	limits := []*throttle.Throttle{h.upload, pace}
	if p.beyond() {
		limits = append(limits, h.remotes.upload)
	}
	counted := binarycache.Counted(content, func(n int64) int64 {
		h.sent.Add(n) // its own sum: a peer's record may be dropped from the table
		return p.out.Add(n)
	})
	patience := h.sendPatience(timeFor(int64(p.sending.Load())*sendPiece, pace.Rate()))
	brokeOff := func(err error) { h.chatter("sending a NAR broke off", "peer", p.name, "err", err) }
	if cw := h.coded(w, r, content, limits); cw != nil {
		defer cw.release()
		binarycache.ServeNAR(cw, r, counted, patience, brokeOff)
		cw.finish(patience)
		return
	}
	binarycache.ServeNAR(w, r, throttledContent{counted, limits}, patience, brokeOff)
}

// handleChain answers with the chain of a NAR that this peer may have.
func (h *Host) handleChain(w http.ResponseWriter, r *http.Request, p *Peer, name string) {
	hash, narHash, ok := binarycache.ParseNARURL(name)
	if !ok {
		binarycache.NotFound(w)
		return
	}
	w, answered := think(w, r)
	defer answered()
	defer p.chains.Add(-1)
	defer h.chains.Add(-1)
	if mine, all := p.chains.Add(1), h.chains.Add(1); mine > maxChainsPerPeer || all > maxChains {
		busy(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), chainPatience)
	defer cancel()
	form, err := h.catalog.Chain(ctx, hash, narHash, p.scope())
	switch {
	case errors.Is(err, ErrBusy):
		busy(w)
	case err != nil:
		h.logMiss(p, err)
		binarycache.NotFound(w)
	default:
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(h.sendPatience(0)))
		binarycache.WriteText(w, r, "application/octet-stream", string(form))
		http.NewResponseController(w).SetWriteDeadline(time.Time{})
	}
}

// think cuts the stream if the peer sends more before its answer has begun.
func think(w http.ResponseWriter, r *http.Request) (_ http.ResponseWriter, answered func()) {
	c, ok := r.Context().Value(connKey{}).(*requestConn)
	if !ok {
		return w, func() {}
	}
	c.thinking.Store(true)
	return &firstByte{ResponseWriter: w, c: c}, func() { c.thinking.Store(false) }
}

// sendPatience is how long a sendPiece may take if its reader's own pace makes it take so long. Neither
// that nor our own limit is a reader's fault.
func (h *Host) sendPatience(paced time.Duration) time.Duration {
	limit := h.cfg.Upload
	if in := h.cfg.Internet; in != nil && in.Upload > 0 && (limit <= 0 || in.Upload < limit) {
		limit = in.Upload
	}
	return sendPatience + 2*timeFor(h.slots.now.Load()*sendPiece, limit) + 2*paced
}

// timeFor is how long bytes take at a rate; nothing without one.
func timeFor(bytes, perSecond int64) time.Duration {
	if perSecond <= 0 {
		return 0
	}
	return time.Duration(float64(bytes) / float64(perSecond) * float64(time.Second))
}

// paceFor is the throttle of all NARs for p, at the bytes per second that it asks for in text; nil if it
// asks for none.
func (p *Peer) paceFor(text string) *throttle.Throttle {
	rate, err := strconv.ParseInt(text, 10, 64)
	if err != nil || rate <= 0 {
		return nil
	}
	rate = max(rate, paceLeast)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pace.Rate() != rate {
		p.pace = throttle.New(rate)
	}
	return p.pace
}

// firstByte notes when an answer begins. It is no io.ReaderFrom: no stream takes a file, and net/http would
// copy it in pieces of 32 KiB, of which each costs a frame and three records.
type firstByte struct {
	http.ResponseWriter
	c *requestConn
}

func (w *firstByte) WriteHeader(status int) {
	w.c.thinking.Store(false)
	w.ResponseWriter.WriteHeader(status)
}

func (w *firstByte) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// busy says that others are being served; our own client takes no offence.
func busy(w http.ResponseWriter) {
	w.Header()["Retry-After"] = []string{"1"}
	w.Header()["Content-Length"] = []string{"0"}
	w.WriteHeader(http.StatusServiceUnavailable)
}

// throttledContent is content that leaves no quicker than the upload limits.
type throttledContent struct {
	binarycache.Content
	limits []*throttle.Throttle
}

func (c throttledContent) WriteRange(ctx context.Context, w io.Writer, off, n int64) (int64, error) {
	return c.Content.WriteRange(ctx, throttled(ctx, w, c.limits), off, n)
}

// throttled holds what is written to w to all limits.
func throttled(ctx context.Context, w io.Writer, limits []*throttle.Throttle) io.Writer {
	for _, l := range limits {
		w = l.Writer(ctx, w)
	}
	return w
}

// logMiss logs what is not a plain absence; never the path, which may be private.
func (h *Host) logMiss(p *Peer, err error) {
	if !errors.Is(err, ErrAbsent) && !errors.Is(err, context.Canceled) {
		h.log.Warn("could not answer a peer", "peer", p.ID(), "err", err)
	}
}
