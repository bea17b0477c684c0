package mdns

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var self = service{
	instance: instanceName(testID("A")),
	host:     instanceName(testID("A")) + ".local.",
	peerID:   testID("A"),
	port:     6491,
}

func TestAResponseHoldsTheServiceAndTheLinksAddressesOnly(t *testing.T) {
	packet, err := self.response(link{addrs: ips("10.0.0.1", "fd00::1")}, ttl)
	if err != nil {
		t.Fatal(err)
	}
	var m dns.Msg
	if err := m.Unpack(packet); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, rr := range m.Answer {
		got = append(got, strings.ReplaceAll(rr.String(), self.instance, "X"))
	}
	want := []string{
		"_flurry._tcp.local.\t120\tIN\tPTR\tX._flurry._tcp.local.",
		"X._flurry._tcp.local.\t120\tCLASS32769\tSRV\t0 0 6491 X.local.",
		"X._flurry._tcp.local.\t120\tCLASS32769\tTXT\t\"txtvers=1\" \"id=" + testID("A") + "\"",
		"X.local.\t120\tCLASS32769\tA\t10.0.0.1",
		"X.local.\t120\tCLASS32769\tAAAA\tfd00::1",
		"_services._dns-sd._udp.local.\t120\tIN\tPTR\t_flurry._tcp.local.",
	}
	if !slices.Equal(got, want) || !m.Response || !m.Authoritative || len(m.Question)+len(m.Extra)+len(m.Ns) != 0 {
		t.Errorf("response:\n%s\nwant\n%s", m.String(), strings.Join(want, "\n"))
	}
}

func TestTheLargestResponseFitsAnEthernetFrame(t *testing.T) {
	s := self
	s.peerID = strings.Repeat("k", 80)
	packet, err := s.response(link{addrs: ips("fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5", "fd00::6", "fd00::7", "fd00::8")}, ttl)
	if err != nil {
		t.Fatal(err)
	}
	if len(packet) > 1232 { // IPv6's least MTU, less its and UDP's headers
		t.Errorf("%d bytes", len(packet))
	}
}

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ask(name string, qtype, class uint16) *dns.Msg {
	return &dns.Msg{Question: []dns.Question{{Name: name, Qtype: qtype, Qclass: class}}}
}

func TestQuestionsAboutUsAreAnswered(t *testing.T) {
	for what, m := range map[string]*dns.Msg{
		"service":          ask("_flurry._tcp.local.", dns.TypePTR, dns.ClassINET),
		"service, shouted": ask("_FLURRY._tcp.LOCAL.", dns.TypePTR, dns.ClassINET),
		"service, unicast": ask("_flurry._tcp.local.", dns.TypePTR, dns.ClassINET|uniqueBit),
		"service, any":     ask("_flurry._tcp.local.", dns.TypeANY, dns.ClassANY),
		"types":            ask(enumeration, dns.TypePTR, dns.ClassINET),
		"instance":         ask(self.fullName(), dns.TypeSRV, dns.ClassINET),
		"host":             ask(self.host, dns.TypeAAAA, dns.ClassINET),
	} {
		if !self.asked(pack(t, m)) {
			t.Errorf("%s: not answered", what)
		}
	}
}

func TestOtherPacketsAreNotAnswered(t *testing.T) {
	known := ask(serviceName, dns.TypePTR, dns.ClassINET)
	known.Answer = []dns.RR{&dns.PTR{
		Hdr: dns.RR_Header{Name: serviceName, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttl}, Ptr: self.fullName(),
	}}
	response := ask(serviceName, dns.TypePTR, dns.ClassINET)
	response.Response = true
	update := ask(serviceName, dns.TypePTR, dns.ClassINET)
	update.Opcode = dns.OpcodeUpdate
	for what, packet := range map[string][]byte{
		"another service":    pack(t, ask("_http._tcp.local.", dns.TypePTR, dns.ClassINET)),
		"another type":       pack(t, ask(serviceName, dns.TypeA, dns.ClassINET)),
		"another class":      pack(t, ask(serviceName, dns.TypePTR, dns.ClassCHAOS)),
		"an asker who knows": pack(t, known),
		"a response":         pack(t, response),
		"an update":          pack(t, update),
		"nothing":            nil,
		"half a packet":      pack(t, ask(serviceName, dns.TypePTR, dns.ClassINET))[:20],
	} {
		if self.asked(packet) {
			t.Errorf("%s: answered", what)
		}
	}
	known.Answer[0].Header().Ttl = ttl/2 - 1
	if !self.asked(pack(t, known)) {
		t.Error("an asker whose knowledge is old is not answered")
	}
}

func FuzzAsked(f *testing.F) {
	f.Add(pack(f, ask(serviceName, dns.TypePTR, dns.ClassINET)))
	f.Add(pack(f, ask(self.fullName(), dns.TypeANY, dns.ClassANY)))
	hello, err := self.response(link{addrs: ips("10.0.0.1")}, ttl)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	f.Fuzz(func(t *testing.T, packet []byte) {
		if self.asked(packet) && len(packet) < 12 {
			t.Error("less than a header is a question")
		}
	})
}

func TestAnnouncementsGrowRarerAndStop(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := &speaker{gap: firstGap, announce: start}
	var at []time.Duration
	for {
		now, ok := s.due()
		if !ok {
			break
		}
		at = append(at, now.Sub(start))
		s.spoke(now)
	}
	if want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}; !slices.Equal(at, want) {
		t.Errorf("announced after %v, want %v", at, want)
	}
}

func TestManyQuestionsGetOneAnswerASecond(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := &speaker{last: now.Add(-time.Hour)}
	s.asked(now)
	first, ok := s.due()
	if d := first.Sub(now); !ok || d < answerAfterMin || d > answerAfterMax {
		t.Fatalf("answer after %v", d)
	}
	answers := 0
	for end := now.Add(10 * time.Second); now.Before(end); now = now.Add(time.Millisecond) {
		s.asked(now)
		if at, ok := s.due(); ok && !now.Before(at) {
			s.spoke(now)
			answers++
		}
	}
	if answers < 9 || answers > 11 {
		t.Errorf("%d answers in 10 s of constant questions, want one a second", answers)
	}
}
