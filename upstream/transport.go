package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	maxRedirects = 10        // as curl in Nix
	maxHeader    = 128 << 10 // bytes of a response header; real ones have 1–2 KiB
	idleConns    = 64        // kept per host: Nix asks with 25 connections, and so may several at once
	idleConnTime = 90 * time.Second
	readBuffer   = 64 << 10 // bytes; fewer system calls per NAR
	maxCAFile    = 8 << 20  // bytes; the whole Mozilla bundle has 0.25 MiB

	limitedReadBuffer = 4 << 10               // where downloads are limited: what is read ahead escapes the limit
	windowLeast       = 32 << 10              // bytes; two TLS records
	windowMost        = 4 << 20               // bytes
	firstTrip         = 25 * time.Millisecond // for what HTTP/2 has to say before a round trip was measured
)

// reach says how near an address is. A cache may lead us only to places no nearer than its own.
type reach int32

const (
	reachPublic reach = iota // includes private ranges: a cache may well be split over public and private hosts
	reachLinkLocal
	reachLoopback
)

func reachOf(ip netip.Addr) reach {
	ip = ip.Unmap()
	switch {
	case ip.IsLoopback(), ip.IsUnspecified():
		return reachLoopback
	case ip.IsLinkLocalUnicast(), ip.IsMulticast():
		return reachLinkLocal
	}
	return reachPublic
}

// reachOfHost classes what can be classed without a resolver.
func reachOfHost(host string) reach {
	if ip, err := netip.ParseAddr(host); err == nil {
		return reachOf(ip)
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return reachLoopback
	}
	return reachPublic
}

// transport sends single requests (hops of a redirect chain). It adds credentials for the cache's own
// origin alone and keeps name resolution from leading elsewhere than the cache may lead.
type transport struct {
	base     *url.URL
	secrets  http.Header
	agent    string
	connect  time.Duration
	rate     int64 // bytes per second that all downloads together are held to, 0: none
	http     atomic.Pointer[http.Transport]
	reach    atomic.Int32 // the nearest address seen of the cache itself
	proxies  sync.Map     // host:port of proxies in use
	requests atomic.Int64
	direct   direct
}

func (c *Client) setTransport(roots *x509.CertPool) {
	t := &transport{base: c.base, secrets: c.secrets, agent: c.agent, connect: c.t.Connect, rate: c.limit.Rate()}
	t.reach.Store(int32(reachOfHost(c.base.Hostname())))
	ways := &http.Transport{
		Proxy:                  t.proxy,
		DialContext:            t.dial,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    c.t.TLS,
		DisableCompression:     true, // bodies are passed on or decoded as labelled, never transformed
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           2 * idleConns,
		MaxIdleConnsPerHost:    idleConns,
		IdleConnTimeout:        idleConnTime,
		MaxResponseHeaderBytes: maxHeader,
		ReadBufferSize:         readBuffer,
		// A connection that died silently (suspend, roaming) must not swallow question after question.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second},
	}
	if t.rate > 0 {
		ways.ReadBufferSize = limitedReadBuffer
		ways.HTTP2.MaxReceiveBufferPerStream = t.window(firstTrip)
		ways.HTTP2.MaxReceiveBufferPerConnection = 4 * t.window(firstTrip) // a file that nobody reads is not to hold up the others
	}
	t.http.Store(ways)
	t.direct.dial = t.dial
	c.hop = t
	c.http = &http.Client{Transport: t, CheckRedirect: t.checkRedirect}
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.requests.Add(1)
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", t.agent)
	if sameOrigin(r.URL, t.base) {
		for name, values := range t.secrets {
			r.Header[name] = values
		}
	}
	if t.direct.fits(r, t.proxy) {
		return t.direct.RoundTrip(r)
	}
	return t.http.Load().RoundTrip(r)
}

func (t *transport) proxy(r *http.Request) (*url.URL, error) {
	u, err := http.ProxyFromEnvironment(r)
	if u != nil {
		t.proxies.Store(hostPort(u), true)
	}
	return u, err
}

// dial refuses addresses nearer than the cache's own, whatever name led there.
func (t *transport) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	own := strings.EqualFold(addr, hostPort(t.base))
	_, trusted := t.proxies.Load(addr)
	d := net.Dialer{Timeout: t.connect, KeepAlive: 15 * time.Second}
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || own || trusted {
			return nil
		}
		return t.allow(reachOf(ap.Addr()), addr)
	}
	began := time.Now()
	conn, err := d.DialContext(ctx, network, addr)
	if err == nil && t.rate > 0 {
		t.narrow(conn, time.Since(began))
	}
	if err == nil && own {
		if ap, perr := netip.ParseAddrPort(conn.RemoteAddr().String()); perr == nil {
			if r := int32(reachOf(ap.Addr())); r > t.reach.Load() {
				t.reach.Store(r)
			}
		}
	}
	return conn, err
}

// window is how many bytes may be under way to us where a round trip takes so long: what the limit lets
// through in two of them. More would only arrive at once, and other traffic wait behind it.
func (t *transport) window(trip time.Duration) int {
	return max(windowLeast, int(min(2*float64(t.rate)*trip.Seconds(), windowMost)))
}

// narrow bounds the receive buffer of a connection, and with it what the other side may send at once.
func (t *transport) narrow(conn net.Conn, trip time.Duration) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetReadBuffer(t.window(trip)) // refused, the limit holds all the same
	}
}

func (t *transport) allow(r reach, what string) error {
	if r > reach(t.reach.Load()) {
		return fmt.Errorf("%w: %.80q is on this machine or link, the cache is not", ErrForbidden, what)
	}
	return nil
}

// mayVisit checks a URL that the cache gave us.
func (t *transport) mayVisit(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("%w: not an http or https URL", ErrForbidden)
	}
	if sameOrigin(u, t.base) {
		return nil
	}
	return t.allow(reachOfHost(u.Hostname()), u.Host)
}

func (t *transport) checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d redirects", ErrForbidden, maxRedirects)
	}
	if via[len(via)-1].URL.Scheme == "https" && r.URL.Scheme != "https" {
		return fmt.Errorf("%w: redirect from https to %.10q", ErrForbidden, r.URL.Scheme)
	}
	r.Header.Del("Referer") // may hold a query that is none of the next host's business
	return t.mayVisit(r.URL)
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(hostPort(a), hostPort(b))
}

func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case "http":
			port = "80"
		case "https":
			port = "443"
		default:
			port = "1080" // socks5
		}
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// loadRoots gathers the system's certificate authorities, the environment's and the configured ones.
func loadRoots(caFile string, log *slog.Logger) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		log.Warn("no system certificate authorities", "error", err)
		pool = x509.NewCertPool()
	}
	for _, name := range []string{"NIX_SSL_CERT_FILE", "SSL_CERT_FILE"} {
		if file := os.Getenv(name); file != "" {
			if err := addCAs(pool, file); err != nil {
				log.Warn("certificate authorities of the environment not used", "variable", name, "error", err)
			}
		}
	}
	if caFile != "" {
		if err := addCAs(pool, caFile); err != nil {
			return nil, fmt.Errorf("ca_file %s: %w; want a readable PEM file of certificates", caFile, err)
		}
	}
	return pool, nil
}

func addCAs(pool *x509.CertPool, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return bareError(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCAFile))
	if err != nil {
		return bareError(err)
	}
	if !pool.AppendCertsFromPEM(b) {
		return fmt.Errorf("no certificate in it")
	}
	return nil
}
