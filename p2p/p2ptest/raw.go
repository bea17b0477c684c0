package p2ptest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/flurry-nix/flurry/p2p/batchtls"
)

const protoRaw = "/flurry-bench/raw"

// rawHost is a plain libp2p host with the transports of an agent: the baseline of benchmarks. batched puts
// the agent's TLS in the place of libp2p's.
func rawHost(batched bool, listen ...string) (host.Host, error) {
	security := libp2p.Security(libp2ptls.ID, libp2ptls.New)
	if batched {
		security = libp2p.Security(batchtls.ID, batchtls.New)
	}
	return libp2p.New(libp2p.Transport(tcp.NewTCPTransport), security,
		libp2p.Muxer(yamux.ID, yamux.DefaultTransport), libp2p.ListenAddrStrings(listen...),
		libp2p.DisableRelay(), libp2p.DisableMetrics())
}

// ServeRaw serves the files below dir over HTTP over libp2p on loopback, until ctx ends. ready is told
// the address. Files leave in writes of four frames: net/http's own pieces of 32 KiB are slower.
func ServeRaw(ctx context.Context, dir string, batched bool, ready func(addr string)) error {
	h, err := rawHost(batched, "/ip4/127.0.0.1/tcp/0")
	if err != nil {
		return err
	}
	defer h.Close()
	ln, err := gostream.Listen(h, protoRaw)
	if err != nil {
		return err
	}
	ready(fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID()))
	context.AfterFunc(ctx, func() { ln.Close() })
	root := http.Dir(dir)
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, err := root.Open(r.URL.Path)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(st.Size()))
		io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, make([]byte, 4*(64<<10-12)))
	}))
}

// RawClient fetches from ServeRaw and checks nothing.
type RawClient struct {
	host host.Host
	http *http.Client
}

// DialRaw connects to the address that ServeRaw told.
func DialRaw(ctx context.Context, addr string, batched bool) (*RawClient, error) {
	m, err := ma.NewMultiaddr(addr)
	if err != nil {
		return nil, err
	}
	info, err := peer.AddrInfoFromP2pAddr(m)
	if err != nil {
		return nil, err
	}
	h, err := rawHost(batched)
	if err != nil {
		return nil, err
	}
	if err := h.Connect(ctx, *info); err != nil {
		h.Close()
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return gostream.Dial(ctx, h, info.ID, protoRaw)
	}
	return &RawClient{h, &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true, ReadBufferSize: 64 << 10}}}, nil
}

// Get writes one file to w, in pieces of up to 256 KiB, and returns its size.
func (c *RawClient) Get(ctx context.Context, name string, w io.Writer) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://raw/"+name, nil)
	if err != nil {
		return 0, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %d", resp.StatusCode)
	}
	return io.CopyBuffer(struct{ io.Writer }{w}, resp.Body, make([]byte, 256<<10))
}

// Close ends the connection.
func (c *RawClient) Close() error { return c.host.Close() }
