package p2p

import (
	"cmp"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/flurry-nix/flurry/discovery"
)

// haveMemoryMost bounds the have-sets of all peers together, in bytes. 70 neighbours with 200,000 paths
// each fit; of more, those that were of most use are kept.
const haveMemoryMost = 32 << 20

// haveMemory shares memory out among the have-sets of peers. mu guards all fields below it; it is taken
// before a peer's mu and its have-set's.
type haveMemory struct {
	host *Host
	most int64

	mu      sync.Mutex
	used    int64
	held    map[*Peer]int64          // bytes
	missed  map[*Peer]int64          // bytes that dropped and refused sets would need
	loading map[*Peer]network.Stream // on which the rest of a set comes that is held already
}

// claim sets what p's have-set takes to n bytes, dropping sets of less useful peers if it must. It returns
// false, and changes nothing, if that does not suffice.
func (m *haveMemory) claim(p *Peer, n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if need := m.used - m.held[p] + n - m.most; need > 0 && !m.makeRoom(p, n, need) {
		return false
	}
	m.set(p, n)
	delete(m.missed, p)
	return true
}

// load is claim for a set that is about to come on s, which ends if p's set is dropped before all of it came.
func (m *haveMemory) load(p *Peer, n int64, s network.Stream) bool {
	if !m.claim(p, n) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.held[p] != n { // dropped by now
		return false
	}
	m.loading[p] = s
	return true
}

// set notes what p's have-set takes, all of which is here; mu is held.
func (m *haveMemory) set(p *Peer, n int64) {
	if m.held == nil {
		m.held, m.missed, m.loading = map[*Peer]int64{}, map[*Peer]int64{}, map[*Peer]network.Stream{}
	}
	delete(m.loading, p)
	m.used += n - m.held[p]
	if m.held[p] = n; n == 0 {
		delete(m.held, p)
	}
}

// makeRoom frees need bytes for p, which wants n: from peers that were of less use, the least useful
// first, and from equally useful ones whose sets are larger. All or nothing.
func (m *haveMemory) makeRoom(p *Peer, n, need int64) bool {
	type victim struct {
		p    *Peer
		use  int
		held int64
	}
	mine := usefulness(p)
	var list []victim
	var sum int64
	for q, held := range m.held {
		if q == p {
			continue
		}
		if use := usefulness(q); use < mine || use == mine && held > n {
			list = append(list, victim{q, use, held})
			sum += held
		}
	}
	if sum < need {
		return false
	}
	slices.SortFunc(list, func(a, b victim) int {
		return cmp.Or(cmp.Compare(a.use, b.use), cmp.Compare(b.held, a.held))
	})
	for _, v := range list {
		if need <= 0 {
			break
		}
		if s := m.loading[v.p]; s != nil {
			s.SetReadDeadline(time.Now()) // its memory is free only once nobody reads into it
		}
		v.p.have.clear()
		m.set(v.p, 0)
		m.missed[v.p] = v.held
		need -= v.held
	}
	return true
}

// drop forgets p's have-set for want of memory; n bytes would be needed.
func (m *haveMemory) drop(p *Peer, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.have.clear()
	m.set(p, 0)
	m.missed[p] = n
}

// forget forgets p's have-set because p is gone.
func (m *haveMemory) forget(p *Peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.have.clear()
	m.set(p, 0)
	delete(m.missed, p)
}

// isMissed tells whether p's have-set is not kept.
func (m *haveMemory) isMissed(p *Peer) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, missed := m.missed[p]
	return missed
}

// askAgain makes the most useful peer whose set was dropped, and would fit now, tell it again.
func (m *haveMemory) askAgain() {
	m.mu.Lock()
	var best *Peer
	most := 0
	for p, n := range m.missed {
		if use := usefulness(p); m.used+n <= m.most && (best == nil || use > most) {
			best, most = p, use
		}
	}
	delete(m.missed, best)
	m.mu.Unlock()
	if best == nil {
		return
	}
	best.mu.Lock()
	stream := best.haveStream
	best.mu.Unlock()
	if stream != nil {
		stream.ResetWithError(network.StreamResourceLimitExceeded) // its sender begins anew
	}
}

// usefulness orders peers by what their have-sets were and will be good for.
func usefulness(p *Peer) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	use := 4*bits.Len(uint(p.good)) - int(20*p.falseShare)
	if p.group {
		use += 16
	}
	if p.via == string(discovery.ViaStatic) {
		use += 8
	}
	return use
}
