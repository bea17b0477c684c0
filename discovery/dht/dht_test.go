package dht

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	"github.com/ipfs/go-libdht/kad/key/bitstr"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"pgregory.net/rapid"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/verify"
)

// everywhere takes loopback for the internet.
func everywhere(netip.Addr) bool { return true }

// things is a catalog that can change.
type things struct {
	mu   sync.Mutex
	has  []verify.StoreHash
	tell func(added, removed []verify.StoreHash)
}

func (c *things) Provided(context.Context) ([]verify.StoreHash, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.has), nil
}

func (c *things) Provides(_ context.Context, h verify.StoreHash) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.has, h)
}

// add makes c provide one more path; small ones only pass by.
func (c *things) add(h verify.StoreHash, small bool) {
	c.mu.Lock()
	if !small {
		c.has = append(c.has, h)
	}
	tell := c.tell
	c.mu.Unlock()
	tell([]verify.StoreHash{h}, nil)
}

func (c *things) WatchProvided(fn func(added, removed []verify.StoreHash)) func() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tell = fn
	return func() {}
}

type node struct {
	*DHT
	addr  string // with /p2p
	found chan discovery.Found
	stop  func()
}

func start(t *testing.T, cfg Config) *node {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics(), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Public == nil {
		cfg.Public = everywhere
	}
	cfg.Server = true
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	d, err := New(h, cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{DHT: d, addr: h.Addrs()[0].String() + "/p2p/" + h.ID().String(), found: make(chan discovery.Found, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- d.Run(ctx, func(f discovery.Found) {
			select {
			case n.found <- f:
			default:
			}
		})
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		h.Close()
	})
	t.Cleanup(n.stop)
	return n
}

// signed returns a verified narinfo; public tells by what kind of key.
func signed(t *testing.T, name byte, public bool) *verify.Verified {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))
	key := []string{"k:" + base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))}
	keys, err := verify.NewKeys(key, nil)
	if !public {
		keys, err = verify.NewKeys(nil, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	var h verify.StoreHash
	h[0] = name
	path, err := verify.ParseStorePath("/nix/store/" + h.String() + "-x")
	if err != nil {
		t.Fatal(err)
	}
	info := &verify.NarInfo{StorePath: path, URL: "nar/x.nar", Compression: "none", NarSize: 1}
	info.Sigs = []string{"k:" + base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte(info.Fingerprint())))}
	v, err := keys.Verify(info)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// eventually polls until ok or half a minute has passed.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("not within 30 s:", what)
}

func TestARecordLeadsToWhoHasThePath(t *testing.T) {
	t.Parallel()
	first := start(t, Config{})
	v, later := signed(t, 1, true), signed(t, 2, true)
	has := &things{has: []verify.StoreHash{v.Path().Hash()}}
	seeder := start(t, Config{Bootstrap: []string{first.addr}, Catalog: has})
	var others []*node
	for range 4 {
		others = append(others, start(t, Config{Bootstrap: []string{first.addr}}))
	}
	asker := others[3]
	want := seeder.host.ID().String()
	eventually(t, "the seeder's path is found", func() bool {
		asker.answers.Purge()
		got := asker.Find(t.Context(), v)
		return len(got) == 1 && got[0].PeerID == want && len(got[0].Addrs) > 0 && got[0].Via == discovery.ViaDHT
	})
	if got := asker.Find(t.Context(), later); got != nil {
		t.Errorf("nobody has it: %v", got)
	}
	has.add(verify.StoreHash{77}, true)
	has.add(later.Path().Hash(), false)
	eventually(t, "a new path is found", func() bool {
		asker.answers.Purge()
		return len(asker.Find(t.Context(), later)) == 1
	})
	if n := seeder.Stats().Provided; n != 2 {
		t.Errorf("%d keys provided", n)
	}

	asker.Dead(want)
	if got := asker.Find(t.Context(), v); got != nil {
		t.Errorf("a record that led nowhere is used again: %v", got)
	}

	first.stop() // the bootstrap node is gone: nothing changes
	asker.answers.Purge()
	asker.dead.Purge()
	if got := asker.Find(t.Context(), v); len(got) != 1 {
		t.Errorf("without the bootstrap node: %v", got)
	}
	select {
	case f := <-asker.found:
		if f.Via != discovery.ViaDHT || f.PeerID == "" || f.Keep {
			t.Errorf("%+v", f)
		}
	case <-time.After(30 * time.Second):
		t.Error("no agent was hinted at")
	}
}

func TestPrivatePathsAreNotAskedFor(t *testing.T) {
	t.Parallel()
	n := start(t, Config{})
	m := start(t, Config{Bootstrap: []string{n.addr}})
	eventually(t, "they know each other", func() bool { return m.Stats().Peers > 0 })
	if got := m.Find(t.Context(), signed(t, 1, false)); got != nil {
		t.Error(got)
	}
	if s := m.Stats(); s.Lookups != 0 {
		t.Errorf("%d questions", s.Lookups)
	}
	m.Find(t.Context(), signed(t, 1, true)) // the counter works
	if s := m.Stats(); s.Lookups != 1 || s.Missed != 1 {
		t.Errorf("%+v", s)
	}
}

func TestPeersAreFoundAgainWithoutABootstrapNode(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "internet-peers")
	old := start(t, Config{})
	first := start(t, Config{Bootstrap: []string{old.addr}, PeersFile: file})
	eventually(t, "they know each other", func() bool { return first.Stats().Peers > 0 })
	first.stop()
	again := start(t, Config{PeersFile: file})
	eventually(t, "it is back", func() bool { return again.Stats().Peers > 0 })
}

func TestARestartDoesNotNeedTheBootstrapNode(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "internet-peers")
	boot := start(t, Config{})
	other := start(t, Config{Bootstrap: []string{boot.addr}})
	first := start(t, Config{Bootstrap: []string{boot.addr}, PeersFile: file})
	remembers := func(n *node) bool {
		text, _ := os.ReadFile(file)
		return strings.Contains(string(text), n.host.ID().String())
	}
	eventually(t, "both are met and remembered", func() bool { return first.Stats().Peers == 2 && remembers(boot) && remembers(other) })
	boot.stop()
	first.stop()
	again := start(t, Config{Bootstrap: []string{boot.addr}, PeersFile: file})
	eventually(t, "it is back", func() bool { return again.Stats().Peers > 0 })
	again.stop()
	if !remembers(boot) || !remembers(other) {
		t.Error("one that was away for a while is forgotten")
	}
}

func TestPeersNotMetForLongAreForgotten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "internet-peers")
	now := time.Unix(2_000_000_000, 0)
	id := func(seed byte) peer.ID {
		key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(bytes.Repeat([]byte{seed}, 64)))
		if err != nil {
			t.Fatal(err)
		}
		p, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	seen := func(seed byte, at time.Time) seenPeer {
		return seenPeer{peer.AddrInfo{ID: id(seed), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/45.1.2.3/tcp/1")}}, at}
	}
	if err := savePeers(file, []seenPeer{seen(1, now.Add(-time.Hour)), seen(2, now.Add(-forgetAfter)), seen(3, now.Add(time.Hour))}); err != nil {
		t.Fatal(err)
	}
	list, err := loadPeers(file, now)
	if err != nil || len(list) != 2 || list[0].ID != id(1) || list[1].ID != id(3) || list[1].at.After(now) {
		t.Errorf("%v, %v", list, err)
	}
}

func TestNoAddressOfASiteIsStoredOrTold(t *testing.T) {
	h, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	d, err := New(h, Config{})
	if err != nil {
		t.Fatal(err)
	}
	var info peer.AddrInfo
	info.ID, _ = peer.Decode("12D3KooWGzBXWNvHpLALvSZv9dSLyJBa6yyZzCMGDz4V7wV4ZkFB")
	private := []string{"/ip4/192.168.1.7/tcp/6491", "/ip4/127.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/10.0.0.1/udp/1/quic-v1", "/ip6/fd00::1/tcp/1", "/ip4/100.64.0.1/tcp/1"}
	for _, s := range private {
		info.Addrs = append(info.Addrs, ma.StringCast(s))
	}
	if f, ok := d.hint(info); ok {
		t.Errorf("a record leads into this site: %v", f)
	}
	info.Addrs = append(info.Addrs, ma.StringCast("/ip4/45.1.2.3/tcp/6491"))
	if f, ok := d.hint(info); !ok || len(f.Addrs) != 1 {
		t.Errorf("%v", f)
	}
	if d.reachable(info.Addrs[:len(private)]) || !d.reachable(info.Addrs) {
		t.Error("who is asked is decided wrongly")
	}
	if d.reachable([]ma.Multiaddr{ma.StringCast("/ip4/45.1.2.3/tcp/1/p2p/12D3KooWGzBXWNvHpLALvSZv9dSLyJBa6yyZzCMGDz4V7wV4ZkFB/p2p-circuit")}) {
		t.Error("who is behind a relay is asked")
	}
}

func TestTheNetworkIsLeftWhileItShouldBeQuiet(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	quiet := false
	set := func(q bool) { mu.Lock(); quiet = q; mu.Unlock() }
	n := start(t, Config{})
	m := start(t, Config{Bootstrap: []string{n.addr}, Quiet: func() bool { mu.Lock(); defer mu.Unlock(); return quiet }})
	eventually(t, "it joins", func() bool { return m.Stats().Peers > 0 })
	set(true)
	eventually(t, "it leaves", func() bool { s := m.Stats(); return s.Peers == 0 && !s.Server })
	set(false)
	eventually(t, "it is back", func() bool { return m.Stats().Peers > 0 })
}

func TestKeySetIsASetByPrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s keySet
		model := map[Key]bool{}
		ctx := context.Background()
		key := rapid.Custom(func(t *rapid.T) Key { return Key{rapid.Byte().Draw(t, "k") % 40} })
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			keys := rapid.SliceOfN(key, 0, 5).Draw(t, "keys")
			if rapid.Bool().Draw(t, "put") {
				fresh, _ := s.Put(ctx, multihashes(keys)...)
				for _, m := range fresh {
					k, _ := keyFrom(m)
					if model[k] {
						t.Fatal("not new")
					}
				}
				for _, k := range keys {
					model[k] = true
				}
			} else {
				s.Delete(ctx, multihashes(keys)...)
				for _, k := range keys {
					delete(model, k)
				}
			}
		}
		prefix := bitstr.Key(rapid.StringMatching(`[01]{0,10}`).Draw(t, "prefix"))
		want := 0
		for k := range model {
			if k.place().hasPrefix(prefix) {
				want++
			}
		}
		got, _ := s.Get(ctx, prefix)
		n, _ := s.CountKeysUpTo(ctx, prefix, 0)
		some, _ := s.ContainsPrefix(ctx, prefix)
		size, _ := s.Size(ctx)
		if len(got) != want || n != want || some != (want > 0) || size != len(model) {
			t.Fatalf("prefix %q: %d, %d, %v of %d; want %d of %d", prefix, len(got), n, some, size, want, len(model))
		}
	})
}

func TestRecordsAreBounded(t *testing.T) {
	r := newRecordStore()
	ctx := context.Background()
	for i := range 3 * maxRecordsPerKey {
		r.Put(ctx, ds.NewKey(fmt.Sprintf("/providers/KEY/P%d", i)), []byte{1})
	}
	got, err := r.Query(ctx, query.Query{Prefix: "/providers/KEY"})
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := got.Rest(); len(list) != maxRecordsPerKey || r.n != maxRecordsPerKey {
		t.Errorf("%d records under one key, counted %d", len(list), r.n)
	}
	for i := range maxRecords + 1000 {
		r.Put(ctx, ds.NewKey(fmt.Sprintf("/providers/K%d/P", i)), []byte{1})
	}
	if r.n > maxRecords {
		t.Errorf("%d records", r.n)
	}
	newest := ds.NewKey(fmt.Sprintf("/providers/K%d/P", maxRecords+999))
	if ok, _ := r.Has(ctx, newest); !ok {
		t.Error("the newest record is gone")
	}
	r.Delete(ctx, newest)
	if ok, _ := r.Has(ctx, newest); ok {
		t.Error("it is not gone")
	}
	all, _ := r.Query(ctx, query.Query{Prefix: "/providers/"})
	if list, _ := all.Rest(); len(list) != r.n {
		t.Errorf("%d records listed of %d", len(list), r.n)
	}
}

func TestBadConfigurationIsExplained(t *testing.T) {
	if _, err := New(nil, Config{Bootstrap: []string{"/ip4/1.2.3.4/tcp/1"}}); err == nil {
		t.Error("a bootstrap node without an id is taken")
	}
}

// hasPrefix tells whether the place begins with the bits of prefix, written as '0' and '1'.
func (p place) hasPrefix(prefix bitstr.Key) bool {
	for i := range min(len(prefix), 8*len(p)) {
		if p[i/8]>>(7-i%8)&1 != prefix[i]-'0' {
			return false
		}
	}
	return true
}
