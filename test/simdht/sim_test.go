package simdht

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/verify"
)

const (
	findMost    = 4 * time.Second        // dht's patience with one look-up
	offloadWait = 700 * time.Millisecond // what substituter gives a look-up with internet.prefer = "offload"
	origins     = 3                      // agents that all others begin with
	keysEach    = 10                     // paths of an ordinary agent
)

// size of a run.
type size struct {
	agents, keys int // keys are those of the one agent that has many
	rest, churn  time.Duration
	lookups      int
	sieges       int // by Sybils, see sybils
}

func number(name string, other int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return other
}

// A run lives in a bubble of virtual time: two hours of a thousand agents take some minutes.
func TestTheTableFindsThroughChurnAndSybils(t *testing.T) {
	s := size{agents: 30, keys: 100, rest: 5 * time.Minute, churn: 10 * time.Minute, lookups: 40, sieges: 2}
	if n := number("DHT_N", 0); n > 0 {
		s = size{agents: n, keys: number("DHT_KEYS", 20*n), rest: time.Hour, churn: 30 * time.Minute, lookups: 500, sieges: number("DHT_SIEGES", 4)}
	}
	seed := uint64(number("DHT_SEED", 1))
	began := time.Now()
	synctest.Test(t, func(t *testing.T) { newRun(t, s, seed).live() })
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	t.Logf("took %v, %d MiB of the system", time.Since(began).Round(time.Second), mem.Sys>>20)
}

// run is one simulation. mu guards all.
type run struct {
	t     *testing.T
	s     size
	w     *world
	began time.Time
	boot  []string

	mu  sync.Mutex
	all []*agent
}

func newRun(t *testing.T, s size, seed uint64) *run {
	return &run{t: t, s: s, w: newWorld(seed), began: time.Now()}
}

func (r *run) say(format string, args ...any) {
	r.t.Logf("%8s  %s", time.Since(r.began).Round(time.Second), fmt.Sprintf(format, args...))
}

func (r *run) live() {
	r.say("%d agents, %d paths each, one with %d", r.s.agents, keysEach, r.s.keys)
	big := r.arrive(r.s.rest, r.s.keys)
	for range r.s.agents - 1 {
		r.arrive(0, keysEach)
		time.Sleep(5 * time.Minute / time.Duration(r.s.agents))
	}
	defer func() {
		for _, a := range r.all {
			a.leave(false)
		}
		time.Sleep(time.Hour) // whatever waits for something ends
	}()
	r.traffic("arriving", time.Since(r.began), sums{}, nil)
	close(r.w.open)                                                    // not before: who announces to a table of twenty is not found in one of a thousand
	time.Sleep(2*time.Minute + time.Duration(r.s.keys/50)*time.Second) // the first announcement: 50 paths a second

	r.rest(big)
	hits := r.look("at rest, paths provided", r.s.lookups, r.provided)
	if hits.share < 0.95 {
		r.t.Errorf("at rest %.1f %% of look-ups find", 100*hits.share)
	}
	r.look("at rest, paths nobody has", r.s.lookups/2, r.absent)
	r.churn()
	r.sybils()
}

// arrive lets one more agent join, with paths of its own.
func (r *run) arrive(interval time.Duration, keys int) *agent {
	var has []*verify.Verified
	for range keys {
		has = append(has, r.w.path())
	}
	return r.add(interval, has)
}

// bring lets one more agent join that has the path.
func (r *run) bring(v *verify.Verified) *agent { return r.add(0, []*verify.Verified{v}) }

func (r *run) add(interval time.Duration, has []*verify.Verified) *agent {
	boot := r.boot
	if len(boot) == origins {
		boot = []string{r.boot[r.w.rnd.IntN(origins)]}
	}
	a := r.w.join(r.w.machine(r.w.identity()), boot, has, interval)
	if len(r.boot) < origins {
		r.boot = append(r.boot, a.bootstrap())
	}
	r.mu.Lock()
	r.all = append(r.all, a)
	r.mu.Unlock()
	return a
}

// sums are of messages and their bytes by kind, and of dials.
type sums struct {
	messages, bytes [kinds]int64
	dials, failed   int64
}

func (t *traffic) sums() (s sums) {
	for k := range kinds {
		s.messages[k], s.bytes[k] = t.out[k].messages.Load(), t.out[k].bytes.Load()
	}
	s.dials, s.failed = t.dials.Load(), t.failedDials.Load()
	return s
}

func (s sums) minus(o sums) sums {
	for k := range kinds {
		s.messages[k] -= o.messages[k]
		s.bytes[k] -= o.bytes[k]
	}
	s.dials -= o.dials
	s.failed -= o.failed
	return s
}

var kindNames = [kinds]string{"put", "get", "ADD_PROVIDER", "GET_PROVIDERS", "FIND_NODE", "PING", "other"}

// traffic says what an agent sent since; but is left out.
func (r *run) traffic(what string, d time.Duration, since sums, but func() sums) {
	spent, n := r.w.traffic.sums().minus(since), int64(len(r.all))
	if but != nil {
		spent = spent.minus(but())
	}
	var messages, bytes int64
	text := ""
	for k := range kinds {
		m, b := spent.messages[k], spent.bytes[k]
		messages, bytes = messages+m, bytes+b
		if m > 0 {
			text += fmt.Sprintf("; %s %d, %d B", kindNames[k], m/n, b/n)
		}
	}
	var table, conns int
	for _, a := range r.all {
		table += a.dht.Stats().Peers
		conns += len(a.list())
	}
	r.say("%s, sent by an agent in %v: %d messages, %d B%s; %.1f dials, %.1f in vain; table of %d, %d connections", what, d.Round(time.Minute),
		messages/n, bytes/n, text, float64(spent.dials)/float64(n), float64(spent.failed)/float64(n), table/int(n), conns/int(n))
}

// rest measures an undisturbed table, and the agent with many paths.
func (r *run) rest(big *agent) {
	since, own := r.w.traffic.sums(), big.traffic.sums()
	var adds []int64
	for range int(r.s.rest / time.Minute) {
		a := big.traffic.out[addProvider].messages.Load()
		time.Sleep(time.Minute)
		adds = append(adds, big.traffic.out[addProvider].messages.Load()-a)
	}
	spent := func() sums { return big.traffic.sums().minus(own) }
	r.traffic("at rest", r.s.rest, since, spent)
	s, sent := spent(), int64(0)
	for k := range kinds {
		sent += s.bytes[k]
	}
	slices.Sort(adds)
	r.say("one agent announced its %d paths anew in %v: %d ADD_PROVIDER of %d B (%.1f a path), %d FIND_NODE (its table's included), %d B in all, %d dials; ADD_PROVIDER a minute: least %d, p10 %d, median %d, p90 %d, most %d",
		r.s.keys, r.s.rest, s.messages[addProvider], s.bytes[addProvider]/max(1, s.messages[addProvider]), float64(s.messages[addProvider])/float64(r.s.keys),
		s.messages[findNode], sent, s.dials, adds[0], at(adds, 10), at(adds, 50), at(adds, 90), adds[len(adds)-1])
	var held []int
	total := 0
	for _, a := range r.all {
		n := a.records()
		held = append(held, n)
		total += n
	}
	slices.Sort(held)
	runtime.GC()
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	r.say("memory in use: %d KiB an agent", int(mem.HeapAlloc>>10)/len(r.all))
	r.say("records held by an agent: mean %d, p50 %d, p90 %d, p99 %d, most %d", total/len(held), at(held, 50), at(held, 90), at(held, 99), held[len(held)-1])
}

func at[T any](sorted []T, percent int) T { return sorted[min(len(sorted)-1, len(sorted)*percent/100)] }

// question is what one agent asks; want is who should be found.
type question struct {
	from *agent
	path *verify.Verified
	want []string
}

func (q question) names(f discovery.Found) bool { return slices.Contains(q.want, f.PeerID) }

func (r *run) provided(rnd *rand.Rand) question {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		from, has := r.all[rnd.IntN(len(r.all))], r.all[rnd.IntN(len(r.all))]
		if from != has && time.Since(has.since) > 3*time.Minute && time.Since(from.since) > time.Minute {
			return question{from, has.has[rnd.IntN(len(has.has))], []string{has.id.String()}}
		}
	}
}

func (r *run) absent(rnd *rand.Rand) question {
	r.mu.Lock()
	defer r.mu.Unlock()
	return question{from: r.all[rnd.IntN(len(r.all))], path: r.w.path()}
}

// everybody lets each agent ask for one path in turn, whoever is taken to have it.
func (r *run) everybody(v *verify.Verified) func(owners ...*agent) func(*rand.Rand) question {
	i := -1
	return func(owners ...*agent) func(*rand.Rand) question {
		var want []string
		for _, a := range owners {
			want = append(want, a.id.String())
		}
		return func(*rand.Rand) question {
			for i++; slices.Contains(owners, r.all[i]); i++ {
			}
			return question{r.all[i], v, want}
		}
	}
}

// outcome of many look-ups.
type outcome struct {
	share float64 // that found who has the path
	took  []time.Duration
}

// look asks n questions, four a second.
func (r *run) look(what string, n int, ask func(*rand.Rand) question) outcome {
	rnd := rand.New(rand.NewPCG(uint64(n), 2))
	var mu sync.Mutex
	var o outcome
	var right, quick, strays int
	var g sync.WaitGroup
	since := r.w.traffic.sums()
	for range n {
		time.Sleep(250 * time.Millisecond)
		q := ask(rnd)
		g.Go(func() {
			from := time.Now()
			got := q.from.dht.Find(context.Background(), q.path)
			took := time.Since(from)
			mu.Lock()
			defer mu.Unlock()
			o.took = append(o.took, took)
			if slices.ContainsFunc(got, q.names) {
				right++
				if took <= offloadWait {
					quick++
				}
			}
			if slices.ContainsFunc(got, func(f discovery.Found) bool { return !q.names(f) }) {
				strays++
			}
			if took > findMost+10*time.Millisecond {
				r.t.Errorf("a look-up took %v", took)
			}
		})
	}
	g.Wait()
	slices.Sort(o.took)
	o.share = float64(right) / float64(n)
	s := r.w.traffic.sums().minus(since)
	r.say("%s: %d look-ups, %.1f %% find (%.1f %% within %v), %.1f %% name others; p50 %v, p90 %v, p99 %v, most %v; %.1f GET_PROVIDERS and answers, %d B, each",
		what, n, 100*o.share, 100*float64(quick)/float64(n), offloadWait, 100*float64(strays)/float64(n), ms(at(o.took, 50)), ms(at(o.took, 90)), ms(at(o.took, 99)), ms(o.took[n-1]),
		float64(s.messages[getProviders])/float64(n), s.bytes[getProviders]/int64(n))
	return o
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

// churn replaces 30 % of the agents within an hour, every other one without a word; the machines that many
// began with stay.
func (r *run) churn() {
	since, from := r.w.traffic.sums(), time.Now()
	stop := make(chan struct{})
	var g sync.WaitGroup
	g.Go(func() {
		every := time.Duration(float64(time.Hour) / (0.3 * float64(r.s.agents)))
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(every):
			}
			r.mu.Lock()
			k := origins + r.w.rnd.IntN(len(r.all)-origins)
			gone := r.all[k]
			r.all = slices.Delete(r.all, k, k+1)
			r.mu.Unlock()
			g.Go(func() { gone.leave(i%2 == 0) })
			r.arrive(0, keysEach)
		}
	})
	time.Sleep(r.s.churn - time.Duration(r.s.lookups)*250*time.Millisecond)
	r.look("with 30 % churn an hour, paths of agents that are there", r.s.lookups, r.provided)
	close(stop)
	g.Wait()
	r.traffic("with churn", time.Since(from), since, nil)
}
