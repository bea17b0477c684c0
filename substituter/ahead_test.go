package substituter

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/verify"
)

// closure adds leaf ← middle ← root, and a bystander that nothing refers to.
func closure(w *world) (leaf, middle, root, bystander verify.StorePath) {
	leaf = w.add("leaf", 1000)
	middle = w.add("middle", 2000, leaf)
	root = w.add("root", 3000, middle, leaf)
	bystander = w.add("bystander", 4000)
	return
}

func TestReferencesAreAskedForBeforeNixDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		up := w.upstream("x", honest)
		leaf, middle, root, _ := closure(w)
		s := w.start()
		get(s, root.Hash().String()+".narinfo")
		synctest.Wait()
		up.become(behaviour{refuse: true, corrupt: -1})
		for _, p := range []verify.StorePath{leaf, middle} {
			if rec := get(s, p.Hash().String()+".narinfo"); rec.Code != http.StatusOK {
				t.Errorf("%s is not known", p.Name())
			}
		}
	})
}

func TestAfterAFirstNARItsClosureIsFetchedLeavesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		up := w.upstream("x", honest)
		leaf, middle, root, bystander := closure(w)
		s := w.start()
		for _, p := range []verify.StorePath{root, middle, leaf, bystander} {
			get(s, p.Hash().String()+".narinfo")
		}
		time.Sleep(time.Minute)
		if got := up.asked(); len(got) != 0 {
			t.Fatalf("narinfo questions alone fetched %v", got)
		}
		_, info := w.of(leaf.Hash())
		if rec := get(s, binarycache.NARURL(leaf.Hash(), info.NarHash)); rec == nil || rec.Code != http.StatusOK {
			t.Fatal("leaf")
		}
		synctest.Wait()
		got := up.asked()
		if slices.Contains(got, "bystander") {
			t.Error("a path outside the closure was fetched")
		}
		slices.Sort(got)
		if !slices.Equal(got, []string{"leaf", "middle", "root"}) {
			t.Errorf("fetched %v", got)
		}
	})
}

// A closure that was collected as garbage is fetched ahead again.
func TestAClosureThatNixComesBackForIsFetchedAheadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		up := w.upstream("x", honest)
		leaf, middle, root, _ := closure(w)
		s := w.start()
		for _, p := range []verify.StorePath{root, middle, leaf} {
			get(s, p.Hash().String()+".narinfo")
		}
		_, info := w.of(leaf.Hash())
		for round := 1; round <= 2; round++ {
			if rec := get(s, binarycache.NARURL(leaf.Hash(), info.NarHash)); rec == nil || rec.Code != http.StatusOK {
				t.Fatal("leaf")
			}
			time.Sleep(time.Second)
			if got := len(up.asked()); got != 3*round {
				t.Errorf("%d NARs were fetched in round %d, want %d", got, round, 3*round)
			}
			s.flights.clear()
			time.Sleep(aheadAbandoned)
		}
	})
}

// What is fetched ahead is bounded: in NARs under way, and in bytes that nobody has asked for.
func TestWorkAheadIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		w.upstream("x", behaviour{corrupt: -1, hangOpen: true})
		s := w.start()
		s.flights.uplink.best = 1e15 // it is not what binds
		prefetch := func(size int64) {
			name := fmt.Sprint("p", size)
			_, _, info := w.makePath(name, 1000)
			info.NarHash, info.NarSize = sha256.Sum256([]byte(name)), size
			info.Sigs = []string{"test-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(w.private, []byte(info.Fingerprint())))}
			v, err := w.keys.Verify(info)
			if err != nil {
				t.Fatal(err)
			}
			s.flights.prefetch(v)
		}
		prefetch(aheadBytes - 1000)
		if !s.flights.roomAhead(1000) || s.flights.roomAhead(1001) {
			t.Error("the bytes ahead of Nix are not what bounds them")
		}
		for i := range int64(aheadNARs - 1) {
			if !s.flights.roomAhead(100) {
				t.Errorf("no room for NAR %d", i+2)
			}
			prefetch(100 + i)
		}
		if s.flights.roomAhead(1) {
			t.Errorf("%d NARs under way that nobody has asked for, and room for more", s.flights.inFlight())
		}
	})
}

func TestClosureOrderIsLeavesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		w.upstream("x", honest)
		leaf, middle, root, bystander := closure(w)
		s := w.start()
		for _, p := range []verify.StorePath{bystander, root, leaf, middle} {
			get(s, p.Hash().String()+".narinfo")
		}
		s.ahead.mu.Lock()
		defer s.ahead.mu.Unlock()
		var names []string
		for _, f := range s.ahead.closureAround(leaf.Hash()) {
			names = append(names, f.v.Path().Name())
		}
		if !slices.Equal(names, []string{"middle", "root"}) {
			t.Errorf("order %v", names)
		}
	})
}

// Nix takes the smallest name of what is ready, and what becomes ready only after one more.
func TestTheOrderIsNixs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10)
		w.upstream("x", honest)
		begin, d, z := w.add("begin", 1), w.add("d", 2), w.add("z", 9000)
		b := w.add("b", 3, begin)
		c := w.add("c", 4, z)
		a := w.add("a", 5, b)
		root := w.add("root", 6, begin, c, a, d)
		s := w.start()
		for _, p := range []verify.StorePath{root, z, d, c, b, a, begin} {
			get(s, p.Hash().String()+".narinfo")
		}
		s.ahead.mu.Lock()
		defer s.ahead.mu.Unlock()
		var names []string
		for _, f := range s.ahead.closureAround(begin.Hash()) {
			names = append(names, f.v.Path().Name())
		}
		// b is ready at once, as begin is on its way; a becomes ready by b, and d goes before it.
		if !slices.Equal(names, []string{"b", "d", "a", "z", "c", "root"}) {
			t.Errorf("order %v", names)
		}
	})
}

// The uplink has nothing more to do for a NAR that a neighbour has whole: the next one is begun meanwhile.
func TestWhatANeighbourHasLeavesRoomAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t, 2, 16*mib, slowUplink)
		follower := o.servers[1]
		o.sites[0].perMiB = time.Second
		o.sites[0].Tell(o.world.path.Hash().Digest(), Progress{Stage: StageFetching}, true)
		time.Sleep(time.Second)
		got, err := follower.finder.find(t.Context(), o.world.path.Hash())
		if err != nil {
			t.Fatal(err)
		}
		follower.flights.prefetch(got.v)
		if follower.flights.roomAhead(mib) {
			t.Error("there is room although 16 MiB are still to come from the central cache")
		}
		o.sites[0].Tell(o.world.path.Hash().Digest(), Progress{Stage: StageFetching, Held: [][2]int64{{0, 16 * mib}}}, true)
		time.Sleep(10 * time.Millisecond)
		if !follower.flights.roomAhead(mib) {
			t.Error("no room although the neighbour has it all")
		}
	})
}
