package p2p

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/p2p/p2ptest"
)

// onLoopback is a host of a site that is this machine's loopback.
func onLoopback(cfg Config) Config {
	cfg.site = netip.Addr.IsLoopback
	return cfg
}

func startIntroducing(t *testing.T, cfg Config, static ...discovery.Finder) running {
	t.Helper()
	cfg.Introduce = true
	return startHostWith(t, onLoopback(cfg), newTestIdentity(t), newFakeCatalog(), static...)
}

// statusOf is what h says of another.
func statusOf(h, of running) (s PeerStatus) {
	for _, p := range h.Peers() {
		if p.ID == of.ID() {
			s = p
		}
	}
	return s
}

func knows(h, other running) bool { return statusOf(h, other).State == StateConnected }

func TestThoseWhoNameTheSameAgentAreIntroducedToEachOther(t *testing.T) {
	hub := startIntroducing(t, Config{})
	a := startIntroducing(t, Config{}, whereIs(hub.Host, true))
	b := startIntroducing(t, Config{}, whereIs(hub.Host, false))
	silent := startHostWith(t, onLoopback(Config{}), newTestIdentity(t), newFakeCatalog(), whereIs(hub.Host, true))
	eventually(t, "a and b know each other", func() bool { return knows(a, b) && knows(b, a) })
	for _, s := range []func() PeerStatus{func() PeerStatus { return statusOf(a, b) }, func() PeerStatus { return statusOf(b, a) }} {
		eventually(t, "both know from whom", func() bool { return s().Via == "introduced" && s().By == hub.ID() })
	}
	if s := statusOf(a, hub); s.Via != "static" || s.By != "" {
		t.Errorf("the hub: %+v", s)
	}
	late := startIntroducing(t, Config{}, whereIs(hub.Host, true))
	eventually(t, "one that comes later knows both", func() bool { return knows(late, a) && knows(late, b) })
	for _, h := range []running{a, b, late} {
		if s := statusOf(h, silent); s.ID != "" {
			t.Errorf("who does not want to be introduced is: %+v", s)
		}
	}
	if n := len(silent.Peers()); n != 1 {
		t.Errorf("who does not want to be told knows %d", n)
	}
}

func TestOnlyTheGroupsMembersAreIntroduced(t *testing.T) {
	secret := newSecret(t)
	hub := startIntroducing(t, Config{Secret: secret})
	stranger := startIntroducing(t, Config{}, whereIs(hub.Host, true))
	eventually(t, "the stranger has asked", func() bool {
		hub.introductions.mu.Lock()
		defer hub.introductions.mu.Unlock()
		return len(hub.introductions.guests) == 1
	})
	a := startIntroducing(t, Config{Secret: secret}, whereIs(hub.Host, true))
	b := startIntroducing(t, Config{Secret: secret}, whereIs(hub.Host, true))
	eventually(t, "members know each other", func() bool { return knows(a, b) && knows(b, a) })
	if s := statusOf(stranger, a); s.ID != "" || len(a.Peers()) != 2 || len(b.Peers()) != 2 || len(stranger.Peers()) != 1 {
		t.Errorf("a stranger is introduced: %+v", s)
	}
}

// A static peer that lies names a thousand agents that are all at one address, by turns, as often as it can.
func TestALiarWhoNamesAThousandAgentsCausesFewDials(t *testing.T) {
	victim, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	var knocks atomic.Int64
	go func() {
		for {
			c, err := victim.Accept()
			if err != nil {
				return
			}
			knocks.Add(1)
			c.Close()
		}
	}()
	liar := startHostWith(t, Config{}, newTestIdentity(t), newFakeCatalog())
	var said atomic.Int64
	liar.host.SetStreamHandler(protoPeers, func(s network.Stream) {
		defer s.Reset()
		for {
			var list []introduction
			for range 4 * introduceMost { // more than are looked at
				id := newPeerID(t).String()
				list = append(list, introduction{id, []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", victim.Addr().(*net.TCPAddr).Port)}})
			}
			body, _ := json.Marshal(list)
			if writeFrame(s, frameIntroduce, body) != nil {
				return
			}
			said.Add(int64(len(list)))
		}
	})
	began := time.Now()
	h := startIntroducing(t, Config{}, whereIs(liar.Host, true))
	eventually(t, "a thousand have been named and some dialled", func() bool { return said.Load() >= 1000 && knocks.Load() > 0 })
	h.dialer.mu.Lock()
	hinted := 0
	for _, n := range h.dialer.hints {
		if n.Via == discovery.ViaIntroduced {
			hinted++
		}
	}
	h.dialer.mu.Unlock()
	if most := introduceBurst + 1 + int(time.Since(began)/introduceRefill); hinted == 0 || hinted > most {
		t.Errorf("%d agents are dialled, at most %d should be", hinted, most)
	}
	if n := h.introductions.named.Len(); n > introduceKept {
		t.Errorf("%d remembered", n)
	}
	for _, p := range h.Peers() {
		if p.State == StateConnected && p.ID != liar.ID() {
			t.Errorf("%s is taken for a peer", p.ID)
		}
	}
}

func newPeerID(t testing.TB) peer.ID {
	_, pub, err := crypto.GenerateEd25519Key(nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestOnlyAddressesOfTheSiteAreDialledForAnIntroduction(t *testing.T) {
	h := bareHost(nil)
	h.cfg.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fd00::/8")}
	h.gater = newGater(h)
	in := h.newIntroductions()
	for text, want := range map[string]bool{
		"/ip4/10.1.2.3/tcp/6491":               true,
		"/ip4/10.1.2.3/udp/6491/quic-v1":       true,
		"/ip6/fd00::7/tcp/6491":                true,
		"/ip4/10.1.2.3/tcp/22":                 false,
		"/ip4/10.1.2.3/udp/6491":               false,
		"/ip4/192.168.1.1/tcp/6491":            false,
		"/ip4/45.1.2.3/tcp/6491":               false,
		"/ip4/127.0.0.1/tcp/6491":              false,
		"/ip4/224.0.0.1/tcp/6491":              false,
		"/ip4/255.255.255.255/tcp/6491":        false,
		"/ip4/0.0.0.0/tcp/6491":                false,
		"/ip6/fe80::1/tcp/6491":                false,
		"/ip6zone/eth0/ip6/fe80::1/tcp/6491":   false,
		"/ip6/::ffff:10.1.2.3/tcp/22":          false,
		"/dns4/a.example/tcp/6491":             false,
		"/ip4/10.1.2.3/tcp/6491/ws":            false,
		"/ip4/10.1.2.3/tcp/6491/p2p-circuit":   false,
		"/ip4/10.1.2.3/tcp/6491/ip4/10.1.2.4/": false,
		"":                                     false,
	} {
		if got := in.plausible(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if got := addrsAt(netip.MustParseAddr("10.0.0.1"), 22, 6491); len(got) != 1 {
		t.Errorf("a service of the system's is named: %v", got)
	}
}

// FuzzIntroductions: whatever a static peer says, no address outside the site is dialled for it.
func FuzzIntroductions(f *testing.F) {
	id := newPeerID(f).String()
	f.Add(p2ptest.Frame(1, []byte(`[{"id":"`+id+`","addrs":["/ip4/10.0.0.1/tcp/6491","/ip4/127.0.0.1/tcp/80"]}]`)))
	f.Add(p2ptest.Frame(2, []byte("later")))
	f.Add([]byte{0})
	f.Add([]byte{0xff, 0xff, 0xff, 0x7f, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		h := bareHost(nil)
		h.cfg.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		h.gater = newGater(h)
		h.introductions = h.newIntroductions()
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			list, err := readIntroductions(r)
			if err != nil {
				break
			}
			for _, i := range list {
				for _, a := range i.Addrs {
					if ip, ok := AddrIP(a); h.introductions.plausible(a) && !(ok && h.cfg.Networks[0].Contains(ip)) {
						t.Fatalf("%q would be dialled", a)
					}
				}
			}
		}
	})
}
