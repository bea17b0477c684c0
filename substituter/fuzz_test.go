package substituter

import (
	"bufio"
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// FuzzNixRequest: whoever sends whatever to the substituter's port gets one of the protocol's answers; a
// request for another host, which a rebound name would make, gets nothing; and no handler waits.
func FuzzNixRequest(f *testing.F) {
	const h = "00000000000000000000000000000000"
	for _, target := range []string{"/nix-cache-info", "/" + h + ".narinfo", "/nar/x.nar", "/" + h + ".ls", "/log/x", "/../../etc/passwd", "/status.json", "http://127.0.0.1:22/"} {
		f.Add([]byte("GET " + target + " HTTP/1.1\r\nHost: 127.0.0.1:6490\r\nRange: bytes=5-9\r\n\r\n"))
	}
	f.Add([]byte("GET /nix-cache-info HTTP/1.1\r\nHost: evil.example\r\n\r\n"))
	f.Add([]byte("GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.0\r\n\r\n"))
	w := newWorldOf(f, 0)
	s, err := New(Config{StateDir: f.TempDir(), Log: slog.New(slog.DiscardHandler)}, w.keys, w.store, w.peers, nil)
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.ready
	f.Cleanup(func() {
		stop()
		<-ended
	})
	s.finder.started = time.Time{} // no grace: nobody comes back
	handler := s.Handler(nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		r.RemoteAddr = "127.0.0.1:1000"
		rec := httptest.NewRecorder()
		handler.ServeHTTP(rec, r.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, tcpAddr("127.0.0.1:6490"))))
		switch rec.Code {
		case 200, 206, 403, 404, 405, 416:
		default:
			t.Fatalf("status %d for %q", rec.Code, b)
		}
		if rec.Code != http.StatusForbidden && !ours(r.Host) && r.Host != "" {
			t.Fatalf("answered for host %q", r.Host)
		}
		if rec.Code != http.StatusForbidden && r.Header.Get("Origin") != "" && !strings.Contains(strings.ToLower(r.Header.Get("Origin")), strings.ToLower(r.Host)) {
			t.Fatalf("answered to origin %q", r.Header.Get("Origin"))
		}
	})
}

// ours tells in another way than guard does whether a host is this machine.
func ours(host string) bool {
	host = strings.ToLower(host)
	if strings.Contains(host, "localhost") {
		return !strings.ContainsAny(strings.TrimSuffix(strings.Split(host, ":")[0], "."), ".")
	}
	for _, s := range []string{host, strings.TrimSuffix(strings.Trim(host, "[]"), ".")} {
		if a, err := netip.ParseAddr(s); err == nil {
			return a.IsLoopback()
		}
		if a, err := netip.ParseAddrPort(s); err == nil {
			return a.Addr().IsLoopback()
		}
	}
	return strings.Contains(host, "127.") || strings.Contains(host, "::1") || strings.Contains(host, "0:1") // oddly written
}
