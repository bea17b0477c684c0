package mdns

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Looked is what a look at one interface found.
type Looked struct {
	Interface string
	Addrs     []netip.Prefix // this machine's that are announced there
	// Returned: a packet sent to the group came back to this machine. Firewalls see it twice.
	Returned bool
	// Answered are the peer ids of other agents that answered there.
	Answered []string
	// Others: a packet of another machine came, whatever it said.
	Others bool
	Err    error // why nothing could be sent
}

// Passed is an interface that is not used, and why.
type Passed struct{ Interface, Why string }

// Look asks for neighbours on every usable interface and tells what came back, at the latest when ctx
// ends; sooner where all interfaces have brought an answer. It says nothing but the question that browsing
// asks all the time, with a random name beside it, by which the packet is known again.
func (f *Finder) Look(ctx context.Context) (looked []Looked, passed []Passed, err error) {
	links, err := f.pick.scan()
	if err != nil {
		return nil, nil, err
	}
	looked = make([]Looked, len(links))
	var wg sync.WaitGroup
	for i, l := range links {
		wg.Go(func() { looked[i] = f.look(ctx, l) })
	}
	wg.Wait()
	return looked, f.passed(links), nil
}

// look is Look at one link, by IPv4 where it has an address of that kind.
func (f *Finder) look(ctx context.Context, l link) Looked {
	out := Looked{Interface: l.ifi.Name, Addrs: prefixes(l)}
	fam := ipv4Family
	if !l.has(fam) {
		fam = ipv6Family
	}
	ask, err := markedQuestion()
	if err != nil {
		out.Err = err
		return out
	}
	s, err := openSocket(fam, []net.Interface{l.ifi})
	if err != nil {
		out.Err = err
		return out
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer func() {
		if stop() {
			_ = s.Close()
		}
	}()
	send := func() error { return s.write(ask, l.ifi.Index) }
	if err := send(); err != nil {
		out.Err = err
		return out
	}
	again := time.AfterFunc(quiet, func() { _ = send() }) // one packet may get lost, and answers keep quiet for a second
	defer again.Stop()
	buf := make([]byte, maxPacket+1)
	for !out.Returned || len(out.Answered) == 0 {
		n, ifIndex, toGroup, err := s.read(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				out.Err = err
			}
			return out
		}
		if !toGroup || ifIndex != l.ifi.Index || n > maxPacket {
			continue
		}
		if bytes.Equal(buf[:n], ask) {
			out.Returned = true
			continue
		}
		f.noteAnswers(&out, buf[:n])
	}
	return out
}

// noteAnswers takes the peer ids of other agents from a packet, which may be anything.
func (f *Finder) noteAnswers(out *Looked, packet []byte) {
	var m dns.Msg
	if m.Unpack(packet) != nil || !m.Response {
		return
	}
	mine := false
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.TXT:
			if !strings.HasSuffix(strings.ToLower(rr.Hdr.Name), "."+serviceName) {
				continue
			}
			for _, text := range rr.Txt {
				id, ok := strings.CutPrefix(text, "id=")
				if ok && id == f.self.peerID {
					mine = true
				} else if ok && len(id) <= 128 && len(out.Answered) < 256 && !slices.Contains(out.Answered, id) {
					out.Answered = append(out.Answered, id)
				}
			}
		}
	}
	out.Others = out.Others || !mine
}

// markedQuestion asks for all instances, and for one that nobody has.
func markedQuestion() ([]byte, error) {
	m := new(dns.Msg)
	m.Question = []dns.Question{
		{Name: serviceName, Qtype: dns.TypePTR, Qclass: dns.ClassINET},
		{Name: "look-" + strings.ToLower(rand.Text()) + "." + serviceName, Qtype: dns.TypeTXT, Qclass: dns.ClassINET},
	}
	return m.Pack()
}

// prefixes are the addresses of a link with the sizes of their networks.
func prefixes(l link) (out []netip.Prefix) {
	addrs, err := l.ifi.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(n.IP)
		if ip = ip.Unmap(); ok && slices.Contains(l.addrs, ip.WithZone("")) {
			ones, _ := n.Mask.Size()
			out = append(out, netip.PrefixFrom(ip, ones))
		}
	}
	return out
}

// passed says of every other interface that is up why it is not used.
func (f *Finder) passed(used []link) (out []Passed) {
	ifis, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, ifi := range ifis {
		if ifi.Flags&net.FlagLoopback != 0 || slices.ContainsFunc(used, func(l link) bool { return l.ifi.Index == ifi.Index }) {
			continue
		}
		why := "it has no address in the networks that are shared with"
		switch {
		case ifi.Flags&net.FlagUp == 0 || ifi.Flags&net.FlagRunning == 0:
			why = "it is down"
		case len(f.pick.only) > 0 && !slices.Contains(f.pick.only, ifi.Name):
			why = "peers.interfaces does not name it"
		case !f.pick.wants(ifi):
			why = "it looks like a tunnel or a container's"
		}
		out = append(out, Passed{ifi.Name, why})
	}
	return out
}
