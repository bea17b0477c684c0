// Package mdns finds peers on the local link: it announces this agent as a `_flurry._tcp` service by
// multicast DNS and reports the others it hears.
//
// Whatever comes in is a hint from a stranger. The package bounds it, checks its form and passes it on;
// it must never dial, never answer outside the configured networks, never reply to a single address
// (so it cannot be used to flood a third party), and never name anything but this agent's peer id,
// port and addresses on that link.
//
// One socket per IP version announces, answers, asks and hears, on the links in use only.
//
// Formats: RFC 6762 (multicast DNS), RFC 6763 (service discovery by DNS). TXT keys: `txtvers` (1) and
// `id` (the peer id's text); unknown keys are ignored.
package mdns

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	// Service is the DNS-SD service type.
	Service = "_flurry._tcp"
	// DefaultPort is the peer port, TCP and UDP.
	DefaultPort = 6491

	domain = "local"

	// pollEvery is how often interfaces and addresses are compared with those in use. A look costs
	// some 0.1 ms; asking works the same on every system and cannot overflow, where a netlink
	// subscription needs a parser and a resynchronisation after lost messages. One second leaves two
	// of the three within which a machine whose network comes up late is to be found.
	pollEvery = time.Second
)

// Config of a Finder. Only PeerID is required.
type Config struct {
	// PeerID is this agent's peer id, base58 or CID text.
	PeerID string
	// Port is where this agent listens, TCP and UDP; 0 means DefaultPort.
	Port int
	// Interfaces to use, by name; empty means every one that looks like a LAN. A listed one counts
	// even if it looks like a container's or a tunnel's. Loopback counts only when it is the only one listed.
	Interfaces []string
	// Networks in which to announce: an interface is used if it has an address in one of them, and
	// only such addresses are announced or believed. Empty means DefaultNetworks.
	Networks []netip.Prefix
	Log      *slog.Logger // nil discards
}

// Finder is a discovery.Finder.
type Finder struct {
	self service
	pick picker
	log  *slog.Logger
}

var _ discovery.Finder = (*Finder)(nil)

// New checks the configuration. It touches no network.
func New(cfg Config) (*Finder, error) {
	if !discovery.PlausiblePeerID(cfg.PeerID) {
		return nil, fmt.Errorf("mdns: %q is no peer id", cfg.PeerID)
	}
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Port < 1 || cfg.Port > 65535 {
		return nil, fmt.Errorf("mdns: port %d: give one between 1 and 65535", cfg.Port)
	}
	for _, p := range cfg.Networks {
		if !p.IsValid() {
			return nil, errors.New("mdns: invalid network: write it as address/bits, as in 192.168.0.0/16")
		}
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	name := instanceName(cfg.PeerID)
	return &Finder{
		self: service{
			instance: name,
			host:     name + "." + domain + ".",
			peerID:   cfg.PeerID,
			port:     uint16(cfg.Port),
		},
		pick: newPicker(cfg.Interfaces, cfg.Networks),
		log:  log,
	}, nil
}

// instanceName derives a DNS label that is unique, free of dots, and the same after a restart. A peer
// id itself may exceed a label's 63 bytes and is case-sensitive, which DNS names are not.
func instanceName(peerID string) string {
	sum := sha256.Sum256([]byte(peerID))
	return hex.EncodeToString(sum[:16])
}

// Run announces and browses until ctx ends, then returns nil. Trouble with sockets and interfaces is
// retried and logged once; Run never gives up.
func (f *Finder) Run(ctx context.Context, found func(discovery.Found)) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	t := newTeller(f.self, f.pick, found)
	for ctx.Err() == nil {
		links := f.scan()
		f.logLinks(links)
		gen, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.serve(gen, links, t)
		}()
		f.untilChanged(ctx, tick.C, links)
		cancel()
		<-done
	}
	return nil
}

// serve runs everything that depends on one set of links, until ctx ends.
func (f *Finder) serve(ctx context.Context, links []link, t *teller) {
	if len(links) == 0 {
		return
	}
	f.retry(ctx, "finding neighbours by mDNS", func() error { return newResponder(f.self, links, t.heard, f.log).run(ctx) })
}

// retry calls run again whenever it returns before ctx ends, after a pause that doubles; trouble is
// logged when it begins or changes.
func (f *Finder) retry(ctx context.Context, what string, run func() error) {
	const first, last = time.Second, time.Minute
	wait, logged := first, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := run()
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > last {
			wait, logged = first, "" // it had been working
		}
		if err != nil && err.Error() != logged {
			logged = err.Error()
			f.log.Warn(what+" fails; trying again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, last)
	}
}

// untilChanged returns when the usable links differ from the given ones, or ctx ends.
func (f *Finder) untilChanged(ctx context.Context, tick <-chan time.Time, links []link) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick:
			if !slices.EqualFunc(links, f.scan(), link.equal) {
				return
			}
		}
	}
}

// scan returns the usable links; where the system cannot tell, none.
func (f *Finder) scan() []link {
	links, err := f.pick.scan()
	if err != nil {
		f.log.Debug("listing network interfaces", "err", err)
	}
	return links
}

func (f *Finder) logLinks(links []link) {
	if len(links) == 0 {
		f.log.Warn("no network interface to find neighbours on; waiting for one (peers.interfaces and peers.networks say which may be used)")
		return
	}
	names := make([]string, len(links))
	for i, l := range links {
		names[i] = l.ifi.Name
	}
	f.log.Info("looking for neighbours", "interfaces", strings.Join(names, ","))
}
