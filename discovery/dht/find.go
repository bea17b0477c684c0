package dht

import (
	"context"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/verify"
)

const (
	findPatience = 4 * time.Second        // of one look-up; callers wait less
	findGrace    = 300 * time.Millisecond // for more of them after the first
	findMost     = 8                      // providers of one path
	answersKept  = 1 << 12
	hitLife      = time.Minute
	missLife     = 5 * time.Minute
	deadLife     = 10 * time.Minute
)

// answer is what a look-up brought.
type answer struct {
	found []discovery.Found
	until time.Time
}

// Find returns agents that provide the path of a verified narinfo, at most a few, those last that were of no
// use lately. It answers from memory what was asked not long ago; concurrent questions share a look-up. No
// answer within ctx is an answer of none. Nobody but the nodes around the key hears the question, and they hear
// only a hash.
func (d *DHT) Find(ctx context.Context, v *verify.Verified) []discovery.Found {
	if v.Scope() != verify.ScopePublic {
		return nil // others must not even hear the question
	}
	key := KeyOf(v.Path().Hash())
	if a, ok := d.answers.Get(key); ok && d.now().Before(a.until) {
		return d.living(a.found)
	}
	call := d.finding.DoChan(string(key[:]), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), findPatience)
		defer cancel()
		return d.lookUp(ctx, key), nil
	})
	select {
	case r := <-call:
		return d.living(r.Val.([]discovery.Found))
	case <-ctx.Done():
		return nil
	}
}

// lookUp asks the network.
func (d *DHT) lookUp(ctx context.Context, key Key) []discovery.Found {
	node := d.node.Load()
	if node == nil || node.RoutingTable().Size() == 0 {
		return nil
	}
	d.stats.lookups.Add(1)
	asking, enough := context.WithCancel(ctx)
	defer enough()
	var found []discovery.Found
	var grace *time.Timer // a node that is gone holds the look-up for seconds
	for info := range node.FindProvidersAsync(asking, cid.NewCidV1(cid.Raw, key.multihash()), findMost) {
		if f, ok := d.hint(info); ok {
			if found = append(found, f); grace == nil {
				grace = time.AfterFunc(findGrace, enough)
			}
		}
	}
	if grace != nil {
		grace.Stop()
	}
	life := hitLife
	if len(found) == 0 {
		life = missLife
		d.stats.missed.Add(1)
		if ctx.Err() != nil {
			return nil // not heard to the end
		}
	} else {
		d.stats.found.Add(1)
	}
	d.answers.Add(key, answer{found, d.now().Add(life)})
	return found
}

// hint turns a record into a hint, without the addresses that are not the internet's.
func (d *DHT) hint(info peer.AddrInfo) (f discovery.Found, ok bool) {
	if info.ID == d.host.ID() {
		return f, false
	}
	f = discovery.Found{Via: discovery.ViaDHT, Name: info.ID.String(), PeerID: info.ID.String()}
	addrs := info.Addrs
	if len(addrs) == 0 {
		addrs = d.host.Peerstore().Addrs(info.ID)
	}
	for _, a := range d.publicOnly(addrs) {
		if f.Addrs = append(f.Addrs, a.String()); len(f.Addrs) == discovery.MaxAddrs {
			break
		}
	}
	return f, len(f.Addrs) > 0
}

// living leaves out agents that led nowhere lately.
func (d *DHT) living(list []discovery.Found) []discovery.Found {
	var out []discovery.Found
	for _, f := range list {
		if id, err := peer.Decode(f.PeerID); err == nil {
			if until, ok := d.dead.Get(id); ok && d.now().Before(until) {
				continue
			}
		}
		out = append(out, f)
	}
	return out
}

// Dead remembers that an agent could not be reached or did not have what its record says.
func (d *DHT) Dead(id string) {
	if p, err := peer.Decode(id); err == nil {
		d.dead.Add(p, d.now().Add(deadLife))
	}
}
