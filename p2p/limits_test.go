package p2p

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/time/rate"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/internal/throttle"
	"github.com/flurry-nix/flurry/p2p/p2ptest"
	"github.com/flurry-nix/flurry/verify"
)

func TestNARsToPeersAreCapped(t *testing.T) {
	s := newSendSlots(3)
	p, q := &Peer{}, &Peer{}
	var releases []func()
	for range 3 {
		release, ok := s.take(t.Context(), p)
		if !ok {
			t.Fatal("no slot")
		}
		releases = append(releases, release)
	}
	synctest.Test(t, func(t *testing.T) {
		if _, ok := s.take(t.Context(), q); ok {
			t.Error("more than all slots")
		}
	})
	releases[0]()
	release, ok := s.take(t.Context(), q)
	if !ok || p.sending.Load() != 2 || q.sending.Load() != 1 {
		t.Fatal("a slot that was given back is lost")
	}
	release()
	p.sending.Store(maxSendingPerPeer)
	if _, ok := s.take(t.Context(), p); ok {
		t.Error("one peer has more than its share")
	}
}

// A reader's pace is one for all that it is sent, at least paceLeast, and none where it asks for none.
func TestAReaderSetsItsPace(t *testing.T) {
	p := newPeer(&Host{now: time.Now}, "p")
	for _, text := range []string{"", "0", "-5", "fast", "99999999999999999999"} {
		if p.paceFor(text) != nil {
			t.Errorf("%q is taken for a pace", text)
		}
	}
	first := p.paceFor("6250000")
	if first.Rate() != 6_250_000 || p.paceFor("6250000") != first {
		t.Error("two answers to one reader have a pace each")
	}
	if p.paceFor("1").Rate() != paceLeast {
		t.Error("a reader can make an answer last for ever")
	}
}

// A limit on downloads is shared by those that bring NARs.
func TestEachIsAskedForItsShareOfALimit(t *testing.T) {
	now := time.Now()
	h := &Host{now: func() time.Time { return now }, download: throttle.New(8_000_000)}
	var list []*Peer
	for i := range 4 {
		list = append(list, newPeer(h, peer.ID(fmt.Sprint("p", i))))
	}
	h.peers.online.Store(&list)
	for _, c := range []struct {
		what     string
		bringing int // others that bring NARs
		want     int64
	}{{"alone", 0, 8_000_000}, {"one of two", 1, 6_000_000}, {"one of four", 3, 3_000_000}, {"just after they ended", 0, 3_000_000}} {
		for i, p := range list[1:] {
			if p.bringing.Store(0); i < c.bringing {
				p.bringing.Store(1)
				p.brought.Store(now.UnixNano())
			}
		}
		if got := list[0].paceWanted(); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
	now = now.Add(2 * paceMemory)
	if got := list[0].paceWanted(); got != 8_000_000 {
		t.Errorf("alone again: %d", got)
	}
}

func TestABusyPeerIsNotBlamed(t *testing.T) {
	c := newFakeCatalog()
	x, sum := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "known", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
	p := b.Holders(x.Digest(), 0)[0]
	a.peers.lookup(b.host.ID()).sending.Store(maxSendingPerPeer)
	_, err := p.NAR(t.Context(), x, sum, 10, 0, 10)
	if !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	if p.status().Failures != 0 || len(b.Holders(x.Digest(), 10)) != 1 || p.Cost(10) < busyCost {
		t.Error("a busy peer is blamed, or asked first again")
	}
}

func TestHaveSetsShareBoundedMemory(t *testing.T) {
	h := bareHost(nil)
	h.memory.most = 10_000
	list := somePeers(h, 6, 0)
	list[0].good = 5
	for _, p := range list[:4] {
		if !h.memory.claim(p, 2500) {
			t.Fatal("no room at the beginning")
		}
	}
	if h.memory.claim(list[4], 2500) {
		t.Error("a stranger drives out its equals")
	}
	if !h.memory.claim(list[4], 1000) || h.memory.used > h.memory.most {
		t.Error("a smaller set does not get the place of a larger one of no more use")
	}
	list[5].good = 100
	if !h.memory.claim(list[5], 6000) || h.memory.held[list[0]] != 2500 {
		t.Error("the more useful is not preferred")
	}
	if h.memory.claim(list[1], 20_000) {
		t.Error("more than all")
	}
	var sum int64
	for _, n := range h.memory.held {
		sum += n
	}
	if sum != h.memory.used || sum > h.memory.most {
		t.Errorf("%d held, %d counted", sum, h.memory.used)
	}
	for p := range h.memory.missed {
		if p.have.on || !p.status2().HaveDropped {
			t.Error("a dropped set still answers")
		}
	}
	for _, p := range list {
		h.memory.forget(p)
	}
	if h.memory.used != 0 || len(h.memory.missed) != 0 {
		t.Error("memory leaks")
	}
}

// status2 is status for a peer without a network.
func (p *Peer) status2() PeerStatus { return PeerStatus{HaveDropped: p.host.memory.isMissed(p)} }

// TestAThousandNeighboursWithLargeStoresFit: of 1,000 sets of 200,000 paths as many are kept as there is
// memory for, and the sets that did serve are among them.
func TestAThousandNeighboursWithLargeStoresFit(t *testing.T) {
	h := bareHost(nil)
	h.memory.most = haveMemoryMost
	const size = 2 * 225_280 // bytes of fingerprints for 200,000 keys
	for i := range 1000 {
		p := h.peers.get(peer.ID(fmt.Sprint("peer ", i)))
		p.connectedAt = h.now()
		if i%100 == 0 {
			p.good = 3
		}
		h.memory.claim(p, size)
	}
	served := 0
	for p := range h.memory.held {
		if p.good > 0 {
			served++
		}
	}
	if n := len(h.memory.held); n < 70 || served != 10 || h.memory.used > haveMemoryMost {
		t.Errorf("%d sets of which %d of peers that served, %d bytes", n, served, h.memory.used)
	}
}

// TestAHaveSetThatIsDroppedWhileItComesTakesNoMemory: neither as long as the rest of it does not come, nor when it came
// just then.
func TestAHaveSetThatIsDroppedWhileItComesTakesNoMemory(t *testing.T) {
	keys := make([]uint64, 10_000)
	for i := range keys {
		keys[i] = uint64(i) * 0x9e3779b97f4a7c15
	}
	body, err := encodeSnapshot(nil, keys)
	if err != nil {
		t.Fatal(err)
	}
	frames := append(appendFrame(nil, frameHello, []byte(`{"store_dir":"/nix/store"}`)), appendFrame(nil, frameSnapshot, body)...)
	for _, comes := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := bareHost(nil)
			h.memory.most = int64(len(body)) + 1000
			list := somePeers(h, 2, 0)
			slow, useful := list[0], list[1]
			useful.good = 100
			here, there := net.Pipe()
			s := &pipeStream{pipe: here, deaf: comes}
			slow.haveStream, slow.haveBudget = s, rate.NewLimiter(haveRate, haveBurst)
			ended := make(chan error)
			go func() {
				r := haveReader{h: h, p: slow, s: s, r: bufio.NewReader(s)}
				ended <- r.run()
			}()
			half := len(frames) - len(body)/2
			there.Write(frames[:half])
			synctest.Wait()
			if h.memory.held[slow] < int64(len(body)/2) {
				t.Fatal("no memory is held for what comes")
			}
			if !h.memory.claim(useful, h.memory.most-1000) {
				t.Fatal("the more useful one gets no room")
			}
			if comes {
				there.Write(frames[half:])
				synctest.Wait()
				there.Close()
			}
			dropped := time.Now()
			if err := <-ended; comes != errors.Is(err, io.EOF) || !time.Now().Equal(dropped) {
				t.Errorf("the rest comes: %v; its reading ended with %v, %v later", comes, err, time.Since(dropped))
			}
			if slow.have.size() != 0 || h.memory.used > h.memory.most {
				t.Errorf("the rest comes: %v; %d bytes are kept beside the %d that are counted", comes, slow.have.size(), h.memory.used)
			}
			here.Close()
		})
	}
}

// Changes cannot be added for ever without a snapshot, and those that are there have room or the whole set goes.
func TestChangesOfAHaveSetAreBounded(t *testing.T) {
	s, key := haveSet{on: true}, uint64(0)
	more := func(n int) (keys []uint64) {
		for range n {
			key++
			keys = append(keys, key)
		}
		return keys
	}
	for range maxDeltaKeys / 2048 {
		if err := s.apply(more(1024), more(1024)); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{s.apply(more(1), nil), s.apply(nil, more(1))} {
		if !errors.Is(err, errFilter) {
			t.Errorf("one more change: %v", err)
		}
	}
	h := bareHost(nil)
	h.memory.most = 1000 * deltaKeyMemory
	p := h.peers.get("x")
	p.have.replace(nil, 0)
	r := haveReader{h: h, p: p}
	for range 3 {
		body := encodeDelta(nil, more(400), nil)
		r.r = bufio.NewReader(bytes.NewReader(body))
		if err := r.delta(int64(len(body))); err != nil {
			t.Fatal(err)
		}
		if h.memory.used != p.have.size() || p.have.size() > h.memory.most {
			t.Errorf("%d bytes of changes, %d counted", p.have.size(), h.memory.used)
		}
	}
	if p.have.on || !h.memory.isMissed(p) {
		t.Error("what has no room is kept")
	}
}

// pipeStream is a stream over a pipe; a deaf one does not hear of deadlines.
type pipeStream struct {
	network.Stream
	pipe net.Conn
	deaf bool
}

func (s *pipeStream) Read(b []byte) (int, error) { return s.pipe.Read(b) }
func (s *pipeStream) SetReadDeadline(at time.Time) error {
	if s.deaf {
		return nil
	}
	return s.pipe.SetReadDeadline(at)
}

func TestADroppedHaveSetIsAskedForAgainWhenThereIsRoom(t *testing.T) {
	c := newFakeCatalog()
	x, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "known", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
	p := b.Holders(x.Digest(), 0)[0]
	p.haveMu.Lock()
	b.memory.drop(p, 100)
	p.haveMu.Unlock()
	if p.Claims(x.Digest()) || !p.status().HaveDropped {
		t.Error("not dropped")
	}
	b.memory.askAgain()
	eventually(t, "known again", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
}

func TestOnlyTheNewestHaveStreamOfAPeerCounts(t *testing.T) {
	b := startHost(t, newFakeCatalog())
	r := startRecorder(t, p2ptest.Config{})
	id := connectRecorder(t, r, b)
	catalog := newFakeCatalog()
	one, _ := catalog.add(t, 1, 10, verify.ScopePublic)
	two, _ := catalog.add(t, 2, 10, verify.ScopePublic)
	first, stop := context.WithCancel(t.Context())
	defer stop()
	if err := r.Claim(first, id, one.Digest()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first is believed", func() bool { return len(b.Holders(one.Digest(), 0)) == 1 })
	if err := r.Claim(t.Context(), id, two.Digest()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second replaces it", func() bool {
		return len(b.Holders(two.Digest(), 0)) == 1 && len(b.Holders(one.Digest(), 0)) == 0
	})
	stop() // the end of the old stream takes nothing away
	p := b.Holders(two.Digest(), 0)[0]
	if err := r.Claim(t.Context(), id, two.Digest()); err != nil {
		t.Fatal(err)
	}
	if !p.Claims(two.Digest()) {
		t.Error("the newer have-set went with the older stream")
	}
}

// TestEndlessHaveStreamsAreCut: snapshots without end, and streams opened without end.
func TestEndlessHaveStreamsAreCut(t *testing.T) {
	b := startHost(t, newFakeCatalog())
	r := startRecorder(t, p2ptest.Config{})
	id := connectRecorder(t, r, b)
	s, err := r.Open(t.Context(), id, p2ptest.ProtoHave)
	if err != nil {
		t.Fatal(err)
	}
	hello := p2ptest.Frame(1, []byte(`{"version":1,"store_dir":"/nix/store"}`))
	s.Write(hello)
	keys := make([]uint64, 100_000)
	for i := range keys {
		keys[i] = uint64(i) * 0x9e3779b97f4a7c15
	}
	body, err := p2ptest.Snapshot(keys)
	if err != nil {
		t.Fatal(err)
	}
	frame := p2ptest.Frame(2, body)
	sent := 0
	for ; err == nil && sent < 10*haveBurst; sent += len(frame) {
		_, err = s.Write(frame)
	}
	if err == nil {
		t.Fatalf("%d bytes of snapshots were taken", sent)
	}
	// Its budget is the peer's, not the stream's.
	eventually(t, "new streams are refused, too", func() bool {
		s, err := r.Open(t.Context(), id, p2ptest.ProtoHave)
		if err != nil {
			return true
		}
		defer s.Reset()
		s.Write(hello)
		_, err = s.Write(frame)
		if err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		return err != nil
	})
	eventually(t, "nothing is kept", func() bool { return b.HaveMemory() == 0 })
}

func TestOnePeerGetsItsShareOfStreamsOnly(t *testing.T) {
	c := newFakeCatalog()
	x, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	r := startRecorder(t, p2ptest.Config{})
	id := connectRecorder(t, r, a)
	var open []network.Stream
	refused := 0
	for range 4 * maxStreamsPerPeer {
		s, err := r.Open(t.Context(), id, p2ptest.ProtoHTTP)
		if err == nil {
			_, err = io.WriteString(s, "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\n\r\n")
		}
		if err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		if err != nil {
			refused++
			continue
		}
		open = append(open, s)
	}
	if len(open) > maxStreamsPerPeer || len(open) < clientStreams || refused == 0 {
		t.Errorf("%d streams open, %d refused", len(open), refused)
	}
	// Others do not suffer.
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "another peer is served", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
	for _, s := range open {
		s.Reset()
	}
}

func TestGarbageIsNotAnswered(t *testing.T) {
	a := startHost(t, newFakeCatalog())
	r := startRecorder(t, p2ptest.Config{})
	id := connectRecorder(t, r, a)
	if got, err := r.Get(t.Context(), id, "/nix-cache-info"); err != nil || got.Status != 200 {
		t.Fatal("positive control:", got.Status, err)
	}
	for name, raw := range map[string]string{
		"huge header": "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("a", 200_000) + "\r\n\r\n",
		"body":        "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
		"chunks":      "GET /nix-cache-info HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"not HTTP":    strings.Repeat("\x00", 100_000),
		"options":     "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"traversal":   "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"connect":     "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n",
		"foreign":     "GET http://127.0.0.1:22/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		got, err := r.Ask(ctx, id, raw)
		cancel()
		if err == nil && (got.Status < 400 || got.Status > 499 && got.Status != 505) {
			t.Errorf("%s: status %d", name, got.Status)
		}
	}
}

func TestPeersOutsideTheNetworksAreRefusedUnlessStatic(t *testing.T) {
	h := bareHost(nil)
	h.cfg.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fe80::/10")}
	g := newGater(h)
	h.dialer = &dialer{}
	at := func(s string) ma.Multiaddr { return ma.StringCast(s) }
	for s, want := range map[string]bool{
		"/ip4/10.1.2.3/tcp/6491": true, "/ip4/192.0.2.1/tcp/6491": false, "/ip4/127.0.0.1/tcp/1": true,
		"/ip6zone/eth0/ip6/fe80::1/tcp/6491": true, "/ip6/2001:db8::1/tcp/6491": false, "/ip6/::1/udp/1/quic-v1": true,
		"/ip6/::ffff:10.1.2.3/tcp/6491": true, "/dns/example.org/tcp/6491": false,
	} {
		if g.InterceptAddrDial("somebody", at(s)) != want {
			t.Errorf("%s: welcome %v", s, !want)
		}
	}
	g.learn(discovery.Found{Via: discovery.ViaMDNS, Name: "m", Addrs: []string{"/ip4/192.0.2.1/tcp/6491"}}, "")
	if g.InterceptAddrDial("somebody", at("/ip4/192.0.2.1/tcp/6491")) || g.expectsRoamers() {
		t.Error("mDNS names an address outside and it is dialled")
	}
	g.learn(discovery.Found{Via: discovery.ViaStatic, Name: "s", Addrs: []string{"/ip4/192.0.2.1/tcp/6491"}}, "")
	if !g.InterceptAddrDial("somebody", at("/ip4/192.0.2.1/tcp/6491")) || g.InterceptAddrDial("somebody", at("/ip4/192.0.2.2/tcp/6491")) {
		t.Error("a static peer's address")
	}
	g.learn(discovery.Found{Via: discovery.ViaStatic, Name: "s"}, "friend")
	if !g.InterceptAddrDial("friend", at("/ip4/192.0.2.2/tcp/6491")) || g.InterceptAddrDial("somebody", at("/ip4/192.0.2.1/tcp/6491")) {
		t.Error("a static peer's identity")
	}
	h.cfg.Networks = nil
	if everywhere := newGater(h); !everywhere.InterceptAddrDial("somebody", at("/ip4/192.0.2.1/tcp/6491")) {
		t.Error("without networks somebody is refused")
	}
}

func TestThePeerTableIsBoundedAndKeepsWhatCounts(t *testing.T) {
	h := bareHost(nil)
	banned, good := h.peers.get("banned"), h.peers.get("good")
	banned.bannedUntil, good.good = h.now().Add(time.Hour), 1
	for i := range maxPeers + 500 {
		if h.peers.get(peer.ID(fmt.Sprint("stranger ", i))) == nil {
			t.Fatal("no room for a stranger")
		}
	}
	if len(h.peers.byID) > maxPeers || h.peers.lookup("banned") != banned || h.peers.lookup("good") != good {
		t.Error(len(h.peers.byID), "records, or one that counts is lost")
	}
}
