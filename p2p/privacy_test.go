package p2p

import (
	"net/http"
	"strings"
	"testing"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/p2p/p2ptest"
	"github.com/flurry-nix/flurry/verify"
)

// TestNothingTellsAStrangerOfPrivatePaths records all that an agent says and searches it.
func TestNothingTellsAStrangerOfPrivatePaths(t *testing.T) {
	c := newFakeCatalog()
	type canary struct {
		h   verify.StoreHash
		sum verify.Hash
	}
	add := func(seed uint64, scope verify.Scope) canary {
		h, sum := c.add(t, seed, 3000, scope)
		return canary{h, sum}
	}
	public, group, unshared := add(1, verify.ScopePublic), add(2, verify.ScopeGroup), add(3, verify.ScopeNone)
	a := startHostWith(t, Config{Secret: newSecret(t)}, newTestIdentity(t), c)
	r := startRecorder(t, p2ptest.Config{})
	id := connectRecorder(t, r, a.Host)
	if err := r.Wait(t.Context(), func() bool { return r.EverClaimed(public.h.Digest()) }); err != nil {
		t.Fatal(err)
	}
	if r.Initiates(id) && r.Prove(t.Context(), id) == nil {
		t.Error("the agent proved itself to a stranger")
	}
	// Changes, a pause and its end are said, too.
	laterGroup, laterPublic := add(4, verify.ScopeGroup), add(5, verify.ScopePublic)
	if err := r.Wait(t.Context(), func() bool { return r.EverClaimed(laterPublic.h.Digest()) }); err != nil {
		t.Fatal(err)
	}
	c.remove(laterGroup.h)
	n := r.Snapshots(id)
	a.Pause(true)
	a.Pause(false)
	if err := r.Wait(t.Context(), func() bool { return r.Snapshots(id) > n }); err != nil {
		t.Fatal(err)
	}

	ask := func(target string) int {
		resp, err := r.Get(t.Context(), id, target)
		if err != nil {
			t.Fatal(target, err)
		}
		return resp.Status
	}
	every := func(x canary) []int {
		return []int{
			ask("/" + x.h.Digest().String() + ".narinfo"), ask("/" + binarycache.NARURL(x.h, x.sum)),
			ask("/" + binarycache.NARURL(x.h, x.sum) + chainSuffix),
		}
	}
	for _, x := range []canary{group, unshared} {
		for _, status := range every(x) {
			if status != http.StatusNotFound {
				t.Errorf("status %d for a private path", status)
			}
		}
		if ask("/"+x.h.String()+".narinfo") != http.StatusNotFound {
			t.Error("a path is found by its hash")
		}
	}
	for _, status := range every(public) {
		if status != http.StatusOK {
			t.Errorf("status %d for a public path", status)
		}
	}

	search := func(x canary) []string {
		c.mu.Lock()
		defer c.mu.Unlock()
		return r.Search(p2ptest.Canary{Hash: x.h, NAR: c.paths[x.h].nar})
	}
	for what, x := range map[string]canary{"group": group, "unshared": unshared, "later": laterGroup} {
		if found := search(x); len(found) > 0 {
			t.Errorf("the %s path is named: %s", what, strings.Join(found, ", "))
		}
	}
	found := strings.Join(search(public), ", ")
	for _, way := range []string{"store hash", "NAR bytes", "have-set"} { // positive control
		if !strings.Contains(found, way) {
			t.Errorf("the public path is not found by its %s, so the search is blind: %s", way, found)
		}
	}
}

// TestQuestionsNameADigest: a peer that lies about what it has does not learn hashes from being asked.
func TestQuestionsNameADigest(t *testing.T) {
	b := startHost(t, newFakeCatalog())
	r := startRecorder(t, p2ptest.Config{})
	id := connectRecorder(t, r, b)
	h, _ := newFakeCatalog().add(t, 1, 10, verify.ScopePublic)
	if err := r.Claim(t.Context(), id, h.Digest()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the claim is believed", func() bool { return len(b.Holders(h.Digest(), 0)) == 1 })
	p := b.Holders(h.Digest(), 0)[0]
	p.NarInfo(t.Context(), h.Digest())
	if asked := r.Asked(); len(asked) != 1 || asked[0] != "GET /"+h.Digest().String()+".narinfo" {
		t.Error(asked)
	}
	if p.falseClaims.Load() != 1 {
		t.Error("the false claim is not counted")
	}
}
