//go:build linux

package faults

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// nixLimit is how long one cell's Nix may take; it is killed then.
	nixLimit = 2 * time.Minute
	// answerLimit is how soon a question must be answered that no honest source is left for.
	answerLimit = 5 * time.Second
)

// world is what all cells use.
type world struct {
	dir, binary string
	corpus      *corpus
	honest      *source // an upstream
	strict      bool    // the machine has nothing else to do: being late is blame, too
}

func newWorld(t *testing.T) *world {
	t.Helper()
	for _, program := range []string{"nix-store", "xz"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("FLURRY_REQUIRE_ALL") == "1" {
				t.Fatal(err, "; try: scripts/install-deps test")
			}
			t.Skip(err, "; try: scripts/install-deps test")
		}
	}
	dir, err := os.MkdirTemp("", "faults-") // short: a socket's name has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	w := &world{dir: dir, binary: os.Getenv("FLURRY_BIN")}
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", w.dir).Run(); os.RemoveAll(w.dir) })
	if w.binary == "" {
		w.binary = filepath.Join(w.dir, "flurry")
		if out, err := exec.Command("go", "build", "-o", w.binary, "../../cmd/flurry").CombinedOutput(); err != nil {
			t.Fatalf("building flurry: %v\n%s", err, out)
		}
	}
	if w.corpus, err = newCorpus(); err != nil {
		t.Fatal(err)
	}
	w.honest = newSource(w.corpus, kindUpstream, honestly)
	if err := w.honest.serveUpstream(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.honest.close)
	return w
}

// scene is an agent between a hostile source and perhaps an honest one.
type scene struct {
	w       *world
	dir     string
	agent   *agent
	hostile []*source
	honest  *source // a peer; nil if the honest one is an upstream, or if there is none
	static  string  // entry of a peer that is only named
}

// stage starts hostile sources of these kinds with one fault, and an agent that knows them. honest is the
// kind of the honest source beside them, "" for none.
func (w *world) stage(f *fault, honest string, kinds ...string) (*scene, error) {
	dir, err := os.MkdirTemp(w.dir, "cell-")
	if err != nil {
		return nil, err
	}
	sc := &scene{w: w, dir: dir}
	cfg := agentConfig{key: w.corpus.key}
	for _, kind := range kinds {
		s := newSource(w.corpus, kind, f)
		sc.hostile = append(sc.hostile, s)
		switch {
		case kind == kindUpstream:
			err = s.serveUpstream()
			cfg.upstreams = append(cfg.upstreams, s.url)
		case f.static != nil:
			sc.static, err = f.static(s)
			cfg.static = append(cfg.static, sc.static)
		}
		if err != nil {
			return sc, err
		}
	}
	if honest == kindUpstream {
		cfg.upstreams = append(cfg.upstreams, w.honest.url)
	}
	if len(cfg.upstreams) == 0 { // the default one would be asked
		cfg.upstreams = []string{"http://127.0.0.1:1"}
	}
	if sc.agent, err = newAgent(w.binary, dir, cfg); err != nil {
		return sc, fmt.Errorf("%w\n%s", err, lastLines(sc.agent.log(), 5))
	}
	if honest == kindPeer {
		sc.honest = newSource(w.corpus, kindPeer, honestly)
		if err := sc.connect(sc.honest); err != nil {
			return sc, err
		}
	}
	for _, s := range sc.hostile {
		if s.kind == kindPeer && f.static == nil {
			if err := sc.connect(s); err != nil {
				return sc, err
			}
		}
	}
	return sc, nil
}

// connect makes a hostile peer known to the agent.
func (sc *scene) connect(s *source) error {
	addrs, err := sc.agent.addrs()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.servePeer(ctx, addrs); err != nil {
		return err
	}
	return until("the agent knows what the hostile peer claims", func() bool {
		p := sc.agent.peer(func(p peerReport) bool { return p.ID == s.peer.ID() })
		return p != nil && (s.fault.claimsNothing || p.Paths > 0)
	})
}

func (sc *scene) close() {
	if sc.agent != nil && sc.agent.cmd != nil {
		sc.agent.stop()
	}
	for _, s := range sc.hostile {
		s.close()
	}
	if sc.honest != nil {
		sc.honest.close()
	}
	exec.Command("chmod", "-R", "u+w", sc.dir).Run()
	os.RemoveAll(sc.dir)
}

// cell is one result.
type cell struct {
	Source  string  `json:"source"` // the hostile one's kind
	Beside  string  `json:"beside"` // the honest one's
	Fault   string  `json:"fault"`
	Exit    int     `json:"exit"`                    // of nix-store
	Seconds float64 `json:"seconds"`                 // of nix-store
	Added   float64 `json:"added_seconds"`           // against the same without the fault
	Applied int64   `json:"applied"`                 // how often the fault was shown
	Culprit string  `json:"culprit"`                 // what the agent says of the hostile source
	Honest  bool    `json:"honest_blamed"`           // the agent says something bad of the honest one
	Says    string  `json:"of_the_honest,omitempty"` // and what
	Trouble string  `json:"trouble,omitempty"`       // why the cell failed
}

func (c *cell) fail(format string, args ...any) {
	if c.Trouble != "" {
		c.Trouble += "; "
	}
	c.Trouble += fmt.Sprintf(format, args...)
}

// run measures one cell: a hostile source and an honest one.
func (w *world) run(p place) (c cell) {
	f := p.f
	c = cell{Source: p.kind, Beside: p.beside, Fault: f.name, Exit: -1}
	sc, err := w.stage(f, p.beside, p.kind)
	if sc != nil {
		defer sc.close()
	}
	if err != nil {
		c.fail("%v", err)
		return c
	}
	var took time.Duration
	var out string
	c.Exit, took, out = realise(sc.dir, sc.agent.url, w.corpus.key, w.corpus.top().String(), nixLimit)
	c.Seconds = took.Seconds()
	if c.Exit != 0 {
		c.fail("nix-store: exit status %d: %s", c.Exit, lastLines(out, 3))
	}
	c.Applied = sc.hostile[0].applied.Load()
	sc.judge(f, &c)
	if os.Getenv("FLURRY_MATRIX_LOGS") != "" {
		name := strings.NewReplacer(" ", "-", "/", "-", ":", "").Replace(p.kind + " " + p.beside + " " + f.name)
		b, _ := os.ReadFile(filepath.Join(sc.agent.dir, "log"))
		os.WriteFile(filepath.Join(os.Getenv("FLURRY_MATRIX_LOGS"), name), append(b, out...), 0o600)
	}
	return c
}

// judge reads what the agent says of whom. A peer that is only named to the agent is dialled meanwhile,
// which takes seconds to fail.
func (sc *scene) judge(f *fault, c *cell) {
	bad, err := false, error(nil)
	for end := time.Now().Add(2 * answerLimit); ; time.Sleep(100 * time.Millisecond) {
		bad, err = sc.look(c)
		if err != nil || bad || f.static == nil || c.Source != kindPeer || time.Now().After(end) {
			break
		}
	}
	switch {
	case err != nil:
		c.fail("%v", err)
	case c.Honest && (sc.w.strict || !ofWaiting(c.Says)):
		c.fail("the honest source is blamed: %s", c.Says)
	case c.Applied == 0 && f != honestly:
		if c.Beside == kindUpstream { // of two peers the honest one may happen to be asked first
			c.fail(neverShown)
		}
	case f.blame == blameNone && bad && (sc.w.strict || !ofWaiting(c.Culprit)):
		c.fail("blamed for nothing: %s", c.Culprit)
	case f.blame != blameNone && !bad && c.Beside == kindPeer: // the honest peer was quicker than any patience
	case f.blame != blameNone && !bad:
		c.fail("the culprit is not named")
	case f.blame == blameBanned && c.Source == kindPeer && c.Applied > 0 && !strings.HasPrefix(c.Culprit, "banned"):
		c.fail("wrong bytes, and not banned: %s", c.Culprit)
	}
}

// ofWaiting tells whether trouble is only that something came late: on a machine that does much else an
// honest source may be late, too.
func ofWaiting(s string) bool {
	return strings.Contains(s, "silent for") || strings.Contains(s, "no answer to a question") || strings.Contains(s, "slow:") || strings.HasSuffix(s, "suspect")
}

// look fills in what the agent says of the sources now; bad is whether it says anything against the
// hostile one.
func (sc *scene) look(c *cell) (bad bool, err error) {
	r, err := sc.agent.status()
	if err != nil {
		return false, err
	}
	hostile := sc.hostile[0]
	for _, u := range r.Upstreams {
		switch {
		case u.URL == sc.w.honest.url:
			c.Honest, c.Says = u.LastError != "" || !u.Reachable, u.LastError
		case u.URL == hostile.url && (u.LastError != "" || !u.Reachable):
			c.Culprit, bad = u.LastError, true
		}
	}
	for _, p := range r.Peers {
		if sc.honest != nil && p.ID == sc.honest.peer.ID() {
			c.Honest, c.Says = p.State == "banned" || p.State == "suspect" || p.Reason != "", p.Reason
			continue
		}
		if hostile.kind != kindPeer || hostile.peer != nil && p.ID != hostile.peer.ID() && !strings.Contains(sc.static, p.ID) {
			continue
		}
		c.Culprit = strings.Trim(p.State+": "+p.Reason, ": ")
		bad = p.State == "banned" || p.State == "suspect" || p.Reason != ""
	}
	return bad, nil
}

// alone is a result where no source is honest.
type alone struct {
	Fault   string  `json:"fault"`
	NarInfo string  `json:"narinfo"` // status
	NAR     string  `json:"nar"`     // status, or how the answer ended; "" if it was not asked for
	Seconds float64 `json:"seconds"` // of the slower question
	Says    string  `json:"says"`    // the body of the refusal
	Trouble string  `json:"trouble,omitempty"`
}

// runAlone asks an agent that has a hostile upstream, and a hostile peer if the fault is for both.
func (w *world) runAlone(f *fault) (c alone) {
	c.Fault = f.name
	kinds := []string{kindPeer, kindUpstream}
	if f.only != "" {
		kinds = []string{f.only}
	}
	sc, err := w.stage(f, "", kinds...)
	if sc != nil {
		defer sc.close()
	}
	if err != nil {
		c.Trouble = err.Error()
		return c
	}
	p := w.corpus.paths[2] // uncompressed
	for _, q := range w.corpus.paths {
		if q.compression == f.compression {
			p = q
		}
	}
	code, body, took := fetch(sc.agent.url + "/" + p.Hash().String() + ".narinfo")
	c.NarInfo, c.Seconds = code, took.Seconds()
	if code == "200" {
		_, url, _ := strings.Cut(body, "URL: ")
		url, _, _ = strings.Cut(url, "\n")
		code, body, took = fetch(sc.agent.url + "/" + url)
		c.NAR, c.Seconds = code, max(c.Seconds, took.Seconds())
	}
	c.Says = strings.TrimSpace(body)
	switch {
	case code == "200":
		c.Trouble = "got what nobody honest has"
	case f.blame != blameNone && !strings.Contains(c.Says, ": "): // a plain no is an answer
		c.Trouble = "does not say why"
	}
	return c
}

// fetch returns an answer's status, or what cut it off, and its body if that is short.
func fetch(url string) (code, body string, took time.Duration) {
	start := time.Now()
	client := http.Client{Timeout: nixLimit}
	resp, err := client.Get(url)
	if err != nil {
		return "no answer", "", time.Since(start)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	code, took = strconv.Itoa(resp.StatusCode), time.Since(start)
	if err != nil {
		return code + ", cut: ", "cut: the bytes were wrong", took
	}
	return code, string(b[:min(len(b), 2000)]), took
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// each runs fn for every item, some at once, and keeps their order.
func each[T, R any](items []T, jobs int, fn func(T) R) []R {
	out := make([]R, len(items))
	slots := make(chan bool, jobs)
	var wg sync.WaitGroup
	for i, item := range items {
		slots <- true
		wg.Go(func() {
			out[i] = fn(item)
			<-slots
		})
	}
	wg.Wait()
	return out
}

// place is a cell to be measured.
type place struct {
	f            *fault
	kind, beside string // of the hostile and of the honest source
}

// pairs are who stands beside whom. A hostile upstream beside an honest peer would not be asked at all.
var pairs = []place{{kind: kindPeer, beside: kindUpstream}, {kind: kindPeer, beside: kindPeer}, {kind: kindUpstream, beside: kindUpstream}}

func (p place) String() string { return p.kind + " beside " + p.beside }

func places(only func(*fault) bool) (list []place) {
	for _, pair := range pairs {
		for _, f := range faults {
			if (f.only == "" || f.only == pair.kind) && only(f) && (pair.beside == kindUpstream || f.static == nil) {
				list = append(list, place{f, pair.kind, pair.beside})
			}
		}
	}
	return list
}

// neverShown is a cell's trouble if its hostile source was not asked for what it does wrong.
const neverShown = "the fault was never shown"

// TestFaultsCostLittleAndNameTheCulprit runs the cells that are quick.
func TestFaultsCostLittleAndNameTheCulprit(t *testing.T) {
	w := newWorld(t)
	quick := slices.DeleteFunc(places(func(f *fault) bool { return f.quick }), func(p place) bool { return p.beside == kindPeer })
	for i, c := range each(quick, 8, w.run) {
		for try := 0; try < 3 && c.Trouble == neverShown; try++ {
			c = w.run(quick[i]) // alone: its source's first answer was late among the others, so that it was passed over
		}
		if c.Trouble != "" {
			t.Errorf("%s beside %s, %s: %s", c.Source, c.Beside, c.Fault, c.Trouble)
		}
		t.Logf("%-8s beside %-8s %-45s %.1f s, culprit: %s", c.Source, c.Beside, c.Fault, c.Seconds, c.Culprit)
	}
}

// TestWithoutAnHonestSourceTheAnswerIsQuick asks agents that have only hostile sources.
func TestWithoutAnHonestSourceTheAnswerIsQuick(t *testing.T) {
	w := newWorld(t)
	quick := slices.DeleteFunc(slices.Clone(faults), func(f *fault) bool { return !f.quick || f.honest })
	for _, c := range each(quick, 8, w.runAlone) {
		if c.Trouble != "" {
			t.Errorf("%s: narinfo %s, NAR %s: %s (%s)", c.Fault, c.NarInfo, c.NAR, c.Trouble, c.Says)
		}
		t.Logf("%-45s narinfo %s, NAR %q, %.1f s: %s", c.Fault, c.NarInfo, c.NAR, c.Seconds, c.Says)
	}
}

// baseline is the median of three fetches without a fault.
func (w *world) baseline(t *testing.T, p place) float64 {
	var seconds []float64
	for range 3 {
		c := w.run(p)
		if c.Trouble != "" {
			t.Fatalf("without any fault: %s", c.Trouble)
		}
		seconds = append(seconds, c.Seconds)
	}
	slices.Sort(seconds)
	return seconds[1]
}

// TestMatrix runs everything and writes the report; see `make matrix`.
func TestMatrix(t *testing.T) {
	out := os.Getenv("FLURRY_MATRIX")
	if out == "" {
		t.Skip("the whole matrix is `make matrix`")
	}
	only := os.Getenv("FLURRY_MATRIX_ONLY")
	w := newWorld(t)
	w.strict = true
	m := matrix{Date: time.Now().UTC().Format("2006-01-02"), Baseline: map[string]float64{}}
	for _, p := range pairs {
		p.f = honestly
		m.Baseline[p.String()] = w.baseline(t, p)
	}
	jobs := max(1, atoi(os.Getenv("FLURRY_MATRIX_JOBS")))
	m.Jobs = jobs
	match := func(f *fault) bool { return strings.Contains(f.name, only) }
	m.Cells = each(places(match), jobs, func(p place) cell {
		c := w.run(p)
		c.Added = c.Seconds - m.Baseline[p.String()]
		t.Logf("%-8s beside %-8s %-45s exit %d  %+6.2f s  %s  %s", c.Source, c.Beside, c.Fault, c.Exit, c.Added, c.Culprit, c.Trouble)
		return c
	})
	m.Alone = each(slices.DeleteFunc(slices.Clone(faults), func(f *fault) bool { return f.honest || !match(f) }), jobs, func(f *fault) alone {
		c := w.runAlone(f)
		if time.Duration(c.Seconds*float64(time.Second)) > answerLimit {
			c.Trouble = strings.TrimPrefix(c.Trouble+"; took too long", "; ")
		}
		t.Logf("nobody honest: %-45s narinfo %s, NAR %q, %.2f s: %s  %s", c.Fault, c.NarInfo, c.NAR, c.Seconds, c.Says, c.Trouble)
		return c
	})
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	m.check(t)
	if err := m.write(out); err != nil {
		t.Fatal(err)
	}
}

func atoi(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}
