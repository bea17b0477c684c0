package p2p

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/discovery"
)

// refreshLeast keeps a peer that opens and closes connections from making us repeat ourselves.
const refreshLeast = time.Second

// settle makes a peer's record agree with whether it is connected now. It is called after every change,
// in no certain order and from several goroutines, so it looks instead of believing an event.
func (h *Host) settle(id peer.ID) {
	running := h.running.Load()
	if running == nil {
		return // Run settles all
	}
	for {
		p := h.peers.get(id)
		if p == nil {
			h.tasks.run(func() { h.host.Network().ClosePeer(id) })
			return
		}
		if h.settlePeer(*running, p) {
			return
		}
	}
}

// settlePeer returns false if p's record was dropped from the table meanwhile.
func (h *Host) settlePeer(ctx context.Context, p *Peer) bool {
	p.life.Lock()
	defer p.life.Unlock()
	is := h.host.Network().Connectedness(p.id) == network.Connected
	p.mu.Lock()
	was, remote := !p.connectedAt.IsZero(), p.remote
	p.mu.Unlock()
	switch {
	case is && was && (remote && h.neighbour(p) || p.far.Load() && h.dialer.knowsNear(p.id)):
		h.left(p) // it comes nearer
		return h.arrived(ctx, p)
	case is && !was:
		return h.arrived(ctx, p)
	case !is && was:
		h.left(p)
	case !is:
		h.unfriend(p)
	case is && was:
		h.refresh(p)
	}
	return true
}

// arrived starts what runs while p is connected. p.life is held.
func (h *Host) arrived(ctx context.Context, p *Peer) bool {
	session, end := context.WithCancel(ctx)
	if !h.neighbour(p) {
		p.mu.Lock()
		p.connectedAt, p.session, p.endSession, p.remote = h.now(), session, end, true
		p.via = string(discovery.ViaDHT)
		p.mu.Unlock()
		return true
	}
	p.mu.Lock()
	via := p.via
	p.mu.Unlock()
	via = h.dialer.viaOf(p.id, via)
	p.mu.Lock()
	p.connectedAt, p.session, p.endSession, p.remote = h.now(), session, end, false
	p.via = via
	static := via == string(discovery.ViaStatic)
	p.mu.Unlock()
	p.far.Store(via == string(discovery.ViaDHT))
	if !h.peers.setConnected(p, true) {
		end()
		p.mu.Lock()
		p.connectedAt, p.endSession = time.Time{}, nil
		p.mu.Unlock()
		return false
	}
	if static {
		h.host.ConnManager().Protect(p.id, "static")
	}
	if len(h.peers.connected()) <= h.cfg.connectionLimit()/2 || h.dialer.knows(p.id) {
		h.host.ConnManager().TagPeer(p.id, "settled", 10) // a flood displaces its own kind first
	}
	h.tasks.run(func() { h.proveGroup(session, p) })
	h.tasks.run(func() { h.sendHave(session, p) })
	h.tasks.run(func() { h.askIntroductions(session, p) })
	if !p.far.Load() {
		h.tasks.run(func() { h.tellFlights(session, p) })
	}
	h.tasks.run(func() { h.pingPeer(session, p, pingPatience) }) // its first round trip ranks it
	return true
}

// refresh begins anew what p may have lost with one of its connections: perhaps it knows of no other
// that it had, so that for p this is the first.
func (h *Host) refresh(p *Peer) {
	p.mu.Lock()
	session, resend := p.session, p.resend
	soon := p.remote || h.now().Sub(p.refreshed) < refreshLeast
	if !soon {
		p.refreshed = h.now()
	}
	p.mu.Unlock()
	if soon || session == nil {
		return // have-set streams that broke begin anew by themselves
	}
	if resend != nil {
		resend()
	}
	h.tasks.run(func() { h.proveGroup(session, p) })
}

// left forgets what p said it has. p.life is held.
func (h *Host) left(p *Peer) {
	p.mu.Lock()
	end, lasted, remote := p.endSession, h.now().Sub(p.connectedAt), p.remote
	p.connectedAt, p.endSession, p.group, p.rttMeasured, p.remote = time.Time{}, nil, false, false, false
	p.mu.Unlock()
	end()
	if remote {
		return
	}
	h.unfriend(p)
	h.peers.setConnected(p, false)
	if stream := p.swapHave(nil); stream != nil {
		stream.Reset()
	}
	h.memory.forget(p)
	h.host.ConnManager().UntagPeer(p.id, "settled")
	h.chatter("peer left", "peer", p.name)
	h.dialer.lost(p.id, lasted)
}

// expel closes a peer's connections; the gater keeps it from coming back.
func (h *Host) expel(p *Peer) {
	h.memory.forget(p)
	h.tasks.run(func() { h.host.Network().ClosePeer(p.id) })
}

func (h *Host) isConnected(id peer.ID) bool {
	return id == h.host.ID() || h.host.Network().Connectedness(id) == network.Connected
}

func (h *Host) isBanned(id peer.ID) bool { return !h.gater.allowed(id) }

func (h *Host) setVia(id peer.ID, via string) {
	if p := h.peers.lookup(id); p != nil {
		p.mu.Lock()
		p.via = via
		session := p.session
		p.mu.Unlock()
		if via == string(discovery.ViaStatic) {
			h.host.ConnManager().Protect(id, "static")
			if session != nil { // else it is asked when it has arrived
				h.tasks.run(func() { h.askIntroductions(session, p) })
			}
		}
	}
}
