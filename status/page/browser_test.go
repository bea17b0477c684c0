package page

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/internal/devtools"
	"github.com/flurry-nix/flurry/status"
)

const (
	patience = 3 * time.Minute // for anything a browser does, on a busy machine
	look     = 20 * time.Millisecond
)

//go:embed testdata/contrast.js
var contrastScript string

// site is an agent's page on a port of its own, with a state that the test sets.
type site struct {
	t    *testing.T
	page *Page
	addr string
	srv  *httptest.Server

	mu     sync.Mutex
	report status.Report
}

func newSite(t *testing.T, r status.Report) *site {
	t.Helper()
	s := &site{t: t, addr: "127.0.0.1:0", report: r}
	s.page = New(Config{Report: s.get, Check: lively})
	fillHistory(s.page)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.page.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *site) get() status.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report
}

func (s *site) change(f func(r *status.Report)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.report)
}

func (s *site) start() {
	s.t.Helper()
	ln, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	s.srv = httptest.NewUnstartedServer(s.page.Handler(http.NotFoundHandler()))
	s.srv.Listener.Close()
	s.srv.Listener = ln
	s.srv.Start()
}

func (s *site) stop() {
	s.srv.CloseClientConnections()
	s.srv.Close()
}

func (s *site) url(path string) string { return "http://" + s.addr + path }

// tab is a browser's tab, with all that it complained of and asked for.
type tab struct {
	*devtools.Page
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string
	asked    []string
}

func newTab(t *testing.T, b *devtools.Browser) *tab {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	tb := &tab{t: t, ctx: ctx}
	var err error
	if tb.Page, err = b.Open(ctx, tb.event); err != nil {
		t.Fatal(err)
	}
	tb.call("Emulation.setFocusEmulationEnabled", map[string]any{"enabled": true}) // tabs run side by side
	tb.screen(1280, 900, false)
	return tb
}

func (tb *tab) event(method string, params json.RawMessage) {
	tb.mu.Lock()
	defer tb.mu.Unlock()
	switch method {
	case "Network.requestWillBeSent":
		var p struct{ Request struct{ URL string } }
		json.Unmarshal(params, &p)
		tb.asked = append(tb.asked, p.Request.URL)
	case "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening":
		tb.problems = append(tb.problems, method+" "+string(params))
	}
}

// quiet fails the test if the browser complained or asked anybody else.
func (tb *tab) quiet(s *site) {
	tb.t.Helper()
	tb.mu.Lock()
	defer tb.mu.Unlock()
	for _, p := range tb.problems {
		tb.t.Errorf("the browser complains: %s", p)
	}
	if len(tb.asked) < 4 {
		tb.t.Errorf("only %q were asked for: is the log on?", tb.asked)
	}
	for _, u := range tb.asked {
		if !strings.HasPrefix(u, s.url("/")) {
			tb.t.Errorf("foreign request: %s", u)
		}
	}
}

func (tb *tab) call(method string, params map[string]any) {
	tb.t.Helper()
	if err := tb.Call(tb.ctx, method, params, nil); err != nil {
		tb.t.Fatal(err)
	}
}

func (tb *tab) screen(width, height int, mobile bool) {
	tb.t.Helper()
	tb.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile})
}

func (tb *tab) theme(name string) {
	tb.t.Helper()
	tb.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": name}}})
}

// goTo opens an address and waits until it is live.
func (tb *tab) goTo(url string) {
	tb.t.Helper()
	tb.call("Page.navigate", map[string]any{"url": url})
	tb.until("the page is live", `document.querySelector('#live')?.textContent === 'Live'`)
}

func eval[T any](tb *tab, expression string) (v T) {
	tb.t.Helper()
	if err := tb.Eval(tb.ctx, expression, &v); err != nil {
		tb.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

func (tb *tab) text() string { return eval[string](tb, `document.body.innerText`) }

func (tb *tab) until(what, expression string) {
	tb.t.Helper()
	for tb.ctx.Err() == nil {
		var ok bool
		if tb.Eval(tb.ctx, expression, &ok) == nil && ok {
			return
		}
		time.Sleep(look)
	}
	tb.t.Fatalf("never: %s\n%s", what, eval[string](tb, `document.documentElement.outerHTML`))
}

func (tb *tab) press(key string, code int) {
	tb.t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		tb.call("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code})
		if kind == "rawKeyDown" && key == "Enter" {
			tb.call("Input.dispatchKeyEvent", map[string]any{"type": "char", "text": "\r", "key": key})
		}
	}
}

// keep stores a picture of the page where CI collects them.
func (tb *tab) keep(name string) {
	tb.t.Helper()
	dir := os.Getenv("CI_ARTIFACTS")
	if dir == "" {
		dir = filepath.Join("..", "..", "test", "artifacts")
	}
	eval[bool](tb, `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))`) // what was changed is painted
	png, err := tb.Screenshot(tb.ctx)
	if err != nil {
		tb.t.Fatal(err)
	}
	file := filepath.Join(dir, name+".png")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(file, png, 0o644)); err != nil {
		tb.t.Fatal(err)
	}
	if file, err = filepath.Abs(file); err == nil {
		fmt.Println("screenshot:", file)
	}
}

// TestInARealBrowser shares one browser among its parts.
func TestInARealBrowser(t *testing.T) {
	b, err := devtools.Start(t.TempDir())
	if errors.Is(err, devtools.ErrNoBrowser) && os.Getenv("FLURRY_REQUIRE_ALL") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	for name, f := range map[string]func(*testing.T, *devtools.Browser){
		"names only after login":                testNamesOnlyAfterLogin,
		"changes appear without reload":         testLive,
		"it comes back when the agent does":     testAgentRestarts,
		"hostile names are text":                testHostileNames,
		"contrast and pictures":                 testContrast,
		"by keyboard":                           testKeyboard,
		"what a screen reader is told":          testScreenReader,
		"a phone need not scroll sideways":      testPhone,
		"without its script it is still a page": testWithoutScript,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, b)
		})
	}
}

func testNamesOnlyAfterLogin(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	names := []string{"firefox-128.0", "wlan0", "192.168.1.23", "…AAAAAAAAAAAA", "cache.example.org", "upnp"}
	tb.goTo(s.url("/"))
	for _, n := range names {
		if strings.Contains(tb.text(), n) {
			t.Errorf("%s is shown to everybody", n)
		}
	}
	if got := tb.text(); !strings.Contains(got, "83\u00a0%") || !strings.Contains(got, "Sharing") || !strings.Contains(got, "flurry dashboard") {
		t.Errorf("everybody should see aggregates, not %s", got)
	}
	tb.goTo(s.url(s.page.Login()))
	if at := eval[string](tb, `location.pathname + location.search`); at != "/" {
		t.Errorf("the token stays in the address: %s", at)
	}
	for _, n := range names {
		tb.until(n+" is shown after login", fmt.Sprintf(`document.body.innerText.includes(%q)`, n))
	}
	if c := eval[string](tb, `document.cookie`); c != "" {
		t.Errorf("a script can read the session: %s", c)
	}
	tb.quiet(s)
}

func testLive(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	tb.goTo(s.url(s.page.Login()))
	eval[any](tb, `(window.kept = true, document.querySelector('details').open = true, document.querySelectorAll('nav a')[1].focus())`)
	s.change(func(r *status.Report) {
		r.Sharing = "paused"
		r.Flights = append([]status.Flight{{Path: "new-arrival-1.0", Got: 1, Size: 2}}, r.Flights...)
		r.Peers = r.Peers[:1]
	})
	tb.until("the change arrives", `document.body.innerText.includes('Paused') && document.body.innerText.includes('new-arrival-1.0')`)
	if !eval[bool](tb, `window.kept === true`) {
		t.Error("the page was loaded again")
	}
	if !eval[bool](tb, `document.querySelector('details').open && document.activeElement === document.querySelectorAll('nav a')[1]`) {
		t.Error("an update took away what the user had open or in focus")
	}
	if n := eval[int](tb, `document.querySelectorAll('[aria-labelledby=h-peers] tbody tr').length`); n != 1 {
		t.Errorf("%d neighbours are listed, want 1", n)
	}
	tb.quiet(s)
}

func testAgentRestarts(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	tb.goTo(s.url("/"))
	s.stop()
	tb.until("the page says that nobody answers", `document.querySelector('#live').textContent.includes('does not answer')`)
	s.start()
	tb.until("the page is live again", `document.querySelector('#live').textContent === 'Live'`)
}

func testHostileNames(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, hostileReport()), newTab(t, b)
	tb.goTo(s.url(s.page.Login()))
	if n := eval[int](tb, `document.querySelectorAll('main img, main script, main iframe, main b b, [onerror], [onclick]').length`); n != 0 {
		t.Errorf("%d elements came from names", n)
	}
	got := tb.text()
	for _, want := range []string{"<img src=x onerror=alert(1)>", "<script>alert(2)</script>"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not shown as the text it is", want)
		}
	}
	if strings.ContainsAny(got, "\u202e\u2066\u200f\u0000") {
		t.Error("characters that turn the text around are shown")
	}
	for _, width := range []int{1280, 360} {
		tb.screen(width, 800, width < 500)
		if wide := eval[int](tb, `document.documentElement.scrollWidth`); wide > width {
			t.Errorf("long names make a page of %d pixels %d wide", width, wide)
		}
	}
	tb.keep("page-hostile-phone")
	tb.quiet(s)
}

func testContrast(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	for _, theme := range []string{"light", "dark"} {
		tb.theme(theme)
		tb.goTo(s.url(s.page.Login()))
		tb.until("the check is done", `document.body.innerText.includes('wlan0')`)
		if dark := eval[bool](tb, `matchMedia('(prefers-color-scheme: dark)').matches`); dark != (theme == "dark") {
			t.Fatalf("the browser does not play %s", theme)
		}
		eval[any](tb, `document.querySelector('details').open = true`)
		found := eval[struct {
			Texts, Marks int
			Least        float64
			Bad          []string
		}](tb, contrastScript)
		if found.Texts < 60 || found.Marks < 10 {
			t.Errorf("%s: only %d texts and %d marks were looked at", theme, found.Texts, found.Marks)
		}
		for _, bad := range found.Bad {
			t.Errorf("%s: %s", theme, bad)
		}
		t.Logf("%s: %d texts, least contrast %.2f; %d marks", theme, found.Texts, found.Least, found.Marks)
		eval[any](tb, `document.querySelector('details').open = false`)
		tb.screen(1280, 900, false)
		tb.keep("page-" + theme)
		tb.screen(390, 844, true)
		tb.keep("page-" + theme + "-phone")
		tb.screen(1280, 900, false)
	}
	tb.quiet(s)
}

func testKeyboard(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	tb.goTo(s.url("/"))
	eval[any](tb, `window.kept = true`)
	for _, want := range []string{"Skip to the content", "10 minutes", "24 hours", "The same as a table"} {
		tb.press("Tab", 9)
		if got := eval[string](tb, `document.activeElement.innerText`); got != want {
			t.Errorf("focus is on %q, want %q", got, want)
		}
		if w := eval[string](tb, `getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth`); w != "solid3px" {
			t.Errorf("focus on %q cannot be seen: outline %s", want, w)
		}
	}
	tb.press("Enter", 13)
	if !eval[bool](tb, `document.querySelector('details').open`) {
		t.Error("Enter does not open the table")
	}
	tb.call("Input.dispatchKeyEvent", map[string]any{"type": "rawKeyDown", "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9, "modifiers": 8})
	tb.press("Enter", 13)
	tb.until("Enter shows the day", `document.querySelector('figcaption').innerText.includes('24 hours ago')`)
	if !eval[bool](tb, `window.kept === true && document.activeElement.innerText === '24 hours' && document.activeElement.hasAttribute('aria-current')`) {
		t.Error("another span loses the focus or the page")
	}
	tb.quiet(s)
}

func testScreenReader(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	for _, width := range []int{1280, 390} {
		tb.screen(width, 900, width < 500)
		tb.goTo(s.url(s.page.Login()))
		type value struct{ Value any }
		var tree struct {
			Nodes []struct {
				Ignored    bool
				Role, Name value
			}
		}
		if err := tb.Call(tb.ctx, "Accessibility.getFullAXTree", nil, &tree); err != nil {
			t.Fatal(err)
		}
		seen, unnamed := map[string]int{}, []string{}
		for _, n := range tree.Nodes {
			if n.Ignored {
				continue
			}
			role, name := fmt.Sprint(n.Role.Value), fmt.Sprint(n.Name.Value)
			seen[role]++
			switch role {
			case "link", "image", "progressbar", "heading", "region", "navigation", "columnheader", "rowheader":
				if n.Name.Value == nil || name == "" {
					unnamed = append(unnamed, role)
				}
			}
		}
		for role, least := range map[string]int{"banner": 1, "main": 1, "navigation": 1, "contentinfo": 0, "heading": 6, "table": 1, "columnheader": 8, "rowheader": 3, "image": 1, "progressbar": 2, "status": 3, "region": 6} {
			if seen[role] < least {
				t.Errorf("%d pixels: %d × %s, want at least %d; there are %v", width, seen[role], role, least, seen)
			}
		}
		if len(unnamed) > 0 {
			t.Errorf("%d pixels: without a name: %v", width, unnamed)
		}
	}
}

func testPhone(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	tb.screen(320, 640, true) // the least that must do (WCAG 1.4.10)
	tb.goTo(s.url(s.page.Login()))
	eval[any](tb, `document.querySelector('details').open = true`)
	if wide := eval[int](tb, `document.documentElement.scrollWidth`); wide > 320 {
		t.Errorf("the page is %d pixels wide on a screen of 320", wide)
	}
	if n := eval[int](tb, `[...document.querySelectorAll('a:not(.skip), summary')].filter(e => e.getBoundingClientRect().height < 24).length`); n > 0 {
		t.Errorf("%d targets are too small for a finger", n) // 24 px: WCAG 2.5.8
	}
	tb.quiet(s)
}

func testWithoutScript(t *testing.T, b *devtools.Browser) {
	s, tb := newSite(t, fullReport()), newTab(t, b)
	tb.call("Emulation.setScriptExecutionDisabled", map[string]any{"value": true})
	tb.call("Page.navigate", map[string]any{"url": s.url(s.page.Login())})
	tb.until("the page is there", `document.body.innerText.includes('firefox-128.0')`)
}
