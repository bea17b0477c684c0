package p2p

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/flurry-nix/flurry/verify"
)

// chainHolder is a as another host sees it, once that knows that a has h.
func chainHolder(t *testing.T, a *Host, h verify.StoreHash) *Peer {
	t.Helper()
	b := startHost(t, newFakeCatalog(), whereIs(a, true))
	eventually(t, "the holder is known", func() bool { return len(b.Holders(h.Digest(), 0)) == 1 })
	return b.Holders(h.Digest(), 0)[0]
}

func TestAChainComesFromAPeer(t *testing.T) {
	c := newFakeCatalog()
	const size = 3*verify.ChunkSize + 100
	h, sum := c.add(t, 1, size, verify.ScopePublic)
	secret, secretSum := c.add(t, 2, size, verify.ScopeGroup)
	p := chainHolder(t, startHost(t, c), h)
	chain, err := p.Chain(t.Context(), h, sum, size)
	if err != nil {
		t.Fatal(err)
	}
	hash := verify.NewChainHash()
	hash.Write(c.paths[h].nar)
	if _, want := hash.Sum(); !slices.Equal(chain, want) {
		t.Error("it is not the NAR's")
	}
	if _, err := p.Chain(t.Context(), secret, secretSum, size); !errors.Is(err, ErrAbsent) {
		t.Error("a stranger's question for the group's chain:", err)
	}
	if _, err := p.Chain(t.Context(), h, secretSum, size); !errors.Is(err, ErrAbsent) {
		t.Error("another NAR's:", err)
	}
	if n := p.falseClaims.Load(); n != 0 {
		t.Errorf("%d absent chains count as false claims", n)
	}
}

// TestWhatIsNoChainIsAbsent: an answer that is another version's, of another NAR, too long or too short
// is none, and costs no more memory than the signed size allows.
func TestWhatIsNoChainIsAbsent(t *testing.T) {
	c := newFakeCatalog()
	const size = 3*verify.ChunkSize + 100
	h, sum := c.add(t, 1, size, verify.ScopePublic)
	p := chainHolder(t, startHost(t, c), h)
	good := make(verify.Chain, 3).Bytes(size)
	version2 := slices.Clone(good)
	version2[4] = 2
	for what, form := range map[string][]byte{
		"version 2": version2, "another NAR's": make(verify.Chain, 3).Bytes(size + 1), "short": good[:len(good)-1],
		"long": bytes.Repeat(good, 1000), "empty": {},
	} {
		c.chain = func(context.Context) ([]byte, error) { return form, nil }
		if _, err := p.Chain(t.Context(), h, sum, size); !errors.Is(err, ErrAbsent) {
			t.Errorf("%s: %v", what, err)
		}
	}
	c.chain = func(context.Context) ([]byte, error) { return good, nil }
	if _, err := p.Chain(t.Context(), h, sum, size); err != nil {
		t.Error("control:", err)
	}
}

// TestWaitingForChainsIsBounded: who asks for many chains that take long hears that the peer is busy.
func TestWaitingForChainsIsBounded(t *testing.T) {
	c := newFakeCatalog()
	const size = 2 * verify.ChunkSize
	h, sum := c.add(t, 1, size, verify.ScopePublic)
	p := chainHolder(t, startHost(t, c), h)
	entered, ended := make(chan struct{}, 20), make(chan error, 20)
	release := make(chan struct{})
	c.chain = func(context.Context) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return nil, ErrAbsent
	}
	ask := func() { _, err := p.Chain(t.Context(), h, sum, size); ended <- err }
	for range maxChainsPerPeer {
		go ask()
		<-entered
	}
	go ask()
	if err := <-ended; !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	close(release)
	for range maxChainsPerPeer {
		if err := <-ended; !errors.Is(err, ErrAbsent) {
			t.Error(err)
		}
	}
}
