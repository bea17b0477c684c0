package p2p

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/p2p/batchtls"
)

// Protocols of the wire, see the package documentation.
const (
	protoHTTP    protocol.ID = "/flurry/1"
	protoHave    protocol.ID = "/flurry/have/1"
	protoFlights protocol.ID = "/flurry/flights/1"
	protoGroup   protocol.ID = "/flurry/group/1"
	protoPeers   protocol.ID = "/flurry/peers/1"

	protoDialBack protocol.ID = "/flurry/dialback/1"
)

// Config of a Host. The zero value listens nowhere and works as a client.
type Config struct {
	Listen    []string // host:port, for TCP and for QUIC over UDP; host may be empty
	StoreDir  string   // what nix-cache-info says to peers
	UserAgent string   // such as "flurry/1.0"

	// MaxConnections bounds connections with peers, both ways together; 0 means 256.
	MaxConnections int
	// ConnectionsPerIP bounds those with one address; 0 means 16.
	ConnectionsPerIP int
	// Networks are those that peers may be in, static peers and loopback excepted; nil means everywhere.
	Networks []netip.Prefix
	// Upload bounds the NAR bytes per second to all peers; 0 means unlimited.
	Upload int64
	// Download bounds those from all peers, and from whom else it is given to; nil means unlimited.
	Download *throttle.Throttle

	// Introduce makes those who name us in their static peers known to each other, and us to others who name
	// the same peers as we do.
	Introduce bool

	// Internet is nil for a host that stays within its site.
	Internet *Internet

	// StandingFile remembers over restarts who sent wrong bytes and who did well; "" means in memory only.
	StandingFile string
	// Secret is the group's, from [LoadSecret]; nil means that no peer is of the group.
	Secret []byte

	// Moved is called when this machine slept or its addresses changed, so that connections may be dead
	// without a word; nil for nobody to tell. It must not block.
	Moved func()

	Log *slog.Logger
	// Now is the clock of bans and back-offs; nil means time.Now.
	Now func() time.Time

	site func(netip.Addr) bool // for tests on loopback; see introductions.fits
}

// Host is this agent among its peers. Make it with New, let it work with Run.
type Host struct {
	cfg       Config
	log       *slog.Logger
	now       func() time.Time
	host      host.Host
	name      string // its id, as text
	catalog   Catalog
	peers     peerTable
	gater     *gater
	client    *http.Client
	requests  net.Listener // streams of protoHTTP
	journal   *journal
	board     *flightBoard
	snapshots snapshotCache
	memory    haveMemory
	standing  *standing
	group     *group
	dialer    *dialer
	slots     *sendSlots
	dialBacks dialBacks
	upload    *throttle.Throttle
	download  *throttle.Throttle
	talk      *rate.Limiter // of log lines that strangers can cause
	sent      atomic.Int64  // NAR bytes to all peers
	chains    atomic.Int32  // that peers wait for
	remotes   remotes
	coding    *coding

	introductions *introductions

	paused atomic.Bool // no sharing: every request is a miss and the have-set empty

	tasks    tasks
	running  atomic.Pointer[context.Context] // of Run; nil before
	closeOne sync.Once
}

// New opens the listeners. It fails only if none of them could be opened, or for a weak secret.
func New(cfg Config, id *Identity, catalog Catalog) (*Host, error) {
	h := &Host{cfg: cfg, log: cfg.Log, now: cfg.Now, catalog: catalog, journal: newJournal(), board: newFlightBoard(),
		upload: throttle.New(cfg.Upload), download: cfg.Download,
		slots: newSendSlots(maxSending), coding: newCoding(), talk: rate.NewLimiter(5, 50)}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if h.now == nil {
		h.now = time.Now
	}
	h.remotes.public = isPublicIP
	if in := cfg.Internet; in != nil {
		h.remotes.upload = throttle.New(in.Upload)
		if in.Public != nil {
			h.remotes.public = in.Public
		}
	}
	h.dialBacks.byPeer = map[peer.ID]*rate.Limiter{}
	h.peers = peerTable{host: h, byID: map[peer.ID]*Peer{}}
	h.gater = newGater(h)
	h.dialer = newDialer(h)
	h.introductions = h.newIntroductions()
	h.memory = haveMemory{host: h, most: haveMemoryMost}
	h.standing = newStanding(h, cfg.StandingFile)
	h.standing.load()
	var err error
	if h.group, err = newGroup(cfg.Secret); err != nil {
		return nil, err
	}
	addrs, err := listenAddrs(cfg.Listen)
	if err != nil {
		return nil, err
	}
	if err := h.open(id); err != nil {
		return nil, err
	}
	h.client = newClient(h)
	if err := h.handleStreams(); err != nil {
		h.host.Close()
		return nil, err
	}
	if len(addrs) > 0 { // only now: whoever connects finds every handler
		if err := h.host.Network().Listen(addrs...); err != nil {
			h.Close()
			return nil, fmt.Errorf("listen for peers on %v: %w; is another agent running? set peers.listen to a free port", cfg.Listen, err)
		}
	}
	return h, nil
}

// open makes the libp2p host; it does not listen yet.
func (h *Host) open(id *Identity) error {
	limit := h.cfg.connectionLimit()
	manager, err := connmgr.NewConnManager(limit*3/4, limit*7/8, connmgr.WithGracePeriod(trimGrace))
	if err != nil {
		return fmt.Errorf("peers: %w", err)
	}
	resources, err := newResourceManager(&h.cfg)
	if err != nil {
		manager.Close()
		return fmt.Errorf("peers: %w", err)
	}
	beyond, err := h.internetOptions()
	if err != nil {
		manager.Close()
		resources.Close()
		return err
	}
	h.host, err = libp2p.New(append(beyond,
		libp2p.Identity(id.key),
		libp2p.Transport(newLinkTCP),
		libp2p.Transport(libp2pquic.NewTransport),
		libp2p.Security(batchtls.ID, batchtls.New), // TLS alone: 1.3 times as fast as Noise
		libp2p.ConnectionManager(manager),
		libp2p.ResourceManager(resources),
		libp2p.ConnectionGater(h.gater),
		libp2p.SwarmOpts(swarm.WithDialRanker(rankDials)),
		libp2p.UserAgent(h.cfg.UserAgent),
		libp2p.DisableMetrics(),
	)...)
	if err != nil {
		manager.Close()
		resources.Close()
		return fmt.Errorf("peers: %w", err)
	}
	h.name = h.host.ID().String()
	return nil
}

// handleStreams installs what answers streams and connections. All of it waits for Run.
func (h *Host) handleStreams() (err error) {
	if h.requests, err = gostream.Listen(h.host, protoHTTP); err != nil {
		return fmt.Errorf("peers: %w", err)
	}
	h.host.SetStreamHandler(protoHave, h.inTask(h.receiveHave))
	h.host.SetStreamHandler(protoGroup, h.inTask(h.answerGroup))
	h.host.SetStreamHandler(protoFlights, h.inTask(h.hearFlights))
	h.host.SetStreamHandler(protoPeers, h.inTask(h.introduce))
	h.host.SetStreamHandler(protoDialBack, h.inTask(h.answerDialBack))
	changed := func(_ network.Network, c network.Conn) { h.settle(c.RemotePeer()) }
	h.host.Network().Notify(&network.NotifyBundle{ConnectedF: changed, DisconnectedF: changed})
	return nil
}

// inTask runs a stream handler as a task that Run waits for.
func (h *Host) inTask(handle func(network.Stream)) network.StreamHandler {
	return func(s network.Stream) {
		done, ok := h.tasks.enter()
		if !ok {
			s.Reset()
			return
		}
		defer done()
		handle(s)
	}
}

// ID returns this agent's peer id.
func (h *Host) ID() string { return h.name }

// Addrs returns the addresses that peers can dial, as multiaddrs with the peer id.
func (h *Host) Addrs() []string {
	var out []string
	list := h.host.Addrs()
	if listening, err := h.host.Network().InterfaceListenAddresses(); err == nil && h.cfg.Internet != nil {
		list = listening // Addrs leaves out what only this site can dial
		list = append(list, h.announced(nil)(h.host.Addrs())...)
	}
	slices.SortFunc(list, func(a, b ma.Multiaddr) int { return strings.Compare(a.String(), b.String()) })
	for _, a := range slices.CompactFunc(list, ma.Multiaddr.Equal) {
		out = append(out, a.String()+"/p2p/"+h.ID())
	}
	return out
}

// Port returns the TCP port that is listened on, 0 if none.
func (h *Host) Port() int {
	for _, a := range h.host.Network().ListenAddresses() {
		if s, err := a.ValueForProtocol(ma.P_TCP); err == nil {
			var port int
			fmt.Sscan(s, &port)
			return port
		}
	}
	return 0
}

// Run serves and dials until ctx ends, then closes all connections. finders say where peers may be.
// It is called at most once.
func (h *Host) Run(ctx context.Context, finders ...discovery.Finder) error {
	g, gctx := errgroup.WithContext(ctx)
	unwatch := h.catalog.Watch(h.journal.add)
	h.running.Store(&gctx)
	for _, id := range h.host.Network().Peers() { // those that were quicker than Run
		h.settle(id)
	}
	g.Go(func() error { return h.serve(gctx) })
	g.Go(func() error { return h.dialer.run(gctx) })
	g.Go(func() error { return h.watchLiveness(gctx) })
	g.Go(func() error { return h.watchAddresses(gctx) })
	g.Go(func() error { return h.watchReachability(gctx) })
	g.Go(func() error { return h.standing.run(gctx) })
	for _, f := range finders {
		g.Go(func() error { return f.Run(gctx, h.dialer.found) })
	}
	g.Go(func() error {
		<-gctx.Done()
		unwatch()
		h.journal.close()
		return h.Close()
	})
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Close closes the listeners and all connections. Run does it itself; it is for a Host that never ran.
func (h *Host) Close() (err error) {
	h.closeOne.Do(func() {
		h.requests.Close()
		err = h.host.Close()
		h.client.CloseIdleConnections()
		h.tasks.wait()
	})
	return err
}

// Pause stops (true) or resumes (false) sharing. Fetching from peers goes on.
func (h *Host) Pause(on bool) {
	if h.paused.Swap(on) != on {
		h.journal.reset()
	}
}

// chatter logs what strangers can cause as often as they like: some of it.
func (h *Host) chatter(msg string, args ...any) {
	level := slog.LevelInfo
	if !h.talk.Allow() {
		level = slog.LevelDebug
	}
	h.log.Log(context.Background(), level, msg, args...)
}

// tasks are goroutines that end with the host. mu guards closed; the zero value is ready.
type tasks struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// enter counts the caller as a task until done is called; ok is false once the host is closing.
func (t *tasks) enter() (done func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, false
	}
	t.wg.Add(1)
	return t.wg.Done, true
}

// run starts fn unless the host is closing.
func (t *tasks) run(fn func()) {
	done, ok := t.enter()
	if !ok {
		return
	}
	go func() {
		defer done()
		fn()
	}()
}

func (t *tasks) wait() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.wg.Wait()
}
