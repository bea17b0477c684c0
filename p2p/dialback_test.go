package p2p

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

func TestANeighbourDialsBack(t *testing.T) {
	a, b := dialBackPair(t)
	got, err := a.DialBacks(t.Context())
	if err != nil || len(got) != 1 || got[0] != (DialBack{Peer: b.ID(), TCP: true, UDP: true}) {
		t.Fatalf("%+v, %v", got, err)
	}
	if n := len(b.host.Network().ConnsToPeer(a.host.ID())); n != 1 {
		t.Errorf("%d connections are left of it", n)
	}
}

func TestDialingBackTellsWhatIsNotReached(t *testing.T) {
	a, b := dialBackPair(t)
	tcp, udp := a.ports()
	other, err := net.Listen("tcp", "127.0.0.1:0") // open, but not this agent's
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	go func() {
		for c, err := other.Accept(); err == nil; c, err = other.Accept() {
			c.Close()
		}
	}()
	taken := uint16(other.Addr().(*net.TCPAddr).Port)
	if got := rawDialBack(t, a, b, taken, udp); got != [2]byte{dialBackNo, dialBackYes} {
		t.Errorf("TCP port of somebody else: %v", got)
	}
	if got := rawDialBack(t, a, b, tcp, taken); got != [2]byte{dialBackYes, dialBackNo} {
		t.Errorf("UDP port of nobody: %v", got)
	}
}

func TestDialingBackIsRefusedTooOftenAndForPortsOfTheSystem(t *testing.T) {
	a, b := dialBackPair(t)
	refused := [2]byte{dialBackRefused, dialBackRefused}
	tcp, udp := a.ports()
	if got := rawDialBack(t, a, b, 22, udp); got != refused {
		t.Errorf("port 22: %v", got)
	}
	for i := range dialBackBurst {
		if got := rawDialBack(t, a, b, tcp, udp); got == refused {
			t.Errorf("request %d is refused", i)
		}
	}
	if got := rawDialBack(t, a, b, tcp, udp); got != refused {
		t.Errorf("one too many: %v", got)
	}
	if _, err := a.DialBacks(t.Context()); !errors.Is(err, ErrDialBack) {
		t.Errorf("%v", err)
	}
}

func TestOnlyTheAskersOwnAddressIsDialled(t *testing.T) {
	for text, want := range map[string]string{
		"/ip4/10.0.0.7/tcp/40000":             "10.0.0.7",
		"/ip6/fd00::7/udp/40000/quic-v1":      "fd00::7",
		"/ip6zone/eth0/ip6/fe80::7/tcp/40000": "fe80::7%eth0",
		"/ip4/224.0.0.251/udp/40000/quic-v1":  "",
		"/ip4/0.0.0.0/tcp/40000":              "",
		"/ip4/10.0.0.7/tcp/1/p2p-circuit":     "",
		"/dns4/victim.example/tcp/40000":      "",
		"/ip6/fd66:6c75:7279:2::7/tcp/40000":  "fe80::7%2", // a stand-in
	} {
		a, err := ma.NewMultiaddr(text)
		if err != nil {
			t.Fatal(err)
		}
		ip, ok := dialBackIP(a)
		if ok != (want != "") || ok && ip != netip.MustParseAddr(want) {
			t.Errorf("%s: %v, %v; want %q", text, ip, ok, want)
		}
	}
}

// dialBackPair are two hosts that know each other, and that the other dials back.
func dialBackPair(t *testing.T) (a, b running) {
	t.Helper()
	a = startHostWith(t, Config{}, newTestIdentity(t), newFakeCatalog())
	b = startHostWith(t, Config{}, newTestIdentity(t), newFakeCatalog(), whereIs(a.Host, true))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		list, _ := a.host.Peerstore().SupportsProtocols(b.host.ID(), protoDialBack)
		if len(list) > 0 && len(a.peers.connected()) == 1 && len(b.peers.connected()) == 1 {
			return a, b
		}
		if time.Now().After(end) {
			t.Fatal("they do not get to know each other")
		}
	}
}

func rawDialBack(t *testing.T, from, to running, tcp, udp uint16) (answer [2]byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := from.host.NewStream(ctx, to.host.ID(), protoDialBack)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	if _, err := s.Write(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tcp), udp)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, answer[:]); err != nil {
		t.Fatal(err)
	}
	return answer
}
