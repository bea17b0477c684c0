package sim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/binarycache"
	"github.com/flurry-nix/flurry/substituter"
	"github.com/flurry-nix/flurry/verify"
)

const (
	agents   = 200
	objects  = 60
	wants    = 6 // of each agent
	troubled = 10 * time.Minute
	// Each agent that wants a path nobody can give it asks the central cache: at the ends of partitions and
	// outages, after restarts, and where liars cost time. That is far from all who want it.
	downloadsPerObject = 4
)

// TestASiteSurvivesABadTime runs one seed in an ordinary test, SIM_SEEDS of them if that is set, or the
// one that SIM_SEED names.
func TestASiteSurvivesABadTime(t *testing.T) {
	first, n := uint64(1), uint64(1)
	if s := os.Getenv("SIM_SEED"); s != "" {
		first = number(t, s)
	} else if s := os.Getenv("SIM_SEEDS"); s != "" {
		n = number(t, s)
	}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) }) // fails if a goroutine is left
		})
	}
}

func number(t *testing.T, s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newWorld(t *testing.T, rnd *rand.Rand) *world {
	keys, err := verify.NewKeys([]string{keyText}, nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{keys: keys, upstream: true, byHash: map[verify.StoreHash]*object{}, byKey: map[verify.PathDigest]*object{}}
	for i := range objects {
		o := newObject(rnd, i)
		w.objects = append(w.objects, o)
		w.byHash[o.path.Hash()], w.byKey[o.path.Hash().Digest()] = o, o
	}
	for i := range agents {
		a := &agent{w: w, id: fmt.Sprintf("agent-%03d", i), side: rnd.IntN(2), store: map[verify.StoreHash]*object{}, told: map[verify.PathDigest]substituter.Progress{}, arrived: map[verify.PathDigest]int{},
			news: map[verify.PathDigest]chan struct{}{}, banned: map[string]error{}, resting: map[string]time.Time{}, failures: map[string]int{}}
		if i%10 == 9 { // a tenth lies
			a.lie = 1 + lie(rnd.IntN(int(lies)-1))
		}
		w.agents = append(w.agents, a)
	}
	return w
}

func simulate(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, rnd)
	for _, a := range w.agents {
		a.start()
	}
	var got, again atomic.Int64
	var nix sync.WaitGroup
	for i, a := range w.agents {
		mine := rand.New(rand.NewPCG(seed, uint64(i+2)))
		if a.lie == honest {
			nix.Go(func() { a.nix(t, mine, &got, &again) })
		}
	}
	events := w.trouble(rnd)
	nix.Wait()
	for _, a := range w.agents {
		if err := a.end(); err != nil {
			t.Errorf("%s: %v", a.id, err)
		}
	}
	liars := 0
	for _, a := range w.agents {
		for id, why := range a.banned {
			var n int
			fmt.Sscanf(id, "agent-%d", &n)
			if w.agents[n].lie == honest && a.lie == honest {
				t.Errorf("%s convicted %s, which is honest: %v", a.id, id, why)
			}
			liars++
		}
	}
	t.Logf("seed %d: %v, %d NARs to Nix, %d tried again, %d downloads of %d paths from the central cache, %d convictions, all of liars",
		seed, events, got.Load(), again.Load(), w.downloads.Load(), objects, liars)
	if n := w.downloads.Load(); n > objects*downloadsPerObject {
		t.Errorf("%d downloads of %d paths", n, objects)
	}
	if want := int64(agents * 9 / 10 * wants); got.Load() != want {
		t.Errorf("%d NARs, want %d", got.Load(), want)
	}
	if liars == 0 {
		t.Error("no liar was found out")
	}
}

// trouble is what happens to the site until its time is over; then all is well again.
func (w *world) trouble(rnd *rand.Rand) map[string]int {
	events := map[string]int{}
	var down []*agent
	for end := time.Now().Add(troubled); time.Now().Before(end); {
		time.Sleep(time.Duration(200+rnd.IntN(3000)) * time.Millisecond)
		switch rnd.IntN(6) {
		case 0, 1, 2:
			if a := w.agents[rnd.IntN(agents)]; a.end() == nil {
				events["agents gone"]++
				down = append(down, a)
			}
		case 3:
			for _, a := range down {
				a.revive()
			}
			down = nil
		case 4:
			w.mu.Lock()
			w.parted = !w.parted
			w.mu.Unlock()
			events["site parted or joined"]++
		case 5:
			w.mu.Lock()
			w.upstream = !w.upstream
			w.mu.Unlock()
			events["central cache gone or back"]++
		}
	}
	for _, a := range down {
		a.revive()
	}
	w.mu.Lock()
	w.upstream, w.parted = true, false
	w.mu.Unlock()
	return events
}

func (a *agent) revive() {
	a.mu.Lock()
	up := a.up
	a.mu.Unlock()
	if !up {
		a.start()
	}
}

// nix wants some paths in the course of the bad time, and keeps asking for each until it has it.
func (a *agent) nix(t *testing.T, rnd *rand.Rand, got, again *atomic.Int64) {
	for _, i := range rnd.Perm(objects)[:wants] {
		time.Sleep(time.Duration(rnd.IntN(int(troubled / wants))))
		o := a.w.objects[i]
		for tries := 0; ; tries++ {
			if a.fetch(t, o) {
				break
			}
			again.Add(1)
			if tries > 1000 {
				t.Errorf("%s never got %s", a.id, o.path.Name())
				return
			}
			time.Sleep(2 * time.Second)
		}
		got.Add(1)
		a.mu.Lock()
		a.store[o.path.Hash()] = o
		a.mu.Unlock()
	}
}

// fetch asks as Nix does; false if it has to ask again. What comes whole must be right.
func (a *agent) fetch(t *testing.T, o *object) bool {
	a.mu.Lock()
	server, up := a.server, a.up
	a.mu.Unlock()
	if !up {
		return false
	}
	if rec := request(server, o.path.Hash().String()+".narinfo"); rec == nil || rec.Code != http.StatusOK {
		return false
	}
	rec := request(server, binarycache.NARURL(o.path.Hash(), o.info.NarHash))
	if rec == nil || rec.Code != http.StatusOK {
		return false
	}
	if !bytes.Equal(rec.Body.Bytes(), o.nar) {
		t.Errorf("%s got %d wrong bytes for %s", a.id, rec.Body.Len(), o.path.Name())
	}
	return true
}

// request returns nil if the answer was cut.
func request(s *substituter.Server, name string) (rec *httptest.ResponseRecorder) {
	rec = httptest.NewRecorder()
	defer func() {
		if e := recover(); e == http.ErrAbortHandler {
			rec = nil
		} else if e != nil {
			panic(e)
		}
	}()
	s.Handler(nil).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "http://127.0.0.1:6490/"+name, nil))
	return rec
}
