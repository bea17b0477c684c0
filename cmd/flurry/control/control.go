// Package control is how the command line and a running agent talk: HTTP with JSON over a unix socket.
// Both ends are here, so that they cannot disagree: types, [Client], [Handler], and the socket itself
// with the check of who connects ([Listen], [Serve]).
//
// It must never be reachable over a network, answer another user than root, the agent's own or a
// member of group flurry, nor hold any logic of the agent's: [Agent] is filled in by who wires it.
//
// Endpoints. Errors are answered with a status from 400 and [Failure].
//
//	GET  /status                  status.Report
//	GET  /peers                   []status.Peer
//	GET  /locate?path=P           Location; P is a store path, its base name or its store hash
//	GET  /id                      ID
//	GET  /keys                    Keys
//	GET  /doctor                  []doctor.Finding, of what only the agent knows; takes seconds
//	POST /pause?duration=10m      Sharing; without duration until resumed
//	POST /resume                  Sharing
//	POST /cache/clear?what=W      Cleared; W is all, narinfos, negative or nars
//	POST /login                   Dashboard
//	GET  /cache/…                 the substituter's binary cache protocol
package control

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/doctor"
	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/verify"
)

// SocketName is the socket's name in its directory.
const SocketName = "flurry.sock"

// Location is where a path can be had.
type Location struct {
	Path    string   `json:"path,omitempty"`     // as signed; "" if nobody knows it
	Hash    string   `json:"hash"`               // store hash
	NarHash string   `json:"nar_hash,omitempty"` // sha256:…
	NarSize int64    `json:"nar_size,omitempty"` // bytes
	Sources []Source `json:"sources"`            // in the order in which they would be tried; empty: nobody has it
}

// The kinds of source.
const (
	SourceStore    = "store"     // this machine's Nix store
	SourceInFlight = "in-flight" // being fetched right now
	SourcePeer     = "peer"
	SourceUpstream = "upstream"
)

// Source is one that has a path.
type Source struct {
	Kind        string  `json:"kind"`
	ID          string  `json:"id,omitempty"`               // peer id or upstream's URL
	Via         string  `json:"via,omitempty"`              // how a peer was found
	RTTMillis   float64 `json:"rtt_ms,omitempty"`           // 0 unknown
	BytesPerSec float64 `json:"bytes_per_second,omitempty"` // expected, 0 unknown
	Use         bool    `json:"use"`                        // the bytes would come from here
	Note        string  `json:"note,omitempty"`             // such as why it would not be used
}

// ID is who this agent is.
type ID struct {
	PeerID string   `json:"peer_id"`
	Addrs  []string `json:"addresses"` // complete multiaddrs with /p2p/…, for another agent's peers.static
}

// Keys are the configured public keys, in Nix's notation.
type Keys struct {
	Public  []string `json:"public"`
	Private []string `json:"private"`
}

// Sharing tells whether the agent serves peers.
type Sharing struct {
	Paused bool       `json:"paused"`
	Until  *time.Time `json:"until,omitempty"` // nil: until resumed
	// Metered: the link is paid by the byte, so nothing is shared even without a pause.
	Metered bool `json:"metered,omitempty"`
}

// Dashboard is the status page's address for one browser.
type Dashboard struct {
	URL     string `json:"url"`     // with a token that works once
	Seconds int    `json:"seconds"` // how long it works
}

// What names a part of the agent's cache.
type What string

// The parts that can be cleared.
const (
	ClearAll      What = "all"
	ClearNarInfos What = "narinfos" // cached answers, positive and negative
	ClearNegative What = "negative" // cached misses only
	ClearNARs     What = "nars"     // spooled NARs
)

// Cleared counts what was forgotten.
type Cleared struct {
	NarInfos int   `json:"narinfos"` // positive answers
	Negative int   `json:"negative"` // misses
	NARs     int   `json:"nars"`
	Bytes    int64 `json:"bytes"` // of disk space, as far as known
}

// Failure is an error as it is sent, in one line.
type Failure struct {
	Error string `json:"error"` // what is wrong, and what to do
}

// Target is a path as users name it.
type Target struct {
	Hash verify.StoreHash
	Base string // <hash>-<name>, "" if only the hash was given
}

// String returns the base name, or the hash alone.
func (t Target) String() string {
	if t.Base != "" {
		return t.Base
	}
	return t.Hash.String()
}

// ParseTarget reads a store path, its base name, or its 32-character store hash.
func ParseTarget(s string) (Target, error) {
	if h, err := verify.ParseStoreHash(s); err == nil {
		return Target{Hash: h}, nil
	}
	if !strings.Contains(s, "/") {
		s = verify.DefaultStoreDir + "/" + s
	}
	p, err := verify.ParseStorePath(filepath.Clean(s))
	if err != nil {
		return Target{}, fmt.Errorf("%.100q is no store path; give /nix/store/<hash>-<name>, <hash>-<name>, the hash alone, or a link to one", s)
	}
	return Target{Hash: p.Hash(), Base: p.Base()}, nil
}

// Agent is what a running agent answers with. Functions must be safe for concurrent use; nil ones
// answer 501.
type Agent struct {
	Report func() status.Report
	Locate func(context.Context, Target) (Location, error)
	ID     func() ID
	Keys   func() Keys
	Pause  func(time.Duration) Sharing // 0: until resumed
	Resume func() Sharing
	Clear  func(context.Context, What) (Cleared, error)
	Doctor func(context.Context) []doctor.Finding
	Login  func() Dashboard
	Cache  http.Handler // as on the substituter's port, paths without /cache
}
