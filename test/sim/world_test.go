package sim

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/substituter"
	"github.com/flurry-nix/flurry/verify"
)

var (
	errGone = errors.New("connection reset by the simulation")
	private = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))
	keyText = "sim-1:" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
)

// object is one signed store path.
type object struct {
	path verify.StorePath
	info *verify.NarInfo
	nar  []byte
}

func newObject(rnd *rand.Rand, i int) *object {
	var h verify.StoreHash
	for k := range h {
		h[k] = byte(rnd.Uint32())
	}
	path, err := verify.ParseStorePath(fmt.Sprintf("/nix/store/%s-object-%d", h, i))
	if err != nil {
		panic(err)
	}
	nar := make([]byte, 1000+rnd.IntN(200_000))
	if i%10 == 0 {
		nar = make([]byte, 1_500_000) // large enough to be split
	}
	for k := range nar {
		nar[k] = byte(rnd.Uint32())
	}
	o := &object{path: path, nar: nar, info: &verify.NarInfo{StorePath: path, URL: "nar/x.nar", Compression: "none", NarHash: sha256.Sum256(nar), NarSize: int64(len(nar))}}
	o.info.Sigs = []string{"sim-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte(o.info.Fingerprint())))}
	return o
}

// world is the site. mu guards what is said of it below.
type world struct {
	keys    *verify.Keys
	objects []*object
	byHash  map[verify.StoreHash]*object
	byKey   map[verify.PathDigest]*object
	agents  []*agent

	mu        sync.Mutex
	upstream  bool // the central cache answers
	parted    bool // agents of different sides cannot reach each other
	downloads atomic.Int64
}

// lie is what an agent does to others; honest is 0.
type lie int

const (
	honest  lie = iota
	flips       // one byte of every NAR
	garbles     // narinfos are another path's, NARs noise
	stalls      // in the middle of what it has, and has not what else it claims
	breaks      // off there
	lies        // number of kinds
)

// agent is one machine: a substituter, its store and its neighbours as it sees them. mu guards the rest.
type agent struct {
	w    *world
	id   string
	side int
	lie  lie

	mu       sync.Mutex
	up       bool
	server   *substituter.Server
	stop     context.CancelFunc
	ended    chan error
	store    map[verify.StoreHash]*object
	told     map[verify.PathDigest]substituter.Progress
	sent     int                       // announcements
	arrived  map[verify.PathDigest]int // the latest that came, by its number
	news     map[verify.PathDigest]chan struct{}
	banned   map[string]error
	resting  map[string]time.Time
	failures map[string]int
}

func (w *world) reach(a, b *agent) bool {
	w.mu.Lock()
	parted := w.parted
	w.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	return a != b && b.up && (!parted || a.side == b.side)
}

func (w *world) answers() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.upstream
}

// start makes the agent anew, with the store it had.
func (a *agent) start() {
	s, err := substituter.New(substituter.Config{MaxBuffer: 8 << 20, CacheSize: 1 << 20, Site: (*site)(a)}, a.w.keys, (*localStore)(a), (*peers)(a), []substituter.Upstream{&central{a.w}})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.server, a.stop, a.ended, a.up = s, cancel, ended, true
}

// end kills the agent; its requests are cut.
func (a *agent) end() error {
	a.mu.Lock()
	stop, ended, up := a.stop, a.ended, a.up
	a.up = false
	clear(a.told)
	a.mu.Unlock()
	if !up {
		return nil
	}
	stop()
	return <-ended
}

type localStore agent

func (s *localStore) get(h verify.StoreHash) *object {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store[h]
}

func (s *localStore) Has(h verify.StoreHash) bool                    { return s.get(h) != nil }
func (s *localStore) Shared(h verify.StoreHash, _ verify.Scope) bool { return s.get(h) != nil }

func (s *localStore) Info(_ context.Context, h verify.StoreHash) (*verify.NarInfo, error) {
	if o := s.get(h); o != nil {
		return o.info, nil
	}
	return nil, substituter.ErrAbsent
}

func (s *localStore) NAR(_ context.Context, h verify.StoreHash) (binarycache.Content, error) {
	if o := s.get(h); o != nil {
		return memNAR(o.nar), nil
	}
	return nil, substituter.ErrAbsent
}

func (s *localStore) AppendNAR(_ context.Context, b []byte, h verify.StoreHash, size int64) ([]byte, error) {
	if o := s.get(h); o != nil && int64(len(o.nar)) == size {
		return append(b, o.nar...), nil
	}
	return b, substituter.ErrAbsent
}

type memNAR []byte

func (m memNAR) Size() int64 { return int64(len(m)) }
func (m memNAR) WriteRange(_ context.Context, w io.Writer, off, n int64) (int64, error) {
	k, err := w.Write(m[off : off+n])
	return int64(k), err
}

// peers are the others as one agent sees them.
type peers agent

func (p *peers) Holders(d verify.PathDigest, _ int64) (out []substituter.Peer) {
	me := (*agent)(p)
	o := me.w.byKey[d]
	if o == nil {
		return nil
	}
	for _, other := range me.w.agents {
		if !me.w.reach(me, other) || me.avoids(other.id) {
			continue
		}
		if other.lie != honest || (*localStore)(other).Has(o.path.Hash()) { // liars claim everything
			out = append(out, &peer{me, other})
		}
	}
	i := int(d[0]) % max(1, len(out)) // each path's holders in another order
	return append(out[i:len(out):len(out)], out[:i]...)
}

func (a *agent) avoids(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.banned[id] != nil || time.Now().Before(a.resting[id])
}

// peer is another agent as seen by me.
type peer struct{ me, other *agent }

const (
	lanRTT  = 2 * time.Millisecond
	lanRate = 50e6 // bytes per second
	wanRTT  = 30 * time.Millisecond
	wanRate = 5e6
	wanIdle = 10 * time.Second // what package upstream waits for a byte
)

func (p *peer) ID() string         { return p.other.id }
func (p *peer) RTT() time.Duration { return lanRTT }
func (p *peer) Cost(size int64) time.Duration {
	return lanRTT + time.Duration(float64(size)/lanRate*1e9)
}
func (p *peer) Good()         {}
func (p *peer) Useless(error) { p.rest() }
func (p *peer) Flaky(error)   { p.rest() }

func (p *peer) rest() {
	p.me.mu.Lock()
	defer p.me.mu.Unlock()
	p.me.failures[p.other.id]++
	p.me.resting[p.other.id] = time.Now().Add(time.Second << min(p.me.failures[p.other.id], 6))
}

func (p *peer) Convict(err error) {
	p.me.mu.Lock()
	defer p.me.mu.Unlock()
	p.me.banned[p.other.id] = err
}

func (p *peer) NarInfo(ctx context.Context, d verify.PathDigest) (*verify.NarInfo, error) {
	if err := sleep(ctx, lanRTT); err != nil {
		return nil, err
	}
	if !p.me.w.reach(p.me, p.other) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	o := p.me.w.byKey[d]
	switch {
	case o == nil:
		return nil, substituter.ErrAbsent
	case p.other.lie == garbles:
		return p.me.w.objects[0].info, nil
	case p.other.lie == honest && !(*localStore)(p.other).Has(o.path.Hash()):
		return nil, substituter.ErrAbsent
	}
	return o.info, nil
}

func (p *peer) Chain(context.Context, verify.StoreHash, verify.Hash, int64) (verify.Chain, error) {
	return verify.Chain{}, substituter.ErrAbsent
}

func (p *peer) NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, _, from, to int64) (io.ReadCloser, error) {
	if err := sleep(ctx, lanRTT); err != nil {
		return nil, err
	}
	if !p.me.w.reach(p.me, p.other) {
		return nil, errGone
	}
	o := p.me.w.byHash[h]
	if p.other.lie >= stalls && h[0]%4 != 0 {
		return nil, substituter.ErrAbsent
	}
	if p.other.lie == honest && !(*localStore)(p.other).Has(h) {
		return p.partial(ctx, h, narHash, from, to)
	}
	b := &body{ctx: ctx, data: o.nar[from:to], rate: lanRate, alive: func() bool { return p.me.w.reach(p.me, p.other) }, closed: make(chan struct{})}
	middle := (from + to) / 2
	switch p.other.lie {
	case flips:
		b.data = slices.Clone(b.data)
		for i := 0; i < len(b.data); i += 50_000 { // whoever takes a part of it is lied to as well
			b.data[i] ^= 0x40
		}
	case garbles:
		b.data = bytes.Repeat([]byte("nix-archive-1"), len(b.data)/13+1)[:len(b.data)]
	case stalls, breaks:
		b.stopAt, b.silent = int(middle-from), p.other.lie == stalls
	}
	return b, nil
}

// partial reads from a NAR that the other is still fetching.
func (p *peer) partial(ctx context.Context, h verify.StoreHash, narHash verify.Hash, from, to int64) (io.ReadCloser, error) {
	p.other.mu.Lock()
	server := p.other.server
	p.other.mu.Unlock()
	content, err := server.Partial(h, narHash)
	if err != nil {
		return nil, substituter.ErrAbsent
	}
	defer content.Close()
	var got bytes.Buffer
	if _, err := content.WriteRange(ctx, &got, from, to-from); err != nil {
		return nil, err
	}
	return &body{ctx: ctx, data: got.Bytes(), rate: lanRate, alive: func() bool { return p.me.w.reach(p.me, p.other) }, closed: make(chan struct{})}, nil
}

// body is bytes on their way.
type body struct {
	ctx    context.Context
	data   []byte
	off    int
	rate   float64
	alive  func() bool
	stopAt int           // 0: never
	silent bool          // there; else it breaks off
	idle   time.Duration // after which silence ends in an error; 0: never
	once   sync.Once
	closed chan struct{}
}

func (b *body) WireBytes() int64 { return int64(b.off) }
func (b *body) Broke() time.Time { return time.Time{} }
func (b *body) Close() error     { b.once.Do(func() { close(b.closed) }); return nil }

func (b *body) Read(p []byte) (int, error) {
	if b.off >= len(b.data) {
		return 0, io.EOF
	}
	n := min(len(p), 64<<10, len(b.data)-b.off)
	if b.stopAt > 0 && b.off+n > b.stopAt {
		n = b.stopAt - b.off
	}
	if n == 0 && !b.silent {
		return 0, errGone
	}
	if n == 0 || !b.alive() { // a parted link is silent
		var idle <-chan time.Time
		if b.idle > 0 {
			idle = time.After(b.idle)
		}
		select {
		case <-b.closed:
		case <-b.ctx.Done():
		case <-idle:
		}
		return 0, errGone
	}
	select {
	case <-time.After(time.Duration(float64(n) / b.rate * float64(time.Second))):
	case <-b.closed:
		return 0, errGone
	}
	copy(p, b.data[b.off:b.off+n])
	b.off += n
	return n, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// site is what neighbours tell each other of NARs on their way.
type site agent

func (s *site) Self() string                           { return s.id }
func (s *site) Spread(func(string) bool) time.Duration { return 2 * lanRTT }

// Fetched tells nothing of the others: the simulation has no meter.
func (s *site) Fetched(int64) int64 { return 0 }

func (s *site) Neighbours() int { return len(s.w.agents) - 1 }

func (s *site) IDs() (out []string) {
	for _, a := range s.w.agents {
		if a.id != s.id {
			out = append(out, a.id)
		}
	}
	return out
}

func (s *site) Tell(d verify.PathDigest, p substituter.Progress, now bool) {
	delay := lanRTT
	if !now {
		delay += min(time.Duration(s.Neighbours())*10*time.Millisecond, 250*time.Millisecond) // as the agents' transport does
	}
	s.mu.Lock()
	s.sent++
	number := s.sent
	s.mu.Unlock()
	time.AfterFunc(delay, func() {
		s.mu.Lock()
		if !s.up || number < s.arrived[d] { // what was told later came before
			s.mu.Unlock()
			return
		}
		s.arrived[d] = number
		if s.told[d] = p; p.Stage == substituter.StageNone {
			delete(s.told, d)
		}
		s.mu.Unlock()
		for _, o := range s.w.agents {
			o.mu.Lock()
			if ch := o.news[d]; ch != nil {
				close(ch)
				delete(o.news, d)
			}
			o.mu.Unlock()
		}
	})
}

func (s *site) Flying(d verify.PathDigest) (out []substituter.Flying) {
	me := (*agent)(s)
	for _, o := range s.w.agents {
		o.mu.Lock()
		p, ok := o.told[d]
		o.mu.Unlock()
		if ok && s.w.reach(me, o) && !me.avoids(o.id) {
			out = append(out, substituter.Flying{Peer: &peer{me, o}, Progress: p})
		}
	}
	return out
}

func (s *site) News(d verify.PathDigest) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.news[d] == nil {
		s.news[d] = make(chan struct{})
	}
	return s.news[d]
}

// central is the central cache.
type central struct{ w *world }

func (c *central) URL() string                                      { return "http://central" }
func (c *central) SetBusy(func() bool)                              {}
func (c *central) Sends(time.Duration) bool                         { return false }
func (c *central) Trouble(error)                                    {}
func (c *central) CanForward(string) bool                           { return false }
func (c *central) Forward(http.ResponseWriter, *http.Request) error { return substituter.ErrAbsent }

func (c *central) NarInfo(ctx context.Context, h verify.StoreHash) (*verify.Verified, string, error) {
	if err := sleep(ctx, wanRTT); err != nil {
		return nil, "", err
	}
	o := c.w.byHash[h]
	switch {
	case !c.w.answers():
		return nil, "", errGone
	case o == nil:
		return nil, "", substituter.ErrAbsent
	}
	v, err := c.Parse(h, o.info.String())
	return v, o.info.String(), err
}

func (c *central) Parse(_ verify.StoreHash, text string) (*verify.Verified, error) {
	n, err := verify.ParseNarInfo(text)
	if err != nil {
		return nil, err
	}
	return c.w.keys.Verify(n)
}

func (c *central) NAR(ctx context.Context, v *verify.Verified, off int64) (substituter.NARBody, error) {
	if err := sleep(ctx, wanRTT); err != nil {
		return nil, err
	}
	if !c.w.answers() {
		return nil, errGone
	}
	c.w.downloads.Add(1)
	return &body{ctx: ctx, data: c.w.byHash[v.Path().Hash()].nar[off:], rate: wanRate, alive: c.w.answers, idle: wanIdle, closed: make(chan struct{})}, nil
}
