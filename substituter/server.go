package substituter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// Config of a Server. The zero value serves /nix/store from memory alone, with no room for NARs.
type Config struct {
	StateDir     string        // narinfos, chains and spooled NARs live below it; "" disables the narinfo cache
	StoreDir     string        // default /nix/store
	Priority     int           // in nix-cache-info; default 30, before the central cache's 40
	AllowedHosts []string      // further values of the Host header
	MaxBuffer    int64         // bytes of memory for NARs on their way; the rest is in files; default 32 MiB
	CacheSize    int64         // bytes on disk, for NARs on their way or kept for latecomers and for narinfos; default 1 GiB
	Linger       time.Duration // how long a landed NAR stays after its last reader; default 1 minute
	FirstByte    time.Duration // when Nix is to have the first byte of a slow NAR at the latest; default 2 minutes
	Site         Site          // neighbours to share downloads with; nil for none
	Internet     Internet      // agents beyond the site; nil for none
	Offload      bool          // ask those before the central cache, and not only where they are quicker
	Log          *slog.Logger
	Now          func() time.Time // nil means time.Now
}

// narInfoShare is which part of the cache's size narinfos get: one of so many.
const narInfoShare = 8

// Server answers Nix. Make it with New, let it work with Run, mount it with Handler.
type Server struct {
	cfg     Config
	log     *slog.Logger
	store   Store
	keys    *verify.Keys
	finder  *finder
	flights flights
	ahead   *ahead
	info    string
	ready   chan struct{}
	asker   atomic.Pointer[quickConn] // whose question was the last of a kept-alive connection
	told    *rate.Limiter             // of a log line that every question could cause

	Stats Stats
}

// New makes a Server; it creates its directories below cfg.StateDir.
func New(cfg Config, keys *verify.Keys, store Store, peers Peers, upstreams []Upstream) (*Server, error) {
	cfg.defaults()
	s := &Server{cfg: cfg, log: cfg.Log, store: store, keys: keys, ready: make(chan struct{}), told: rate.NewLimiter(rate.Every(10*time.Second), 1)}
	s.info = binarycache.Info(cfg.StoreDir, cfg.Priority)
	narInfos, chainDir, spools := "", "", os.TempDir()
	if cfg.StateDir != "" {
		narInfos, chainDir, spools = filepath.Join(cfg.StateDir, "narinfo"), filepath.Join(cfg.StateDir, "chain"), filepath.Join(cfg.StateDir, "spool")
		for _, dir := range []string{narInfos, chainDir, spools} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return nil, fmt.Errorf("%w; make the state directory writable or set state_dir", err)
			}
		}
	}
	memory, err := lru.New[verify.StoreHash, *found](memoryNarInfos)
	if err != nil {
		return nil, err
	}
	misses, err := lru.New[verify.StoreHash, time.Time](memoryNegatives)
	if err != nil {
		return nil, err
	}
	if s.flights.idlers, err = lru.New[string, struct{}](idlersMost); err != nil {
		return nil, err
	}
	s.finder = &finder{
		storeDir: cfg.StoreDir, keys: keys, store: store, peers: peers, upstreams: upstreams,
		disk: newNarInfoCache(narInfos, cfg.CacheSize/narInfoShare, cfg.Now, cfg.Log), memory: memory, misses: misses, internet: cfg.Internet, log: cfg.Log, now: cfg.Now, started: cfg.Now(),
	}
	if s.flights.chains, err = newChains(chainDir, cfg.Log); err != nil {
		return nil, err
	}
	s.flights.site, s.flights.linger, s.flights.firstByte = cfg.Site, cfg.Linger, cfg.FirstByte
	s.flights.internet, s.flights.offload = cfg.Internet, cfg.Offload
	s.flights.dir, s.flights.finder, s.flights.stats = spools, s.finder, &s.Stats
	s.finder.wired = s.flights.uplink.wired
	for _, up := range upstreams {
		up.SetBusy(s.flights.uplink.busy)
	}
	s.flights.log, s.flights.now, s.flights.keep = cfg.Log, cfg.Now, cfg.CacheSize
	s.flights.create = createSpoolFile
	s.flights.room.memory.Store(cfg.MaxBuffer)
	s.flights.room.disk.Store(cfg.CacheSize - cfg.CacheSize/narInfoShare)
	s.flights.noRoom.Interval = time.Minute
	s.flights.byHash, s.flights.changed = map[verify.Hash]*flight{}, make(chan struct{}, 1)
	if s.ahead, err = newAhead(s.finder, &s.flights, store); err != nil {
		return nil, err
	}
	if cfg.StateDir != "" {
		s.flights.clearSpool()
	}
	return s, nil
}

func (c *Config) defaults() {
	if c.StoreDir == "" {
		c.StoreDir = verify.DefaultStoreDir
	}
	if c.Priority == 0 {
		c.Priority = 30
	}
	if c.MaxBuffer == 0 {
		c.MaxBuffer = 32 << 20
	}
	if c.CacheSize == 0 {
		c.CacheSize = 1 << 30
	}
	if c.FirstByte == 0 {
		c.FirstByte = 2 * time.Minute // Nix gives up after 5
	}
	if c.Linger == 0 {
		c.Linger = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Run fetches and keeps house until ctx ends. Requests wait for it to have begun.
func (s *Server) Run(ctx context.Context) error {
	s.flights.ctx = ctx
	close(s.ready)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.flights.run(ctx) })
	g.Go(func() error { return s.finder.disk.run(ctx) })
	g.Go(func() error { return s.ahead.run(ctx) })
	g.Go(func() error { return s.flights.uplink.run(ctx, s.cfg.Site) })
	g.Go(func() error { return s.flights.chains.run(ctx) })
	return g.Wait()
}

// Handler serves the binary cache, with extra for every path that is not the protocol's (a status page,
// metrics); nil means 404. Requests that another web site caused are refused.
func (s *Server) Handler(extra http.Handler) http.Handler {
	return &guard{hosts: s.cfg.AllowedHosts, next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.serve(w, r, extra)
	})}
}

// serve dispatches one request. By hand: a narinfo's path is its name, and a mux would cost more than
// the answer.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, extra http.Handler) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		if extra != nil {
			extra.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	switch {
	case name == "nix-cache-info":
		binarycache.WriteText(w, r, "text/x-nix-cache-info", s.info)
	case strings.HasSuffix(name, ".narinfo"):
		s.narInfo(w, r, strings.TrimSuffix(name, ".narinfo"))
	case strings.HasPrefix(name, "nar/"):
		s.nar(w, r, name)
	case extra != nil && !s.forwardable(r.URL.Path):
		extra.ServeHTTP(w, r)
	default:
		s.forward(w, r)
	}
}

func (s *Server) narInfo(w http.ResponseWriter, r *http.Request, name string) {
	h, err := verify.ParseStoreHash(name)
	if err != nil {
		binarycache.NotFound(w)
		return
	}
	if !FromThisMachine(r) {
		s.narInfoForStrangers(w, r, h)
		return
	}
	<-s.ready
	got, err := s.finder.find(r.Context(), h)
	if err != nil {
		if !errors.Is(err, ErrAbsent) {
			cutIfStopping(r)
		}
		binarycache.WriteNotFound(w, s.missed(err))
		return
	}
	s.Stats.NarInfoHits.Add(1)
	s.ahead.answered(got)
	binarycache.WriteText(w, r, "text/x-nix-narinfo", got.text)
}

// missed counts a narinfo question that has no answer, and returns the text of Nix's 404.
func (s *Server) missed(err error) string {
	s.Stats.NarInfoMisses.Add(1)
	if errors.Is(err, ErrAbsent) {
		return binarycache.NotFoundText
	}
	s.log.Debug("answered a narinfo question with 404 for want of an answer", "err", err) // err may name a private path
	if s.told.Allow() {
		s.log.Warn("no source answers narinfo questions; Nix is told 404. flurry status says who is in trouble")
	}
	return binarycache.NotFoundBecauseText(saysNobodyAnswers)
}

// cutIfStopping ends a request without an answer once the agent is stopping (or Nix has left): Nix then
// asks the successor. A 404 would be final: it fails the build, and a narinfo's sticks for an hour.
func cutIfStopping(r *http.Request) {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
}

// narInfoForStrangers serves another machine: this store's public paths and nothing else.
func (s *Server) narInfoForStrangers(w http.ResponseWriter, r *http.Request, h verify.StoreHash) {
	v, err := s.shareable(r.Context(), h)
	if err != nil {
		binarycache.NotFound(w)
		return
	}
	binarycache.WriteNarInfo(w, r, v.For(verify.ScopePublic, binarycache.NARURL(h, v.NarHash()), "none"))
}

// shareable returns the narinfo of a path of this store that anybody may have, verified anew.
func (s *Server) shareable(ctx context.Context, h verify.StoreHash) (*verify.Verified, error) {
	if !s.store.Shared(h, verify.ScopePublic) {
		return nil, ErrAbsent
	}
	info, err := s.store.Info(ctx, h)
	if err != nil {
		return nil, err
	}
	v, err := s.keys.Verify(info)
	if err != nil {
		return nil, err
	}
	if v.Scope() < verify.ScopePublic {
		return nil, ErrAbsent
	}
	return v, nil
}

func (s *Server) nar(w http.ResponseWriter, r *http.Request, name string) {
	h, narHash, ok := binarycache.ParseNARURL(name)
	if !ok {
		binarycache.NotFound(w)
		return
	}
	if !FromThisMachine(r) {
		if v, err := s.shareable(r.Context(), h); err != nil || v.NarHash() != narHash || !s.narFromStore(w, r, v) {
			binarycache.NotFound(w)
		}
		return
	}
	<-s.ready
	asked := time.Now()
	got, err := s.finder.findNAR(r.Context(), h, narHash)
	if err != nil {
		s.log.Debug("asked for a NAR that nobody knows", "err", err)
		if cutIfStopping(r); errors.Is(err, ErrAbsent) {
			binarycache.NotFound(w)
		} else {
			binarycache.NotFoundBecause(w, saysNobodyAnswers)
		}
		return
	}
	if s.store.Has(h) && s.narFromStore(w, r, got.v) {
		return
	}
	s.narFromFlight(w, r, got, time.Since(asked))
}

// narFromStore serves a valid path of the local store; false if it could not begin to.
func (s *Server) narFromStore(w http.ResponseWriter, r *http.Request, v *verify.Verified) bool {
	content, err := s.store.NAR(r.Context(), v.Path().Hash())
	if err != nil {
		return false
	}
	if content.Size() != v.NarSize() {
		s.log.Warn("a store path is not what its signature says: run nix-store --verify --check-contents --repair", "bytes", content.Size(), "want", v.NarSize())
		return false
	}
	content = binarycache.Counted(binarycache.Counted(content, s.Stats.FromStore.Add), s.Stats.ToNix.Add)
	began, broke := time.Now(), false
	binarycache.ServeNAR(w, r, content, 0, func(err error) {
		broke = true
		s.Stats.Failed.Add(1)
		s.log.Warn("serving a NAR from the store broke off", "err", err)
	})
	if broke || r.Method != http.MethodGet {
		s.Stats.Served.Add(1)
		return true
	}
	s.servedFromStore(v, time.Since(began))
	return true
}

// servedFromStore notes a NAR of the local store that left whole. A small one is no news: its line would cost as much
// as reading it, and a log of thousands, the service's journal included.
func (s *Server) servedFromStore(v *verify.Verified, took time.Duration) {
	s.Stats.Served.Add(1)
	level := slog.LevelInfo
	if v.NarSize() <= quickNAR {
		level = slog.LevelDebug
	}
	if !s.log.Enabled(context.Background(), level) {
		return
	}
	args := []any{"bytes", v.NarSize(), "ms", took.Milliseconds()}
	if v.Scope() == verify.ScopePublic {
		args = append(args, "path", v.Path().Base())
	}
	s.log.Log(context.Background(), level, "NAR served from the store", args...)
}

// What Nix is told when it is told no for want of a source. Any local user may read it, so it names none.
const (
	saysNobodyAnswers = "no source has it and an upstream could not be asked in time; flurry status says why"
	saysNobodyServes  = "no source could serve this NAR; flurry status and flurry peers say why"
)

// narFromFlight fetches the NAR from peers and upstreams, or joins those who already do. spent is what the
// request took so far.
func (s *Server) narFromFlight(w http.ResponseWriter, r *http.Request, got *found, spent time.Duration) {
	if r.Method == http.MethodHead {
		binarycache.ServeNAR(w, r, sizeOnly(got.v.NarSize()), 0, nil)
		return
	}
	s.ahead.wanted(got)
	began := time.Now()
	content, fresh, err := s.flights.join(got.v, spent)
	if err != nil {
		s.narDirect(w, r, got, err)
		return
	}
	defer func() { content.close() }()
	_, err = content.await(r.Context(), 0)
	// A flight that began before Nix asked may have used up its tries while nothing could be reached.
	if took := spent + time.Since(began); err != nil && !fresh && took < limitUnseen/2 && r.Context().Err() == nil {
		if again, _, jerr := s.flights.join(got.v, took); jerr == nil {
			content.close()
			content = again
			_, err = content.await(r.Context(), 0)
		}
	}
	// Without a byte in hand a quick 404 is the cheapest failure: Nix asks its next substituter.
	if err != nil {
		cutIfStopping(r)
		if errors.Is(err, ErrAbsent) { // its location may be old; one that could not be asked is no reason
			s.finder.forget(got.v.Path().Hash())
		}
		binarycache.NotFoundBecause(w, saysNobodyServes)
		return
	}
	binarycache.ServeNAR(w, r, binarycache.Counted(content, s.Stats.ToNix.Add), 0, func(err error) {
		s.log.Warn("a NAR broke off; Nix will ask again", "err", err)
	})
	s.Stats.Served.Add(1)
}

// narDirect serves a NAR that could not be collected for want of room.
func (s *Server) narDirect(w http.ResponseWriter, r *http.Request, got *found, cause error) {
	s.log.Debug("a NAR could not be collected", "err", cause)
	content := newDirect(&s.flights, got.v)
	defer content.close()
	ok := false
	for _, up := range s.finder.upstreams { // a quick 404 needs to be sure that nobody has it
		if ok = content.seek(r.Context(), upstreamSource{up, &s.flights}, 0) == nil; ok {
			break
		}
	}
	if !ok {
		cutIfStopping(r)
		binarycache.NotFound(w)
		return
	}
	binarycache.ServeNAR(w, r, binarycache.Counted(content, s.Stats.ToNix.Add), 0, func(err error) {
		s.Stats.Failed.Add(1)
		s.log.Warn("a NAR broke off; Nix will ask again", "err", err)
	})
	s.Stats.Served.Add(1)
}

// sizeOnly is a NAR of which only the size is asked.
type sizeOnly int64

func (s sizeOnly) Size() int64 { return int64(s) }

func (s sizeOnly) WriteRange(context.Context, io.Writer, int64, int64) (int64, error) {
	return 0, errors.New("only the size is known")
}

// forwardable tells whether an upstream might know the path.
func (s *Server) forwardable(path string) bool {
	for _, up := range s.finder.upstreams {
		if up.CanForward(path) {
			return true
		}
	}
	return false
}

// forward passes .ls, log/ and the like through from the first upstream that has it.
func (s *Server) forward(w http.ResponseWriter, r *http.Request) {
	if FromThisMachine(r) {
		for _, up := range s.finder.upstreams {
			if up.CanForward(r.URL.Path) && up.Forward(w, r) == nil {
				return
			}
		}
	}
	binarycache.NotFound(w)
}

// Partial returns the content of a publicly signed NAR that is on its way or still in the spool, for
// neighbours that read it as it arrives; [ErrAbsent] if there is none. They ask only for ranges that were
// announced; others block until they are there. The caller closes it.
func (s *Server) Partial(h verify.StoreHash, narHash verify.Hash) (*PartialNAR, error) {
	return s.flights.partial(h, narHash)
}

// InFlight returns how many NARs are being fetched now.
func (s *Server) InFlight() int { return s.flights.inFlight() }

// UpstreamRequests returns how many narinfo questions went to upstreams.
func (s *Server) UpstreamRequests() int64 { return s.finder.upstreamRequests.Load() }

// ForgetNARs drops the NARs in the spool that nobody reads; it returns how many and their bytes.
func (s *Server) ForgetNARs() (n int, bytes int64) { return s.flights.clear() }

// ForgetNarInfos drops the cached misses, or with all every cached narinfo; it returns how many of each
// were on disk.
func (s *Server) ForgetNarInfos(all bool) (positive, negative int, err error) {
	return s.finder.clear(all)
}
