package page

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flurry-nix/flurry/status"
)

func newPage(cfg Config) (*Page, http.Handler) {
	if cfg.Report == nil {
		cfg.Report = fullReport
	}
	p := New(cfg)
	return p, p.Handler(http.NotFoundHandler())
}

func get(h http.Handler, path string, cookies ...*http.Cookie) *http.Response {
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:6490"+path, nil)
	for _, c := range cookies {
		r.AddCookie(c)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec.Result()
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	var b strings.Builder
	if _, err := bufio.NewReader(resp.Body).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

const private = "firefox-128.0"

func TestATokenWorksOnceForAWhileAndForOneBrowser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, h := newPage(Config{})
		link := p.Login()
		resp := get(h, link)
		if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/" {
			t.Fatal(resp.Status, resp.Header)
		}
		c := resp.Cookies()[0]
		if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.Name != "flurry_session_6490" {
			t.Errorf("cookie: %+v", c)
		}
		if !strings.Contains(body(t, get(h, "/", c)), private) {
			t.Error("the session shows no names")
		}
		if again := get(h, link); again.StatusCode != http.StatusForbidden || len(again.Cookies()) > 0 {
			t.Error("a link works twice:", again.Status)
		}
		for _, other := range []string{"", "x", strings.TrimPrefix(link, "/login?token=")} {
			if strings.Contains(body(t, get(h, "/", &http.Cookie{Name: c.Name, Value: other})), private) {
				t.Errorf("%q is taken for a session", other)
			}
		}
		late := p.Login()
		time.Sleep(TokenLife)
		if resp := get(h, late); resp.StatusCode != http.StatusForbidden {
			t.Error("an old link works:", resp.Status)
		}
		time.Sleep(sessionLife)
		if strings.Contains(body(t, get(h, "/", c)), private) {
			t.Error("a session never ends")
		}
	})
}

func TestSecretsDoNotPileUp(t *testing.T) {
	p, h := newPage(Config{})
	first := get(h, p.Login()).Cookies()[0]
	for range 3 * maxSessions {
		get(h, p.Login())
		p.Login()
	}
	if n, m := len(p.sessions.tokens), len(p.sessions.sessions); n > maxTokens || m > maxSessions {
		t.Errorf("%d tokens, %d sessions", n, m)
	}
	if strings.Contains(body(t, get(h, "/", first)), private) {
		t.Error("the oldest session should have made room")
	}
}

func TestAnotherMachineIsNeverLoggedIn(t *testing.T) {
	here := true
	p, h := newPage(Config{Local: func(*http.Request) bool { return here }})
	c := get(h, p.Login()).Cookies()[0]
	here = false
	if strings.Contains(body(t, get(h, "/", c)), private) {
		t.Error("a session is worth something elsewhere")
	}
	link := p.Login()
	if resp := get(h, link); resp.StatusCode != http.StatusForbidden || len(resp.Cookies()) > 0 {
		t.Error("a token is worth something elsewhere:", resp.Status)
	}
	here = true
	if resp := get(h, link); resp.StatusCode != http.StatusSeeOther {
		t.Error("a stranger used the token up")
	}
}

func TestEverybodySeesAggregatesOnly(t *testing.T) {
	p, h := newPage(Config{Check: lively})
	p.health = health{time.Now(), lively(t.Context())}
	got := body(t, get(h, "/"))
	for _, secret := range []string{private, "12D3KooW", "192.168.1", "example.", "upnp", "wlan0", "NAR does not match"} {
		if strings.Contains(got, secret) {
			t.Errorf("%q is shown to everybody", secret)
		}
	}
	for _, want := range []string{"83\u00a0%", "2 NARs on the way", "1 thing to mend", "91.3\u00a0GB", "5 hours gained", "21 minutes lost", "14 March 2026"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not shown", want)
		}
	}
}

func TestEveryAnswerIsHardened(t *testing.T) {
	p, h := newPage(Config{})
	for _, path := range []string{"/", "/login?token=x", p.Login(), "/assets/" + assetNames["page.js"], "/assets/none"} {
		head := get(h, path).Header
		csp := head.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none';") || strings.Contains(csp, "unsafe") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if head.Get("X-Content-Type-Options") != "nosniff" || head.Get("Referrer-Policy") != "no-referrer" || head.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: %v", path, head)
		}
	}
	if c := get(h, "/").Header.Get("Cache-Control"); c != "no-store" {
		t.Error("the page may be kept:", c)
	}
}

func TestNothingCanBeChanged(t *testing.T) {
	_, h := newPage(Config{})
	for _, path := range []string{"/", "/login?token=x", "/events"} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodPost, path, nil))
		if rec.Code < 400 {
			t.Errorf("POST %s: %d", path, rec.Code)
		}
	}
}

func TestAPageThatIsClosedCostsNothing(t *testing.T) {
	asked := make(chan struct{}, 1000)
	p, h := newPage(Config{Report: func() status.Report {
		asked <- struct{}{}
		return fullReport()
	}})
	srv := httptest.NewServer(h)
	defer srv.Close()
	ctx, cancel := context.WithCancel(context.Background())
	for range maxStreams {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/events", nil)
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() && !strings.HasPrefix(lines.Text(), "data: \"") {
		}
		if lines.Err() != nil {
			t.Fatal(lines.Err())
		}
	}
	if n := len(asked); n > maxStreams/2 {
		t.Errorf("%d pages asked the agent %d times", maxStreams, n)
	}
	resp, err := srv.Client().Get(srv.URL + "/events")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Error("one page too many:", resp.Status)
	}
	cancel()
	for deadline := time.Now().Add(patience); len(p.streams) > 0; time.Sleep(look) {
		if time.Now().After(deadline) {
			t.Fatal(len(p.streams), "streams go on without a reader")
		}
	}
}

func TestChecksAreMadeWhileSomebodyLooksAndNotOftener(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		checks := 0
		p, h := newPage(Config{Check: func(context.Context) []Finding {
			checks++
			return []Finding{{Level: Fail, What: "something is wrong"}}
		}})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		time.Sleep(time.Hour)
		if checks != 0 {
			t.Error("nobody looks, yet", checks, "checks were made")
		}
		for i := range 20 {
			get(h, "/")
			synctest.Wait()
			if want := i/10 + 1; checks != want {
				t.Errorf("%d checks after %d looks, want %d", checks, i+1, want)
			}
			time.Sleep(checkEvery / 10)
		}
		if got := body(t, get(h, "/", get(h, p.Login()).Cookies()[0])); !strings.Contains(got, "something is wrong") {
			t.Error("what the check found is not shown")
		}
		stop()
		<-ended
	})
}

func TestTheHistoryAddsUp(t *testing.T) {
	var h history
	h.add(sample{1000, 0, 0}) // from before the page began
	total := sample{1000, 0, 0}
	for i := range shortSamples + 2*longEvery + 7 {
		total = total.plus(sample{int64(i), 2, 0})
		h.add(total)
	}
	short, long := h.samples(spanShort), h.samples(spanLong)
	last := int64(shortSamples + 2*longEvery + 6)
	if got := short[shortSamples-1]; got != (sample{last, 2, 0}) {
		t.Errorf("the newest sample is %v", got)
	}
	if got := short[0].peers; got != last-shortSamples+1 {
		t.Errorf("the oldest sample is %d", got)
	}
	var all sample
	for _, x := range long {
		all = all.plus(x)
	}
	if want := total.minus(sample{1000, 0, 0}); all != want {
		t.Errorf("the day has %v, want %v", all, want)
	}
	if got := long[longSamples-1].upstream; got != 2*7 {
		t.Errorf("the newest five minutes have %d, want 14", got)
	}
	h.add(sample{5, 0, 0})
	if got := h.samples(spanShort)[shortSamples-1]; got != (sample{5, 0, 0}) {
		t.Errorf("after a counter began anew: %v", got)
	}
}

func TestTheDayWrapsAround(t *testing.T) {
	var h history
	h.add(sample{})
	for i := range int64(longEvery * (longSamples + 3)) {
		h.add(sample{store: i + 1})
	}
	for i, x := range h.samples(spanLong) {
		if x.store != longEvery {
			t.Fatalf("five minutes %d have %d samples' bytes, want %d", i, x.store, longEvery)
		}
	}
}

func TestTheChartSaysWhatItShows(t *testing.T) {
	samples := make([]sample, shortSamples)
	samples[shortSamples-1] = sample{300e6, 40e6, 10e6}
	c := newChart(spanShort, samples)
	if c.Top != "100\u00a0MB/s" || c.Half != "50\u00a0MB/s" || c.Empty {
		t.Errorf("axis %q, %q, empty %v", c.Top, c.Half, c.Empty)
	}
	if len(c.Rows) != 10 || c.Rows[0].Sum != "350\u00a0MB" || c.Rows[1].Sum != "0\u00a0B" {
		t.Errorf("rows: %+v", c.Rows)
	}
	if !strings.HasPrefix(c.Stacks[0].Path, "M1190.75 40.00h8.5v60.00") {
		t.Errorf("300 of 500 MB should reach from 40 down to 100: %s", c.Stacks[0].Path)
	}
	if c := newChart(spanLong, make([]sample, longSamples)); !c.Empty || len(c.Rows) != 24 || c.Top != "" {
		t.Errorf("nothing at all: %+v", c)
	}
}

func TestHostileTextIsBounded(t *testing.T) {
	for in, want := range map[string]string{
		"a\u202eb\x00c\nd":                    "a?b?c?d",
		"e" + strings.Repeat("\u0301", 9):     "e\u0301\u0301",
		strings.Repeat("x", maxText+5):        strings.Repeat("x", maxText) + "…",
		"\xff\xfe":                            "??",
		"grüße-1.0":                           "grüße-1.0",
		"\u200bzero\u2028width\u2066isolated": "?zero?width?isolated",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestPercentNeverRoundsToAllOrNothing(t *testing.T) {
	for _, c := range []struct {
		part, whole int64
		want        string
	}{{0, 0, "0"}, {0, 5, "0"}, {1, 1e6, "1"}, {999_999, 1e6, "99"}, {5, 5, "100"}, {1, 3, "33"}} {
		if got := percent(c.part, c.whole); got != c.want+"\u00a0%" {
			t.Errorf("%d of %d: %s", c.part, c.whole, got)
		}
	}
}
