package p2p

import (
	"time"
)

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
	Via       string   // mdns, dht or static
	RTT       time.Duration
	Rate      float64 // bytes per second of its NARs, 0 unknown
	Paths     int     // that it says it shares
	In, Out   int64   // NAR bytes from and to it
	State     string
	Reason    string        // why it is banned
	Connected time.Duration // since when, 0 if not
}

// Peers returns all peers that were seen since the start.
func (h *Host) Peers() []PeerStatus {
	h.peers.mu.RLock()
	list := make([]*Peer, 0, len(h.peers.byID))
	for _, p := range h.peers.byID {
		list = append(list, p)
	}
	h.peers.mu.RUnlock()
	out := make([]PeerStatus, 0, len(list))
	for _, p := range list {
		out = append(out, p.status())
	}
	return out
}

func (p *Peer) status() PeerStatus {
	s := PeerStatus{ID: p.ID(), In: p.in.Load(), Out: p.out.Load(), Paths: p.have.Len()}
	for _, c := range p.host.host.Network().ConnsToPeer(p.id) {
		s.Addrs = append(s.Addrs, c.RemoteMultiaddr().String())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Via, s.RTT, s.Rate = p.via, p.rtt, p.rate
	now := p.host.now()
	switch {
	case now.Before(p.bannedUntil):
		s.State, s.Reason = StateBanned, p.banReason
	case p.connectedAt.IsZero():
		s.State = StateAway
	case now.Before(p.suspectUntil):
		s.State = StateSuspect
	default:
		s.State = StateConnected
	}
	if !p.connectedAt.IsZero() {
		s.Connected = now.Sub(p.connectedAt)
	}
	return s
}

// BytesOut returns the NAR bytes sent to all peers.
func (h *Host) BytesOut() int64 {
	h.peers.mu.RLock()
	defer h.peers.mu.RUnlock()
	var n int64
	for _, p := range h.peers.byID {
		n += p.out.Load()
	}
	return n
}

// Paused tells whether sharing is paused.
func (h *Host) Paused() bool { return h.paused.Load() }
