// Package discovery is the contract between the ways of finding peers and those who use what they
// find. Each mechanism has a folder: mdns, static, dht. A mechanism only hints: who a peer really is,
// the dial proves. It never dials, never answers questions about paths and knows nothing of stores.
package discovery

import "context"

// Via names the mechanism that found a peer; it appears in status output.
type Via string

// The mechanisms.
const (
	ViaMDNS   Via = "mdns"
	ViaStatic Via = "static"
	ViaDHT    Via = "dht"
	// ViaIntroduced is no mechanism of this folder: a static peer named the other (package p2p).
	ViaIntroduced Via = "introduced"
)

// MaxAddrs bounds the addresses of one hint: eight IP addresses by TCP and by QUIC are more than any
// machine needs, and each is a dial that somebody on the network can make us try.
const MaxAddrs = 16

// Found is a hint that a peer may be reached at some addresses.
type Found struct {
	Via  Via
	Name string // stable identity of the hint within its mechanism, for replacing an older one; untrusted text
	// PeerID is the base58 or CID text of the peer's identity, "" where the mechanism does not know
	// it (a static host:port): then whoever answers there is the peer.
	PeerID string
	Addrs  []string // multiaddrs without /p2p suffix, best first; at most MaxAddrs
	// Keep asks that the peer be redialled for ever (static peers).
	Keep bool
}

// Finder runs one mechanism. Run blocks until ctx ends or the mechanism can never work, and returns
// nil in the first case; trouble that may pass is retried inside with backoff and logged once. found
// is called from one goroutine at a time, must not block, and may be told the same again.
type Finder interface {
	Run(ctx context.Context, found func(Found)) error
}
