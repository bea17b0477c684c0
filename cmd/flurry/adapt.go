package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/p2p"
	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/store"
	"github.com/flurry-nix/flurry/substituter"
	"github.com/flurry-nix/flurry/upstream"
	"github.com/flurry-nix/flurry/verify"
)

// The packages do not know each other; these adapters fit what one offers to what another asks for,
// translating only types and each package's word for "absent".

// localStore is the store as the substituter sees it.
type localStore struct{ *store.Store }

func (s localStore) Info(ctx context.Context, h verify.StoreHash) (*verify.NarInfo, error) {
	n, err := s.Store.Info(ctx, h)
	return n, as(err, store.ErrAbsent, substituter.ErrAbsent)
}

func (s localStore) NAR(ctx context.Context, h verify.StoreHash) (binarycache.Content, error) {
	n, err := s.Store.NAR(ctx, h)
	if err != nil {
		return nil, as(err, store.ErrAbsent, substituter.ErrAbsent)
	}
	return n, nil
}

// as adds the sentinel to where err is from.
func as(err, from, to error) error {
	if errors.Is(err, from) {
		return fmt.Errorf("%w: %w", to, err)
	}
	return err
}

// catalog is the store as peers may see it. Every answer is verified anew: what memory says may be
// older than the database.
type catalog struct {
	store *store.Store
	keys  *verify.Keys
	// partial serves publicly signed NARs that are on their way; set before peers are served.
	partial func(verify.StoreHash, verify.Hash) (*substituter.PartialNAR, error)
	// chains of store paths and of NARs that landed; set likewise.
	storeChain  func(context.Context, *verify.Verified) ([]byte, error)
	landedChain func(verify.StoreHash, verify.Hash) ([]byte, error)
}

func (c *catalog) Keys(reader verify.Scope) []uint64 { return c.store.Keys(reader) }

func (c *catalog) Watch(fn func(p2p.Change)) func() {
	return c.store.Subscribe(func(ch store.Change) {
		fn(p2p.Change{Added: changedKeys(ch.Added), Removed: changedKeys(ch.Removed)})
	})
}

func changedKeys(list []store.Entry) []p2p.ChangedKey {
	out := make([]p2p.ChangedKey, len(list))
	for i, e := range list {
		out[i] = p2p.ChangedKey{Key: e.Key, Scope: e.Scope}
	}
	return out
}

// verified returns a path's narinfo if reader may have it.
func (c *catalog) verified(ctx context.Context, h verify.StoreHash, reader verify.Scope) (*verify.Verified, error) {
	info, err := c.store.Info(ctx, h)
	if err != nil {
		return nil, as(err, store.ErrAbsent, p2p.ErrAbsent)
	}
	v, err := c.keys.Verify(info)
	if err != nil || v.Scope() < reader {
		return nil, p2p.ErrAbsent
	}
	return v, nil
}

func (c *catalog) NarInfo(ctx context.Context, d verify.PathDigest, reader verify.Scope) (*verify.NarInfo, error) {
	h, ok := c.store.ByDigest(d, reader)
	if !ok {
		return nil, p2p.ErrAbsent
	}
	v, err := c.verified(ctx, h, reader)
	if err != nil {
		return nil, err
	}
	return v.For(reader, binarycache.NARURL(h, v.NarHash()), "none"), nil
}

func (c *catalog) NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, reader verify.Scope) (p2p.Content, error) {
	if !c.store.Shared(h, reader) {
		content, err := c.partial(h, narHash)
		if err != nil {
			return nil, as(err, substituter.ErrAbsent, p2p.ErrAbsent)
		}
		return content, nil
	}
	v, err := c.verified(ctx, h, reader)
	if err != nil {
		return nil, err
	}
	n, err := c.store.NAR(ctx, h)
	if err != nil {
		return nil, as(err, store.ErrAbsent, p2p.ErrAbsent)
	}
	if v.NarHash() != narHash || n.Size() != v.NarSize() {
		return nil, p2p.ErrAbsent
	}
	return storeContent{n}, nil
}

func (c *catalog) Chain(ctx context.Context, h verify.StoreHash, narHash verify.Hash, reader verify.Scope) ([]byte, error) {
	var form []byte
	var err error
	if !c.store.Shared(h, reader) {
		form, err = c.landedChain(h, narHash)
	} else {
		v, verr := c.verified(ctx, h, reader)
		if verr != nil {
			return nil, verr
		}
		if v.NarHash() != narHash {
			return nil, p2p.ErrAbsent
		}
		form, err = c.storeChain(ctx, v)
	}
	return form, as(as(err, substituter.ErrAbsent, p2p.ErrAbsent), substituter.ErrBusy, p2p.ErrBusy)
}

// storeContent is a NAR of the store, which holds nothing open.
type storeContent struct{ binarycache.Content }

func (storeContent) Close() error { return nil }

// neighbours are the peers as the substituter sees them.
type neighbours struct{ host *p2p.Host } // nil without peers

func (n neighbours) Holders(d verify.PathDigest, size int64) []substituter.Peer {
	if n.host == nil {
		return nil
	}
	list := n.host.Holders(d, size)
	if len(list) == 0 {
		return nil
	}
	out := make([]substituter.Peer, len(list))
	for i, p := range list {
		out[i] = neighbour{p}
	}
	return out
}

type neighbour struct{ *p2p.Peer }

func (n neighbour) NarInfo(ctx context.Context, d verify.PathDigest) (*verify.NarInfo, error) {
	info, err := n.Peer.NarInfo(ctx, d)
	return info, as(err, p2p.ErrAbsent, substituter.ErrAbsent)
}

func (n neighbour) NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size, from, to int64) (io.ReadCloser, error) {
	body, err := n.Peer.NAR(ctx, h, narHash, size, from, to)
	if err != nil {
		return nil, as(as(err, p2p.ErrAbsent, substituter.ErrAbsent), p2p.ErrBusy, substituter.ErrBusy)
	}
	return body, nil
}

func (n neighbour) Chain(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size int64) (verify.Chain, error) {
	chain, err := n.Peer.Chain(ctx, h, narHash, size)
	return chain, as(as(err, p2p.ErrAbsent, substituter.ErrAbsent), p2p.ErrBusy, substituter.ErrBusy)
}

// site is the neighbours as the substituter tells them of NARs on their way.
type site struct{ host *p2p.Host }

func (s site) Self() string                             { return s.host.ID() }
func (s site) Neighbours() int                          { return s.host.Neighbours() }
func (s site) IDs() []string                            { return s.host.NeighbourIDs() }
func (s site) News(d verify.PathDigest) <-chan struct{} { return s.host.News(d) }

func (s site) Fetched(own int64) int64 { return s.host.Fetched(own) }

func (s site) Spread(slow func(string) bool) time.Duration { return s.host.Spread(slow) }

func (s site) Tell(d verify.PathDigest, p substituter.Progress, now bool) {
	s.host.Tell(d, p2p.Progress{Stage: uint8(p.Stage), Held: p.Held}, now)
}

func (s site) Flying(d verify.PathDigest) []substituter.Flying {
	var out []substituter.Flying
	for _, f := range s.host.Flying(d) {
		out = append(out, substituter.Flying{Peer: neighbour{f.Peer}, Suspect: f.Suspect, Progress: substituter.Progress{Stage: substituter.Stage(f.Stage), Held: f.Held}})
	}
	return out
}

// centralCache is an upstream as the substituter sees it.
type centralCache struct{ *upstream.Client }

func (c centralCache) NarInfo(ctx context.Context, h verify.StoreHash) (*verify.Verified, string, error) {
	v, text, err := c.Client.NarInfo(ctx, h)
	return v, text, as(err, upstream.ErrAbsent, substituter.ErrAbsent)
}

func (c centralCache) NAR(ctx context.Context, v *verify.Verified, off int64) (substituter.NARBody, error) {
	body, err := c.Client.NAR(ctx, v, off)
	if err != nil {
		return nil, as(err, upstream.ErrAbsent, substituter.ErrAbsent)
	}
	return body, nil
}

func (c centralCache) CanForward(path string) bool { return upstream.CanForward(path) }

// upstreamStatus is a central cache as the report shows it.
func upstreamStatus(u upstream.Status) status.Upstream {
	s := status.Upstream{URL: u.URL, Reachable: u.Reachable, LastError: u.LastError, RTTMillis: status.Millis(u.RTT), XZ: u.XZ, State: "ok", WireBytes: u.WireBytes}
	if time.Since(u.LastErrorAt) > troubleShown {
		s.LastError = ""
	}
	switch {
	case u.Breaker == "open":
		s.State, s.RetrySecs = "resting", max(0, time.Until(u.RetryAt).Seconds())
	case u.Breaker == "probing":
		s.State = u.Breaker
	case u.Denied:
		s.State = "denied"
	}
	return s
}
