package p2p

import (
	"context"
	"errors"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// ErrAbsent is a catalog's or a peer's answer "I do not have it".
var ErrAbsent = errors.New("absent")

// Catalog is what this machine may serve. Every method takes the reader's audience and must never be
// wrong in the generous direction. Implementations are safe for concurrent use.
type Catalog interface {
	// Keys returns the have-set of one audience; the caller may change the slice.
	Keys(reader verify.Scope) []uint64
	// Watch calls fn, in order and without blocking it, with every later change; cancel ends that.
	Watch(fn func(Change)) (cancel func())
	// NarInfo returns what this reader may know of a path, or ErrAbsent. URL is relative to the root.
	NarInfo(ctx context.Context, d verify.PathDigest, reader verify.Scope) (*verify.NarInfo, error)
	// NAR returns the content of a path whose NAR has that hash, or ErrAbsent. The caller closes it.
	NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, reader verify.Scope) (Content, error)
	// Chain returns the form of the chain of a NAR that NAR would return, see [verify.Chain], ErrAbsent, or
	// ErrBusy if it takes longer than ctx or others are waiting.
	Chain(ctx context.Context, h verify.StoreHash, narHash verify.Hash, reader verify.Scope) ([]byte, error)
}

// Change is a change of the catalog. Keys of group-only paths must reach only the group's peers.
type Change struct {
	Added, Removed []ChangedKey
}

// ChangedKey is one key of a have-set and the greatest audience that may learn of it.
type ChangedKey struct {
	Key   uint64
	Scope verify.Scope
}

// Content is one NAR that can be written in ranges.
type Content interface {
	binarycache.Content
	Close() error
}
