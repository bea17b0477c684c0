package mdns

import (
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	// askEvery is how long a link may be without a question for the service, anybody's: all hear the
	// answers, so one question serves a whole LAN (RFC 6762, section 7.3). It is also how soon a
	// neighbour that came back unnoticed is told again.
	askEvery = 30 * time.Second
	// askSpread is the range of what is added, so that one machine asks and the others hear it.
	askSpread = 5 * time.Second

	// packetRate and packetBurst bound the packets looked at, per second and at once: a LAN of a thousand
	// machines answers one question within both. Looking at one of the largest takes less than a millisecond.
	packetRate  = 500
	packetBurst = 2500
)

// entry is one instance of the service, as a packet has it. A stranger chose every part.
type entry struct {
	instance string
	text     []string
	port     uint16
	addrs    []netip.Addr
}

// entries returns the instances that a packet announces with all that is needed to dial them: other
// agents put their records into one packet. The time taken grows with the packet's length and no faster.
func entries(packet []byte) []entry {
	var m dns.Msg
	if m.Unpack(packet) != nil || !m.Response || m.Opcode != dns.OpcodeQuery {
		return nil
	}
	srvs, texts, addrs := map[string]*dns.SRV{}, map[string][]string{}, map[string][]netip.Addr{}
	for _, section := range [][]dns.RR{m.Answer, m.Extra} {
		for _, rr := range section {
			h := rr.Header()
			if h.Class&^uniqueBit != dns.ClassINET || h.Ttl == 0 { // 0: a goodbye
				continue
			}
			name := strings.ToLower(h.Name)
			switch rr := rr.(type) {
			case *dns.SRV:
				srvs[name] = rr
			case *dns.TXT:
				texts[name] = rr.Txt
			case *dns.A:
				addrs[name] = appendAddr(addrs[name], rr.A)
			case *dns.AAAA:
				addrs[name] = appendAddr(addrs[name], rr.AAAA)
			}
		}
	}
	var out []entry
	for name, srv := range srvs {
		if _, ours := strings.CutSuffix(name, "."+serviceName); !ours || texts[name] == nil {
			continue
		}
		instance := srv.Hdr.Name[:len(name)-len("."+serviceName)]
		if found := addrs[strings.ToLower(srv.Target)]; len(found) > 0 {
			out = append(out, entry{instance, texts[name], srv.Port, found})
		}
	}
	return out
}

// appendAddr keeps as many addresses of one host as anybody looks at.
func appendAddr(list []netip.Addr, ip []byte) []netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || len(list) >= 2*discovery.MaxAddrs {
		return list
	}
	return append(list, a.Unmap())
}

// asks reports whether the packet asks all for all instances of the service.
func asks(packet []byte) bool {
	var m dns.Msg
	if m.Unpack(packet) != nil || m.Response || len(m.Answer) > 0 { // who knows some already gets fewer answers
		return false
	}
	for _, q := range m.Question {
		if q.Qtype == dns.TypePTR && q.Qclass == dns.ClassINET && strings.EqualFold(q.Name, serviceName) {
			return true
		}
	}
	return false
}
