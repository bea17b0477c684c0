package p2p

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// Limits of the peer-facing server.
const (
	serverHeaderBytes    = 8 << 10          // a request's header; ours are under 300 bytes
	serverHeaderPatience = 10 * time.Second // from the first byte of a request to the end of its header
	serverIdle           = 2 * time.Minute  // an idle stream costs a goroutine
	sendPatience         = time.Minute      // for 8 MiB to a reader: below 1 Mbit/s it is cut
)

type peerKey struct{}

// serve answers peers until the host closes.
func (h *Host) serve(ctx context.Context) error {
	l, err := gostream.Listen(h.host, protoHTTP)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(h.handle),
		ReadHeaderTimeout: serverHeaderPatience,
		IdleTimeout:       serverIdle,
		MaxHeaderBytes:    serverHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			s, ok := c.(interface{ Conn() network.Conn })
			if !ok {
				return ctx
			}
			return context.WithValue(ctx, peerKey{}, h.peers.get(s.Conn().RemotePeer()))
		},
		ErrorLog: discardLog(),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return err
	}
	return nil
}

// handle answers one request of one peer, from the catalog alone.
func (h *Host) handle(w http.ResponseWriter, r *http.Request) {
	p, _ := r.Context().Value(peerKey{}).(*Peer)
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
	content, err := h.catalog.NAR(r.Context(), hash, narHash, p.scope())
	if err != nil {
		h.logMiss(p, err)
		binarycache.NotFound(w)
		return
	}
	defer content.Close()
	binarycache.ServeNAR(w, r, binarycache.Counted(content, p.out.Add), sendPatience, func(err error) {
		h.log.Info("sending a NAR broke off", "peer", p.ID(), "err", err)
	})
}

// logMiss logs what is not a plain absence; never the path, which may be private.
func (h *Host) logMiss(p *Peer, err error) {
	if !errors.Is(err, ErrAbsent) && !errors.Is(err, context.Canceled) {
		h.log.Warn("could not answer a peer", "peer", p.ID(), "err", err)
	}
}
