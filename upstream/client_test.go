package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/verify"
	"github.com/klauspost/compress/gzip"
)

// After this machine slept or moved, nothing new is asked over a connection that may be dead.
func TestRenewedMeansNewConnections(t *testing.T) {
	up := newCache(t)
	first, second, third := up.add(random(10), "none"), up.add(random(20), "none"), up.add(random(30), "none")
	c := up.client()
	mustNarInfo(t, c, first)
	old := up.connections()
	mustNarInfo(t, c, second)
	if up.connections() != old {
		t.Fatal("every question has a connection of its own")
	}
	c.Renew()
	mustNarInfo(t, c, third)
	if up.connections() != old+1 {
		t.Errorf("%d connections, then %d", old, up.connections())
	}
}

// Where downloads are limited no more is under way than the limit lets through in two round trips.
func TestALimitBoundsWhatIsUnderWay(t *testing.T) {
	for _, c := range []struct {
		rate int64
		trip time.Duration
		want int
	}{
		{6_250_000, 300 * time.Microsecond, windowLeast}, {6_250_000, 20 * time.Millisecond, 250_000}, {125_000_000, time.Second, windowMost},
	} {
		if got := (&transport{rate: c.rate}).window(c.trip); got != c.want {
			t.Errorf("%d bytes/s, %v: %d bytes, want %d", c.rate, c.trip, got, c.want)
		}
	}
}

func TestNarInfoIsTheVerifiedOneOfThatHash(t *testing.T) {
	up := newCache(t)
	h := up.add(random(1000), "xz")
	c := up.client()
	v, raw, err := c.NarInfo(context.Background(), h)
	if err != nil || v.Path().Hash() != h || raw != string(up.files["/"+h.String()+".narinfo"]) {
		t.Fatalf("%v, %q, %v", v, raw, err)
	}
	if again, err := c.Parse(h, raw); err != nil || again.NarHash() != v.NarHash() {
		t.Errorf("its text again: %v", err)
	}
	s := c.Status()
	if s.NarInfoRequests != 1 || s.Requests != 1 || s.RTT <= 0 || !s.Reachable || s.WireBytes != int64(len(raw)) {
		t.Errorf("status %+v", s)
	}
}

func TestNarInfosThatAreOfNoUse(t *testing.T) {
	up := newCache(t)
	good, other := up.add(random(1000), "none"), up.add(random(1001), "none")
	otherDir := up.add(random(1002), "none", func(n *verify.NarInfo) {
		n.StorePath, _ = verify.ParseStorePath("/other" + n.StorePath.String())
	})
	text := string(up.files["/"+good.String()+".narinfo"])
	c := up.client()
	for name, tc := range map[string]struct {
		body string
		want error
	}{
		"of another path":      {string(up.files["/"+other.String()+".narinfo"]), verify.ErrMalformed},
		"unsigned":             {text[:strings.Index(text, "Sig:")], verify.ErrUntrusted},
		"another size":         {strings.Replace(text, "NarSize: 1000", "NarSize: 1001", 1), verify.ErrUntrusted},
		"a login page":         {"<html>\nwelcome\n</html>\n", verify.ErrMalformed},
		"empty":                {"", verify.ErrMalformed},
		"greater than allowed": {text + "X: " + strings.Repeat("x", verify.MaxNarInfo) + "\n", verify.ErrTooLarge},
	} {
		up.files["/"+good.String()+".narinfo"] = []byte(tc.body)
		if _, _, err := c.NarInfo(context.Background(), good); !errors.Is(err, tc.want) || errors.Is(err, ErrAbsent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := c.NarInfo(context.Background(), otherDir); !errors.Is(err, verify.ErrMalformed) {
		t.Errorf("of another store: %v", err)
	}
}

func TestFaultsOfNarInfos(t *testing.T) {
	for fault, want := range map[string]error{
		"404": ErrAbsent, "403": ErrAbsent, "410": ErrAbsent, "401": ErrUnauthorized,
		"400": ErrUnreachable, "500": ErrUnreachable, "501": ErrUnreachable, "503": ErrUnreachable, "429": ErrUnreachable,
		"hang": ErrUnreachable, "close": ErrUnreachable, "truncate": ErrUnreachable, "chunk-abort": ErrUnreachable,
		"redirect:/loop": ErrUnreachable, "redirect:ftp://x/y": ErrUnreachable, "redirect:http:///x": ErrUnreachable,
		"eof": verify.ErrMalformed, "short": verify.ErrMalformed, "empty": verify.ErrMalformed,
		"garbage": verify.ErrMalformed,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			up := newCache(t)
			h := up.add(random(1000), "none")
			up.fault("/"+h.String()+".narinfo", fault)
			up.fault("/loop", "redirect:/loop")
			c := up.client(func(cfg *Config) {
				if fault == "hang" {
					cfg.Timeouts.NarInfo = 50 * time.Millisecond
				}
			})
			_, _, err := c.NarInfo(context.Background(), h)
			if !errors.Is(err, want) || want != ErrAbsent && errors.Is(err, ErrAbsent) {
				t.Errorf("error %v, want %v", err, want)
			}
		})
	}
}

func TestAnAnswerIsWaitedForWhileTheCacheSendsOtherThings(t *testing.T) {
	c := newCache(t)
	late, other := c.add(random(10), "none"), c.add(random(11), "none")
	for name, k := range map[string]struct {
		sends, heard, busy, waits bool
	}{
		"silent":                 {},
		"silent, was heard":      {heard: true},
		"sends":                  {sends: true, waits: true},
		"busy link, was heard":   {heard: true, busy: true, waits: true},
		"busy link, first asked": {busy: true, waits: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.fault("/"+late.String()+".narinfo", "late:1500ms")
			u := c.client(func(cfg *Config) {
				cfg.Timeouts.NarInfo, cfg.Timeouts.NarInfoFloor = 800*time.Millisecond, 800*time.Millisecond
			})
			u.SetBusy(func() bool { return k.busy })
			if k.heard {
				u.NarInfo(t.Context(), other)
			}
			done := make(chan struct{})
			var others sync.WaitGroup
			others.Go(func() {
				for k.sends {
					u.NarInfo(t.Context(), other)
					select {
					case <-done:
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
			_, _, err := u.NarInfo(t.Context(), late)
			close(done)
			others.Wait()
			if k.waits && err != nil || !k.waits && !errors.Is(err, ErrUnreachable) {
				t.Error(err)
			}
		})
	}
}

// However busy the link, who is asked in vain for ten seconds is silent.
func TestABusyLinkExplainsSilenceForAWhile(t *testing.T) {
	for _, k := range []struct {
		heard, asked time.Duration // ago
		busy, sends  bool
	}{
		{time.Second, time.Hour, false, true},
		{5 * time.Second, 6 * time.Second, true, true},
		{5 * time.Second, 6 * time.Second, false, false},
		{time.Hour, 3 * time.Second, true, true},
		{time.Hour, 3 * time.Second, false, false},
		{time.Hour, 11 * time.Second, true, false},
	} {
		c := &Client{busy: func() bool { return k.busy }}
		c.heard.Store(time.Now().Add(-k.heard).UnixNano())
		c.asked.Store(time.Now().Add(-k.asked).UnixNano())
		if got := c.Sends(2 * time.Second); got != k.sends {
			t.Errorf("%+v: sends %v", k, got)
		}
	}
}

func TestACacheThatIsGoneIsUnreachableNotAbsentAndSparesTheWait(t *testing.T) {
	up := newCache(t)
	h := up.add(random(1000), "none")
	slow := func(cfg *Config) { cfg.Timeouts.BreakerMin, cfg.Timeouts.BreakerMax = time.Hour, time.Hour }
	c := up.client(slow)
	v := mustNarInfo(t, c, h)
	up.Server.Close()
	for range 3 {
		_, _, err := c.NarInfo(context.Background(), h)
		var un *UnreachableError
		if !errors.As(err, &un) || errors.Is(err, ErrAbsent) || un.RetryAt.IsZero() || un.URL == "" {
			t.Errorf("error %#v", err)
		}
	}
	if s := c.Status(); s.Requests != 2 || s.Reachable || s.Breaker != "open" || s.LastError == "" {
		t.Errorf("after one failure requests were sent on: %+v", s)
	}
	if _, err := c.NAR(context.Background(), v, 0); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	if s := c.Status(); s.Requests != 3 {
		t.Errorf("a NAR is worth exactly one try: %+v", s)
	}
}

func TestAServerThatWantsRestGetsIt(t *testing.T) {
	for _, fault := range []string{"429:3600", "503:3600"} {
		up := newCache(t)
		h := up.add(random(1000), "none")
		up.fault("/"+h.String()+".narinfo", fault)
		c := up.client(func(cfg *Config) { cfg.Timeouts.RetryAfterMax = time.Minute })
		for range 2 {
			_, _, err := c.NarInfo(context.Background(), h)
			var un *UnreachableError
			if !errors.As(err, &un) || time.Until(un.RetryAt) < 50*time.Second || time.Until(un.RetryAt) > time.Minute {
				t.Errorf("%s: %#v", fault, err)
			}
		}
		if n := len(up.requests()); n != 1 {
			t.Errorf("%s: %d requests", fault, n)
		}
	}
}

func TestACancelledCallerIsNoSignOfTrouble(t *testing.T) {
	up := newCache(t)
	h := up.add(random(1000), "none")
	c := up.client()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := c.NarInfo(ctx, h); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
	if s := c.Status(); !s.Reachable || s.LastError != "" {
		t.Errorf("%+v", s)
	}
}

func TestCacheInfo(t *testing.T) {
	up := newCache(t)
	c := up.client()
	info, err := c.CacheInfo(context.Background())
	if err != nil || info != (CacheInfo{"/nix/store", 40, true}) {
		t.Errorf("%+v, %v", info, err)
	}
	for body, want := range map[string]error{"": verify.ErrMalformed, "<html>": verify.ErrMalformed,
		"StoreDir: /nix/store\nPriority: high\n": verify.ErrMalformed, strings.Repeat("x", maxCacheInfo+1): verify.ErrTooLarge} {
		up.files["/nix-cache-info"] = []byte(body)
		if _, err := c.CacheInfo(context.Background()); !errors.Is(err, want) {
			t.Errorf("%.20q: %v", body, err)
		}
	}
}

// A probe that succeeds ends the pause for everybody.
func TestAHealthProbeClosesTheBreaker(t *testing.T) {
	up := newCache(t)
	h := up.add(random(1000), "none")
	path := "/" + h.String() + ".narinfo"
	up.fault(path, "close", "ok")
	c := up.client(func(cfg *Config) { cfg.Timeouts.BreakerMin, cfg.Timeouts.BreakerMax = time.Hour, time.Hour })
	c.NarInfo(context.Background(), h)
	if c.Status().Reachable {
		t.Fatal("a closed connection did not open the breaker")
	}
	if _, err := c.CacheInfo(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustNarInfo(t, c, h)
}

func TestNarInfosWithAnUnaskedContentEncoding(t *testing.T) {
	up := newCache(t)
	h := up.add(random(1000), "none")
	text := up.files["/"+h.String()+".narinfo"]
	var coding string
	var body []byte
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if e := r.Header.Get("Accept-Encoding"); e != "" && e != "identity" {
			t.Errorf("asked for %q", e)
		}
		w.Header().Set("Content-Encoding", coding)
		w.Write(body)
	}))
	defer srv.Close()
	c := up.client(func(cfg *Config) { cfg.URL = srv.URL })
	for _, coding = range []string{"gzip", "br", "zstd", "identity"} {
		body = compress(t, coding, text)
		if _, raw, err := c.NarInfo(context.Background(), h); err != nil || raw != string(text) {
			t.Errorf("%s: %v", coding, err)
		}
	}
	coding = "exotic"
	if _, _, err := c.NarInfo(context.Background(), h); !errors.Is(err, verify.ErrMalformed) {
		t.Errorf("an unknown coding: %v", err)
	}
	var bomb bytes.Buffer
	w := gzip.NewWriter(&bomb)
	w.Write(make([]byte, 64<<20))
	w.Close()
	coding, body = "gzip", bomb.Bytes()
	if _, _, err := c.NarInfo(context.Background(), h); !errors.Is(err, verify.ErrTooLarge) {
		t.Errorf("a bomb: %v", err)
	}
}

func TestNARURLs(t *testing.T) {
	up := newCache(t)
	c := up.client(func(cfg *Config) { cfg.URL = "https://cache.example/base/?priority=10" })
	if c.URL() != "https://cache.example/base" {
		t.Errorf("URL %q", c.URL())
	}
	for ref, want := range map[string]string{
		"nar/a.nar.xz":                "https://cache.example/base/nar/a.nar.xz",
		"nar/a.nar?hash=b&x=c://d":    "https://cache.example/base/nar/a.nar?hash=b&x=c://d",
		"/nar/a":                      "https://cache.example/base/nar/a",
		"//evil.example/a":            "https://cache.example/base/evil.example/a",
		"opaque:blob":                 "https://cache.example/base/opaque:blob",
		"https://other.example/n?q=1": "https://other.example/n?q=1",
		"http://127.0.0.1:6490/n":     "",
		"http://localhost/n":          "",
		"http://[::1]/n":              "",
		"http://[::ffff:127.0.0.1]/n": "",
		"http://169.254.169.254/n":    "",
		"http://0.0.0.0/n":            "",
		"file:///etc/passwd":          "",
		"ftp://x/y":                   "",
		"nar/a b":                     "",
		"nar/a\r\nHost: x":            "",
		"http:///x":                   "",
		"nar/%zz":                     "",
		strings.Repeat("x", maxURL+1): "",
	} {
		u, err := c.resolve(ref)
		if want == "" && err == nil || want != "" && (err != nil || u.String() != want) {
			t.Errorf("%.80q: %v, %v", ref, u, err)
		}
	}
}

// Names may resolve to anything, so the address that is dialled is what counts.
func TestTheNetworkBehindANameIsCheckedWhenDialled(t *testing.T) {
	up := newCache(t)
	c := up.client(func(cfg *Config) { cfg.URL = "http://cache.example" })
	_, err := c.hop.dial(context.Background(), "tcp", up.Listener.Addr().String())
	if !errors.Is(err, ErrForbidden) {
		t.Errorf("a public cache led to loopback: %v", err)
	}
	conn, err := up.client().hop.dial(context.Background(), "tcp", up.Listener.Addr().String())
	if err != nil {
		t.Fatalf("a cache on loopback: %v", err)
	}
	conn.Close()
}

func TestRedirectsAreFollowedWithinBounds(t *testing.T) {
	var c *Client
	up := newCache(t)
	c = up.client(func(cfg *Config) { cfg.URL = "https://cache.example" })
	hop := func(n int, from, to string) error {
		via := make([]*http.Request, n)
		for i := range via {
			via[i], _ = http.NewRequest("GET", from, nil)
		}
		r, err := http.NewRequest("GET", to, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Referer", from)
		err = c.hop.checkRedirect(r, via)
		if err == nil && r.Header.Get("Referer") != "" {
			t.Error("a referer was sent")
		}
		return err
	}
	if err := hop(10, "https://cache.example/a", "https://cdn.example/a"); err != nil {
		t.Error(err)
	}
	for _, err := range []error{
		hop(11, "https://cache.example/a", "https://cdn.example/a"),
		hop(1, "https://cache.example/a", "http://cdn.example/a"),
		hop(1, "https://cache.example/a", "file:///etc/passwd"),
		hop(1, "https://cache.example/a", "https://127.0.0.1/a"),
		hop(1, "https://cache.example/a", "https://[fe80::1]/a"),
	} {
		if !errors.Is(err, ErrForbidden) {
			t.Errorf("allowed: %v", err)
		}
	}
}

func headersFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "headers")
	if err := os.WriteFile(f, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(f, mode); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSecretsGoToTheConfiguredOriginOnly(t *testing.T) {
	up := newCache(t)
	nar := random(1000)
	h := up.add(nar, "none")
	got := map[string][]string{}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got["elsewhere"] = append(got["elsewhere"], r.Header.Get("Authorization")+r.Header.Get("X-Token"))
		w.Write(nar)
	}))
	defer elsewhere.Close()
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got["front"] = append(got["front"], r.Header.Get("Authorization")+r.Header.Get("X-Token"))
		if strings.HasPrefix(r.URL.Path, "/nar/") {
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
			return
		}
		w.Write(up.files[r.URL.Path])
	}))
	defer front.Close()
	file := headersFile(t, "# for the cache\nAuthorization: Bearer s3cret\n\nX-Token: t0ken\n", 0o600)
	c := up.client(func(cfg *Config) { cfg.URL, cfg.HeadersFile = front.URL, file })
	if b, _, err := read(c, mustNarInfo(t, c, h)); err != nil || !bytes.Equal(b, nar) {
		t.Fatal(err)
	}
	if strings.Join(got["front"], " ") != "Bearer s3crett0ken Bearer s3crett0ken" || len(got["elsewhere"]) != 1 || got["elsewhere"][0] != "" {
		t.Errorf("secrets seen: %q", got)
	}
	netrc := headersFile(t, "machine 127.0.0.1\npassword t0ken\n", 0o600)
	c = up.client(func(cfg *Config) { cfg.URL, cfg.NetrcFile = front.URL, netrc })
	got["elsewhere"] = nil
	if b, _, err := read(c, mustNarInfo(t, c, h)); err != nil || !bytes.Equal(b, nar) {
		t.Fatal(err)
	}
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(":t0ken"))
	if last := got["front"][len(got["front"])-1]; last != want || len(got["elsewhere"]) != 1 || got["elsewhere"][0] != "" {
		t.Errorf("of netrc: %q seen, want %q in front and nothing elsewhere", got, want)
	}
	userinfo := strings.Replace(front.URL, "http://", "http://me:pa55@", 1)
	c = up.client(func(cfg *Config) { cfg.URL = userinfo })
	mustNarInfo(t, c, h)
	if last := got["front"][len(got["front"])-1]; !strings.HasPrefix(last, "Basic ") || strings.Contains(c.URL(), "pa55") {
		t.Errorf("credentials of the URL: sent %q, shown %q", last, c.URL())
	}
}

func TestBadConfigurationNamesItsRemedyAndNoSecret(t *testing.T) {
	up := newCache(t)
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"no URL":           {Config{}, "https://cache.nixos.org"},
		"file URL":         {Config{URL: "file:///x"}, "https://cache.nixos.org"},
		"password":         {Config{URL: "ftp://me:s3cret@x"}, "https://cache.nixos.org"},
		"broken password":  {Config{URL: "http://me:s3cret%zz@x"}, "https://cache.nixos.org"},
		"readable secrets": {Config{HeadersFile: headersFile(t, "A: s3cret", 0o644)}, "chmod"},
		"no headers":       {Config{HeadersFile: headersFile(t, "A: b\ns3cret", 0o600)}, "line 2"},
		"two lines in one": {Config{HeadersFile: headersFile(t, "A: s3cret\rB: c", 0o600)}, "line 1"},
		"our own header":   {Config{HeadersFile: headersFile(t, "Range: s3cret", 0o600)}, "remove it"},
		"readable netrc":   {Config{NetrcFile: headersFile(t, "machine 127.0.0.1 password s3cret", 0o644)}, "chmod"},
		"another's netrc":  {Config{NetrcFile: headersFile(t, "machine example.org password s3cret", 0o600)}, "no entry for 127.0.0.1"},
		"no netrc":         {Config{NetrcFile: headersFile(t, "s3cret x", 0o600)}, "machine HOST"},
		"half a netrc":     {Config{NetrcFile: headersFile(t, "machine 127.0.0.1 password s3cret login", 0o600)}, "wants a value"},
		"unusable netrc":   {Config{NetrcFile: headersFile(t, "machine 127.0.0.1 password \"s3cret\\n\"", 0o600)}, "no header can hold"},
		"no netrc file":    {Config{NetrcFile: "/nonexistent"}, "netrc_file"},
		"both":             {Config{NetrcFile: headersFile(t, "machine 127.0.0.1 password s3cret", 0o600), HeadersFile: headersFile(t, "Authorization: s3cret", 0o600)}, "leave one"},
		"no headers file":  {Config{HeadersFile: "/nonexistent"}, "headers_file"},
		"relative xz":      {Config{XZ: "xz"}, "absolute"},
		"no xz":            {Config{XZ: "/nonexistent"}, "install"},
		"no CA":            {Config{CAFile: "/nonexistent"}, "ca_file"},
		"bad CA":           {Config{CAFile: headersFile(t, "s3cret", 0o600)}, "PEM"},
	} {
		if tc.cfg.URL == "" && name != "no URL" {
			tc.cfg.URL = up.URL
		}
		_, err := New(tc.cfg, up.keys())
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, keys := range []*verify.Keys{nil, {}} {
		if _, err := New(Config{URL: up.URL}, keys); err == nil || !strings.Contains(err.Error(), "keys") {
			t.Errorf("no keys: %v", err)
		}
	}
}

func TestExtraCertificateAuthoritiesCount(t *testing.T) {
	up := newCache(t)
	h := up.add(random(1000), "none")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(up.serve))
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{}
	srv.StartTLS()
	defer srv.Close()
	file := headersFile(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})), 0o644)
	if _, _, err := up.client(func(cfg *Config) { cfg.URL = srv.URL }).NarInfo(context.Background(), h); !errors.Is(err, ErrUnreachable) {
		t.Errorf("an unknown authority: %v", err)
	}
	c := up.client(func(cfg *Config) { cfg.URL, cfg.CAFile = srv.URL, file })
	mustNarInfo(t, c, h)
	for _, name := range []string{"NIX_SSL_CERT_FILE", "SSL_CERT_FILE"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, file)
			mustNarInfo(t, up.client(func(cfg *Config) { cfg.URL = srv.URL }), h)
		})
	}
}

func FuzzURLsOfNarInfosStayWithinBounds(f *testing.F) {
	for _, s := range []string{"nar/a", "http://127.0.0.1/", "//x", "http://a@b/", "file:///x", "\x00", "a?b://c", "HTTP://LOCALHOST/"} {
		f.Add(s)
	}
	base, _ := url.Parse("https://cache.example/b")
	c := &Client{base: base, hop: &transport{base: base}}
	f.Fuzz(func(t *testing.T, ref string) {
		u, err := c.resolve(ref)
		if err != nil {
			return
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || reachOfHost(u.Hostname()) != reachPublic {
			t.Errorf("%q became %v", ref, u)
		}
		if !strings.Contains(ref, "://") && !sameOrigin(u, base) {
			t.Errorf("%q left the cache: %v", ref, u)
		}
	})
}
