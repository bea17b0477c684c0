package p2p

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/flurry-nix/flurry/p2p/p2ptest"
	"github.com/flurry-nix/flurry/verify"
)

func newSecret(t testing.TB) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte(GenerateSecret()), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := LoadSecret(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestThoseWhoKnowTheSecretShareTheGroupsPaths(t *testing.T) {
	secret := newSecret(t)
	for _, aDials := range []bool{true, false} { // whoever dials, the smaller id opens the exchange
		c := newFakeCatalog()
		private, sum := c.add(t, 1, 10, verify.ScopeGroup)
		a := startHostWith(t, Config{Secret: secret}, newTestIdentity(t), c)
		b := startHostWith(t, Config{Secret: secret}, newTestIdentity(t), newFakeCatalog())
		if aDials {
			a.dialer.found(discoveryOf(whereIs(b.Host, true)))
		} else {
			b.dialer.found(discoveryOf(whereIs(a.Host, true)))
		}
		eventually(t, "b learns of the private path", func() bool { return len(b.Holders(private.Digest(), 0)) == 1 })
		p := b.Holders(private.Digest(), 0)[0]
		if _, err := p.NarInfo(t.Context(), private.Digest()); err != nil {
			t.Error(err)
		}
		if body, err := p.NAR(t.Context(), private, sum, 10, 0, 10); err != nil {
			t.Error(err)
		} else {
			body.Close()
		}
		later, _ := c.add(t, 2, 10, verify.ScopeGroup)
		eventually(t, "b learns of a later one", func() bool { return p.Claims(later.Digest()) })
		// The membership ends with the connection and is proved again with the next.
		b.host.Network().ClosePeer(a.host.ID())
		eventually(t, "b learns of it again", func() bool { return len(b.Holders(private.Digest(), 0)) == 1 })
	}
}

func TestWithoutTheRightSecretNobodyIsOfTheGroup(t *testing.T) {
	for name, secret := range map[string][]byte{"another": newSecret(t), "none": nil} {
		c := newFakeCatalog()
		private, _ := c.add(t, 1, 10, verify.ScopeGroup)
		public, _ := c.add(t, 2, 10, verify.ScopePublic)
		a := startHostWith(t, Config{Secret: newSecret(t)}, newTestIdentity(t), c)
		b := startHostWith(t, Config{Secret: secret}, newTestIdentity(t), newFakeCatalog(), whereIs(a.Host, true))
		eventually(t, "b knows the public path", func() bool { return len(b.Holders(public.Digest(), 0)) == 1 })
		p := b.Holders(public.Digest(), 0)[0]
		first, second := a.Host, b.Host
		if initiates(b.host.ID(), a.host.ID()) {
			first, second = b.Host, a.Host
		}
		if err := first.proveGroupOnce(t.Context(), first.peers.lookup(second.host.ID())); !errors.Is(err, errStranger) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.NarInfo(t.Context(), private.Digest()); !errors.Is(err, ErrAbsent) || p.Claims(private.Digest()) {
			t.Errorf("%s: a stranger learns of the private path: %v", name, err)
		}
		if p.scope() != verify.ScopePublic || a.peers.lookup(b.host.ID()).scope() != verify.ScopePublic {
			t.Errorf("%s: admitted", name)
		}
	}
}

// exchange runs both parts over a pipe.
func exchange(g1, g2 *group, initiator, responder peer.ID) (errI, errR error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() { done <- g2.respond(b, responder, initiator) }()
	errI = g1.initiate(a, initiator, responder)
	return errI, <-done
}

func TestAProofHoldsForOneExchangeOfTwoPeersInTheirRoles(t *testing.T) {
	g := &group{newSecret(t)}
	if errI, errR := exchange(g, g, "a", "b"); errI != nil || errR != nil {
		t.Fatal("positive control:", errI, errR)
	}
	t.Run("reflected", func(t *testing.T) {
		// The stranger returns the initiator's own messages.
		a, b := net.Pipe()
		defer a.Close()
		go io.Copy(b, b)
		if err := g.initiate(a, "a", "b"); !errors.Is(err, errStranger) {
			t.Error(err)
		}
		b.Close()
	})
	t.Run("replayed", func(t *testing.T) {
		nonceI, nonceR := bytes.Repeat([]byte{1}, nonceSize), bytes.Repeat([]byte{2}, nonceSize)
		said := append(bytes.Clone(nonceI), g.proof("initiator", "a", "b", nonceI, nonceR)...) // recorded once
		if err := g.respond(duplex{bytes.NewReader(said), io.Discard}, "b", "a"); !errors.Is(err, errStranger) {
			t.Error("responder:", err)
		}
		heard := append(bytes.Clone(nonceR), g.proof("responder", "a", "b", nonceI, nonceR)...)
		if err := g.initiate(duplex{bytes.NewReader(heard), io.Discard}, "a", "b"); !errors.Is(err, errStranger) {
			t.Error("initiator:", err)
		}
	})
	t.Run("passed on by a man in the middle", func(t *testing.T) {
		// m is a connection's end towards both; each honest end knows it as m.
		a, m1 := net.Pipe()
		m2, b := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- g.respond(b, "b", "m") }()
		go io.Copy(m1, m2)
		go io.Copy(m2, m1)
		errI := g.initiate(a, "a", "m")
		if errR := <-done; !errors.Is(errI, errStranger) || !errors.Is(errR, errStranger) {
			t.Error(errI, errR)
		}
		for _, c := range []io.Closer{a, m1, m2, b} {
			c.Close()
		}
	})
	t.Run("in the other role", func(t *testing.T) {
		n := make([]byte, nonceSize)
		if bytes.Equal(g.proof("initiator", "a", "b", n, n), g.proof("responder", "a", "b", n, n)) ||
			bytes.Equal(g.proof("initiator", "a", "b", n, n), g.proof("initiator", "b", "a", n, n)) ||
			bytes.Equal(g.proof("initiator", "a", "bb", n, n), g.proof("initiator", "ab", "b", n, n)) {
			t.Error("one proof for two purposes")
		}
	})
}

// TestAStrangerCannotTellWhoHasASecret: what it gets back has the same form from both.
func TestAStrangerCannotTellWhoHasASecret(t *testing.T) {
	without, err := newGroup(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []*group{{newSecret(t)}, without} {
		var said bytes.Buffer
		err := g.respond(duplex{bytes.NewReader(make([]byte, nonceSize+proofSize)), &said}, "b", "a")
		if !errors.Is(err, errStranger) || said.Len() != nonceSize+proofSize {
			t.Error(said.Len(), err)
		}
		// Not even its own proof, which would be an oracle, is in the answer.
		if nonceR := said.Bytes()[:nonceSize]; bytes.Contains(said.Bytes(), g.proof("responder", "a", "b", make([]byte, nonceSize), nonceR)) {
			t.Error("an unproven peer got a proof")
		}
	}
}

func TestManyConnectionsAtOnceEndInOneGroup(t *testing.T) {
	secret := newSecret(t)
	c := newFakeCatalog()
	private, _ := c.add(t, 1, 10, verify.ScopeGroup)
	a := startHostWith(t, Config{Secret: secret}, newTestIdentity(t), c)
	var members []running
	for range 5 {
		b := startHostWith(t, Config{Secret: secret}, newTestIdentity(t), newFakeCatalog(), whereIs(a.Host, true))
		a.dialer.found(discoveryOf(whereIs(b.Host, true))) // both dial
		members = append(members, b)
	}
	for _, b := range members {
		eventually(t, "every member knows", func() bool { return len(b.Holders(private.Digest(), 0)) == 1 })
	}
}

func TestTheRecorderIsOfTheGroupOnlyWithTheSecret(t *testing.T) {
	secret := newSecret(t)
	c := newFakeCatalog()
	private, _ := c.add(t, 1, 10, verify.ScopeGroup)
	a := startHostWith(t, Config{Secret: secret}, newTestIdentity(t), c)
	r := startRecorder(t, p2ptest.Config{Secret: secret})
	id := connectRecorder(t, r, a.Host)
	if r.Initiates(id) {
		if err := r.Prove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Wait(t.Context(), func() bool { return r.EverClaimed(private.Digest()) }); err != nil {
		t.Fatal(err)
	}
}

func TestWeakOrOpenSecretsAreRefused(t *testing.T) {
	dir := t.TempDir()
	write := func(text string, mode os.FileMode) string {
		f := filepath.Join(dir, "s")
		os.Remove(f)
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(f, mode); err != nil {
			t.Fatal(err)
		}
		return f
	}
	good := GenerateSecret()
	for _, mode := range []os.FileMode{0o600, 0o400, 0o440, 0o640} {
		if _, err := LoadSecret(write(good, mode)); err != nil {
			t.Errorf("%o: %v", mode, err)
		}
	}
	for _, mode := range []os.FileMode{0o644, 0o660, 0o604, 0o602} {
		if _, err := LoadSecret(write(good, mode)); err == nil {
			t.Errorf("mode %o is accepted", mode)
		}
	}
	if os.Geteuid() == 0 {
		f := write(good, 0o600)
		if err := os.Chown(f, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadSecret(f); err == nil {
			t.Error("another user's file is accepted")
		}
	}
	for _, text := range []string{"", "hunter2", good[:20], "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "not base64!"} {
		if _, err := LoadSecret(write(text, 0o600)); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
	if _, err := New(Config{Secret: make([]byte, 31)}, newTestIdentity(t), newFakeCatalog()); err == nil {
		t.Error("New takes a weak secret")
	}
}

func startRecorder(t testing.TB, cfg p2ptest.Config) *p2ptest.Recorder {
	t.Helper()
	r, err := p2ptest.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func connectRecorder(t testing.TB, r *p2ptest.Recorder, h *Host) string {
	t.Helper()
	id, err := r.Connect(context.Background(), h.Addrs()...)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
