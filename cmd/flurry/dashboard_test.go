package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/config"
)

// TestTheDashboardNamesThingsOnlyAfterALoginOverTheSocket goes the user's way with a whole agent.
func TestTheDashboardNamesThingsOnlyAfterALoginOverTheSocket(t *testing.T) {
	state := t.TempDir()
	conf := filepath.Join(state, "flurry.toml")
	text := `
[store]
database = ""
[[upstream]]
url = "http://127.0.0.1:1/secret-team"
keys = ["` + config.DefaultUpstreamKey + `"]
[peers]
listen = ["127.0.0.1:0"]
mdns = false
`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.Load(conf, nil, []string{"STATE_DIRECTORY=" + state})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	a, err := newAgent(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a.socket = filepath.Join(state, "flurry.sock")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx, []net.Listener{ln}) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	base := "http://" + ln.Addr().String()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar}
	show := func(url string) string {
		t.Helper()
		resp, err := browser.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
		return string(b)
	}
	if got := show(base + "/"); strings.Contains(got, "secret-team") || !strings.Contains(got, "flurry dashboard") {
		t.Errorf("before the login: %s", got)
	}
	var c *control.Client
	for deadline := time.Now().Add(20 * time.Second); c == nil; time.Sleep(5 * time.Millisecond) {
		if c, err = control.Dial([]string{a.socket}); err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	defer c.Close()
	d, err := c.Login(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(d.URL, base+"/login?token=") || d.Seconds <= 0 {
		t.Fatalf("%+v", d)
	}
	if got := show(d.URL); !strings.Contains(got, "secret-team") {
		t.Errorf("after the login: %s", got)
	}
	if got := show(base + "/status.json"); strings.Contains(got, "secret-team") {
		t.Error("status.json is for everybody, whoever asks")
	}
	for _, header := range []string{"Host", "Origin", "Sec-Fetch-Site"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/events", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(header, "cross-site")
		if header == "Host" {
			req.Host = "evil.example"
		}
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("a foreign %s gets %s", header, resp.Status)
		}
	}
}
