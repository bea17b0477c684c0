package p2p

import (
	"net/netip"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/flurry-nix/flurry/discovery"
)

// maxAgent is how much of what a peer calls itself is kept, bytes.
const maxAgent = 64

// States of a peer.
const (
	StateConnected = "connected"
	StateAway      = "away"    // not connected now
	StateSuspect   = "suspect" // left out for a while after trouble
	StateBanned    = "banned"  // sent wrong bytes
)

// PeerStatus is a peer as an operator sees it.
type PeerStatus struct {
	ID        string
	Addrs     []string // multiaddrs of its connections
	Via       string   // mdns, dht, static or introduced
	By        string   // who introduced it, a peer id
	RTT       time.Duration
	Rate      float64 // bytes per second of its NARs, 0 unknown
	Paths     int     // that it says it shares
	In, Out   int64   // NAR bytes from and to it
	State     string
	Reason    string        // why it is banned, or its latest trouble
	Connected time.Duration // since when, 0 if not
	Remaining time.Duration // of the ban or the suspicion
	Agent     string        // what it says it is, such as "flurry/1.0"; "" if not known

	Group       bool  // it proved that it knows the group secret
	Good        int   // verified transfers, restarts included
	Failures    int   // in a row
	FalseClaims int64 // "not found" to what its have-set claims
	HaveDropped bool  // its have-set is not kept, for want of memory
}

// Peers returns all peers that were seen since the start or are remembered from before.
func (h *Host) Peers() []PeerStatus {
	list := h.peers.all()
	out := make([]PeerStatus, 0, len(list))
	for _, p := range list {
		out = append(out, p.status())
	}
	for _, s := range h.dialer.namedAway() {
		if i := slices.IndexFunc(out, func(o PeerStatus) bool { return o.ID == s.ID }); i < 0 {
			out = append(out, s)
		} else if out[i].Reason == "" {
			out[i].Reason = s.Reason
		}
	}
	return out
}

func (p *Peer) status() PeerStatus {
	s := PeerStatus{ID: p.name, In: p.in.Load(), Out: p.out.Load(), Paths: p.have.Len(), FalseClaims: p.falseClaims.Load()}
	for _, c := range p.host.host.Network().ConnsToPeer(p.id) {
		s.Addrs = append(s.Addrs, c.RemoteMultiaddr().String())
	}
	if agent, err := p.host.host.Peerstore().Get(p.id, "AgentVersion"); err == nil {
		text, _ := agent.(string)
		s.Agent = cleanText(text, maxAgent)
	}
	s.By = p.host.introductions.introducer(p.id)
	s.HaveDropped = p.host.memory.isMissed(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Via, s.RTT, s.Rate = p.via, p.rtt, p.rate
	s.Group, s.Good, s.Failures = p.group, p.good, p.failures
	if s.Via != string(discovery.ViaIntroduced) {
		s.By = ""
	}
	now := p.host.now()
	s.Reason = p.trouble.text(now)
	switch {
	case now.Before(p.bannedUntil):
		s.State, s.Reason, s.Remaining = StateBanned, p.banReason, p.bannedUntil.Sub(now)
	case p.connectedAt.IsZero():
		s.State = StateAway
	case now.Before(p.suspectUntil):
		s.State, s.Remaining = StateSuspect, p.suspectUntil.Sub(now)
	default:
		s.State = StateConnected
	}
	if !p.connectedAt.IsZero() {
		s.Connected = now.Sub(p.connectedAt)
	}
	return s
}

// BytesOut returns the NAR bytes sent to all peers.
func (h *Host) BytesOut() int64 { return h.sent.Load() }

// Sending returns how many NARs are on their way to peers now.
func (h *Host) Sending() int64 { return h.slots.now.Load() }

// Refused returns how many connections were refused because of who or where the peer was.
func (h *Host) Refused() int64 { return h.gater.refused.Load() }

// HaveMemory returns the bytes that all peers' have-sets take.
func (h *Host) HaveMemory() int64 {
	h.memory.mu.Lock()
	defer h.memory.mu.Unlock()
	return h.memory.used
}

// Paused tells whether sharing is paused.
func (h *Host) Paused() bool { return h.paused.Load() }

// AddrIP returns the IP address of a multiaddr, without its zone.
func AddrIP(text string) (netip.Addr, bool) {
	a, err := ma.NewMultiaddr(text)
	if err != nil {
		return netip.Addr{}, false
	}
	return ipOf(a)
}
