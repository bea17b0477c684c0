package simdht

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/p2p"
	"github.com/flurry-nix/flurry/verify"
)

// empty is a catalog of nothing.
type empty struct{}

func (empty) Keys(verify.Scope) []uint64    { return nil }
func (empty) Watch(func(p2p.Change)) func() { return func() {} }
func (empty) NarInfo(context.Context, verify.PathDigest, verify.Scope) (*verify.NarInfo, error) {
	return nil, p2p.ErrAbsent
}

func (empty) NAR(context.Context, verify.StoreHash, verify.Hash, verify.Scope) (p2p.Content, error) {
	return nil, p2p.ErrAbsent
}

func (empty) Chain(context.Context, verify.StoreHash, verify.Hash, verify.Scope) ([]byte, error) {
	return nil, p2p.ErrAbsent
}

// What the simulation leaves out, on real connections over a loopback that nobody else uses, headers of IP and TCP
// and acknowledgements included: DHT_COST=1 in a network namespace of one's own (`make sim-dht` does that).
func TestWhatAConnectionCosts(t *testing.T) {
	if os.Getenv("DHT_COST") == "" {
		t.Skip("takes two minutes and a network namespace: make sim-dht")
	}
	start := func() *p2p.Host {
		id, err := p2p.LoadIdentity(filepath.Join(t.TempDir(), "identity"))
		if err != nil {
			t.Fatal(err)
		}
		h, err := p2p.New(p2p.Config{
			Listen: []string{"127.0.0.1:0"}, StoreDir: "/nix/store", UserAgent: "flurry/1.0",
			Internet: &p2p.Internet{Public: func(netip.Addr) bool { return true }},
		}, id, empty{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- h.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-ended })
		return h
	}
	a, b := start(), start()
	b.Libp2p().SetStreamHandler("/echo", func(s network.Stream) { io.Copy(s, s); s.Close() })
	time.Sleep(time.Second)

	bytes, packets := loopback(t)
	if err := a.Libp2p().Connect(t.Context(), peer.AddrInfo{ID: b.Libp2p().ID(), Addrs: b.Libp2p().Addrs()}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	toBytes, toPackets := loopback(t)
	t.Logf("a connection, identify included: %d B in %d packets", toBytes-bytes, toPackets-packets)

	idle := func(what string) {
		const d = time.Minute
		bytes, packets := loopback(t)
		time.Sleep(d)
		toBytes, toPackets := loopback(t)
		t.Logf("%s, idle for %v: %d B in %d packets, %.0f B an hour", what, d, toBytes-bytes, toPackets-packets, float64(toBytes-bytes)*float64(time.Hour/d))
	}
	idle("the connection")

	s, err := a.Libp2p().NewStream(t.Context(), b.Libp2p().ID(), "/echo")
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(n int) {
		buf := make([]byte, 100)
		for range n {
			s.Write(buf)
			if _, err := io.ReadFull(s, buf); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Millisecond) // the acknowledgement is not carried by the next question
		}
	}
	exchange(5)
	bytes, packets = loopback(t)
	exchange(100)
	toBytes, toPackets = loopback(t)
	t.Logf("a question and its answer: %.0f B and %.1f packets beside what they say", float64(toBytes-bytes)/100-200, float64(toPackets-packets)/100)

	f := discovery.Found{Via: discovery.ViaDHT, Name: b.ID(), PeerID: b.ID()}
	for _, addr := range b.Libp2p().Addrs() {
		f.Addrs = append(f.Addrs, addr.String())
	}
	if _, err := a.Reach(t.Context(), f); err != nil { // each is told what the other has from now on
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	idle("with have-sets of nothing, and pings")
}

// loopback is what went over lo, as IP packets; the kernel counts without link headers.
func loopback(t *testing.T) (bytes, packets int) {
	text, err := os.ReadFile("/proc/self/net/dev") // below /sys is the namespace that mounted it
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), " lo:")
	if _, err := fmt.Sscan(line, &bytes, &packets); err != nil {
		t.Fatal(err)
	}
	return bytes, packets
}
