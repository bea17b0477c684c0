package p2p

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/verify"
)

// maxPeers bounds the table: at about 600 bytes each a stranger cannot fill memory with identities.
const maxPeers = 10_000

// peerTable holds every peer ever seen by this process; mu guards byID.
type peerTable struct {
	host *Host
	mu   sync.RWMutex
	byID map[peer.ID]*Peer

	online  atomic.Pointer[[]*Peer] // neighbours; written under mu
	distant atomic.Pointer[[]*Peer] // agents of the internet that tell us what they have; likewise
}

// lookup returns the peer's record or nil.
func (t *peerTable) lookup(id peer.ID) *Peer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// get returns the peer's record, a new one for a new identity, or nil if the table is full.
func (t *peerTable) get(id peer.ID) *Peer {
	if p := t.lookup(id); p != nil {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.byID[id]
	if p == nil && (len(t.byID) < maxPeers || t.evict()) {
		p = newPeer(t.host, id)
		t.byID[id] = p
	}
	return p
}

// evict drops one record that holds nothing worth keeping, preferably of a stranger.
func (t *peerTable) evict() bool {
	now := t.host.now()
	var second peer.ID
	for id, p := range t.byID {
		p.mu.Lock()
		idle, stranger := p.connectedAt.IsZero() && !now.Before(p.bannedUntil), p.good == 0
		p.mu.Unlock()
		if idle && stranger {
			delete(t.byID, id)
			return true
		}
		if idle {
			second = id
		}
	}
	delete(t.byID, second)
	return second != ""
}

// all returns every record.
func (t *peerTable) all() []*Peer {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]*Peer, 0, len(t.byID))
	for _, p := range t.byID {
		list = append(list, p)
	}
	return list
}

// setConnected publishes the list of connected peers for readers that must not wait. It returns false
// if p's record was evicted meanwhile and another must be made.
func (t *peerTable) setConnected(p *Peer, on bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if on && t.byID[p.id] != p {
		return false
	}
	for _, list := range []*atomic.Pointer[[]*Peer]{&t.online, &t.distant} {
		fresh := slices.DeleteFunc(slices.Clone(load(list)), func(q *Peer) bool { return q == p })
		if on && (list == &t.distant) == p.far.Load() {
			fresh = append(fresh, p)
		}
		list.Store(&fresh)
	}
	return true
}

// connected returns the connected neighbours; the slice is not to be changed.
func (t *peerTable) connected() []*Peer { return load(&t.online) }

// everywhere returns those, and the agents of the internet that tell us what they have.
func (t *peerTable) everywhere() []*Peer { return slices.Concat(t.connected(), load(&t.distant)) }

func load(list *atomic.Pointer[[]*Peer]) []*Peer {
	if l := list.Load(); l != nil {
		return *l
	}
	return nil
}

type ranked struct {
	p    *Peer
	cost time.Duration
}

// Holders returns the neighbours that claim to have a path and may be asked now, the quickest for size
// bytes first. No packet is sent. It is asked with every narinfo: a miss allocates nothing.
func (h *Host) Holders(d verify.PathDigest, size int64) []*Peer {
	return h.holders(h.peers.connected(), d, size)
}

// FarHolders is Holders of the agents of the internet that tell us what they have.
func (h *Host) FarHolders(d verify.PathDigest, size int64) []*Peer {
	return h.holders(load(&h.peers.distant), d, size)
}

func (h *Host) holders(peers []*Peer, d verify.PathDigest, size int64) []*Peer {
	key := d.Key()
	var few [16]ranked // more holders than that are rare and cost one allocation
	list := few[:0]
	var now time.Time
	for _, p := range peers {
		if !p.have.Has(key) {
			continue
		}
		if now.IsZero() {
			now = h.now()
		}
		if cost, ok := p.costNow(now, size); ok {
			// Jitter spreads a site's load over peers that are about equal.
			list = append(list, ranked{p, time.Duration(float64(cost) * (0.8 + 0.4*rand.Float64()))})
		}
	}
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b ranked) int { return cmp.Compare(a.cost, b.cost) })
	out := make([]*Peer, len(list))
	for i, r := range list {
		out[i] = r.p
	}
	return out
}
