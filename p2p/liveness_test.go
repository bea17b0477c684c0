package p2p

import (
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/verify"
)

func TestSleepAndClockChangesAreNoticed(t *testing.T) {
	c := clockWatch{}
	step := func(monotonic, wall, since time.Duration) bool { return c.step(monotonic, wall, since, func() {}) }
	if step(time.Second, time.Second, time.Second) {
		t.Error("an ordinary tick")
	}
	if !step(2*time.Second, time.Hour, time.Second) {
		t.Error("the machine slept: the wall clock went on, the monotonic one did not")
	}
	if step(3*time.Second, time.Hour+time.Second, time.Second) {
		t.Error("said twice")
	}
	if !step(13*time.Second, time.Hour+11*time.Second, 10*time.Second) {
		t.Error("a late tick")
	}
	if !step(14*time.Second, time.Minute, time.Second) {
		t.Error("the clock was set back")
	}
	if step(15*time.Second, time.Minute+time.Second, time.Second) || newClockWatch(time.Now()).jumped(time.Now()) {
		t.Error("false alarm")
	}
}

// cable is a TCP link that can be cut without either end being told.
type cable struct {
	l    net.Listener
	to   string
	mu   sync.Mutex
	cut  bool
	wake *sync.Cond
	wg   sync.WaitGroup
	all  []net.Conn
}

func newCable(t *testing.T, to string) *cable {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cable{l: l, to: to}
	c.wake = sync.NewCond(&c.mu)
	c.wg.Go(c.accept)
	t.Cleanup(func() {
		l.Close()
		c.set(false)
		c.mu.Lock()
		for _, x := range c.all {
			x.Close()
		}
		c.mu.Unlock()
		c.wg.Wait()
	})
	return c
}

func (c *cable) accept() {
	for {
		a, err := c.l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", c.to)
		if err != nil {
			a.Close()
			continue
		}
		c.mu.Lock()
		c.all = append(c.all, a, b)
		c.mu.Unlock()
		c.wg.Go(func() { c.copy(a, b) })
		c.wg.Go(func() { c.copy(b, a) })
	}
}

func (c *cable) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		c.mu.Lock()
		for c.cut {
			c.wake.Wait()
		}
		c.mu.Unlock()
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (c *cable) set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	c.wake.Broadcast()
}

func (c *cable) hint() at {
	_, port, _ := strings.Cut(c.l.Addr().String(), ":")
	return at(discovery.Found{Via: discovery.ViaStatic, Name: "cable", Keep: true, Addrs: []string{"/ip4/127.0.0.1/tcp/" + port}})
}

func addrOf(t *testing.T, h *Host) string {
	for _, a := range h.host.Addrs() {
		if s := a.String(); strings.HasPrefix(s, "/ip4/127.0.0.1/tcp/") {
			return "127.0.0.1:" + strings.TrimPrefix(s, "/ip4/127.0.0.1/tcp/")
		}
	}
	t.Fatal("no TCP address")
	return ""
}

func TestAPeerWhoseLinkIsCutIsDroppedAfterAFailureAndFoundAgain(t *testing.T) {
	c := newFakeCatalog()
	x, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	link := newCable(t, addrOf(t, a))
	b := startHost(t, newFakeCatalog(), link.hint())
	eventually(t, "known", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
	p := b.Holders(x.Digest(), 0)[0]
	link.set(true)
	p.Flaky(errors.New("stalled"))
	if len(b.Holders(x.Digest(), 0)) != 0 {
		t.Error("a peer that has just failed is asked again at once")
	}
	eventually(t, "the connection is closed", func() bool { return !b.isConnected(a.host.ID()) })
	link.set(false)
	eventually(t, "known again", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
}

func TestAPeerThatAnswersIsSoonTrustedAgain(t *testing.T) {
	c := newFakeCatalog()
	x, _ := c.add(t, 1, 10, verify.ScopePublic)
	a := startHost(t, c)
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "known", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
	p := b.Holders(x.Digest(), 0)[0]
	p.Flaky(errors.New("once"))
	eventually(t, "the ping decided", func() bool { return !p.checking.Load() })
	if s := p.status(); s.Remaining > suspectAlive {
		t.Errorf("left out for another %v", s.Remaining)
	}
	for range 20 { // of requests that one cause let down at once
		p.Flaky(errors.New("at once"))
	}
	if s := p.status(); s.Failures != 1 {
		t.Errorf("one cause counts as %d failures", s.Failures)
	}
	for range 3 { // each after the suspicion was over
		p.mu.Lock()
		p.suspectUntil = time.Time{}
		p.mu.Unlock()
		p.Flaky(errors.New("again"))
	}
	eventually(t, "the ping decided", func() bool { return !p.checking.Load() })
	if s := p.status(); s.State != StateSuspect || s.Remaining < 2*time.Second || !b.isConnected(a.host.ID()) {
		t.Errorf("%s for %v after four failures", s.State, s.Remaining)
	}
	p.Good()
	if len(b.Holders(x.Digest(), 0)) != 1 {
		t.Error("success does not heal")
	}
}

func TestAPeerThatLeavesInOrderOrIsKilledIsForgottenAtOnce(t *testing.T) {
	for _, how := range []string{"leaves", "is killed"} {
		c := newFakeCatalog()
		x, sum := c.add(t, 1, 32<<20, verify.ScopePublic)
		a := startHostWith(t, Config{Upload: 1 << 20}, newTestIdentity(t), c)
		b := startHost(t, newFakeCatalog(), whereIs(a.Host, true))
		eventually(t, "known", func() bool { return len(b.Holders(x.Digest(), 0)) == 1 })
		body, err := b.Holders(x.Digest(), 0)[0].NAR(t.Context(), x, sum, 32<<20, 0, 32<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(body, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if how == "leaves" {
			a.stop()
		} else {
			for _, conn := range a.host.Network().Conns() {
				conn.CloseWithError(0)
			}
		}
		if n, err := io.Copy(io.Discard, body); err == nil {
			t.Errorf("a NAR that broke off ends cleanly after %d bytes", n)
		}
		body.Close()
		if how == "leaves" {
			eventually(t, "forgotten", func() bool { return len(b.Holders(x.Digest(), 0)) == 0 })
		}
	}
}
