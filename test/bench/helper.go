//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/flurry-nix/flurry/p2p/p2ptest"
)

// Arguments by which this program starts itself as a baseline, so that every server is a process of
// its own.
const (
	libp2pServe  = "-serve-libp2p"
	trivialServe = "-serve-trivial"
	proxyServe   = "-serve-proxy"
)

// serveLibp2p serves files over HTTP over libp2p; with a second argument over the agent's TLS.
func serveLibp2p(args []string) {
	err := p2ptest.ServeRaw(context.Background(), args[0], len(args) > 1, func(addr string) { fmt.Println(addr) })
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// serveTrivial is a net/http handler that does nothing.
func serveTrivial() {
	serveHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, "not found\n")
	}))
}

// serveProxy is Go's reverse proxy, which neither verifies nor keeps anything.
func serveProxy(args []string) {
	serveHandler(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: args[0]}))
}

func serveHandler(h http.Handler) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		fmt.Println(ln.Addr().String())
		err = http.Serve(ln, h)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// helper starts this program as a baseline and returns the address that it prints.
func (b *bench) helper(args ...string) (addr string, s *server, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	s = &server{cmd: cmd, done: make(chan struct{})}
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() { cmd.Wait(); close(s.done) }()
	if err != nil {
		s.stop()
		return "", nil, err
	}
	return strings.TrimSpace(line), s, nil
}
