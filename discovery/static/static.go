// Package static hints at the peers an operator wrote down.
//
// It reads entries and turns their DNS names into addresses, again and again, since a name may move.
// It must never dial: every hint says Keep, and whoever dials does so for ever. A name that does not
// resolve is still hinted at, unresolved, so that an operator sees the peer and its trouble.
//
// Formats: host:port as everywhere; multiaddr (github.com/multiformats/multiaddr).
package static

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flurry-nix/flurry/discovery"
)

const (
	// DefaultPort is meant where an entry names none.
	DefaultPort = 6491

	// DefaultEvery is how often names are resolved anew; resolvers cache, so this is cheap.
	DefaultEvery = 5 * time.Minute

	// firstRetry and lastRetry bound the pause after a name that did not resolve: short, because at
	// boot the network is late; doubling up to a minute.
	firstRetry = time.Second
	lastRetry  = time.Minute

	// leastGap is the least time between two rounds, however often Refresh asks.
	leastGap = 5 * time.Second

	// lookupTime bounds one name's resolution.
	lookupTime = 5 * time.Second

	// lookups at once: enough for a long list, few enough for a small router.
	lookups = 8
)

// Resolver turns a name into addresses; *net.Resolver is one. network is "ip", "ip4" or "ip6".
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Config of a Finder; the zero value is complete.
type Config struct {
	Port     int           // for entries without one; 0 means DefaultPort
	Every    time.Duration // between resolutions of names; 0 means DefaultEvery
	Resolver Resolver      // nil means the system's
	Log      *slog.Logger  // nil discards
}

// Finder is a discovery.Finder.
type Finder struct {
	peers    []discovery.Found
	every    time.Duration
	resolver Resolver
	log      *slog.Logger
	refresh  chan struct{} // holds at most one request
}

var _ discovery.Finder = (*Finder)(nil)

// New parses the entries. The error joins one per bad entry, in their order. Entries that say the same
// twice count once.
func New(entries []string, cfg Config) (*Finder, error) {
	if cfg.Port == 0 {
		cfg.Port = DefaultPort
	}
	if cfg.Every <= 0 {
		cfg.Every = DefaultEvery
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Finder{every: cfg.Every, resolver: cfg.Resolver, log: cfg.Log, refresh: make(chan struct{}, 1)}
	var errs []error
	for _, e := range entries {
		p, err := Parse(e, cfg.Port)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !slices.ContainsFunc(f.peers, func(q discovery.Found) bool { return q.Name == p.Name }) {
			f.peers = append(f.peers, p)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return f, nil
}

// Refresh asks that names be resolved soon, as after a dial that failed. It never blocks; requests are
// merged, and at least five seconds lie between two rounds.
func (f *Finder) Refresh() {
	select {
	case f.refresh <- struct{}{}:
	default:
	}
}

// Run tells all peers at once, with what is known of them, and again whenever their names have been
// resolved. It returns nil when ctx ends.
func (f *Finder) Run(ctx context.Context, found func(discovery.Found)) error {
	for _, p := range f.peers {
		found(clone(p))
	}
	if !slices.ContainsFunc(f.peers, named) {
		<-ctx.Done()
		return nil
	}
	logged := make(map[string]string)
	retry := firstRetry
	for ctx.Err() == nil {
		wait := f.every
		if f.round(ctx, logged, found) {
			retry = firstRetry
		} else {
			wait = min(retry, f.every)
			retry = min(2*retry, lastRetry)
		}
		f.pause(ctx, wait)
	}
	return nil
}

// pause returns after wait, or when a refresh is asked for and leastGap has passed, or when ctx ends.
func (f *Finder) pause(ctx context.Context, wait time.Duration) {
	full, gap := time.NewTimer(wait), time.NewTimer(min(wait, leastGap))
	defer full.Stop()
	defer gap.Stop()
	select {
	case <-ctx.Done():
		return
	case <-full.C:
		return
	case <-gap.C:
	}
	select {
	case <-ctx.Done():
	case <-full.C:
	case <-f.refresh:
	}
}

// round resolves every name and tells what came of it; false if some name did not resolve.
func (f *Finder) round(ctx context.Context, logged map[string]string, found func(discovery.Found)) bool {
	var (
		mu sync.Mutex // for ok, logged and found
		ok = true
		g  errgroup.Group
	)
	g.SetLimit(lookups)
	for _, p := range f.peers {
		if !named(p) {
			continue
		}
		g.Go(func() error {
			resolved, err := f.resolve(ctx, p)
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				ok = false
				if logged[p.Name] != err.Error() {
					logged[p.Name] = err.Error()
					f.log.Warn("static peer's name does not resolve; trying again", "peer", p.Name, "err", err)
				}
				return nil
			}
			delete(logged, p.Name)
			found(resolved)
			return nil
		})
	}
	_ = g.Wait() // the functions return no error
	return ok
}

// resolve replaces the name at the head of the addresses by each of its IP addresses; all addresses of
// one entry have the same head. The order is the entry's (TCP first), then the resolver's.
func (f *Finder) resolve(ctx context.Context, p discovery.Found) (discovery.Found, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	network, name, _ := splitName(p.Addrs[0])
	ips, err := f.resolver.LookupNetIP(ctx, network, name)
	if err != nil {
		return discovery.Found{}, err
	}
	ips = slices.DeleteFunc(slices.Clone(ips), func(ip netip.Addr) bool { return checkIP(ip.Unmap()) != nil })
	ips = ips[:min(len(ips), discovery.MaxAddrs/len(p.Addrs))]
	if len(ips) == 0 {
		return discovery.Found{}, errors.New("the name " + name + " has no usable address")
	}
	out := p
	out.Addrs = nil
	for _, a := range p.Addrs {
		_, _, rest := splitName(a)
		for _, ip := range ips {
			out.Addrs = append(out.Addrs, discovery.IP(ip)+rest)
		}
	}
	return out, nil
}

// named reports whether the peer's addresses begin with a name to be resolved here. /dnsaddr is not:
// it names TXT records, which the dialler reads.
func named(p discovery.Found) bool {
	network, _, _ := splitName(p.Addrs[0])
	return network != ""
}

// splitName takes a multiaddr of the form /dns4/name/rest apart; network is "" for any other.
func splitName(addr string) (network, name, rest string) {
	parts := strings.SplitN(addr, "/", 4)
	if len(parts) < 4 {
		return "", "", ""
	}
	switch parts[1] {
	case "dns":
		network = "ip"
	case "dns4":
		network = "ip4"
	case "dns6":
		network = "ip6"
	default:
		return "", "", ""
	}
	return network, parts[2], "/" + parts[3]
}

func clone(p discovery.Found) discovery.Found {
	p.Addrs = slices.Clone(p.Addrs)
	return p
}
