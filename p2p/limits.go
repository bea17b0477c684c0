package p2p

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	libp2prate "github.com/libp2p/go-libp2p/x/rate"
	"golang.org/x/sync/semaphore"
)

// Limits on what others may make us hold. With the defaults a thousand hostile connections stay below
// 256 MB of resident memory: most are refused before their handshake, the rest cost about 100 KB each,
// their have-sets haveMemory together, what they announce boardMost, and what nobody has read yet at most one stream window
// for each stream.
const (
	defaultConnections = 256
	defaultPerIP       = 16               // connections from one address: several agents of one machine or behind one NAT
	maxConnsPerPeer    = 4                // TCP and QUIC, both ways, while they replace each other
	maxHandshakes      = 64               // inbound, at a time; each costs 1 to 2 ms of CPU
	handshakeRate      = 100              // new connections a second, from all together
	perIPRate          = 2                // and from one address, after the first 2*defaultPerIP
	maxStreamsPerPeer  = 28               // requests of one peer side by side; our own client uses clientStreams
	maxSending         = 64               // NARs on their way to peers
	maxSendingPerPeer  = 24               // and to one of them; our own client asks for at most clientStreams
	peerMemory         = 32 << 20         // bytes of stream windows of one peer
	streamWindow       = 256 << 10        // bytes that yamux reserves for every stream
	sendingPatience    = time.Second      // how long a request waits for its turn before it hears "busy"
	trimGrace          = 20 * time.Second // before a new connection may be trimmed
)

// connectionLimit is the number of connections that cfg allows.
func (cfg *Config) connectionLimit() int {
	if cfg.MaxConnections <= 0 {
		return defaultConnections
	}
	return cfg.MaxConnections
}

// newResourceManager sizes libp2p's accounting to the agent instead of to the machine's memory. Inbound
// ones may take most connections, never all: dialling out goes on under attack.
func newResourceManager(cfg *Config) (network.ResourceManager, error) {
	conns := rcmgr.LimitVal(cfg.connectionLimit())
	streams := conns * 3 / 2                                      // two of each neighbour stay open; each can hold a window of unread bytes until we get to it
	memory := rcmgr.LimitVal64(2 * int64(streams) * streamWindow) // reservations, of which little is ever filled
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: conns, ConnsInbound: max(1, conns*15/16), ConnsOutbound: conns, FD: conns + 32,
			Streams: 2 * streams, StreamsInbound: streams, StreamsOutbound: streams, Memory: memory,
		},
		Transient: rcmgr.ResourceLimits{
			Conns: 2 * maxHandshakes, ConnsInbound: maxHandshakes, ConnsOutbound: maxHandshakes, FD: 2 * maxHandshakes,
			Streams: 256, StreamsInbound: 64, StreamsOutbound: 256, Memory: 256 * streamWindow,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 2 * maxConnsPerPeer, ConnsInbound: maxConnsPerPeer, ConnsOutbound: maxConnsPerPeer, FD: 2 * maxConnsPerPeer,
			Streams: 128, StreamsInbound: 64, StreamsOutbound: 64, Memory: peerMemory,
		},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{
			protoHTTP:    {Streams: maxStreamsPerPeer + clientStreams + clientIdleStreams, StreamsInbound: maxStreamsPerPeer, StreamsOutbound: clientStreams + clientIdleStreams},
			protoHave:    {Streams: 4, StreamsInbound: 2, StreamsOutbound: 2},
			protoFlights: {Streams: 4, StreamsInbound: 2, StreamsOutbound: 2},
			protoGroup:   {Streams: 4, StreamsInbound: 2, StreamsOutbound: 2},

			protoDialBack: {Streams: 2, StreamsInbound: 1, StreamsOutbound: 1},
		},
	}
	perIP := cfg.ConnectionsPerIP
	if perIP <= 0 {
		perIP = defaultPerIP
	}
	rateOf := func(bits int, rps float64, burst int) libp2prate.SubnetLimit {
		return libp2prate.SubnetLimit{PrefixLength: bits, Limit: libp2prate.Limit{RPS: rps, Burst: burst}}
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)),
		// libp2p counts IPv6 by /56, which is a whole site, and takes no account of loopback.
		rcmgr.WithNetworkPrefixLimit([]rcmgr.NetworkPrefixLimit{}, []rcmgr.NetworkPrefixLimit{}),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: perIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 128, ConnCount: perIP}}),
		rcmgr.WithConnRateLimiters(&libp2prate.Limiter{
			GlobalLimit: libp2prate.Limit{RPS: handshakeRate, Burst: maxHandshakes},
			SubnetRateLimiter: libp2prate.SubnetLimiter{
				IPv4SubnetLimits: []libp2prate.SubnetLimit{rateOf(32, perIPRate, 2*perIP)},
				IPv6SubnetLimits: []libp2prate.SubnetLimit{rateOf(128, perIPRate, 2*perIP)},
				GracePeriod:      time.Minute,
			},
		}),
		rcmgr.WithMetricsDisabled(),
	)
}

// sendSlots bounds the NARs that are on their way at the same time, and with them their buffers.
type sendSlots struct {
	total *semaphore.Weighted
	now   atomic.Int64 // in use
}

func newSendSlots(most int64) *sendSlots { return &sendSlots{total: semaphore.NewWeighted(most)} }

// take waits a little for a slot for p. The caller calls release if ok.
func (s *sendSlots) take(ctx context.Context, p *Peer) (release func(), ok bool) {
	if p.sending.Add(1) > maxSendingPerPeer {
		p.sending.Add(-1)
		return nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, sendingPatience)
	defer cancel()
	if s.total.Acquire(ctx, 1) != nil {
		p.sending.Add(-1)
		return nil, false
	}
	s.now.Add(1)
	return func() {
		s.now.Add(-1)
		s.total.Release(1)
		p.sending.Add(-1)
	}, true
}
