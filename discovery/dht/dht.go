// Package dht finds agents beyond the site through a Kademlia DHT of their own. It provides the shareable
// paths of this machine and looks up who provides others. As a [discovery.Finder] it also hints at a few
// agents that it met, so that a small network knows what its members have without a look-up.
//
// A record says: this peer has something filed under this hash. Nothing in it is believed; whoever is
// dialled for it proves who it is, and its bytes are verified like anybody's.
package dht

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	kad "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/singleflight"

	"github.com/flurry-nix/flurry/discovery"
)

// protocolPrefix makes a network of its own: "/flurry/kad/1.0.0". It is not IPFS's.
const protocolPrefix = "/flurry"

const (
	joinEvery = 30 * time.Second // while there are no peers, at most; sooner at first
	greetMost = 10 * time.Second // for those known to answer
	saveLeast = 2 * time.Second  // between two writes; what is known is written when it changes: at the end the host may be closed already
	saveEvery = 10 * time.Minute // while it does not change
	// While the routing table has few members it is refreshed more often than every refreshEvery: agents that start together
	// know each other as such only once each was seen to be reachable.
	few          = 8
	fewFirst     = time.Minute // since the start, in which that is done every fewSoon, and later every fewEvery
	fewSoon      = 5 * time.Second
	fewEvery     = time.Minute
	meetEvery    = time.Minute
	acquainted   = 8 // agents hinted at
	quietEvery   = time.Second
	refreshEvery = 30 * time.Minute // the library's 10 cost three times the messages and found no more (docs/scale.md)
	perGroupCPL  = 3                // routing table entries of one /16 (IPv6: AS or /32) with the same distance class
	perGroupAll  = 16
	protocolName = protocolPrefix + "/kad/1.0.0"
)

// Config of a DHT.
type Config struct {
	Bootstrap []string // multiaddrs with /p2p of agents to begin with; /dnsaddr is resolved
	PeersFile string   // remembers peers over restarts; "" means that none are
	// Server answers others' questions even if nobody has confirmed that this machine is reachable.
	Server bool
	// Public tells which addresses are the internet's; others are neither stored nor dialled nor published.
	// nil means libp2p's rule. Given, it also lifts the limit on peers of one network range.
	Public func(netip.Addr) bool
	// Quiet tells that the DHT should be left now: a metered link, battery power, a pause. nil means never.
	Quiet func() bool
	// Catalog says what is to be provided; nil means nothing.
	Catalog Catalog
	Provide ProvideConfig
	Log     *slog.Logger
	Now     func() time.Time // nil means time.Now
}

// DHT is this agent's part of the network. Make it with New, let it work with Run.
type DHT struct {
	cfg   Config
	host  host.Host
	log   *slog.Logger
	now   func() time.Time
	begin []peer.AddrInfo // Bootstrap
	seen  []seenPeer      // remembered, those met last first

	node    atomic.Pointer[kad.IpfsDHT] // nil while quiet
	keys    keySet
	finding singleflight.Group
	answers *lru.Cache[Key, answer]
	dead    *lru.Cache[peer.ID, time.Time] // records that led nowhere, until
	stats   counters

	mu       sync.Mutex // guards friends and, from Run on, seen
	friends  []peer.ID
	provided atomic.Int64
}

// counters are what operators and tests want to know.
type counters struct {
	lookups, found, missed atomic.Int64
}

// Stats are counted since the start.
type Stats struct {
	Peers                  int // in the routing table
	Server                 bool
	Provided               int64 // keys that have been provided or are scheduled to be
	Lookups, Found, Missed int64
}

// New checks cfg. The host must not be closed before Run ended.
func New(h host.Host, cfg Config) (*DHT, error) {
	d := &DHT{cfg: cfg, host: h, log: cfg.Log, now: cfg.Now}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	if d.now == nil {
		d.now = time.Now
	}
	if d.cfg.Quiet == nil {
		d.cfg.Quiet = func() bool { return false }
	}
	d.cfg.Provide.fill()
	d.answers, _ = lru.New[Key, answer](answersKept)
	d.dead, _ = lru.New[peer.ID, time.Time](answersKept)
	for _, s := range cfg.Bootstrap {
		info, err := peer.AddrInfoFromString(s)
		if err != nil {
			return nil, fmt.Errorf("internet.bootstrap %q: %w; want a multiaddr that ends in /p2p/ and the node's peer id", s, err)
		}
		d.begin = append(d.begin, *info)
	}
	seen, err := loadPeers(cfg.PeersFile, d.now())
	if err != nil {
		d.log.Warn("starting without the peers of last time", "err", err)
	}
	d.seen = seen
	return d, nil
}

// Run takes part in the network until ctx ends, except while it should be quiet. found is told of a few
// agents met; see [discovery.Finder].
func (d *DHT) Run(ctx context.Context, found func(discovery.Found)) error {
	if len(d.begin) == 0 && len(d.seen) == 0 && !d.cfg.Server {
		d.log.Warn("no agent of the internet is known; set internet.bootstrap, or wait to be found by others")
	}
	for ctx.Err() == nil {
		if !d.cfg.Quiet() {
			if err := d.session(ctx, found); err != nil && ctx.Err() == nil {
				return err
			}
		}
		sleep(ctx, quietEvery)
	}
	return nil
}

// session is one stay in the network.
func (d *DHT) session(ctx context.Context, found func(discovery.Found)) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	node, err := d.open()
	if err != nil {
		return err
	}
	var work sync.WaitGroup
	d.node.Store(node)
	work.Go(func() { d.join(ctx, node) })
	work.Go(func() { d.meet(ctx, node, found) })
	work.Go(func() { d.provide(ctx, node) })
	work.Go(func() {
		for ctx.Err() == nil && !d.cfg.Quiet() {
			sleep(ctx, quietEvery)
		}
		leave()
	})
	work.Wait()
	d.node.Store(nil)
	return node.Close()
}

// open makes the library's node.
func (d *DHT) open() (*kad.IpfsDHT, error) {
	mode := kad.ModeAuto
	if d.cfg.Server {
		mode = kad.ModeServer
	}
	options := []kad.Option{
		kad.ProtocolPrefix(protocolPrefix),
		kad.Mode(mode),
		kad.RoutingTableRefreshPeriod(refreshEvery),
		kad.DisableValues(),
		kad.ProviderDatastore(newRecordStore()),
		kad.AddressFilter(d.publicOnly),
		kad.QueryFilter(func(_ any, info peer.AddrInfo) bool { return d.reachable(info.Addrs) }),
		kad.RoutingTableFilter(func(_ any, id peer.ID) bool { return d.reachable(d.host.Peerstore().Addrs(id)) }),
		kad.BootstrapPeersFunc(d.origins),
	}
	if d.cfg.Public == nil {
		options = append(options, kad.RoutingTablePeerDiversityFilter(kad.NewRTPeerDiversityFilter(d.host, perGroupCPL, perGroupAll)))
	}
	return kad.New(d.host, options...)
}

// isPublic tells whether an address, or that of the relay that it goes through, is one of the internet.
func (d *DHT) isPublic(a ma.Multiaddr) bool {
	if d.cfg.Public == nil {
		return manet.IsPublicAddr(a)
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	addr, ok := netip.AddrFromSlice(ip)
	return ok && d.cfg.Public(addr.Unmap())
}

func (d *DHT) publicOnly(list []ma.Multiaddr) []ma.Multiaddr {
	return slices.DeleteFunc(slices.Clone(list), func(a ma.Multiaddr) bool { return !d.isPublic(a) })
}

// reachable tells whether some address is public and direct: who is behind a relay serves no records.
func (d *DHT) reachable(list []ma.Multiaddr) bool {
	return slices.ContainsFunc(list, func(a ma.Multiaddr) bool {
		_, err := a.ValueForProtocol(ma.P_CIRCUIT)
		return err != nil && d.isPublic(a)
	})
}

// origins are those to begin with.
func (d *DHT) origins() []peer.AddrInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := slices.Clone(d.begin)
	for _, s := range d.seen {
		list = append(list, s.AddrInfo)
	}
	return list
}

// join connects to some known peers until there are others, and again whenever all are lost.
func (d *DHT) join(ctx context.Context, node *kad.IpfsDHT) {
	pause := time.Second
	var saved, refreshed time.Time
	var members []peer.ID
	began := d.now()
	for ctx.Err() == nil {
		size, every := node.RoutingTable().Size(), fewEvery
		if d.now().Sub(began) < fewFirst {
			every = fewSoon
		}
		if size == 0 {
			d.greet(ctx, node)
			pause = min(2*pause, joinEvery)
		} else {
			pause = time.Second
		}
		if size == 0 || size < few && d.now().Sub(refreshed) > every {
			node.RefreshRoutingTable()
			refreshed = d.now()
		}
		list := node.RoutingTable().ListPeers()
		slices.Sort(list)
		if age := d.now().Sub(saved); age > saveEvery || age > saveLeast && !slices.Equal(list, members) {
			saved, members = d.now(), list
			d.remember(list)
		}
		sleep(ctx, pause)
	}
	d.remember(node.RoutingTable().ListPeers())
}

// greet dials those known, a few at a time, until one of them is in the routing table.
func (d *DHT) greet(ctx context.Context, node *kad.IpfsDHT) {
	ctx, cancel := context.WithTimeout(ctx, greetMost)
	var g sync.WaitGroup
	defer g.Wait()
	defer cancel()
	slots := make(chan struct{}, 8)
	for _, info := range d.origins() {
		g.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			defer func() { <-slots }()
			if err := d.host.Connect(ctx, info); err != nil && ctx.Err() == nil {
				d.log.Debug("an agent of the internet does not answer", "peer", info.ID, "err", err)
			}
		})
	}
	all := make(chan struct{})
	go func() { g.Wait(); close(all) }()
	for node.RoutingTable().Size() == 0 {
		select {
		case <-all:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// remember keeps members of the routing table for the next start, and after them those met before, who may be back.
func (d *DHT) remember(members []peer.ID) {
	now := d.now()
	var list []seenPeer
	for _, id := range members {
		if addrs := d.publicOnly(d.host.Peerstore().Addrs(id)); len(addrs) > 0 {
			list = append(list, seenPeer{peer.AddrInfo{ID: id, Addrs: addrs}, now})
		}
	}
	if len(list) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, old := range d.seen {
		same := func(s seenPeer) bool { return s.ID == old.ID }
		if !slices.ContainsFunc(list, same) && now.Sub(old.at) < forgetAfter {
			list = append(list, old)
		}
	}
	d.seen = list[:min(len(list), rememberMost)]
	if err := savePeers(d.cfg.PeersFile, d.seen); err != nil {
		d.log.Warn("agents of the internet are not remembered", "err", err)
	}
}

// meet hints at the nearest few agents of the routing table, the same ones while they stay.
func (d *DHT) meet(ctx context.Context, node *kad.IpfsDHT, found func(discovery.Found)) {
	for pause := time.Second; ctx.Err() == nil; pause = min(2*pause, meetEvery) {
		for _, id := range d.choose(node) {
			f := discovery.Found{Via: discovery.ViaDHT, Name: id.String(), PeerID: id.String(), Addrs: d.addrs(id)}
			if len(f.Addrs) > 0 {
				found(f)
			}
		}
		sleep(ctx, pause)
	}
}

// choose keeps friends that are still connected and fills up with those of the shortest round trip.
func (d *DHT) choose(node *kad.IpfsDHT) []peer.ID {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.friends = slices.DeleteFunc(d.friends, func(id peer.ID) bool {
		return d.host.Network().Connectedness(id) != network.Connected
	})
	list := node.RoutingTable().ListPeers()
	rtt := func(id peer.ID) time.Duration {
		if t := d.host.Peerstore().LatencyEWMA(id); t > 0 {
			return t
		}
		return time.Hour
	}
	slices.SortStableFunc(list, func(a, b peer.ID) int { return int(rtt(a) - rtt(b)) })
	for _, id := range list {
		if len(d.friends) >= acquainted {
			break
		}
		if !slices.Contains(d.friends, id) {
			d.friends = append(d.friends, id)
		}
	}
	return slices.Clone(d.friends)
}

// addrs are a peer's addresses of the internet, as text.
func (d *DHT) addrs(id peer.ID) []string {
	var out []string
	for _, a := range d.publicOnly(d.host.Peerstore().Addrs(id)) {
		if out = append(out, a.String()); len(out) == discovery.MaxAddrs {
			break
		}
	}
	return out
}

// RelaySource names agents that may be relays: those to begin with, then others of the routing table.
func (d *DHT) RelaySource(ctx context.Context, n int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, n)
	defer close(out)
	list := slices.Clone(d.begin)
	if node := d.node.Load(); node != nil {
		for _, id := range node.RoutingTable().ListPeers() {
			list = append(list, peer.AddrInfo{ID: id, Addrs: d.publicOnly(d.host.Peerstore().Addrs(id))})
		}
	}
	for _, info := range list[:min(len(list), n)] {
		d.host.Peerstore().AddAddrs(info.ID, info.Addrs, peerstore.TempAddrTTL)
		out <- info
	}
	return out
}

// Stats returns counters.
func (d *DHT) Stats() Stats {
	s := Stats{Provided: d.provided.Load(), Lookups: d.stats.lookups.Load(), Found: d.stats.found.Load(), Missed: d.stats.missed.Load()}
	if node := d.node.Load(); node != nil {
		s.Peers = node.RoutingTable().Size()
		s.Server = slices.Contains(d.host.Mux().Protocols(), protocolName)
	}
	return s
}

func sleep(ctx context.Context, t time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(t):
	}
}
