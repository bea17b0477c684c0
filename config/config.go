// Package config is the agent's configuration: its schema, its defaults, where values come from and
// what is wrong with them. One table (keys.go) holds every key; decoding, flags, environment,
// defaults, documentation and validation all come from it, so they cannot disagree.
//
// A value comes from, strongest first: a flag (--substituter-listen), the environment
// (FLURRY_SUBSTITUTER_LISTEN), the file ([substituter] listen), the default. Secrets come by file only,
// so no key holds one.
//
// It must never read anything but the configuration file (CheckFiles asks for the mode of others),
// never reach the network, and never stop at the first mistake: every problem is reported at once.
//
// Format: TOML 1.0 (https://toml.io/en/v1.0.0); units as in values.go.
package config

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/flurry-nix/flurry/verify"
)

// DefaultPath is the file that is read when none is named, if it exists; without it the built-in
// defaults hold.
const DefaultPath = "/etc/flurry/config.toml"

// DefaultUpstreamURL and DefaultUpstreamKey are the central cache used when none is configured.
const (
	DefaultUpstreamURL = "https://cache.nixos.org"
	DefaultUpstreamKey = "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY="
)

// DefaultPeerPort is meant where a static peer is written without a port.
const DefaultPeerPort = 6491

// Config is a complete, valid configuration. Only [Load] and [Default] make one; not to be changed.
type Config struct {
	Path string // the file that was read, "" if none

	State       State
	Substituter Substituter
	Store       Store
	Upstreams   []Upstream // at least one, in order of preference
	Peers       Peers
	Internet    Internet
	Limits      Limits
	Log         Log

	origins map[string]origin
}

// State is what the agent writes.
type State struct {
	Dir string // absolute; not necessarily there yet
}

// Substituter is the binary cache that Nix talks to.
type Substituter struct {
	Listen       []string // host:port, at least one; an empty host means every address
	Priority     int      // 1 … 2^31-1, lower is asked first
	MaxBuffer    Size     // memory for one NAR that is being collected, before a file takes over
	AllowedHosts []string // lower case; Host headers accepted besides the listen addresses
}

// Store is the local Nix store.
type Store struct {
	Dir      string // absolute
	Database string // absolute, "" for no local store
	RealDir  string // absolute, "" for Dir; where Dir's files lie in a chroot store
}

// Upstream is one central cache.
type Upstream struct {
	URL         string   // http or https, no trailing slash, no query
	Keys        []string // name:base64, at least one
	Public      bool     // paths signed by Keys may be shared with anybody
	HeadersFile string   // absolute or ""; lines "Name: value" sent with every request
	NetrcFile   string   // absolute or ""; name and password for the cache's host
}

// Peers is how other agents are found and heard.
type Peers struct {
	Listen     []string // host:port, each TCP and UDP; an empty host means every address
	MDNS       bool
	Interfaces []string       // names; empty: every suitable one
	Networks   []netip.Prefix // where this agent announces itself
	Static     []string       // host:port or multiaddr
	Introduce  bool           // agents that name the same static ones to each other
	SecretFile string         // absolute or ""
}

// Internet is the part that leaves the site. Nothing of it happens unless Enable.
type Internet struct {
	Enable          bool
	Prefer          string   // "speed" or "offload"
	Bootstrap       []string // multiaddrs with /p2p of agents to begin with
	PublicAddresses []string // multiaddrs to announce; empty: found out
	Relay           bool     // be reachable through relays
	ServeRelay      bool     // be a relay for others
	Upload          Rate     // to agents beyond the site, all together
	MinNarSize      Size     // smaller NARs are neither announced nor looked up
}

// Limits bound what the agent takes from its machine and link.
type Limits struct {
	Upload        Rate          // to peers, all together
	Download      Rate          // from peers and upstreams, all together
	Connections   int           // to and from peers
	CacheSize     Size          // on disk: narinfos and spooled NARs
	KeepForOthers time.Duration // how long a spooled NAR stays after its last use
	Metered       Metered       // whether the link is paid by the byte: then nothing is uploaded
}

// Metered tells whether the machine's link is paid by the byte.
type Metered string

// MeteredAuto asks NetworkManager, where there is one.
const (
	MeteredAuto Metered = "auto"
	MeteredYes  Metered = "yes"
	MeteredNo   Metered = "no"
)

// Log is what goes to stderr.
type Log struct {
	Level  slog.Level
	Format string // "text" or "json"
}

// Keys returns the keys of all upstreams, ready to verify with.
func (c *Config) Keys() (*verify.Keys, error) { return verify.NewKeys(c.KeyStrings()) }

// KeyStrings returns the keys of all upstreams in Nix's notation: those whose paths may be shared
// with anybody, and the others.
func (c *Config) KeyStrings() (public, private []string) {
	for _, u := range c.Upstreams {
		if u.Public {
			public = append(public, u.Keys...)
		} else {
			private = append(private, u.Keys...)
		}
	}
	return public, private
}

// Problem makes a Problem about a key whose value was well formed but turned out wrong in use; it
// points at where the value came from.
func (c *Config) Problem(key, what, remedy string) Problem {
	return Problem{Where: c.origins[key].String(), Key: key, What: what, Remedy: remedy}
}

// Default returns the configuration of an agent that nobody configured, with state in stateDir.
func Default(stateDir string) *Config {
	c, problems := load(nil, "", nil, []string{"STATE_DIRECTORY=" + stateDir})
	if len(problems) > 0 {
		panic("config: a default is invalid: " + problems[0].Error()) // a test loads them all
	}
	return c
}
