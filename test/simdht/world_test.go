package simdht

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/discovery/dht"
	"github.com/flurry-nix/flurry/verify"
)

// places are where machines stand. Round trips are the means of 8 November to 7 December 2025 between IBM
// Cloud's regions, as published in its documentation (VPC, "Network latency dashboards"); shares are ours: an
// open-source project's public.
var places = []struct {
	name  string
	share int // per cent of machines
	rtt   [11]int
}{
	{"Dallas", 10, [11]int{2, 33, 31, 122, 112, 116, 246, 150, 184, 141, 142}},
	{"Toronto", 5, [11]int{33, 2, 19, 92, 82, 104, 222, 142, 212, 134, 127}},
	{"Washington", 15, [11]int{31, 19, 2, 88, 76, 87, 242, 147, 213, 139, 118}},
	{"Frankfurt", 25, [11]int{122, 93, 88, 2, 13, 29, 143, 236, 249, 225, 194}},
	{"London", 15, [11]int{112, 82, 76, 13, 2, 27, 143, 248, 261, 238, 183}},
	{"Madrid", 10, [11]int{117, 104, 85, 29, 27, 2, 150, 262, 275, 251, 206}},
	{"Chennai", 4, [11]int{249, 223, 237, 140, 141, 155, 2, 112, 125, 101, 356}},
	{"Osaka", 2, [11]int{150, 142, 147, 236, 248, 263, 112, 2, 122, 9, 289}},
	{"Sydney", 4, [11]int{183, 215, 214, 249, 260, 275, 125, 122, 2, 115, 326}},
	{"Tokyo", 6, [11]int{142, 134, 139, 225, 237, 251, 100, 9, 115, 2, 282}},
	{"São Paulo", 4, [11]int{142, 128, 119, 194, 184, 206, 357, 289, 324, 282, 2}},
}

// world is the simulated internet; mu guards byAddr.
type world struct {
	rnd  *rand.Rand // of whoever builds the world, one goroutine
	keys *verify.Keys

	traffic traffic       // of all
	open    chan struct{} // closed when the agents may announce what they have

	mu     sync.Mutex
	byAddr map[string]*node
	made   int
}

var (
	private = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))
	keyText = "sim-1:" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
)

func newWorld(seed uint64) *world {
	keys, err := verify.NewKeys([]string{keyText}, nil)
	if err != nil {
		panic(err)
	}
	return &world{rnd: rand.New(rand.NewPCG(seed, 1)), keys: keys, open: make(chan struct{}), byAddr: map[string]*node{}}
}

func (w *world) at(a ma.Multiaddr) *node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.byAddr[string(a.Bytes())]
}

// move gives a machine another address.
func (w *world) move(n *node, to ma.Multiaddr) {
	w.forget(n.addr)
	n.ps.ClearAddrs(n.id)
	n.ps.AddAddr(n.id, to, peerstore.PermanentAddrTTL)
	n.addr = to
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byAddr[string(to.Bytes())] = n
}

func (w *world) forget(a ma.Multiaddr) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.byAddr, string(a.Bytes()))
}

// roundTrip is the same for a pair at all times.
func (w *world) roundTrip(a, b *node) time.Duration {
	return time.Duration(places[a.region].rtt[b.region])*time.Millisecond + 2*(a.access+b.access)
}

// identity is made of the seed; nobody in here asks for signatures.
func (w *world) identity() peer.ID {
	b := make([]byte, ed25519.PublicKeySize)
	for i := range b {
		b[i] = byte(w.rnd.Uint32())
	}
	k, err := crypto.UnmarshalEd25519PublicKey(b)
	if err != nil {
		panic(err)
	}
	id, err := peer.IDFromPublicKey(k)
	if err != nil {
		panic(err)
	}
	return id
}

// machine puts a new machine anywhere, at a public address of a range of its own.
func (w *world) machine(id peer.ID) *node {
	i := w.made
	w.made++
	addr := ma.StringCast(fmt.Sprintf("/ip4/%d.%d.%d.%d/tcp/6491", 11+i%80, 16+(i/80)%200, i/16000, 1+w.rnd.IntN(250)))
	at, sum := 0, 0
	for r := w.rnd.IntN(100); at < len(places)-1; at++ {
		if sum += places[at].share; r < sum {
			break
		}
	}
	n, err := newNode(w, id, addr, at, time.Duration(1+w.rnd.IntN(10))*time.Millisecond)
	if err != nil {
		panic(err)
	}
	w.mu.Lock()
	w.byAddr[string(addr.Bytes())] = n
	w.mu.Unlock()
	return n
}

func (n *node) bootstrap() string { return n.addr.String() + "/p2p/" + n.id.String() }

// path is a new public path.
func (w *world) path() *verify.Verified {
	var h verify.StoreHash
	for i := range h {
		h[i] = byte(w.rnd.Uint32())
	}
	path, err := verify.ParseStorePath("/nix/store/" + h.String() + "-x")
	if err != nil {
		panic(err)
	}
	info := &verify.NarInfo{StorePath: path, URL: "nar/x.nar", Compression: "none", NarSize: 1 << 20}
	info.Sigs = []string{"sim-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte(info.Fingerprint())))}
	v, err := w.keys.Verify(info)
	if err != nil {
		panic(err)
	}
	return v
}

// agent is one node of the table.
type agent struct {
	*node
	dht   *dht.DHT
	has   []*verify.Verified
	since time.Time
	stop  context.CancelFunc
	ended chan error
}

// shelf is a catalog that does not change once it is open.
type shelf struct {
	has  []verify.StoreHash
	open <-chan struct{}
}

// Provided waits for the opening.
func (s shelf) Provided(ctx context.Context) ([]verify.StoreHash, error) {
	select {
	case <-s.open:
		return s.has, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s shelf) Provides(context.Context, verify.StoreHash) bool              { return true }
func (s shelf) WatchProvided(func(added, removed []verify.StoreHash)) func() { return func() {} }

// join starts an agent that announces has anew in every interval; 0 means the default's.
func (w *world) join(n *node, bootstrap []string, has []*verify.Verified, interval time.Duration) *agent {
	catalog := shelf{open: w.open}
	for _, v := range has {
		catalog.has = append(catalog.has, v.Path().Hash())
	}
	d, err := dht.New(n, dht.Config{
		Bootstrap: bootstrap, Server: true, Catalog: catalog, Provide: dht.ProvideConfig{Interval: interval},
	})
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &agent{node: n, dht: d, has: has, since: time.Now(), stop: cancel, ended: make(chan error, 1)}
	go func() { a.ended <- d.Run(ctx, func(discovery.Found) {}) }()
	return a
}

// leave takes the machine off the network: with a word to those it is connected to, or, as in a power cut,
// without.
func (a *agent) leave(silently bool) {
	if silently {
		a.cut()
	} else {
		a.Close()
	}
	a.stop()
	<-a.ended
	a.Close()
}
