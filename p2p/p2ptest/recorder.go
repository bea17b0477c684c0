// Package p2ptest is a peer for tests that keeps everything it hears. A [Recorder] speaks the peer wire
// on its own, written from the wire's description and not with package p2p, stores every decrypted byte
// of every stream both ways, and asks whatever a test wants to ask.
//
// It must never be part of an agent: it checks nothing of what it receives.
package p2ptest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// Protocols of the peer wire.
const (
	ProtoHTTP    protocol.ID = "/flurry/1"
	ProtoHave    protocol.ID = "/flurry/have/1"
	ProtoGroup   protocol.ID = "/flurry/group/1"
	ProtoFlights protocol.ID = "/flurry/flights/1"
)

// Config of a Recorder.
type Config struct {
	Listen   string // multiaddr such as "/ip4/127.0.0.1/tcp/0"; "" = does not listen
	StoreDir string // for its greeting; "" = /nix/store
	Secret   []byte // the group's; nil = a stranger, who goes through the motions
	Key      []byte // ed25519 private key, 64 bytes, of its identity; nil = a new one
	Forget   bool   // keep nothing of what passes: for a peer that sends without end
}

// Recorder is a raw peer. Its methods are safe for concurrent use; mu guards the fields below it.
type Recorder struct {
	cfg    Config
	host   host.Host
	server *http.Server
	wg     sync.WaitGroup

	mu      sync.Mutex
	streams []*stream
	haves   map[peer.ID]*haves
	asked   []string // request lines that peers sent
	news    chan struct{}
	answer  http.HandlerFunc
}

// Start starts a Recorder; Close ends it.
func Start(cfg Config) (*Recorder, error) {
	if cfg.StoreDir == "" {
		cfg.StoreDir = "/nix/store"
	}
	r := &Recorder{cfg: cfg, haves: map[peer.ID]*haves{}, news: make(chan struct{})}
	options := []libp2p.Option{
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableRelay(), libp2p.DisableMetrics(),
	}
	if cfg.Forget {
		options = append(options, libp2p.Muxer(yamux.ID, yamux.DefaultTransport))
	} else {
		options = append(options, libp2p.Muxer(yamux.ID, &muxer{yamux.DefaultTransport, r}))
	}
	if cfg.Key != nil {
		key, err := crypto.UnmarshalEd25519PrivateKey(cfg.Key)
		if err != nil {
			return nil, err
		}
		options = append(options, libp2p.Identity(key))
	}
	var err error
	if r.host, err = libp2p.New(options...); err != nil {
		return nil, err
	}
	l, err := gostream.Listen(r.host, ProtoHTTP)
	if err != nil {
		return nil, err
	}
	r.host.SetStreamHandler(ProtoHave, r.readHave)
	r.host.SetStreamHandler(ProtoGroup, r.respond)
	r.server = &http.Server{Handler: http.HandlerFunc(r.serve)}
	r.wg.Go(func() { r.server.Serve(l) })
	if cfg.Listen != "" {
		a, err := ma.NewMultiaddr(cfg.Listen)
		if err == nil {
			err = r.host.Network().Listen(a)
		}
		if err != nil {
			r.Close()
			return nil, err
		}
	}
	return r, nil
}

// Close ends all connections.
func (r *Recorder) Close() {
	r.server.Close()
	r.host.Close()
	r.wg.Wait()
}

// ID returns the recorder's peer id.
func (r *Recorder) ID() string { return r.host.ID().String() }

// Addrs returns the addresses it listens on, as multiaddrs without its id.
func (r *Recorder) Addrs() []string {
	var out []string
	for _, a := range r.host.Addrs() {
		out = append(out, a.String())
	}
	return out
}

// Host returns the libp2p host, for tests that do worse things.
func (r *Recorder) Host() host.Host { return r.host }

// Answer makes fn answer what peers ask; without it everything is a 404.
func (r *Recorder) Answer(fn http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = fn
}

// Connect dials an agent; addrs end in /p2p/ID, as "flurry id" prints them. It returns the agent's id.
func (r *Recorder) Connect(ctx context.Context, addrs ...string) (string, error) {
	var infos []ma.Multiaddr
	for _, s := range addrs {
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return "", err
		}
		if _, err := a.ValueForProtocol(ma.P_TCP); err == nil { // it has no QUIC
			infos = append(infos, a)
		}
	}
	list, err := peer.AddrInfosFromP2pAddrs(infos...)
	if err != nil || len(list) != 1 {
		return "", fmt.Errorf("want the addresses of one peer: %v, %v", addrs, err)
	}
	return list[0].ID.String(), r.host.Connect(ctx, list[0])
}

// Response is an answer of an agent.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// Get asks an agent for a target such as "/nix-cache-info".
func (r *Recorder) Get(ctx context.Context, id, target string) (Response, error) {
	return r.Ask(ctx, id, "GET "+target+" HTTP/1.1\r\nHost: x\r\n\r\n")
}

// Ask sends raw bytes on a new stream of the HTTP protocol and reads one answer.
func (r *Recorder) Ask(ctx context.Context, id, raw string) (Response, error) {
	s, err := r.Open(ctx, id, ProtoHTTP)
	if err != nil {
		return Response{}, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	if _, err := io.WriteString(s, raw); err != nil {
		return Response{}, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil {
		return Response{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return Response{resp.StatusCode, resp.Header, body}, err
}

// Open opens a raw stream to a connected agent.
func (r *Recorder) Open(ctx context.Context, id string, proto protocol.ID) (network.Stream, error) {
	p, err := peer.Decode(id)
	if err != nil {
		return nil, err
	}
	return r.host.NewStream(network.WithNoDial(ctx, "test"), p, proto)
}

// Asked returns the methods and targets that agents asked this peer, such as "GET /x.narinfo".
func (r *Recorder) Asked() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

func (r *Recorder) serve(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.asked = append(r.asked, q.Method+" "+q.URL.RequestURI())
	answer := r.answer
	r.tell()
	r.mu.Unlock()
	if answer != nil {
		answer(w, q)
		return
	}
	http.NotFound(w, q)
}

// Wait blocks until cond holds, looking whenever something arrived.
func (r *Recorder) Wait(ctx context.Context, cond func() bool) error {
	for {
		r.mu.Lock()
		news := r.news
		r.mu.Unlock()
		if cond() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-news:
		}
	}
}

// tell wakes those who wait; mu is held.
func (r *Recorder) tell() {
	close(r.news)
	r.news = make(chan struct{})
}

// Messages returns everything received so far: one byte slice per stream and direction, decrypted.
func (r *Recorder) Messages() (received, sent [][]byte) {
	r.mu.Lock()
	list := slices.Clone(r.streams)
	r.mu.Unlock()
	for _, s := range list {
		s.mu.Lock()
		received, sent = append(received, bytes.Clone(s.in)), append(sent, bytes.Clone(s.out))
		s.mu.Unlock()
	}
	return received, sent
}

// muxer is yamux whose streams are recorded. What passes below it is encrypted or framing.
type muxer struct {
	network.Multiplexer
	r *Recorder
}

func (m *muxer) NewConn(c net.Conn, server bool, scope network.PeerScope) (network.MuxedConn, error) {
	mc, err := m.Multiplexer.NewConn(c, server, scope)
	if err != nil {
		return nil, err
	}
	return &muxedConn{mc, m.r}, nil
}

type muxedConn struct {
	network.MuxedConn
	r *Recorder
}

func (c *muxedConn) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	s, err := c.MuxedConn.OpenStream(ctx)
	return c.r.record(s, err)
}

func (c *muxedConn) AcceptStream() (network.MuxedStream, error) {
	s, err := c.MuxedConn.AcceptStream()
	return c.r.record(s, err)
}

func (r *Recorder) record(s network.MuxedStream, err error) (network.MuxedStream, error) {
	if err != nil {
		return nil, err
	}
	rec := &stream{MuxedStream: s}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streams = append(r.streams, rec)
	return rec, nil
}

// stream keeps what passes. mu guards in and out.
type stream struct {
	network.MuxedStream
	mu      sync.Mutex
	in, out []byte
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.MuxedStream.Read(b)
	s.mu.Lock()
	s.in = append(s.in, b[:n]...)
	s.mu.Unlock()
	return n, err
}

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.MuxedStream.Write(b)
	s.mu.Lock()
	s.out = append(s.out, b[:n]...)
	s.mu.Unlock()
	return n, err
}

var errFrame = errors.New("malformed frame")
