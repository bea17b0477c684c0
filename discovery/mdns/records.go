package mdns

import (
	"net"
	"strings"

	"github.com/miekg/dns"
)

const (
	serviceName = Service + "." + domain + "."
	// enumeration is the name that asks which service types there are (RFC 6763, section 9).
	enumeration = "_services._dns-sd._udp." + domain + "."

	// ttl is how long others may believe our records, in seconds. RFC 6762 recommends 120 for records
	// that contain a host name or address.
	ttl = 120

	// uniqueBit in a record's class says that no other machine has a record of this name; in a
	// question's class it asks for a unicast answer.
	uniqueBit = 1 << 15
)

// service is what this agent says about itself.
type service struct {
	instance string // one DNS label
	host     string // fully qualified; not the machine's own name, which belongs to its mDNS daemon
	peerID   string
	port     uint16
}

func (s service) fullName() string { return s.instance + "." + serviceName }

// response packs all our records for one link. A ttl of 0 takes them back.
func (s service) response(l link, ttl uint32) ([]byte, error) {
	shared := func(name string) dns.RR_Header {
		return dns.RR_Header{Name: name, Class: dns.ClassINET, Ttl: ttl, Rrtype: dns.TypePTR}
	}
	unique := func(name string, rrtype uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Class: dns.ClassINET | uniqueBit, Ttl: ttl, Rrtype: rrtype}
	}
	m := new(dns.Msg)
	m.Response, m.Authoritative, m.Compress = true, true, true
	m.Answer = []dns.RR{
		&dns.PTR{Hdr: shared(serviceName), Ptr: s.fullName()},
		&dns.SRV{Hdr: unique(s.fullName(), dns.TypeSRV), Port: s.port, Target: s.host},
		&dns.TXT{Hdr: unique(s.fullName(), dns.TypeTXT), Txt: []string{"txtvers=1", "id=" + s.peerID}},
	}
	for _, a := range l.addrs {
		ip := net.IP(a.AsSlice())
		if a.Is4() {
			m.Answer = append(m.Answer, &dns.A{Hdr: unique(s.host, dns.TypeA), A: ip})
		} else {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: unique(s.host, dns.TypeAAAA), AAAA: ip})
		}
	}
	if ttl > 0 { // other services of this machine keep the type alive
		m.Answer = append(m.Answer, &dns.PTR{Hdr: shared(enumeration), Ptr: serviceName})
	}
	return m.Pack()
}

// question packs the question for all instances of the service.
func question() ([]byte, error) {
	m := new(dns.Msg)
	m.Question = []dns.Question{{Name: serviceName, Qtype: dns.TypePTR, Qclass: dns.ClassINET}}
	return m.Pack()
}

// asked reports whether the packet asks for a record of ours that the asker does not know yet. It may
// be anything.
func (s service) asked(packet []byte) bool {
	var m dns.Msg
	if m.Unpack(packet) != nil || m.Response || m.Opcode != dns.OpcodeQuery {
		return false
	}
	for _, q := range m.Question {
		if class := q.Qclass &^ uniqueBit; class != dns.ClassINET && class != dns.ClassANY {
			continue
		}
		if s.answers(q) && !(q.Qtype == dns.TypePTR && s.known(m.Answer)) {
			return true
		}
	}
	return false
}

func (s service) answers(q dns.Question) bool {
	is := func(name string, types ...uint16) bool {
		if !strings.EqualFold(q.Name, name) {
			return false
		}
		for _, t := range append(types, dns.TypeANY) {
			if q.Qtype == t {
				return true
			}
		}
		return false
	}
	return is(serviceName, dns.TypePTR) || is(enumeration, dns.TypePTR) ||
		is(s.fullName(), dns.TypeSRV, dns.TypeTXT) || is(s.host, dns.TypeA, dns.TypeAAAA)
}

// known reports whether the asker listed our instance among the answers it has, fresh enough (RFC 6762,
// section 7.1).
func (s service) known(answers []dns.RR) bool {
	for _, rr := range answers {
		if ptr, ok := rr.(*dns.PTR); ok && strings.EqualFold(ptr.Ptr, s.fullName()) && ptr.Hdr.Ttl >= ttl/2 {
			return true
		}
	}
	return false
}
