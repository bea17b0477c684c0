package p2ptest

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// Attack is many identities, each of which does the worst it can on every protocol of one agent.
type Attack struct {
	Target    string       // multiaddr with /p2p/
	NAR       string       // name of a NAR that the target serves to anybody
	Attackers int          // a hundred start every second
	From      []netip.Addr // addresses of this machine, by turns; nil for the system's choice
}

// Run attacks until ctx ends and returns how many attackers were let in.
func (a Attack) Run(ctx context.Context) int {
	target, err := peer.AddrInfoFromString(a.Target)
	if err != nil {
		return 0
	}
	keys := make([]uint64, 200_000)
	for k := range keys {
		keys[k] = uint64(k) * 0x9e3779b97f4a7c15
	}
	snapshot, err := Snapshot(keys)
	if err != nil {
		return 0
	}
	have := append(Frame(1, []byte(`{"version":1,"store_dir":"/nix/store"}`)), Frame(2, snapshot)...)
	var wg sync.WaitGroup
	var in atomic.Int32
	for i := range a.Attackers {
		wg.Go(func() {
			select {
			case <-time.After(time.Duration(i) * 10 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			if a.misbehave(ctx, *target, i, have) {
				in.Add(1)
			}
		})
	}
	wg.Wait()
	return int(in.Load())
}

// misbehave tells whether the attacker was let in.
func (a Attack) misbehave(ctx context.Context, target peer.AddrInfo, i int, have []byte) bool {
	var dial []tcp.Option
	if len(a.From) > 0 {
		from := a.From[i%len(a.From)]
		dial = append(dial, tcp.WithDialerForAddr(func(ma.Multiaddr) (tcp.ContextDialer, error) {
			return &net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}, nil
		}))
	}
	options := make([]any, len(dial))
	for k, o := range dial {
		options[k] = o
	}
	h, err := libp2p.New(libp2p.Transport(tcp.NewTCPTransport, options...), libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableRelay(), libp2p.DisableMetrics(),
		libp2p.NoListenAddrs)
	if err != nil {
		return false
	}
	defer h.Close()
	for { // who is refused comes back
		connect, cancel := context.WithTimeout(ctx, 10*time.Second)
		err = h.Connect(connect, peer.AddrInfo{ID: target.ID, Addrs: target.Addrs[:1]})
		cancel()
		if err == nil {
			break
		}
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return false
		}
		if s, ok := h.Network().(interface{ Backoff() *swarm.DialBackoff }); ok {
			s.Backoff().Clear(target.ID)
		}
	}
	var wg sync.WaitGroup
	send := func(proto protocol.ID, data []byte) {
		wg.Go(func() { hold(ctx, h, target.ID, proto, data) })
	}
	send(ProtoHave, have)
	send(ProtoHave, have[:len(have)/2]) // and stall
	send(ProtoGroup, []byte("half"))
	send(ProtoFlights, announcements(i))
	nar := "GET /" + a.NAR + " HTTP/1.1\r\nHost: x\r\n\r\n"
	for range 20 {
		send(ProtoHTTP, append([]byte(nar), make([]byte, 256<<10-len(nar)-100)...)) // and never read the answer
		send(ProtoHTTP, []byte("GET /nix-cache-info HTTP/1.1\r\nX: "))              // and never end
	}
	wg.Wait()
	return true
}

// announcements tell of two thousand NARs on their way that nobody else has, in as many ranges as there may be.
func announcements(attacker int) (frames []byte) {
	for frame := range 10 {
		var body []byte
		for k := range 200 {
			body = binary.LittleEndian.AppendUint64(body, uint64(attacker)<<32|uint64(200*frame+k))
			body = append(body, 2, 32)
			for at := range uint64(32) {
				body = binary.AppendUvarint(body, 10*at)
				body = binary.AppendUvarint(body, 5)
			}
		}
		frames = append(frames, Frame(1, body)...)
	}
	return frames
}

// hold sends data on a new stream and holds it open, reading nothing.
func hold(ctx context.Context, h host.Host, id peer.ID, proto protocol.ID, data []byte) {
	open, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := h.NewStream(network.WithNoDial(open, "attack"), id, proto)
	if err != nil {
		return
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	s.Write(data)
	<-ctx.Done()
}
