package substituter

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// world is a signed path and everything that may serve it.
type world struct {
	t           testing.TB
	private     ed25519.PrivateKey
	keys        *verify.Keys
	privateKeys *verify.Keys // the same key, as a private one
	site        Site
	internet    Internet
	offload     bool
	path        verify.StorePath
	nar         []byte
	info        *verify.NarInfo
	more        map[verify.StoreHash]*otherPath // besides path
	peers       *fakePeers
	store       *fakeStore
	ups         []Upstream
	dir         string
	firstByte   time.Duration
}

func newWorld(t testing.TB, size int) *world {
	t.Helper()
	return newWorldOf(t, size)
}

func newWorldOf(t testing.TB, size int) *world {
	t.Helper()
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	private := ed25519.NewKeyFromSeed(seed)
	key := []string{"test-1:" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))}
	keys, err := verify.NewKeys(key, nil)
	if err != nil {
		t.Fatal(err)
	}
	privateKeys, err := verify.NewKeys(nil, key)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, private: private, keys: keys, privateKeys: privateKeys, store: &fakeStore{}, peers: &fakePeers{}, dir: t.TempDir()}
	w.path, w.nar, w.info = w.makePath("a", size)
	return w
}

// otherPath is one more path that every source of the world has.
type otherPath struct {
	nar  []byte
	info *verify.NarInfo
}

// add makes one more signed path, with references.
func (w *world) add(name string, size int, refs ...verify.StorePath) verify.StorePath {
	path, nar, info := w.makePath(name, size)
	for _, r := range refs {
		info.References = append(info.References, r.Base())
	}
	sig := ed25519.Sign(w.private, []byte(info.Fingerprint()))
	info.Sigs = []string{"test-1:" + base64.StdEncoding.EncodeToString(sig)}
	if w.more == nil {
		w.more = map[verify.StoreHash]*otherPath{}
	}
	w.more[path.Hash()] = &otherPath{nar, info}
	return path
}

// of returns what the sources serve under h.
func (w *world) of(h verify.StoreHash) (nar []byte, info *verify.NarInfo) {
	if o := w.more[h]; o != nil {
		return o.nar, o.info
	}
	if h == w.path.Hash() {
		return w.nar, w.info
	}
	return nil, nil
}

// makePath makes a signed path whose NAR is size random bytes.
func (w *world) makePath(name string, size int) (verify.StorePath, []byte, *verify.NarInfo) {
	rng := rand.New(rand.NewPCG(uint64(size), uint64(name[0])))
	var h verify.StoreHash
	for i := range h {
		h[i] = byte(rng.Uint32())
	}
	nar := make([]byte, size)
	for i := 0; i < size; i += 8 {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], rng.Uint64())
		copy(nar[i:], b[:])
	}
	path, err := verify.ParseStorePath("/nix/store/" + h.String() + "-" + name)
	if err != nil {
		w.t.Fatal(err)
	}
	info := &verify.NarInfo{StorePath: path, URL: "nar/x.nar", Compression: "none", NarHash: sha256.Sum256(nar), NarSize: int64(size)}
	sig := ed25519.Sign(w.private, []byte(info.Fingerprint()))
	info.Sigs = []string{"test-1:" + base64.StdEncoding.EncodeToString(sig)}
	return path, nar, info
}

// start runs a server until the test ends.
func (w *world) start() *Server {
	w.t.Helper()
	s, err := New(Config{StateDir: w.dir, Site: w.site, FirstByte: w.firstByte, Internet: w.internet, Offload: w.offload, Log: slog.New(slog.NewTextHandler(w.t.Output(), nil))}, w.keys, w.store, w.peers, w.ups)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	<-s.ready
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	return s
}

// get asks the server as Nix would; the answer is nil if it was cut off.
func get(s *Server, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:6490/"+path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	func() {
		defer func() {
			if e := recover(); e == http.ErrAbortHandler {
				rec = nil
			} else if e != nil {
				panic(e)
			}
		}()
		s.Handler(nil).ServeHTTP(rec, r)
	}()
	return rec
}

// knows lets the server learn of the path, as Nix does before it wants the NAR.
func (w *world) knows(s *Server) {
	w.t.Helper()
	if rec := get(s, w.path.Hash().String()+".narinfo"); rec.Code != http.StatusOK {
		w.t.Fatal(rec.Code)
	}
}

func (w *world) narURL() string { return binarycache.NARURL(w.path.Hash(), w.info.NarHash) }

func (w *world) wantNAR(rec *httptest.ResponseRecorder) {
	w.t.Helper()
	if rec == nil {
		w.t.Fatal("the answer was cut off")
	}
	if rec.Code != http.StatusOK || !bytes.Equal(rec.Body.Bytes(), w.nar) {
		w.t.Fatalf("status %d, %d bytes, right: %v", rec.Code, rec.Body.Len(), bytes.Equal(rec.Body.Bytes(), w.nar))
	}
}

type fakeStore struct {
	paths map[verify.StoreHash]*verify.NarInfo
	nars  map[verify.StoreHash][]byte
}

func (s *fakeStore) add(info *verify.NarInfo, nar []byte) {
	if s.paths == nil {
		s.paths, s.nars = map[verify.StoreHash]*verify.NarInfo{}, map[verify.StoreHash][]byte{}
	}
	s.paths[info.StorePath.Hash()], s.nars[info.StorePath.Hash()] = info, nar
}

func (s *fakeStore) Has(h verify.StoreHash) bool { return s.paths[h] != nil }

func (s *fakeStore) Shared(h verify.StoreHash, _ verify.Scope) bool {
	return s.Has(h) && len(s.paths[h].Sigs) > 0
}

func (s *fakeStore) Info(_ context.Context, h verify.StoreHash) (*verify.NarInfo, error) {
	if n := s.paths[h]; n != nil {
		return n, nil
	}
	return nil, ErrAbsent
}

func (s *fakeStore) NAR(_ context.Context, h verify.StoreHash) (binarycache.Content, error) {
	if b, ok := s.nars[h]; ok {
		return memNAR(b), nil
	}
	return nil, ErrAbsent
}

func (s *fakeStore) AppendNAR(_ context.Context, b []byte, h verify.StoreHash, size int64) ([]byte, error) {
	if n, ok := s.nars[h]; ok && int64(len(n)) == size {
		return append(b, n...), nil
	}
	return b, ErrAbsent
}

type memNAR []byte

func (m memNAR) Size() int64 { return int64(len(m)) }
func (m memNAR) WriteRange(_ context.Context, w io.Writer, off, n int64) (int64, error) {
	k, err := w.Write(m[off : off+n])
	return int64(k), err
}

// behaviour is how a fake source treats its NAR.
type behaviour struct {
	stopAt   int           // after that many bytes of the NAR's whole ...
	stall    bool          // ... it is silent (else the connection breaks); 0 = never stops
	corrupt  int           // offset of a flipped byte, -1 none
	refuse   bool          // open fails
	absent   bool          // says no to everything
	hangOpen bool          // never answers
	perRead  time.Duration // between pieces of 64 KiB
	piece    int           // or of so many bytes
	late     time.Duration // before the first piece
	burst    int           // bytes of each answer that come at once
	letGo    time.Duration // how long Close and a waiting Read hold on
	again    bool          // asked for a NAR from its middle on, it sends all of it, as one that compresses

	alsoCorrupt []int // offsets of more flipped bytes

	chain func(*world) verify.Chain // what it claims; nil: it offers none
	other []byte                    // what it sends instead of the NAR
}

var honest = behaviour{corrupt: -1}

type body struct {
	b      behaviour
	nar    []byte
	off    int
	wire   atomic.Int64 // see WireBytes
	ctx    context.Context
	closed chan struct{}
	once   sync.Once
}

func (b *body) Close() error {
	time.Sleep(b.b.letGo)
	b.once.Do(func() { close(b.closed) })
	return nil
}

func (b *body) WireBytes() int64 { return b.wire.Load() }
func (b *body) Broke() time.Time { return time.Time{} }

func (b *body) Read(p []byte) (int, error) {
	wait := b.b.perRead
	if b.wire.Load() == 0 {
		wait += b.b.late
	}
	if int(b.wire.Load()) < b.b.burst {
		wait = 0
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-b.closed:
			return 0, io.ErrClosedPipe
		}
	}
	end := len(b.nar)
	if b.b.stopAt > 0 && b.b.stopAt < end {
		end = b.b.stopAt
	}
	if b.off >= end {
		if end == len(b.nar) {
			return 0, io.EOF
		}
		if b.b.stall {
			<-b.closed
			return 0, io.ErrClosedPipe
		}
		return 0, errors.New("connection reset by test")
	}
	piece := 64 << 10
	if b.b.piece > 0 {
		piece = b.b.piece
	}
	n := copy(p[:min(len(p), piece)], b.nar[b.off:end])
	if c := b.b.corrupt; c >= b.off && c < b.off+n {
		p[c-b.off] ^= 0x55
	}
	for _, c := range b.b.alsoCorrupt {
		if c >= b.off && c < b.off+n {
			p[c-b.off] ^= 0x55
		}
	}
	b.off += n
	b.wire.Add(int64(n))
	return n, nil
}

func (b behaviour) open(ctx context.Context, nar []byte, off int64) (*body, error) {
	switch {
	case b.absent:
		return nil, ErrAbsent
	case b.refuse:
		return nil, errors.New("refused by test")
	case b.hangOpen:
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &body{b: b, nar: nar, off: int(off), ctx: ctx, closed: make(chan struct{})}, nil
}

// passingBody is a body whose first bytes its reader does not see.
type passingBody struct {
	*body
	skip int64
}

func (b *passingBody) Read(p []byte) (int, error) {
	if n := b.skip; n > 0 {
		b.skip = 0
		if _, err := io.CopyN(io.Discard, b.body, n); err != nil {
			return 0, err
		}
	}
	return b.body.Read(p)
}

type fakePeers struct {
	mu   sync.Mutex
	list []*fakePeer
}

func (l *fakePeers) add(p *fakePeer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, p)
}

func (l *fakePeers) Holders(d verify.PathDigest, _ int64) []Peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Peer
	for _, p := range l.list {
		if !p.out() && p.w.path.Hash().Digest() == d {
			out = append(out, p)
		}
	}
	return out
}

type fakePeer struct {
	w  *world
	id string
	behaviour
	stays bool // in the list, even after it let somebody down

	mu                         sync.Mutex
	opened                     []int64
	goods                      int
	chains                     int // questions for chains
	flakies, convicts, useless []error
	info                       *verify.NarInfo // what it says of the path, nil for the truth
}

func (w *world) peer(id string, b behaviour) *fakePeer {
	p := &fakePeer{w: w, id: id, behaviour: b}
	w.peers.add(p)
	return p
}

func (p *fakePeer) out() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.convicts) > 0 || len(p.flakies) > 0 && !p.stays
}

func (p *fakePeer) ID() string         { return p.id }
func (p *fakePeer) RTT() time.Duration { return 2 * time.Millisecond }

func (p *fakePeer) NarInfo(ctx context.Context, _ verify.PathDigest) (*verify.NarInfo, error) {
	if _, err := p.open(ctx, nil, 0); err != nil {
		return nil, err
	}
	if p.info != nil {
		return p.info, nil
	}
	return p.w.info, nil
}

func (p *fakePeer) NAR(ctx context.Context, _ verify.StoreHash, _ verify.Hash, _, off, to int64) (io.ReadCloser, error) {
	p.mu.Lock()
	p.opened = append(p.opened, off)
	p.mu.Unlock()
	nar := p.w.nar
	if p.other != nil {
		nar = p.other
	}
	b, err := p.open(ctx, nar[:to], off)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (p *fakePeer) Chain(ctx context.Context, _ verify.StoreHash, _ verify.Hash, _ int64) (verify.Chain, error) {
	p.mu.Lock()
	p.chains++
	p.mu.Unlock()
	if _, err := p.open(ctx, nil, 0); err != nil {
		return nil, err
	}
	if p.chain == nil {
		return nil, ErrAbsent
	}
	return p.chain(p.w), nil
}

func (p *fakePeer) Good() { p.mu.Lock(); p.goods++; p.mu.Unlock() }

func (p *fakePeer) Useless(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.useless = append(p.useless, err)
}

func (p *fakePeer) Cost(int64) time.Duration { return p.RTT() }

func (p *fakePeer) Flaky(err error) {
	p.mu.Lock()
	p.flakies = append(p.flakies, err)
	p.mu.Unlock()
}

func (p *fakePeer) Convict(err error) {
	p.mu.Lock()
	p.convicts = append(p.convicts, err)
	p.mu.Unlock()
}

// fakeUpstream serves the world's path.
type fakeUpstream struct {
	w    *world
	name string
	behaviour

	mu       sync.Mutex
	narInfos int
	opened   []int64
	names    []string // of the NARs asked for
	troubles []error
	heard    time.Time
}

func (u *fakeUpstream) asked() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.names)
}

func (w *world) upstream(name string, b behaviour) *fakeUpstream {
	u := &fakeUpstream{w: w, name: name, behaviour: b}
	w.ups = append(w.ups, u)
	return u
}

// become changes how it behaves from now on.
func (u *fakeUpstream) become(b behaviour) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.behaviour = b
}

func (u *fakeUpstream) now() behaviour {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.behaviour
}

func (u *fakeUpstream) Sends(d time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return time.Since(u.heard) < d
}

func (u *fakeUpstream) Trouble(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.troubles = append(u.troubles, err)
}

func (u *fakeUpstream) SetBusy(func() bool)                              {}
func (u *fakeUpstream) URL() string                                      { return "http://" + u.name }
func (u *fakeUpstream) CanForward(string) bool                           { return false }
func (u *fakeUpstream) Forward(http.ResponseWriter, *http.Request) error { return ErrAbsent }

func (u *fakeUpstream) NarInfo(ctx context.Context, h verify.StoreHash) (*verify.Verified, string, error) {
	u.mu.Lock()
	u.narInfos++
	u.mu.Unlock()
	if _, err := u.now().open(ctx, nil, 0); err != nil {
		return nil, "", err
	}
	_, info := u.w.of(h)
	if info == nil {
		return nil, "", fmt.Errorf("%s: %w", h, ErrAbsent)
	}
	v, err := u.Parse(h, info.String())
	return v, info.String(), err
}

func (u *fakeUpstream) Parse(_ verify.StoreHash, text string) (*verify.Verified, error) {
	n, err := verify.ParseNarInfo(text)
	if err != nil {
		return nil, err
	}
	return u.w.keys.Verify(n)
}

func (u *fakeUpstream) NAR(ctx context.Context, v *verify.Verified, off int64) (NARBody, error) {
	u.mu.Lock()
	u.opened = append(u.opened, off)
	u.names = append(u.names, v.Path().Name())
	u.mu.Unlock()
	nar, _ := u.w.of(v.Path().Hash())
	how := u.now()
	if !how.again {
		b, err := how.open(ctx, nar, off)
		if err != nil {
			return nil, err
		}
		return b, nil
	}
	b, err := how.open(ctx, nar, 0)
	if err != nil {
		return nil, err
	}
	return &passingBody{body: b, skip: off}, nil
}

func tcpAddr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
