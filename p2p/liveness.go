package p2p

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"golang.org/x/sync/errgroup"

	"github.com/flurry-nix/flurry/internal/beat"
)

const (
	pingInterval  = 10 * time.Second
	farPingEvery  = 6 // so much less often agents of the internet: their pings are most of what a quiet day costs (docs/scale.md)
	pingPatience  = 3 * time.Second
	movedPatience = time.Second // after this machine slept, or got another address
	pingsAtOnce   = 128
	clockTick     = beat.Every      // how often the clocks are compared
	clockSlack    = 3 * time.Second // a late tick, or wall clock and monotonic clock this far apart, mean that the machine slept
)

// watchLiveness pings connected peers, so that one whose link was cut is noticed without a request; at
// once after the machine slept or its clock was set.
func (h *Host) watchLiveness(ctx context.Context) error {
	tick := time.NewTimer(beat.Next())
	defer tick.Stop()
	clock := newClockWatch(time.Now())
	next := time.Now().Add(pingInterval)
	for round := 1; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		tick.Reset(beat.Next())
		now := time.Now()
		if clock.jumped(now) {
			h.log.Info("the machine slept or its clock was set; looking who is still there")
			h.recheck(ctx)
			next = now.Add(pingInterval)
		}
		if now.Before(next) {
			continue
		}
		next = now.Add(pingInterval)
		list := h.peers.connected()
		if round++; round%farPingEvery == 0 {
			list = h.peers.everywhere()
		}
		h.pingAll(ctx, list, pingPatience)
		h.memory.askAgain()
	}
}

// watchAddresses looks after all peers when this machine's addresses change.
func (h *Host) watchAddresses(ctx context.Context) error {
	sub, err := h.host.EventBus().Subscribe(new(event.EvtLocalAddressesUpdated))
	if err != nil {
		return err
	}
	defer sub.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			if change := e.(event.EvtLocalAddressesUpdated); change.Diffs {
				h.recheck(ctx)
			}
		}
	}
}

// recheck finds out quickly which connections survived, and dials all that are known.
func (h *Host) recheck(ctx context.Context) {
	if h.cfg.Moved != nil {
		h.cfg.Moved()
	}
	h.dialer.retry()
	h.pingAll(ctx, h.peers.everywhere(), movedPatience)
	h.dialer.retry() // those whose connections proved dead only now
}

func (h *Host) pingAll(ctx context.Context, list []*Peer, patience time.Duration) {
	var g errgroup.Group
	g.SetLimit(pingsAtOnce)
	for _, p := range list {
		g.Go(func() error { h.pingPeer(ctx, p, patience); return nil })
	}
	g.Wait()
}

// pingPeer closes the connections of a peer that does not answer in time, but for those that came meanwhile, as
// from its new address; true means that it did.
func (h *Host) pingPeer(ctx context.Context, p *Peer, patience time.Duration) bool {
	asked := h.host.Network().ConnsToPeer(p.id)
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	res, ok := <-ping.Ping(network.WithNoDial(limited, "ping"), h.host, p.id)
	if ok && res.Error == nil {
		p.sampleRTT(res.RTT)
		return true
	}
	if limited.Err() != nil && ctx.Err() == nil {
		h.chatter("peer is silent; closing", "peer", p.name)
		for _, c := range asked {
			c.Close()
		}
	}
	return false
}

// doubt pings a peer that let a request down: if it is gone, its connections are closed, so that it is
// forgotten and dialled anew; if it answers, a first suspicion ends early. Until then it is not asked, so there is time: machines
// that are merely busy took each other for dead after one second.
func (h *Host) doubt(p *Peer) {
	running := h.running.Load()
	if running == nil || p.checking.Swap(true) {
		return
	}
	h.tasks.run(func() {
		defer p.checking.Store(false)
		if h.pingPeer(*running, p, pingPatience) {
			p.reassure()
		}
	})
}

// clockWatch notices sleep and changes of the wall clock.
type clockWatch struct {
	last   time.Time
	offset time.Duration // wall clock less monotonic clock, from an arbitrary zero
	start  time.Time
}

func newClockWatch(now time.Time) *clockWatch {
	return &clockWatch{last: now, start: now}
}

// jumped tells whether the time since the last call was no ordinary tick. now has both clocks' readings.
func (c *clockWatch) jumped(now time.Time) bool {
	monotonic := now.Sub(c.start)
	wall := now.Round(0).Sub(c.start.Round(0)) // Round drops the monotonic reading
	return c.step(monotonic, wall, now.Sub(c.last), func() { c.last = now })
}

func (c *clockWatch) step(monotonic, wall, sinceLast time.Duration, seen func()) bool {
	offset := wall - monotonic
	slipped := (offset - c.offset).Abs() > clockSlack
	c.offset = offset
	seen()
	return slipped || sinceLast > clockTick+clockSlack
}
