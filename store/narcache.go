package store

import (
	"container/list"
	"context"
	"sync"

	"github.com/flurry-nix/flurry/store/nar"
	"github.com/flurry-nix/flurry/verify"
)

// maxCachedEntries bounds what the cache keeps: files, directories and links, some 80 bytes each.
const maxCachedEntries = 1 << 17

// narCache keeps NARs lately opened: walking a tree of small files is a fifth of the work of sending it,
// and a NAR asked for once is asked for again, by range after range or neighbour after neighbour. The
// zero value is ready.
type narCache struct {
	mu      sync.Mutex // guards all below
	order   list.List  // of *cachedNAR, the latest first
	byHash  map[verify.StoreHash]*list.Element
	entries int
}

type cachedNAR struct {
	hash verify.StoreHash
	*nar.NAR
}

// open returns the NAR of the tree at root, anew if it is not the one that is kept.
func (c *narCache) open(ctx context.Context, h verify.StoreHash, root string) (*nar.NAR, error) {
	if n := c.kept(h); n != nil && n.Same() {
		return n, nil
	}
	n, err := nar.Open(ctx, root)
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byHash[h]; e != nil {
		c.drop(e)
	}
	if err != nil || n.Entries() > maxCachedEntries/2 {
		return n, err
	}
	if c.byHash == nil {
		c.byHash = map[verify.StoreHash]*list.Element{}
	}
	c.byHash[h] = c.order.PushFront(&cachedNAR{h, n})
	for c.entries += n.Entries(); c.entries > maxCachedEntries; {
		c.drop(c.order.Back())
	}
	return n, nil
}

// kept returns the NAR that is kept, of a tree that may be another one by now; nil if there is none.
func (c *narCache) kept(h verify.StoreHash) *nar.NAR {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byHash[h]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cachedNAR).NAR
}

// drop forgets one; mu is held.
func (c *narCache) drop(e *list.Element) {
	n := c.order.Remove(e).(*cachedNAR)
	delete(c.byHash, n.hash)
	c.entries -= n.Entries()
}
