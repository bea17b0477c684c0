//go:build linux

package faults

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/p2p/p2ptest"
)

// joins makes a peer with an identity of its choice known to an agent.
func (w *world) joins(t *testing.T, a *agent, f *fault, key ed25519.PrivateKey) *source {
	t.Helper()
	s := newSource(w.corpus, kindPeer, f)
	s.key = key
	t.Cleanup(s.close)
	addrs, err := a.addrs()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.servePeer(ctx, addrs); err != nil {
		t.Fatal(err)
	}
	if err := until("the agent knows what a peer claims", func() bool {
		p := a.peer(func(p peerReport) bool { return p.ID == s.peer.ID() })
		return p != nil && p.Paths > 0
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) agent(t *testing.T) *agent {
	t.Helper()
	dir := t.TempDir()
	if len(dir) > 80 {
		t.Fatalf("%s: too long for a socket's name", dir)
	}
	a, err := newAgent(w.binary, dir, agentConfig{key: w.corpus.key, upstreams: []string{w.honest.url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.stop)
	return a
}

// realised makes Nix fetch a path into a new store.
func (w *world) realised(t *testing.T, a *agent, p *storePath) {
	t.Helper()
	if exit, _, out := realise(t.TempDir(), a.url, w.corpus.key, p.String(), nixLimit); exit != 0 {
		t.Fatalf("nix-store: exit status %d: %s", exit, lastLines(out, 5))
	}
}

// order returns the peers that an agent would ask for a path, the first one first.
func (a *agent) order(t *testing.T, p *storePath) (ids []string) {
	t.Helper()
	out, err := a.ask("locate", p.String(), "--json")
	if err != nil {
		t.Fatal(err)
	}
	type location struct {
		Sources []struct{ Kind, ID string } `json:"sources"`
	}
	var list []location
	if err := json.Unmarshal(out, &list); err != nil {
		var one location
		if err := json.Unmarshal(out, &one); err != nil {
			t.Fatalf("flurry locate: %v: %s", err, out)
		}
		list = append(list, one)
	}
	for _, s := range list[0].Sources {
		if s.Kind == kindPeer {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func (a *agent) state(id string) string {
	p := a.peer(func(p peerReport) bool { return p.ID == id })
	if p == nil {
		return "unknown"
	}
	return p.State
}

// A liar is out at once, and neither a restart of the agent nor a new address lets it in again.
func TestALiarStaysOutOverRestartsAndNewAddresses(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	liar := w.joins(t, a, &fault{name: "lie", nar: flip(half)}, key)
	id := liar.peer.ID()
	w.realised(t, a, w.corpus.paths[2])
	if got := a.state(id); got != "banned" {
		t.Fatalf("after wrong bytes: %s, want banned", got)
	}
	a.stop()
	if err := a.start(); err != nil {
		t.Fatal(err)
	}
	if got := a.state(id); got != "banned" {
		t.Errorf("after a restart: %s, want banned", got)
	}
	addrs, err := a.addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, listen := range []string{"", "/ip4/127.0.0.2/tcp/0", "/ip4/127.0.0.3/tcp/0"} {
		again, err := p2ptest.Start(p2ptest.Config{Key: key, Listen: listen, Forget: true})
		if err != nil {
			t.Fatal(err)
		}
		if again.ID() != id {
			t.Fatal("another identity; the test proves nothing")
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if agent, err := again.Connect(ctx, addrs...); err == nil {
			if _, err := again.Get(ctx, agent, "/nix-cache-info"); err == nil {
				t.Errorf("listening on %q a banned peer was answered", listen)
			}
		}
		cancel()
		if got := a.state(id); got != "banned" {
			t.Errorf("listening on %q: %s, want banned", listen, got)
		}
		again.Close()
	}
	// The same machine with a new identity is a stranger: let in, and behind everybody with a record.
	if got := a.state(w.joins(t, a, honestly, nil).peer.ID()); got != "connected" {
		t.Errorf("a new identity: %s, want connected", got)
	}
}

// Whoever did well comes first; a new identity is asked after it.
func TestANewIdentityStartsAtTheBottom(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t)
	known := w.joins(t, a, honestly, nil)
	w.realised(t, a, w.corpus.paths[2])
	var strangers []string
	for range 3 {
		strangers = append(strangers, w.joins(t, a, honestly, nil).peer.ID())
	}
	order := a.order(t, w.corpus.paths[1])
	if len(order) != 4 || order[0] != known.peer.ID() {
		t.Errorf("asked in the order %v; want %s before the newcomers %v", order, known.peer.ID(), strangers)
	}
}

// Slow is no crime: the peer comes later in the order and is not shut out.
func TestASlowPeerComesLaterAndIsNotBanned(t *testing.T) {
	w := newWorld(t)
	a := w.agent(t)
	slow := w.joins(t, a, &fault{name: "slow", onNAR: dribble(1000, 50*time.Millisecond)}, nil)
	w.realised(t, a, w.corpus.paths[2])
	quick := w.joins(t, a, honestly, nil)
	var order []string
	if err := until("the slow peer is asked again", func() bool { // it is left out for a second or two
		order = a.order(t, w.corpus.paths[3])
		return slices.Contains(order, slow.peer.ID())
	}); err != nil {
		t.Fatal(err, a.state(slow.peer.ID()))
	}
	if order[0] != quick.peer.ID() {
		t.Errorf("asked in the order %v; want the slow %s last", order, slow.peer.ID())
	}
	p := a.peer(func(p peerReport) bool { return p.ID == slow.peer.ID() })
	if p == nil || p.State == "banned" || p.Reason == "" {
		t.Errorf("told of the slow peer: %+v; want its trouble and no ban", p)
	}
}
