package p2p

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

// Limits of dialling back on request. The asker is dialled at the address it is seen at, at no other, so
// nobody can make us knock elsewhere; the rates keep it from making us knock often.
const (
	dialBackPatience = 2 * time.Second // per transport; on a LAN an answer takes milliseconds
	dialBackLife     = 5 * time.Second // of a stream, at either end
	dialBackLeast    = 1024            // the lowest port that is dialled: no service of the system's
	dialBackEvery    = 10 * time.Second
	dialBackBurst    = 3 // of one peer; somebody mends a firewall and looks again
	dialBacksAtOnce  = 4 // from all peers together
	dialBackPeers    = 3 // how many neighbours are asked
)

// Results of dialling back, as sent.
const (
	dialBackNo byte = iota
	dialBackYes
	dialBackRefused // too often, or not an address to dial
)

// DialBack is what one neighbour says of how it reaches this agent.
type DialBack struct {
	Peer     string // peer id
	TCP, UDP bool   // it completed a handshake with this agent's port
}

// ErrDialBack says that no neighbour could be asked.
var ErrDialBack = errors.New("no neighbour can be asked to dial back")

// DialBacks asks a few connected neighbours to dial this agent's port by TCP and by QUIC. The error wraps
// [ErrDialBack] if nobody was able or willing.
func (h *Host) DialBacks(ctx context.Context) ([]DialBack, error) {
	tcp, udp := h.ports()
	if tcp == 0 && udp == 0 {
		return nil, fmt.Errorf("%w: this agent does not listen", ErrDialBack)
	}
	asked := make(chan *DialBack, dialBackPeers)
	n := 0
	for _, p := range h.peers.connected() {
		if list, err := h.host.Peerstore().SupportsProtocols(p.id, protoDialBack); err != nil || len(list) == 0 {
			continue
		}
		if n++; n > dialBackPeers {
			n--
			break
		}
		h.tasks.run(func() {
			d, err := h.askDialBack(ctx, p, tcp, udp)
			if err != nil {
				h.log.Debug("a neighbour does not dial back", "peer", p.name, "err", err)
				d = nil
			}
			asked <- d
		})
	}
	var out []DialBack
	for range n {
		select {
		case d := <-asked:
			if d != nil {
				out = append(out, *d)
			}
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
	if len(out) == 0 {
		return nil, ErrDialBack
	}
	return out, nil
}

// ports are those that this agent listens on, 0 if none.
func (h *Host) ports() (tcp, udp uint16) {
	for _, a := range h.host.Network().ListenAddresses() {
		for code, port := range map[int]*uint16{ma.P_TCP: &tcp, ma.P_UDP: &udp} {
			if s, err := a.ValueForProtocol(code); err == nil {
				fmt.Sscan(s, port)
			}
		}
	}
	return tcp, udp
}

func (h *Host) askDialBack(ctx context.Context, p *Peer, tcp, udp uint16) (*DialBack, error) {
	ctx, cancel := context.WithTimeout(ctx, dialBackLife)
	defer cancel()
	s, err := h.host.NewStream(network.WithNoDial(ctx, "dialback"), p.id, protoDialBack)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	if _, err := s.Write(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tcp), udp)); err != nil {
		return nil, err
	}
	var answer [2]byte
	if _, err := io.ReadFull(s, answer[:]); err != nil {
		return nil, err
	}
	if answer[0] == dialBackRefused {
		return nil, errors.New("it refuses, for now")
	}
	return &DialBack{Peer: p.name, TCP: answer[0] == dialBackYes, UDP: answer[1] == dialBackYes}, nil
}

// dialBacks bounds what others may make us dial. mu guards all fields.
type dialBacks struct {
	mu     sync.Mutex
	byPeer map[peer.ID]*rate.Limiter
	now    int
}

// enter asks for leave to dial for a peer; the caller calls done if ok.
func (d *dialBacks) enter(id peer.ID) (done func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.now >= dialBacksAtOnce {
		return nil, false
	}
	if len(d.byPeer) >= maxHints { // forget: whoever has so many identities gains a few dials to itself
		clear(d.byPeer)
	}
	l := d.byPeer[id]
	if l == nil {
		l = rate.NewLimiter(rate.Every(dialBackEvery), dialBackBurst)
		d.byPeer[id] = l
	}
	if !l.Allow() {
		return nil, false
	}
	d.now++
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.now--
	}, true
}

// answerDialBack dials whoever asks for it, at the address that it is connected from.
func (h *Host) answerDialBack(s network.Stream) {
	defer s.Close()
	s.SetDeadline(time.Now().Add(dialBackLife))
	answer := [2]byte{dialBackRefused, dialBackRefused}
	defer func() { s.Write(answer[:]) }()
	var ask [4]byte
	if _, err := io.ReadFull(s, ask[:]); err != nil {
		return
	}
	tcp, udp := binary.BigEndian.Uint16(ask[:]), binary.BigEndian.Uint16(ask[2:])
	id, at := s.Conn().RemotePeer(), s.Conn().RemoteMultiaddr()
	ip, ok := dialBackIP(at)
	if tcp < dialBackLeast || udp < dialBackLeast || !ok || !h.gater.welcome(id, at) {
		return
	}
	done, ok := h.dialBacks.enter(id)
	if !ok {
		return
	}
	defer done()
	running := h.running.Load()
	if running == nil {
		return
	}
	ctx, cancel := context.WithTimeout(*running, dialBackPatience)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { answer[0] = verdictOf(h.dialTCP(ctx, id, netip.AddrPortFrom(ip, tcp))) })
	wg.Go(func() { answer[1] = verdictOf(h.dialQUIC(ctx, id, netip.AddrPortFrom(ip, udp))) })
	wg.Wait()
}

func verdictOf(err error) byte {
	if err != nil {
		return dialBackNo
	}
	return dialBackYes
}

// dialBackIP is the address that a connection comes from, with its zone; false for one that is not
// dialled: multicast, unspecified, or relayed.
func dialBackIP(a ma.Multiaddr) (netip.Addr, bool) {
	if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err == nil {
		return netip.Addr{}, false
	}
	b, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	ip, ok := netip.AddrFromSlice(b)
	ip = ip.Unmap()
	if zone, err := a.ValueForProtocol(ma.P_IP6ZONE); err == nil {
		ip = ip.WithZone(zone)
	}
	if real, index, standIn := linkLocal(ip); standIn {
		ip = real.WithZone(strconv.Itoa(index))
	}
	return ip, ok && !ip.IsUnspecified() && !ip.IsMulticast()
}

// dialTCP completes a handshake with id, apart from connections there are.
func (h *Host) dialTCP(ctx context.Context, id peer.ID, to netip.AddrPort) error {
	a, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	sw, ok := h.host.Network().(interface {
		TransportForDialing(ma.Multiaddr) transport.Transport
	})
	if !ok {
		return errors.ErrUnsupported
	}
	t := sw.TransportForDialing(plainTCP(a))
	if t == nil {
		return errors.New("no transport")
	}
	c, err := t.Dial(ctx, a, id)
	if err != nil {
		return err
	}
	return c.Close()
}

// plainTCP is an address without zone, for which there is a transport.
func plainTCP(a ma.Multiaddr) ma.Multiaddr {
	if _, err := a.ValueForProtocol(ma.P_IP6ZONE); err != nil {
		return a
	}
	_, rest := ma.SplitFirst(a)
	return rest
}

// dialQUIC does it by UDP, from a socket of its own: with the one that listens, packets that the asker
// sent before would have opened its firewall.
func (h *Host) dialQUIC(ctx context.Context, id peer.ID, to netip.AddrPort) error {
	key := h.host.Peerstore().PrivKey(h.host.ID())
	identity, err := libp2ptls.NewIdentity(key)
	if err != nil {
		return err
	}
	conf, shown := identity.ConfigForPeer(id)
	conf.NextProtos = []string{"libp2p"}
	conf.MinVersion = tls.VersionTLS13
	udp, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer udp.Close()
	c, err := quic.Dial(ctx, udp, net.UDPAddrFromAddrPort(to), conf, &quic.Config{HandshakeIdleTimeout: dialBackPatience})
	if err != nil {
		return err
	}
	defer c.CloseWithError(0, "")
	return proves(shown, id)
}

// proves checks that the handshake showed id's key. ConfigForPeer's TLS configuration refuses others
// already; this keeps us from depending on it.
func proves(shown <-chan crypto.PubKey, id peer.ID) error {
	select {
	case key := <-shown:
		if key != nil && id.MatchesPublicKey(key) {
			return nil
		}
	default:
	}
	return errors.New("somebody else answered")
}
