package p2p

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/verify"
)

// somePeers makes n connected peers that claim key, without a network.
func somePeers(h *Host, n int, key uint64) []*Peer {
	var list []*Peer
	for i := range n {
		p := h.peers.get(peer.ID("peer " + string(rune('A'+i))))
		p.connectedAt = h.now()
		p.have.replace(nil, 0)
		p.have.apply([]uint64{key}, nil)
		h.peers.setConnected(p, true)
		list = append(list, p)
	}
	return list
}

func TestAStrangerComesBehindAPeerWithAGoodRecord(t *testing.T) {
	h := bareHost(nil)
	var d verify.PathDigest
	list := somePeers(h, 3, d.Key())
	list[1].good = 1
	for _, size := range []int64{0, 1 << 20, 1 << 30} {
		for range 50 {
			if got := h.Holders(d, size); len(got) != 3 || got[0] != list[1] {
				t.Fatalf("%d bytes: %v first", size, got[0].name)
			}
		}
	}
	// A stranger cannot buy itself a place with a short round trip.
	list[0].rtt, list[1].rtt = 50*time.Microsecond, 5*time.Millisecond
	for range 50 {
		if h.Holders(d, 0)[0] != list[1] {
			t.Fatal("a quick stranger is asked first")
		}
	}
}

// A peer that says it is busy comes behind the others for as long as it says, for NARs alone, and nothing is held
// against it.
func TestABusyPeerIsAskedLastForAsLongAsItSays(t *testing.T) {
	now := time.Now()
	h := &Host{now: func() time.Time { return now }}
	p := newPeer(h, "p")
	p.connectedAt = now
	free := p.Cost(1 << 20)
	for _, c := range []struct {
		header      string
		least, most time.Duration
	}{{"", time.Second, 1500 * time.Millisecond}, {"7", 7 * time.Second, 10500 * time.Millisecond}, {"60000", time.Minute, 90 * time.Second}, {"-1", time.Second, 1500 * time.Millisecond}} {
		p.declined(c.header)
		if cost, ok := p.costNow(now, 1<<20); !ok || cost < free+busyCost {
			t.Errorf("%q: cost %v, %v; it should be asked, and last", c.header, cost, ok)
		}
		if cost, _ := p.costNow(now, 0); cost >= busyCost {
			t.Errorf("%q: a narinfo costs %v", c.header, cost)
		}
		if d := p.busyUntil.Sub(now); d < c.least || d > c.most {
			t.Errorf("%q: busy for %v", c.header, d)
		}
		now = p.busyUntil
		if cost := p.Cost(1 << 20); cost != free {
			t.Errorf("%q: cost %v afterwards, want %v", c.header, cost, free)
		}
	}
}

func TestFalseClaimsLowerAPeerUntilTheyAreOld(t *testing.T) {
	h := bareHost(nil)
	now := time.Now()
	h.now = func() time.Time { return now }
	var d verify.PathDigest
	list := somePeers(h, 2, d.Key())
	for range 10 {
		list[0].answered(false)
	}
	for range 50 {
		if h.Holders(d, 0)[0] != list[1] {
			t.Fatal("a liar is asked first")
		}
	}
	lied := list[0].Cost(0)
	now = now.Add(5 * time.Hour)
	if healed, honest := list[0].Cost(0), list[1].Cost(0); healed >= lied || healed > honest+time.Millisecond {
		t.Errorf("cost %v after lies, %v later, %v without", lied, healed, honest)
	}
}

func TestABanOutlivesTheProcessAndEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "standing")
	h := bareHost(nil)
	now := time.Now()
	h.now = func() time.Time { return now }
	id := newTestIdentity(t)
	p := h.peers.get(id.id)
	p.bannedUntil, p.banReason = now.Add(banTime), "lied\x1b[31m"
	good := h.peers.get(newTestIdentity(t).id)
	good.good = 7
	s := newStanding(h, file)
	if err := s.save(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info.Mode(), err)
	}
	later := bareHost(nil)
	later.now = h.now
	newStanding(later, file).load()
	q := later.peers.lookup(id.id)
	if q == nil || !q.Banned() || q.banReason != "lied?[31m" {
		t.Fatalf("%+v", q)
	}
	if g := later.peers.lookup(good.id); g == nil || g.good != 7 {
		t.Fatal("a good record is forgotten")
	}
	if newGater(later).InterceptSecured(0, id.id, nil) {
		t.Error("a banned peer may connect")
	}
	now = now.Add(banTime)
	if q.Banned() {
		t.Error("a ban does not end")
	}
}

func TestAStandingFileThatIsDamagedIsNoReasonNotToStart(t *testing.T) {
	for _, content := range []string{"", "{", `{"version":9}`, `{"version":1,"peers":[{"id":"x"}]}`} {
		file := filepath.Join(t.TempDir(), "standing")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		h := bareHost(nil)
		newStanding(h, file).load()
		if n := len(h.peers.all()); n != 0 {
			t.Errorf("%q: %d peers", content, n)
		}
	}
}

func TestABannedPeerCannotReturnByANewAddressOrARestart(t *testing.T) {
	c := newFakeCatalog()
	x, _ := c.add(t, 1, 10, verify.ScopePublic)
	file := filepath.Join(t.TempDir(), "standing")
	liar := newTestIdentity(t)
	b := startHostWith(t, Config{StandingFile: file}, newTestIdentity(t), newFakeCatalog())
	stopA := startHostWith(t, Config{}, liar, c, whereIs(b.Host, true))
	eventually(t, "known", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
	b.Holders(x.Digest(), 0)[0].Convict(errors.New("wrong bytes"))
	eventually(t, "disconnected", func() bool { return !b.isConnected(liar.id) })
	stopA.stop()
	b.stop()

	again := startHostWith(t, Config{StandingFile: file}, newTestIdentity(t), newFakeCatalog())
	startHostWith(t, Config{}, liar, c, whereIs(again.Host, true)) // another port: a new address
	eventually(t, "the liar is refused", func() bool { return again.Refused() > 0 })
	if again.isConnected(liar.id) || len(again.peers.connected()) != 0 {
		t.Error("a banned peer is connected")
	}
	// An honest one is welcome, so the agent was there.
	honest := startHostWith(t, Config{}, newTestIdentity(t), c, whereIs(again.Host, true))
	eventually(t, "an honest peer is known", func() bool { return len(again.Holders(x.Digest(), 0)) == 1 })
	if again.Holders(x.Digest(), 0)[0].id != honest.host.ID() {
		t.Error("somebody else")
	}
}

func TestTheSpreadIsTheSlowestRoundTripOfThoseThatCount(t *testing.T) {
	h := bareHost(nil)
	var d verify.PathDigest
	list := somePeers(h, 2, d.Key())
	list[0].rtt, list[1].rtt = 5*time.Millisecond, time.Second
	if got := h.Spread(func(string) bool { return false }); got != 2*time.Second {
		t.Error("of all:", got)
	}
	if got := h.Spread(func(id string) bool { return id == list[1].ID() }); got != 10*time.Millisecond {
		t.Error("without the slow one:", got)
	}
}
