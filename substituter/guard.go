package substituter

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// guard refuses with 403 what a web page in the user's browser could send: a Host that is not ours (DNS
// rebinding) and requests that another site caused. Nix sends neither header of the latter.
type guard struct {
	hosts []string // allowed besides loopback names and addresses of this machine
	next  http.Handler
}

// ServeHTTP implements http.Handler.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.hostAllowed(r) || !sameSite(r) {
		http.Error(w, "refused: not a request for this host; add the name to substituter.allowed_hosts if it is", http.StatusForbidden)
		return
	}
	g.next.ServeHTTP(w, r)
}

func (g *guard) hostAllowed(r *http.Request) bool {
	host := hostName(r.Host)
	if host == "localhost" || slices.Contains(g.hosts, host) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return r.Host == "" && r.ProtoMajor == 1 && r.ProtoMinor == 0
	}
	return ip.IsLoopback() || ip == localAddr(r)
}

// hostName strips port, brackets, zone and a final dot.
func hostName(hostport string) string {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	host, _, _ = strings.Cut(host, "%")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// sameSite refuses what a browser says that another site asked for.
func sameSite(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
	default:
		return false
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// localAddr is this machine's address on the request's connection, invalid on a unix socket.
func localAddr(r *http.Request) netip.Addr {
	a, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return addrOf(a)
}

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// FromThisMachine tells whether the request came from this machine: over loopback, from its own
// address, or over a unix socket.
func FromThisMachine(r *http.Request) bool {
	local := localAddr(r)
	if !local.IsValid() {
		return true
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	remote := peer.Addr().Unmap().WithZone("")
	return remote.IsLoopback() || remote == local
}
