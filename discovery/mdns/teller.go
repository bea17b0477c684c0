package mdns

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/grandcat/zeroconf"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	// tellRate and tellBurst bound the hints passed on, per second and at once: a LAN of a thousand
	// machines, heard by both IP versions, is told on arrival; a flood is not. What is dropped is
	// heard again in the next browse.
	tellRate  = 64
	tellBurst = 2048

	maxLabel = 63 // bytes of a DNS label
)

// teller turns what was heard into hints, and bounds them. It remembers no instance: a repetition costs
// the receiver nothing, whereas a peer that came back with the same name and addresses must be told
// again, and looks just like a repetition.
type teller struct {
	self  service
	pick  picker
	found func(discovery.Found)
	now   func() time.Time

	mu    sync.Mutex // held while telling, so that found is called by one at a time
	links []link
	limit *rate.Limiter
}

func newTeller(self service, pick picker, found func(discovery.Found)) *teller {
	return &teller{
		self: self, pick: pick, found: found, now: time.Now,
		limit: rate.NewLimiter(tellRate, tellBurst),
	}
}

// setLinks says on which links the instances are from now on heard.
func (t *teller) setLinks(links []link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.links = links
}

// heard passes a neighbour on, unless it is ourselves, malformed, or one too many.
func (t *teller) heard(e *zeroconf.ServiceEntry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.hint(e); ok && t.limit.AllowN(t.now(), 1) {
		t.found(f)
	}
}

// hint checks an entry, every part of which a stranger chose.
func (t *teller) hint(e *zeroconf.ServiceEntry) (discovery.Found, bool) {
	id := peerID(e.Text)
	if !plainLabel(e.Instance) || !discovery.PlausiblePeerID(id) || e.Port < 1 || e.Port > 65535 {
		return discovery.Found{}, false
	}
	if strings.EqualFold(e.Instance, t.self.instance) || id == t.self.peerID {
		return discovery.Found{}, false
	}
	ips := t.dialable(e.AddrIPv4, e.AddrIPv6)
	if len(ips) == 0 {
		return discovery.Found{}, false
	}
	f := discovery.Found{Via: discovery.ViaMDNS, Name: e.Instance, PeerID: id}
	for _, ip := range ips { // TCP first: on a LAN it is three times cheaper than QUIC
		f.Addrs = append(f.Addrs, discovery.TCP(netip.AddrPortFrom(ip, uint16(e.Port))))
	}
	for _, ip := range ips {
		f.Addrs = append(f.Addrs, discovery.QUIC(netip.AddrPortFrom(ip, uint16(e.Port))))
	}
	return f, true
}

// dialable keeps at most maxIPs addresses in the configured networks: others are not a neighbour's, and
// would let anybody on the link send us dialling wherever they like. A link-local IPv6 address gets
// each link as its zone, since zeroconf does not tell by which it came.
func (t *teller) dialable(v4, v6 []net.IP) []netip.Addr {
	var plain, local []netip.Addr
	for _, ip := range slices.Concat(head(v4), head(v6)) {
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			continue
		}
		switch a = a.Unmap(); {
		case a.IsMulticast() || a.IsUnspecified():
		case a.IsLoopback() && !t.onLoopback() || !a.IsLoopback() && !t.pick.allows(a):
		case a.Is6() && a.IsLinkLocalUnicast():
			local = append(local, a)
		default:
			plain = append(plain, a)
		}
	}
	for _, a := range local {
		for _, l := range t.links {
			if l.has(ipv6Family) {
				plain = append(plain, a.WithZone(l.ifi.Name))
			}
		}
	}
	slices.SortStableFunc(plain, compareAddrs)
	plain = slices.Compact(plain)
	return plain[:min(len(plain), maxIPs)]
}

// head bounds what a stranger listed.
func head(ips []net.IP) []net.IP { return ips[:min(len(ips), discovery.MaxAddrs)] }

func (t *teller) onLoopback() bool {
	return len(t.links) == 1 && t.links[0].ifi.Flags&net.FlagLoopback != 0
}

// peerID returns the value of the TXT key "id", "" if there is none. Of several, the first counts
// (RFC 6763, section 6.4).
func peerID(text []string) string {
	for _, s := range text {
		if key, value, ok := strings.Cut(s, "="); ok && strings.EqualFold(key, "id") {
			return value
		}
	}
	return ""
}

// plainLabel reports whether s is a DNS label of letters, digits and hyphens, as ours are.
func plainLabel(s string) bool {
	if s == "" || len(s) > maxLabel {
		return false
	}
	for _, c := range []byte(s) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}
