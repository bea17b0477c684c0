package p2p

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// Standing of a peer.
const (
	firstRTT     = 5 * time.Millisecond // before any was measured: a LAN's
	ewmaWeight   = 0.25                 // of the newest sample
	suspectMin   = time.Second          // how long a stalled peer is left out, at first
	suspectMax   = time.Minute          // and at most
	banTime      = 12 * time.Hour       // for wrong bytes
	minRateBytes = 256 << 10            // a body below this says nothing about throughput
)

// Peer is another agent. Its methods are safe for concurrent use; mu guards the fields below it.
type Peer struct {
	id   peer.ID
	host *Host
	have haveSet

	in, out     atomic.Int64 // NAR bytes received from and sent to it
	falseClaims atomic.Int64 // questions it answered with 404 although it claimed to have the path

	mu           sync.Mutex
	via          string
	connectedAt  time.Time // zero: not connected
	rtt          time.Duration
	rate         float64 // bytes per second of its NAR bodies, 0 unknown
	failures     int     // in a row
	suspectUntil time.Time
	bannedUntil  time.Time
	banReason    string
	group        bool // proved knowledge of the group secret on this connection
}

// ID returns the peer id's text.
func (p *Peer) ID() string { return p.id.String() }

// Banned tells whether the peer sent wrong bytes not long ago.
func (p *Peer) Banned() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host.now().Before(p.bannedUntil)
}

// scope is the audience that the peer belongs to.
func (p *Peer) scope() verify.Scope {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.group {
		return verify.ScopeGroup
	}
	return verify.ScopePublic
}

// usable tells whether it makes sense to ask the peer anything now.
func (p *Peer) usable() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.host.now()
	return !p.connectedAt.IsZero() && now.After(p.suspectUntil) && now.After(p.bannedUntil)
}

// Cost estimates how long the peer takes to send size bytes.
func (p *Peer) Cost(size int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	rate := p.rate
	if rate == 0 {
		rate = 50e6 // half a Gbit link: try new peers, but known fast ones first
	}
	return p.rtt + time.Duration(float64(size)/rate*float64(time.Second)) + time.Duration(p.failures)*50*time.Millisecond
}

// RTT is the smoothed time from a question to the first byte of its answer.
func (p *Peer) RTT() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rtt
}

// Claims tells whether the peer's have-set names the path; no packet is sent.
func (p *Peer) Claims(d verify.PathDigest) bool { return p.have.Has(d.Key()) }

// NarInfo asks the peer what it knows of a path. The answer is a claim to be verified. ErrAbsent
// means that it does not have it.
func (p *Peer) NarInfo(ctx context.Context, d verify.PathDigest) (*verify.NarInfo, error) {
	resp, err := p.get(ctx, d.String()+".narinfo", 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	n, err := verify.ReadNarInfo(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("peer %v: %w", p.id, err)
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1)) // see io.EOF, so that the stream is used again
	return n, nil
}

// NAR asks the peer for the NAR of a path, whose signed hash and size are known, from byte off on. The
// body yields at most size-off unverified bytes; it ends with io.ErrUnexpectedEOF if there are fewer.
func (p *Peer) NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size, off int64) (io.ReadCloser, error) {
	resp, err := p.get(ctx, binarycache.NARURL(h, narHash), off)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength != size-off {
		resp.Body.Close()
		return nil, fmt.Errorf("peer %v: answer of %d bytes where %d were asked for", p.id, resp.ContentLength, size-off)
	}
	return &narBody{ReadCloser: resp.Body, p: p, started: time.Now()}, nil
}

// get sends one request and returns a 200 (off = 0) or 206 answer.
func (p *Peer) get(ctx context.Context, name string, off int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.id.String()+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	want := http.StatusOK
	if off > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", off))
		want = http.StatusPartialContent
	}
	start := time.Now()
	resp, err := p.host.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("peer %v: %w", p.id, errors.Unwrap(err)) // the URL is not for logs
	}
	p.sampleRTT(time.Since(start))
	if resp.StatusCode == want {
		return resp, nil
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		p.falseClaims.Add(1)
		return nil, fmt.Errorf("peer %v: %w", p.id, ErrAbsent)
	}
	return nil, fmt.Errorf("peer %v: unexpected status %d", p.id, resp.StatusCode)
}

func (p *Peer) sampleRTT(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rtt += time.Duration(ewmaWeight * float64(d-p.rtt))
}

// Good records that a transfer went well: n verified bytes.
func (p *Peer) Good() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures, p.suspectUntil = 0, time.Time{}
}

// Flaky records a stall or a failure. The peer is left out for a while that doubles with each failure
// in a row, with jitter, and heals by itself.
func (p *Peer) Flaky(err error) {
	p.mu.Lock()
	p.failures++
	d := min(suspectMax, suspectMin<<min(p.failures-1, 10))
	d = d/2 + rand.N(d)
	p.suspectUntil = p.host.now().Add(d)
	p.mu.Unlock()
	p.host.log.Info("peer is left out for a while", "peer", p.ID(), "for", d.Round(time.Millisecond), "err", err)
}

// Convict records that the peer sent bytes known to be wrong. It is out at once.
func (p *Peer) Convict(err error) {
	p.mu.Lock()
	p.bannedUntil, p.banReason = p.host.now().Add(banTime), err.Error()
	p.mu.Unlock()
	p.host.log.Warn("peer sent wrong bytes and is shut out", "peer", p.ID(), "for", banTime, "err", err)
	p.host.expel(p)
}

// narBody counts and times what a peer sends.
type narBody struct {
	io.ReadCloser
	p       *Peer
	started time.Time
	n       int64
	once    sync.Once
}

func (b *narBody) Read(buf []byte) (int, error) {
	n, err := b.ReadCloser.Read(buf)
	b.n += int64(n)
	b.p.in.Add(int64(n))
	return n, err
}

func (b *narBody) Close() error {
	b.once.Do(func() {
		if b.n >= minRateBytes {
			b.p.sampleRate(float64(b.n) / max(time.Since(b.started).Seconds(), 1e-6))
		}
	})
	return b.ReadCloser.Close()
}

func (p *Peer) sampleRate(rate float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rate == 0 {
		p.rate = rate
		return
	}
	p.rate += ewmaWeight * (rate - p.rate)
}

// peerTable holds every peer ever seen by this process; mu guards byID.
type peerTable struct {
	host *Host
	mu   sync.RWMutex
	byID map[peer.ID]*Peer

	online atomic.Pointer[[]*Peer] // written under mu
}

// maxPeers bounds the table: at about 500 bytes each a stranger cannot fill memory with identities.
const maxPeers = 10_000

// get returns the peer's record, a new one for a new identity, or nil if the table is full.
func (t *peerTable) get(id peer.ID) *Peer {
	t.mu.RLock()
	p := t.byID[id]
	t.mu.RUnlock()
	if p != nil {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p = t.byID[id]; p == nil && (len(t.byID) < maxPeers || t.evict()) {
		p = &Peer{id: id, host: t.host, rtt: firstRTT}
		t.byID[id] = p
	}
	return p
}

// evict drops one record that holds nothing worth keeping.
func (t *peerTable) evict() bool {
	for id, p := range t.byID {
		p.mu.Lock()
		idle := p.connectedAt.IsZero() && p.host.now().After(p.bannedUntil)
		p.mu.Unlock()
		if idle {
			delete(t.byID, id)
			return true
		}
	}
	return false
}

// setConnected publishes the list of connected peers for readers that must not wait.
func (t *peerTable) setConnected(p *Peer, on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*Peer
	for _, q := range t.connected() {
		if q != p {
			list = append(list, q)
		}
	}
	if on {
		list = append(list, p)
	}
	t.online.Store(&list)
}

// connected returns the connected peers; the slice is not to be changed.
func (t *peerTable) connected() []*Peer {
	if l := t.online.Load(); l != nil {
		return *l
	}
	return nil
}

// Holders returns the peers that claim to have a path and may be asked now, the quickest for size
// bytes first. No packet is sent.
func (h *Host) Holders(d verify.PathDigest, size int64) []*Peer {
	key := d.Key()
	var list []*Peer
	for _, p := range h.peers.connected() {
		if p.have.Has(key) && p.usable() {
			list = append(list, p)
		}
	}
	if len(list) < 2 {
		return list
	}
	cost := make(map[*Peer]time.Duration, len(list))
	for _, p := range list {
		// Jitter spreads a site's load over peers that are about equal.
		cost[p] = time.Duration(float64(p.Cost(size)) * (0.8 + 0.4*rand.Float64()))
	}
	slices.SortFunc(list, func(a, b *Peer) int { return cmp.Compare(cost[a], cost[b]) })
	return list
}
