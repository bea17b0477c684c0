package p2p

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/verify"
)

// prose is n bytes that compress to about a third.
func prose(n int) []byte {
	rng := rand.New(rand.NewPCG(7, 7))
	var b bytes.Buffer
	for b.Len() < n {
		b.WriteString([]string{"store", "path", "closure", "substituter", "narinfo", " ", "\n", strconv.Itoa(rng.IntN(1 << 20))}[rng.IntN(8)])
	}
	return b.Bytes()[:n]
}

// addNAR makes a public path with that NAR.
func (c *fakeCatalog) addNAR(t testing.TB, nar []byte) (verify.StoreHash, verify.Hash) {
	h, _ := c.add(t, 3, 1, verify.ScopePublic)
	sum := verify.Hash(sha256.Sum256(nar))
	info := *c.paths[h].info
	info.NarHash, info.NarSize = sum, int64(len(nar))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paths[h] = fakePath{nar, verify.ScopePublic, &info}
	return h, sum
}

// slowLink makes p one that is asked for compressed NARs.
func slowLink(p *Peer) *Peer {
	p.far.Store(true)
	p.host.coding.speed.Store(100e6)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plainRate = 1e6
	return p
}

func getNAR(t *testing.T, p *Peer, h verify.StoreHash, sum verify.Hash, size, from, to int64) (got []byte, body *narBody, err error) {
	t.Helper()
	b, err := p.NAR(t.Context(), h, sum, size, from, to)
	if err != nil {
		return nil, nil, err
	}
	defer b.Close()
	got, err = io.ReadAll(b)
	return got, b.(*narBody), err
}

func TestOnASlowLinkNARsTravelCompressed(t *testing.T) {
	c := newFakeCatalog()
	nar := prose(3 << 20)
	h, sum := c.addNAR(t, nar)
	a := startHost(t, c)
	p := slowLink(chainHolder(t, a, h))
	const size = 3 << 20
	var wire, plain int64
	for _, r := range [][2]int64{{0, size}, {1, size}, {1 << 20, 2<<20 + 5}, {size - codingSample, size}} {
		got, body, err := getNAR(t, p, h, sum, size, r[0], r[1])
		if err != nil || !bytes.Equal(got, nar[r[0]:r[1]]) {
			t.Fatalf("%v: %d bytes, %v", r, len(got), err)
		}
		if !body.coded || body.wire.n*2 > int64(len(got)) {
			t.Errorf("%v: %d bytes took %d on the wire", r, len(got), body.wire.n)
		}
		wire, plain = wire+body.wire.n, plain+int64(len(got))
	}
	if got, body, err := getNAR(t, p, h, sum, size, size-1000, size); err != nil || body.coded || len(got) != 1000 {
		t.Errorf("a short range: %d bytes, %v", len(got), err)
	}
	eventually(t, "both sides know what was spared", func() bool {
		return p.host.coding.gotOff.Load() == plain-wire && a.coding.outOff.Load() == plain-wire && a.coding.nars.Load() == 0 && len(a.coding.work) == 0
	})
	if n := p.in.Load(); n != plain+1000 {
		t.Errorf("%d NAR bytes counted, want %d", n, plain+1000)
	}
}

func TestCompressionIsDeclined(t *testing.T) {
	for what, busy := range map[string]bool{"of what does not become smaller": false, "by one whose processors are at it": true} {
		c := newFakeCatalog()
		h, sum := c.add(t, 1, 1<<20, verify.ScopePublic)
		if busy {
			h, sum = c.addNAR(t, prose(1<<20))
		}
		a := startHost(t, c)
		p := slowLink(chainHolder(t, a, h))
		for busy && len(a.coding.work) < cap(a.coding.work) {
			a.coding.work <- struct{}{}
		}
		got, body, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20)
		if err != nil || body.coded || !bytes.Equal(got, c.paths[h].nar) {
			t.Errorf("%s: %d bytes, compressed: %v, %v", what, len(got), body.coded, err)
		}
		if len(a.coding.work) != 0 && !busy {
			t.Error("a processor is held")
		}
	}
}

func TestCompressionIsDeclinedByOneThatSendsManyNARsSo(t *testing.T) {
	c := newFakeCatalog()
	h, sum := c.addNAR(t, prose(1<<20))
	a := startHost(t, c)
	p := slowLink(chainHolder(t, a, h))
	a.coding.nars.Store(codingMost)
	if _, body, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20); err != nil || body.coded || a.coding.nars.Load() != codingMost {
		t.Errorf("compressed: %v, %v, %d count", body.coded, err, a.coding.nars.Load())
	}
}

func TestCompressionIsAskedForWhereTheLinkIsSlower(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	host := bareHost(nil)
	host.now = func() time.Time { return now }
	p := host.peers.get("x")
	want := func(is bool, when string) {
		t.Helper()
		if p.wantsCoding() != is {
			t.Errorf("%s: %v", when, !is)
		}
	}
	host.coding.speed.Store(100e6)
	p.sampleCoding(1e6, false)
	want(false, "a slow neighbour")
	p.far.Store(true)
	want(true, "a slow agent of the internet")
	p.sampleCoding(0.5e6, true)
	want(false, "when it is slower compressed")
	now = now.Add(rateHalfLife + time.Second)
	want(true, "a while later")
	p.sampleCoding(8e6, true)
	want(true, "when that is quicker")
	p.plainRate = 90e6
	want(false, "on a quick link")
	p.plainRate = 0
	want(false, "before anything was measured")
}

func TestOnBatteryAgentsOfTheInternetAreServedNothing(t *testing.T) {
	c := newFakeCatalog()
	h, sum := c.addNAR(t, prose(1<<20))
	quiet := true
	a := startHostWith(t, Config{Internet: &Internet{Quiet: func() bool { return quiet }, Public: func(netip.Addr) bool { return false }}}, newTestIdentity(t), c).Host
	f := discovery.Found{Via: discovery.ViaStatic, Name: "test", PeerID: a.ID(), Keep: true}
	for _, addr := range a.host.Network().ListenAddresses() { // none of them is public, so that it tells nobody
		f.Addrs = append(f.Addrs, addr.String())
	}
	b := startHost(t, newFakeCatalog(), at(f))
	eventually(t, "the holder is known", func() bool { return len(b.Holders(h.Digest(), 0)) == 1 })
	p := b.Holders(h.Digest(), 0)[0]
	if _, _, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20); err != nil {
		t.Error("a neighbour:", err)
	}
	a.peers.lookup(p.host.host.ID()).far.Store(true)
	if _, _, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20); !errors.Is(err, ErrBusy) {
		t.Error("one of the internet:", err)
	}
	quiet = false
	if _, _, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20); err != nil {
		t.Error("and when it is plugged in:", err)
	}
}

func TestAPlainBodyTellsHowQuickThisMachineCompresses(t *testing.T) {
	c := newFakeCatalog()
	h, sum := c.addNAR(t, prose(1<<20))
	p := chainHolder(t, startHost(t, c), h)
	if _, _, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20); err != nil || p.host.coding.speed.Load() != 0 {
		t.Error("of a neighbour's NAR a sample was taken:", err)
	}
	p.far.Store(true)
	if _, _, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20); err != nil || p.host.coding.speed.Load() == 0 || p.plainRate == 0 {
		t.Error("of an internet agent's none:", err)
	}
}

// coded compresses as a sender with other settings may.
func codedBy(t testing.TB, nar []byte, options ...zstd.EOption) []byte {
	e, err := zstd.NewWriter(nil, options...)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(nar, nil)
}

// counting counts what is read.
type counting struct {
	io.Reader
	n int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

func decodeAll(c *coding, in io.Reader, want int64) ([]byte, error) {
	b, err := c.decode(&wireBody{ReadCloser: io.NopCloser(in), ctx: context.Background()}, want)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return io.ReadAll(b)
}

// looped repeats b.
type looped struct {
	b  []byte
	at int
}

func (e *looped) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], e.b[e.at:])
		n, e.at = n+k, (e.at+k)%len(e.b)
	}
	return n, nil
}

func TestLiesAboutCompressionEndInErrors(t *testing.T) {
	nar := prose(300 << 10)
	const want = 300 << 10
	good := codedBy(t, nar)
	skip := append([]byte{0x50, 0x2a, 0x4d, 0x18, 100, 0, 0, 0}, make([]byte, 100)...)
	bomb := codedBy(t, make([]byte, 64<<20))
	c := newCoding()
	for what, in := range map[string]io.Reader{
		"bomb":               bytes.NewReader(bomb),
		"truncated":          bytes.NewReader(good[:len(good)/2]),
		"cut at the end":     bytes.NewReader(good[:len(good)-1]),
		"shorter":            bytes.NewReader(codedBy(t, nar[:want-1])),
		"longer":             bytes.NewReader(codedBy(t, append(nar[:want:want], 1))),
		"garbage":            strings.NewReader(strings.Repeat("garbage", 1000)),
		"garbage after it":   bytes.NewReader(append(good[:len(good):len(good)], "garbage"...)),
		"nothing":            strings.NewReader(""),
		"frames of nothing":  &looped{b: skip},
		"a window too large": bytes.NewReader(codedBy(t, prose(9<<20), zstd.WithWindowSize(8<<20))),
	} {
		count := &counting{Reader: in}
		got, err := decodeAll(c, count, want)
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
		if len(got) > want || !bytes.Equal(got, nar[:len(got)]) && what != "bomb" {
			t.Errorf("%s: %d bytes", what, len(got))
		}
		if count.n > want+codingSlack {
			t.Errorf("%s: %d bytes were read", what, count.n)
		}
	}
	if got, err := decodeAll(c, bytes.NewReader(good), want); err != nil || !bytes.Equal(got, nar) {
		t.Error("the truth, after all the lies:", err)
	}
	lost := errors.New("connection lost")
	if _, err := decodeAll(c, io.MultiReader(bytes.NewReader(good[:100]), iotestErr{lost}), want); !errors.Is(err, lost) || errors.Is(err, errCoding) {
		t.Error("a lost connection is told as", err)
	}
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

// An agent that does not know of compression, or answers with another, is understood or refused.
func TestACodingThatWasNotAskedForIsRefused(t *testing.T) {
	c := newFakeCatalog()
	h, sum := c.addNAR(t, prose(1<<20))
	p := chainHolder(t, startHost(t, c), h)
	p.host.client = &http.Client{Transport: answers(func(r *http.Request) *http.Response {
		return &http.Response{StatusCode: 200, ContentLength: 1 << 20, Header: http.Header{"Content-Encoding": {"br"}},
			Body: io.NopCloser(&looped{b: []byte{0}}), Request: r}
	})}
	for _, far := range []bool{false, true} {
		if far {
			slowLink(p)
		}
		if _, _, err := getNAR(t, p, h, sum, 1<<20, 0, 1<<20); err == nil {
			t.Errorf("accepted from a far one: %v", far)
		}
	}
}

type answers func(*http.Request) *http.Response

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r), nil }

// FuzzDecode: whatever comes as a compressed range, no more than the range is yielded and little more read.
func FuzzDecode(f *testing.F) {
	nar := prose(5000)
	f.Add(codedBy(f, nar), uint16(len(nar)))
	f.Add(codedBy(f, nar)[:1000], uint16(len(nar)))
	f.Add(codedBy(f, make([]byte, 1<<20)), uint16(100))
	c := newCoding()
	f.Fuzz(func(t *testing.T, b []byte, want uint16) {
		count := &counting{Reader: bytes.NewReader(b)}
		got, err := decodeAll(c, count, int64(want))
		if err == nil && len(got) != int(want) || len(got) > int(want) || count.n > int64(want)+codingSlack {
			t.Fatalf("%d bytes of %d, %d read, %v", len(got), want, count.n, err)
		}
	})
}
