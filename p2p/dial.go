package p2p

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	dialPatience = 5 * time.Second
	redialFirst  = 250 * time.Millisecond
	redialMost   = 30 * time.Second
	hintLife     = 5 * time.Minute // a hint without Keep is redialled that long after it was last heard
	maxHints     = 2000
	dialsAtOnce  = 16
	shortVisit   = 5 * time.Second // a connection that did not last that long counts as a failed dial
	selfPause    = time.Minute     // after an address turned out to be our own, or somebody who says so
	// QUIC costs 2.5 to 3 times the CPU of TCP and TLS. Machines of a LAN that are busy need longer than a tenth of a
	// second for a handshake, and would stay with it. Where TCP is refused QUIC is tried at once.
	quicLater    = 100 * time.Millisecond
	quicLaterLAN = time.Second
)

// rankDials tries TCP at once and QUIC later: on a LAN TCP is the faster one, and QUIC is for peers behind a NAT.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	out := make([]network.AddrDelay, 0, len(addrs))
	for _, a := range addrs {
		lan := manet.IsPrivateAddr(a) || manet.IsIPLoopback(a)
		var delay time.Duration
		if _, err := a.ValueForProtocol(ma.P_TCP); err != nil {
			delay = quicLater
			if lan {
				delay = quicLaterLAN
			}
		}
		if !lan {
			delay += quicLater
		}
		out = append(out, network.AddrDelay{Addr: a, Delay: delay})
	}
	return out
}

// dialer turns hints into connections. mu guards hints.
type dialer struct {
	h    *Host
	wake chan struct{}

	unreached atomic.Pointer[func()] // to be called after a dial by a hint that says Keep failed; may be nil

	mu    sync.Mutex
	hints map[string]*hint // by mechanism and name
}

type hint struct {
	discovery.Found
	id      peer.ID // "" until somebody answered there
	heard   time.Time
	next    time.Time // when to dial again
	failed  int
	dialing bool
	trouble trouble // of the dials since the last success
}

func newDialer(h *Host) *dialer {
	return &dialer{h: h, wake: make(chan struct{}, 1), hints: map[string]*hint{}}
}

// found takes a hint; see [discovery.Finder].
func (d *dialer) found(f discovery.Found) {
	id, err := peer.Decode(f.PeerID)
	if f.PeerID != "" && err != nil || id == d.h.host.ID() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	key := string(f.Via) + " " + f.Name
	old := d.hints[key]
	if old == nil && len(d.hints) >= maxHints {
		return
	}
	d.h.gater.learn(f, id)
	n := &hint{Found: f, id: id, heard: d.h.now()}
	if old != nil {
		n.failed, n.next, n.dialing, n.trouble = old.failed, old.next, old.dialing, old.trouble
		if id == "" {
			n.id = old.id
		}
		if !f.Keep && old.failed > 0 { // heard again: it is alive
			n.failed, n.next = 0, time.Time{}
		}
	}
	d.hints[key] = n
	d.kick()
	p := d.h.peers.lookup(id)
	if p == nil {
		return
	}
	if p.beyond() {
		d.h.tasks.run(func() { d.h.approach(p) })
	}
	if old != nil && !slices.Equal(old.Addrs, f.Addrs) { // what it is connected by may be gone
		d.h.doubt(p)
	}
}

func (d *dialer) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// lost makes a peer that went away after a while be dialled again soon; one that leaves at once, perhaps
// because it does not want us, less and less often.
func (d *dialer) lost(id peer.ID, after time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.hints {
		if n.id != id {
			continue
		}
		if after > shortVisit {
			n.failed = 0
		}
		n.next = d.h.now().Add(min(redialMost, redialFirst<<min(n.failed, 12)))
		n.failed++
	}
	d.kick()
}

// retry makes every hint due: the network changed.
func (d *dialer) retry() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.hints {
		n.failed, n.next = 0, time.Time{}
	}
	d.kick()
}

// knows tells whether some mechanism found the peer.
func (d *dialer) knows(id peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.hints {
		if n.id == id {
			return true
		}
	}
	return false
}

// named tells whether the operator named the peer.
func (d *dialer) named(id peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.hints {
		if n.id == id && n.Via == discovery.ViaStatic {
			return true
		}
	}
	return false
}

// knowsNear tells whether a mechanism of this site, or the operator, named the peer.
func (d *dialer) knowsNear(id peer.ID) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.hints {
		if n.id == id && n.Via != discovery.ViaDHT {
			return true
		}
	}
	return false
}

// viaOf names the mechanism that knows a peer, or was if none does: it found us. The caller must not
// hold the peer's mu, which is taken after d.mu.
func (d *dialer) viaOf(id peer.ID, was string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var best discovery.Via
	for _, n := range d.hints {
		if n.id == id && (best == "" || best == discovery.ViaDHT || best == discovery.ViaIntroduced && n.Via != discovery.ViaDHT) {
			best = n.Via
		}
	}
	if best != "" {
		return string(best)
	}
	if was == "" {
		return string(discovery.ViaMDNS) // it dialled us; on a LAN that is how it knew
	}
	return was
}

// run dials whatever is due.
func (d *dialer) run(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(dialsAtOnce)
	defer g.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		due, wait := d.due()
		for _, n := range due {
			g.Go(func() error { d.dial(ctx, n); return nil })
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-d.wake:
		case <-timer.C:
		}
	}
}

// due takes the hints to dial now, forgets stale ones, and says when to look again.
func (d *dialer) due() (list []*hint, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.h.now()
	wait = redialMost
	for key, n := range d.hints {
		switch {
		case n.dialing || n.id != "" && d.h.isConnected(n.id):
		case !n.Keep && now.Sub(n.heard) > hintLife:
			delete(d.hints, key)
		case n.id != "" && d.h.isBanned(n.id):
		case !now.Before(n.next):
			n.dialing = true
			list = append(list, n)
		default:
			wait = min(wait, n.next.Sub(now))
		}
	}
	return list, wait
}

func (d *dialer) dial(ctx context.Context, n *hint) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	id, err := d.h.connect(ctx, n.id, d.h.dialable(n))
	d.mu.Lock()
	defer d.mu.Unlock()
	key := string(n.Via) + " " + n.Name
	if cur := d.hints[key]; cur != nil {
		n = cur // a newer hint came meanwhile
	}
	n.dialing = false
	// It may have been lost again already, which was not looked at while it was being dialled.
	d.kick()
	if err == nil && id == d.h.host.ID() { // or somebody who shows our certificate: so look again later
		n.next = d.h.now().Add(selfPause)
		return
	}
	if err == nil {
		n.id, n.trouble = id, trouble{} // failed stays until the connection has lasted
		d.h.gater.learn(n.Found, id)
		d.h.setVia(id, string(n.Via))
		return
	}
	back := min(redialMost, redialFirst<<min(n.failed, 12))
	n.next = d.h.now().Add(back/2 + rand.N(back))
	n.trouble.add(d.h.now(), withoutLines(err))
	if again := d.unreached.Load(); again != nil && n.Keep {
		(*again)()
	}
	if n.failed++; n.failed == 1 {
		d.h.log.Info("could not reach a peer; trying again", "via", n.Via, "name", n.Name, "err", err)
	}
}

// connect dials a peer. Without an id it first learns who is there: TLS proves the listener's identity
// even when it is not the one that was expected.
func (h *Host) connect(ctx context.Context, id peer.ID, addrs []string) (peer.ID, error) {
	var list []ma.Multiaddr
	for _, s := range addrs {
		if a, err := ma.NewMultiaddr(s); err == nil {
			list = append(list, standIn(a))
		}
	}
	if len(list) == 0 {
		return "", errors.New("no usable address")
	}
	if id == "" {
		var err error
		if id, err = h.whoIs(ctx, list); err != nil {
			return "", err
		}
	}
	if id == h.host.ID() {
		return id, nil
	}
	h.host.Peerstore().AddAddrs(id, list, peerstore.TempAddrTTL)
	if sw, ok := h.host.Network().(*swarm.Swarm); ok {
		sw.Backoff().Clear(id) // ours is the one that counts
	}
	if err := h.host.Connect(network.WithForceDirectDial(ctx, "hint"), peer.AddrInfo{ID: id, Addrs: list}); err != nil {
		return "", err
	}
	return id, nil
}

// whoIs dials as if for a made-up peer and reads from the handshake's complaint who answered. At that
// point the other has shown a certificate but not that it holds its key, so the answer is only a claim:
// the caller dials that peer, and that handshake proves it. A liar gains that one of our dials fails.
func (h *Host) whoIs(ctx context.Context, addrs []ma.Multiaddr) (peer.ID, error) {
	_, pub, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		return "", err
	}
	nobody, err := peer.IDFromPublicKey(pub)
	if err != nil {
		return "", err
	}
	h.remotes.asking.Store(nobody, nil)
	defer h.remotes.asking.Delete(nobody)
	defer h.host.Peerstore().ClearAddrs(nobody)
	err = h.host.Connect(ctx, peer.AddrInfo{ID: nobody, Addrs: addrs})
	var mismatch sec.ErrPeerIDMismatch
	if errors.As(err, &mismatch) {
		return mismatch.Actual, nil
	}
	if err == nil {
		err = errors.New("answered as a peer that does not exist")
	}
	return "", err
}
