package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/discovery/dht"
	"github.com/flurry-nix/flurry/discovery/mdns"
	"github.com/flurry-nix/flurry/discovery/static"
	"github.com/flurry-nix/flurry/internal/metered"
	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/p2p"
	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/status/page"
	"github.com/flurry-nix/flurry/status/savings"
	"github.com/flurry-nix/flurry/store"
	"github.com/flurry-nix/flurry/substituter"
	"github.com/flurry-nix/flurry/supervise"
	"github.com/flurry-nix/flurry/upstream"
	"github.com/flurry-nix/flurry/verify"
)

const (
	// stopGrace is what answers get to finish after SIGTERM; the whole exit must stay under a second.
	// Nix resumes a NAR that was cut from the successor.
	stopGrace = 300 * time.Millisecond
	// troubleShown is how long an operator reads of an upstream's latest trouble.
	troubleShown = time.Hour
	// headerPatience bounds how long a local connection may take over a request's header.
	headerPatience = 30 * time.Second
)

// agent is everything of a running agent, wired. Parts that could not be had are nil and named in
// problems: the agent serves with what it has.
type agent struct {
	cfg       *config.Config
	log       *slog.Logger
	started   time.Time
	keys      *verify.Keys
	store     *store.Store
	upstreams []*upstream.Client
	catalog   *catalog
	host      *p2p.Host // nil without peers
	dht       *dht.DHT  // nil while the internet is off
	finders   []discovery.Finder
	nix       *substituter.Server
	page      *page.Page
	download  *throttle.Throttle // of peers and central caches together
	problems  []string
	socket    string // of control; "" for the usual places

	pausing     sync.Mutex  // guards all below
	paused      bool        // by the operator
	metered     bool        // the link is paid by the byte
	resumeTimer *time.Timer // ends a pause

	instance    string       // random
	mdns        *mdns.Finder // nil without
	savings     *savings.Book
	peerProblem string     // why host is nil
	checkups    sync.Mutex // one at a time: neighbours are asked
}

// softMemory is what the garbage collector aims to stay below, bytes: it works harder before the agent
// grows beyond what a background service may take. It is no bound.
const softMemory = 160 << 20

// newAgent constructs leaves first. It fails only where nothing useful would be left.
func newAgent(cfg *config.Config, log *slog.Logger) (*agent, error) {
	debug.SetMemoryLimit(softMemory)
	a := &agent{cfg: cfg, log: log, started: time.Now(), instance: rand.Text(), download: throttle.New(int64(cfg.Limits.Download))}
	if err := os.MkdirAll(cfg.State.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("%w; make it writable or set state.dir", err)
	}
	a.savings = savings.Open(filepath.Join(cfg.State.Dir, "savings.json"), time.Now, log)
	var err error
	if a.keys, err = cfg.Keys(); err != nil {
		return nil, err
	}
	a.store = store.New(store.Config{Dir: cfg.Store.Dir, RealDir: cfg.Store.RealDir, Database: cfg.Store.Database,
		Verdicts: filepath.Join(cfg.State.Dir, "verdicts"), Log: log.With("part", "store")}, a.keys)
	a.catalog = &catalog{store: a.store, keys: a.keys}
	caches, err := a.newUpstreams()
	if err != nil {
		return nil, err
	}
	if err := a.newPeers(); err != nil {
		a.peerProblem = err.Error()
		a.problem(err)
	}
	var near substituter.Site
	if a.host != nil {
		near = site{a.host}
	}
	var far substituter.Internet
	if a.dht != nil {
		far = beyond{a.host, a.dht, int64(cfg.Internet.MinNarSize)}
	}
	a.nix, err = substituter.New(substituter.Config{
		StateDir: cfg.State.Dir, StoreDir: cfg.Store.Dir, Priority: cfg.Substituter.Priority,
		AllowedHosts: cfg.Substituter.AllowedHosts, MaxBuffer: int64(cfg.Substituter.MaxBuffer),
		CacheSize: int64(cfg.Limits.CacheSize), Linger: cfg.Limits.KeepForOthers, Site: near,
		Internet: far, Offload: cfg.Internet.Prefer == "offload", Log: log.With("part", "substituter"),
	}, a.keys, localStore{a.store}, neighbours{a.host}, caches)
	if err != nil {
		return nil, err
	}
	a.catalog.partial, a.catalog.storeChain, a.catalog.landedChain = a.nix.Partial, a.nix.StoreChain, a.nix.LandedChain
	a.page = page.New(page.Config{Report: a.report, Check: a.findings, Local: substituter.FromThisMachine})
	return a, nil
}

// problem notes what does not work and goes on.
func (a *agent) problem(err error) {
	a.log.Error("a part does not work; going on without it", "err", err)
	a.problems = append(a.problems, err.Error())
}

func (a *agent) newUpstreams() ([]substituter.Upstream, error) {
	var out []substituter.Upstream
	for _, u := range a.cfg.Upstreams {
		c, err := upstream.New(upstream.Config{
			URL: u.URL, HeadersFile: u.HeadersFile, NetrcFile: u.NetrcFile, StoreDir: a.cfg.Store.Dir,
			UserAgent: "flurry/" + version, Limit: a.download, Log: a.log.With("part", "upstream"),
		}, a.keys)
		if err != nil {
			a.problem(err)
			continue
		}
		a.upstreams = append(a.upstreams, c)
		out = append(out, centralCache{c})
	}
	return out, nil
}

// renewUpstreams gives up connections that may have died while the machine slept or moved.
func (a *agent) renewUpstreams() {
	for _, c := range a.upstreams {
		c.Renew()
	}
}

// newPeers opens the peer port and prepares the ways of finding others.
func (a *agent) newPeers() error {
	cfg, log := a.cfg.Peers, a.log.With("part", "peers")
	id, err := p2p.LoadIdentity(filepath.Join(a.cfg.State.Dir, "identity"))
	if err != nil {
		return err
	}
	var secret []byte
	if cfg.SecretFile != "" {
		if secret, err = p2p.LoadSecret(cfg.SecretFile); err != nil {
			a.problem(err) // without it the group's paths stay here; public ones are shared all the same
		}
	}
	limits := a.cfg.Limits
	a.host, err = p2p.New(p2p.Config{
		Listen: cfg.Listen, StoreDir: a.cfg.Store.Dir, UserAgent: "flurry/" + version,
		MaxConnections: limits.Connections, Networks: cfg.Networks, Secret: secret, Introduce: cfg.Introduce,
		Upload: int64(limits.Upload), Download: a.download, Internet: internetOf(a.cfg.Internet),
		StandingFile: filepath.Join(a.cfg.State.Dir, "standing"), Moved: a.renewUpstreams, Log: log,
	}, id, a.catalog)
	if err != nil {
		return err
	}
	if limits.Metered == config.MeteredYes {
		a.setMetered(true)
	}
	if cfg.MDNS {
		f, err := mdns.New(mdns.Config{PeerID: a.host.ID(), Port: a.host.Port(), Interfaces: cfg.Interfaces, Networks: cfg.Networks, Log: log})
		if err != nil {
			return err
		}
		a.mdns = f
		a.finders = append(a.finders, f)
	}
	if len(cfg.Static) > 0 {
		f, err := static.New(cfg.Static, static.Config{Port: config.DefaultPeerPort, Log: log})
		if err != nil {
			return err
		}
		a.finders = append(a.finders, f)
		a.host.OnUnreached(f.Refresh)
	}
	return a.newInternet()
}

// run serves Nix on listeners until ctx ends.
func (a *agent) run(ctx context.Context, listeners []net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.store.Run(ctx) })
	g.Go(func() error { return a.nix.Run(ctx) })
	g.Go(func() error { return a.page.Run(ctx) })
	g.Go(func() error { return a.savings.Run(ctx, a.counters) })
	g.Go(func() error { return a.serveNix(ctx, listeners) })
	g.Go(func() error { return a.serveControl(ctx, "http://"+probeAddr(listeners[0].Addr())) })
	if a.host != nil {
		g.Go(func() error {
			if err := a.host.Run(ctx, a.finders...); err != nil {
				a.log.Error("peers are out of reach", "err", err)
			}
			return nil
		})
		if a.cfg.Limits.Metered == config.MeteredAuto {
			g.Go(func() error {
				metered.Watch(ctx, a.log.With("part", "peers"), a.setMetered)
				return nil
			})
		}
	}
	g.Go(func() error {
		return supervise.ServeHandover(ctx, supervise.Handover{
			Socket: handoverSocket(a.cfg), Listeners: listeners, Stop: stop, Log: a.log,
		})
	})
	g.Go(func() error {
		supervise.KeepAlive(ctx, func(ctx context.Context) error { return probe(ctx, listeners[0].Addr()) })
		return nil
	})
	a.log.Info("ready", "substituter", "http://"+listeners[0].Addr().String(), "version", version)
	supervise.Ready()
	context.AfterFunc(ctx, supervise.Stopping)
	err := g.Wait()
	for _, u := range a.upstreams {
		u.Close()
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// serveNix answers on the substituter's port.
func (a *agent) serveNix(ctx context.Context, listeners []net.Listener) error {
	srv := &http.Server{
		Handler:           a.nix.Handler(a.page.Handler(status.Handler(a.report))),
		ReadHeaderTimeout: headerPatience,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
		ConnState:         substituter.ConnState,
	}
	quick := make([]net.Listener, len(listeners))
	for i, ln := range listeners {
		quick[i] = a.nix.Listener(ln)
	}
	return supervise.Serve(ctx, srv, quick, stopGrace)
}

// probe goes the way of Nix's first request.
func probe(ctx context.Context, addr net.Addr) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+probeAddr(addr)+"/nix-cache-info", nil)
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// probeAddr is where this machine itself reaches a listener.
func probeAddr(addr net.Addr) string {
	t, ok := addr.(*net.TCPAddr)
	if !ok || !t.IP.IsUnspecified() {
		return addr.String()
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(t.Port))
}

// shareable counts the paths that may leave this machine at all: those for the group only with its secret.
func (a *agent) shareable(st store.Stats) int {
	if a.cfg.Peers.SecretFile == "" {
		return st.Public
	}
	return st.Shareable()
}

// counters are what the savings are reckoned from.
func (a *agent) counters() savings.Counters {
	s := &a.nix.Stats
	c := savings.Counters{FromPeers: s.FromPeers.Load(), FromUpstream: s.FromUpstream.Load(), Busy: a.nix.Busy()}
	if a.host != nil {
		c.ToPeers = a.host.BytesOut()
	}
	return c
}

// report gathers the agent's state.
func (a *agent) report() status.Report {
	st, s := a.store.Stats(), &a.nix.Stats
	r := status.Report{
		Version: version, Instance: a.instance, UptimeSeconds: time.Since(a.started).Seconds(), Sharing: "on",
		Listen: a.cfg.Substituter.Listen, Problems: a.problems, InFlight: a.nix.InFlight(),
		Store:   status.Store{Paths: st.Paths, ShareablePaths: a.shareable(st), UncheckedPaths: st.Unchecked, Access: st.Access.String()},
		Bytes:   status.Bytes{FromPeers: s.FromPeers.Load(), FromUpstream: s.FromUpstream.Load(), FromStore: s.FromStore.Load(), ToNix: s.ToNix.Load()},
		Wire:    status.Wire{FromPeers: s.FromPeers.Load(), FromUpstream: s.Wire.Load()},
		NarInfo: status.NarInfo{Hits: s.NarInfoHits.Load(), Misses: s.NarInfoMisses.Load(), UpstreamRequests: a.nix.UpstreamRequests()},
		NAR:     status.NAR{Served: s.Served.Load(), Failed: s.Failed.Load(), SwitchedSource: s.Switched.Load(), Rejected: s.Rejected.Load()},
		Site:    status.Site{Crossed: s.Beside.Crossed.Load(), Silent: s.Beside.Silent.Load(), Slow: s.Beside.Slow.Load()},
		Peers:   []status.Peer{},
	}
	saved := a.savings.Savings()
	r.Savings = &saved
	if st.Err != nil {
		r.Problems = append(r.Problems[:len(r.Problems):len(r.Problems)], st.Err.Error())
	}
	for _, f := range a.nix.Flights() {
		r.Flights = append(r.Flights, status.Flight{Path: f.Path, Got: f.Got, Size: f.Size, From: f.From})
	}
	for _, u := range a.upstreams {
		r.Upstreams = append(r.Upstreams, upstreamStatus(u.Status()))
	}
	if a.host == nil {
		r.Sharing = "off"
		return r
	}
	r.Internet = a.internetReport()
	r.Sharing = a.sharing()
	r.PeerID = a.host.ID()
	r.Bytes.ToPeers = a.host.BytesOut()
	gotOff, sentOff := a.host.Compressed()
	r.Wire.FromPeers, r.Wire.ToPeers = max(0, r.Wire.FromPeers-gotOff), r.Bytes.ToPeers-sentOff
	for _, p := range a.host.Peers() {
		r.Peers = append(r.Peers, status.Peer{ID: p.ID, Addrs: p.Addrs, Via: p.Via, IntroducedBy: p.By, RTTMillis: status.Millis(p.RTT), BytesPerSec: p.Rate,
			Paths: p.Paths, BytesIn: p.In, BytesOut: p.Out, State: p.State, Reason: p.Reason, ConnectedSecs: p.Connected.Seconds(),
			Version: p.Agent})
	}
	return r
}
