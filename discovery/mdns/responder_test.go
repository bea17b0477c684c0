package mdns

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/flurry-nix/flurry/discovery"
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

func asking(name string, qtype, class uint16) *dns.Msg {
	return &dns.Msg{Question: []dns.Question{{Name: name, Qtype: qtype, Qclass: class}}}
}

func TestQuestionsAboutUsAreAnswered(t *testing.T) {
	for what, m := range map[string]*dns.Msg{
		"service":          asking("_flurry._tcp.local.", dns.TypePTR, dns.ClassINET),
		"service, shouted": asking("_FLURRY._tcp.LOCAL.", dns.TypePTR, dns.ClassINET),
		"service, unicast": asking("_flurry._tcp.local.", dns.TypePTR, dns.ClassINET|uniqueBit),
		"service, any":     asking("_flurry._tcp.local.", dns.TypeANY, dns.ClassANY),
		"types":            asking(enumeration, dns.TypePTR, dns.ClassINET),
		"instance":         asking(self.fullName(), dns.TypeSRV, dns.ClassINET),
		"host":             asking(self.host, dns.TypeAAAA, dns.ClassINET),
	} {
		if !self.asked(pack(t, m)) {
			t.Errorf("%s: not answered", what)
		}
	}
}

func TestOtherPacketsAreNotAnswered(t *testing.T) {
	known := asking(serviceName, dns.TypePTR, dns.ClassINET)
	known.Answer = []dns.RR{&dns.PTR{
		Hdr: dns.RR_Header{Name: serviceName, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttl}, Ptr: self.fullName(),
	}}
	response := asking(serviceName, dns.TypePTR, dns.ClassINET)
	response.Response = true
	update := asking(serviceName, dns.TypePTR, dns.ClassINET)
	update.Opcode = dns.OpcodeUpdate
	for what, packet := range map[string][]byte{
		"another service":    pack(t, asking("_http._tcp.local.", dns.TypePTR, dns.ClassINET)),
		"another type":       pack(t, asking(serviceName, dns.TypeA, dns.ClassINET)),
		"another class":      pack(t, asking(serviceName, dns.TypePTR, dns.ClassCHAOS)),
		"an asker who knows": pack(t, known),
		"a response":         pack(t, response),
		"an update":          pack(t, update),
		"nothing":            nil,
		"half a packet":      pack(t, asking(serviceName, dns.TypePTR, dns.ClassINET))[:20],
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
	f.Add(pack(f, asking(serviceName, dns.TypePTR, dns.ClassINET)))
	f.Add(pack(f, asking(self.fullName(), dns.TypeANY, dns.ClassANY)))
	hello, err := self.response(link{addrs: ips("10.0.0.1")}, ttl)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	f.Fuzz(func(t *testing.T, packet []byte) {
		if (self.asked(packet) || asks(packet)) && len(packet) < 12 {
			t.Error("less than a header is a question")
		}
	})
}

func TestAnnouncementsGrowRarerAndStop(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := &speaker{gap: firstGap, announce: start, ask: start}
	var at []time.Duration
	asked := 0
	for !s.announce.IsZero() || asked < 10 {
		now := s.due()
		if due(s.announce, now) {
			at = append(at, now.Sub(start))
			s.spoke(now)
		}
		if due(s.ask, now) {
			asked++
			s.askedAll(now)
		}
	}
	if next := s.due().Sub(start); next < 6*askEvery || next > 8*(askEvery+askSpread) {
		t.Errorf("after the announcements, six more questions took %v", next)
	}
	if want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}; !slices.Equal(at, want) {
		t.Errorf("announced after %v, want %v", at, want)
	}
}

func TestManyQuestionsGetOneAnswerASecond(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := &speaker{last: now.Add(-time.Hour), ask: now.Add(time.Hour)}
	s.asked(now)
	first := s.due()
	if d := first.Sub(now); d < answerAfterMin || d > answerAfterMax {
		t.Fatalf("answer after %v", d)
	}
	answers := 0
	for end := now.Add(10 * time.Second); now.Before(end); now = now.Add(time.Millisecond) {
		s.asked(now)
		if !now.Before(s.due()) {
			s.spoke(now)
			answers++
		}
	}
	if answers < 9 || answers > 11 {
		t.Errorf("%d answers in 10 s of constant questions, want one a second", answers)
	}
}

// FuzzEntries: what any packet announces is bounded by its own size, and never crashes who hears it.
func FuzzEntries(f *testing.F) {
	hello, err := self.response(link{addrs: ips("10.0.0.1", "fe80::1")}, ttl)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(hello)
	goodbye, err := self.response(link{addrs: ips("10.0.0.1")}, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(goodbye)
	f.Add(crowd(f, 20, 20))
	tl, _ := hearing()
	f.Fuzz(func(t *testing.T, packet []byte) {
		found := entries(packet)
		if len(found) > len(packet)/12 {
			t.Fatalf("%d instances in %d bytes", len(found), len(packet))
		}
		for _, e := range found {
			if len(e.addrs) > 2*discovery.MaxAddrs {
				t.Fatalf("%d addresses", len(e.addrs))
			}
			tl.heard(e, on("eth0"))
		}
	})
}

// crowd is a packet of many instances that share a host of many addresses.
func crowd(tb testing.TB, instances, addrs int) []byte {
	m := &dns.Msg{}
	m.Response, m.Compress = true, true
	for i := range instances {
		name := fmt.Sprintf("i%d.%s", i, serviceName)
		m.Answer = append(m.Answer,
			&dns.SRV{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 1}, Port: 1, Target: "h.local."},
			&dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 1}, Txt: []string{"id=x"}})
	}
	for i := range addrs {
		m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: "h.local.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(10, 0, byte(i>>8), byte(i))})
	}
	return pack(tb, m)
}

// TestACrowdedPacketCostsNoMoreThanItsSize: many instances of a host of many addresses once cost the
// product of both.
func TestACrowdedPacketCostsNoMoreThanItsSize(t *testing.T) {
	packet := crowd(t, 110, 200)
	if len(packet) > maxPacket {
		t.Fatalf("%d bytes", len(packet))
	}
	if n := len(entries(packet)); n != 110 {
		t.Fatalf("%d instances", n)
	}
	records := 2*110 + 200
	if n := testing.AllocsPerRun(10, func() { entries(packet) }); n > float64(12*records) {
		t.Errorf("%.0f allocations for %d records", n, records)
	}
}

// TestOneQuestionServesAWholeLAN: who hears another's question puts off its own.
func TestOneQuestionServesAWholeLAN(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := &speaker{ask: now.Add(time.Second)}
	s.heardAsk(now)
	if d := s.ask.Sub(now); d < askEvery {
		t.Errorf("asks again after %v", d)
	}
	fresh := &speaker{ask: now, announce: now.Add(time.Second)}
	if fresh.heardAsk(now); !fresh.ask.Equal(now) {
		t.Error("a newcomer waits for others' questions")
	}
	q, err := question()
	if err != nil || !asks(q) {
		t.Error("our own question is not known for one", err)
	}
}
