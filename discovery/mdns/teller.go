package mdns

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	// tellRate and tellBurst bound the hints passed on, per second and at once: a LAN of a thousand
	// machines, heard by both IP versions, is told on arrival; a flood is not. What is dropped is
	// heard again with the next question's answers.
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
	limit *rate.Limiter
}

func newTeller(self service, pick picker, found func(discovery.Found)) *teller {
	return &teller{
		self: self, pick: pick, found: found, now: time.Now,
		limit: rate.NewLimiter(tellRate, tellBurst),
	}
}

// heard passes on a neighbour heard on a link, unless it is ourselves, malformed, or one too many.
func (t *teller) heard(e entry, l link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f, ok := t.hint(e, l); ok && t.limit.AllowN(t.now(), 1) {
		t.found(f)
	}
}

// hint checks an entry, every part of which a stranger chose.
func (t *teller) hint(e entry, l link) (discovery.Found, bool) {
	id := peerID(e.text)
	if !plainLabel(e.instance) || !discovery.PlausiblePeerID(id) || e.port == 0 {
		return discovery.Found{}, false
	}
	if strings.EqualFold(e.instance, t.self.instance) || id == t.self.peerID {
		return discovery.Found{}, false
	}
	ips := t.dialable(e.addrs, l)
	if len(ips) == 0 {
		return discovery.Found{}, false
	}
	f := discovery.Found{Via: discovery.ViaMDNS, Name: e.instance, PeerID: id}
	for _, ip := range ips { // TCP first: on a LAN it is three times cheaper than QUIC
		f.Addrs = append(f.Addrs, discovery.TCP(netip.AddrPortFrom(ip, e.port)))
	}
	for _, ip := range ips {
		f.Addrs = append(f.Addrs, discovery.QUIC(netip.AddrPortFrom(ip, e.port)))
	}
	return f, true
}

// dialable keeps at most maxIPs addresses in the configured networks: others are not a neighbour's, and
// would let anybody on the link send us dialling wherever they like. A link-local IPv6 address gets the
// link that it was heard on as its zone.
func (t *teller) dialable(addrs []netip.Addr, l link) []netip.Addr {
	var out []netip.Addr
	for _, a := range addrs {
		switch {
		case a.IsMulticast() || a.IsUnspecified():
		case a.IsLoopback() && l.ifi.Flags&net.FlagLoopback == 0 || !a.IsLoopback() && !t.pick.allows(a):
		case a.Is6() && a.IsLinkLocalUnicast():
			out = append(out, a.WithZone(l.ifi.Name))
		default:
			out = append(out, a)
		}
	}
	slices.SortStableFunc(out, compareAddrs)
	out = slices.Compact(out)
	return out[:min(len(out), maxIPs)]
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
