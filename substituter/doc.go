// Package substituter answers Nix: the binary cache protocol over HTTP on localhost. For each question
// it finds a verified narinfo, for each NAR it picks sources, fetches, verifies and serves.
//
// It must never answer a narinfo with anything but 200 or 404, never give Nix an unverified byte from a
// peer, never end a NAR cleanly before the whole was verified, and never make Nix wait without bound.
// It knows peers and upstreams only through the small interfaces below.
//
// Journey of a NAR: [Server] → flights (one flight per NAR, however many ask) → legs (one per source,
// at most two at a time) → spool (memory or file) → verify.Checker → readers.
package substituter

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// ErrAbsent is the answer "does not have it" of stores, peers and upstreams.
var ErrAbsent = errors.New("absent")

// ErrBusy is a peer's answer that it serves as many as it can; it says nothing against the peer.
var ErrBusy = errors.New("busy")

// Store is the local Nix store. Safe for concurrent use.
type Store interface {
	// Has tells from memory whether a path is valid here.
	Has(h verify.StoreHash) bool
	// Shared tells from memory whether a valid path may go to reader.
	Shared(h verify.StoreHash, reader verify.Scope) bool
	// Info returns what the database says of a valid path, or an error that wraps [ErrAbsent].
	Info(ctx context.Context, h verify.StoreHash) (*verify.NarInfo, error)
	// NAR returns the content of a valid path, or an error that wraps [ErrAbsent].
	NAR(ctx context.Context, h verify.StoreHash) (binarycache.Content, error)
	// AppendNAR appends the whole NAR, of size bytes, of a valid path to b; an error if the path is not so.
	AppendNAR(ctx context.Context, b []byte, h verify.StoreHash, size int64) ([]byte, error)
}

// Peers are the neighbours, known by their have-sets.
type Peers interface {
	// Holders returns the peers that claim to have a path, the quickest for size bytes first, without
	// sending anything. Size may be 0 for a mere question.
	Holders(d verify.PathDigest, size int64) []Peer
}

// Peer is one neighbour. Methods that take a context may send; errors that wrap [ErrAbsent] mean it
// does not have it after all. Safe for concurrent use.
type Peer interface {
	ID() string
	// RTT is the smoothed time to the first byte of an answer.
	RTT() time.Duration
	// Cost estimates how long it takes to send size bytes.
	Cost(size int64) time.Duration
	// NarInfo returns an unverified narinfo.
	NarInfo(ctx context.Context, d verify.PathDigest) (*verify.NarInfo, error)
	// NAR returns the unverified bytes [from, to) of a NAR of size bytes.
	NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size, from, to int64) (io.ReadCloser, error)
	// Chain returns what the peer claims to be the chain of a NAR of size bytes; it may take seconds.
	Chain(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size int64) (verify.Chain, error)
	// Good, Useless, Flaky and Convict report how it went: verified bytes, an answer of no use that may be
	// no fault, trouble, proven lies.
	Good()
	Useless(err error)
	Flaky(err error)
	Convict(err error)
}

// Upstream is one central cache. Errors that wrap [ErrAbsent] are its own "no"; all others mean that
// it could not be asked. Safe for concurrent use.
type Upstream interface {
	URL() string
	// Trouble tells what went wrong with it, for operators.
	Trouble(err error)
	// SetBusy names, before it is used, what tells whether the link is busy with what this site gets.
	SetBusy(busy func() bool)
	// Sends tells whether it answered anything or sent bytes of a NAR not longer than d ago; a busy link explains
	// longer silence.
	Sends(d time.Duration) bool
	// NarInfo returns a verified narinfo and its text as received.
	NarInfo(ctx context.Context, h verify.StoreHash) (*verify.Verified, string, error)
	// Parse verifies a text that NarInfo once returned.
	Parse(h verify.StoreHash, text string) (*verify.Verified, error)
	// NAR returns the uncompressed, unverified NAR from off on; v must be from this upstream.
	NAR(ctx context.Context, v *verify.Verified, off int64) (NARBody, error)
	// Forward passes a request for .ls, log/ and the like through, or returns an error before the first
	// byte of an answer.
	Forward(w http.ResponseWriter, r *http.Request) error
	// CanForward tells whether Forward knows that kind of path.
	CanForward(path string) bool
}

// NARBody is a NAR on its way from an upstream.
type NARBody interface {
	io.ReadCloser
	WireBytes() int64 // bytes received so far, as sent
	Broke() time.Time // when its connection last broke, although it went on over another one; zero: never
}
