package main

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/verify"
)

// startBare starts a whole agent without store and neighbours and returns its socket and its page's
// address.
func startBare(t testing.TB, upstream, key string) (socket, base string) {
	t.Helper()
	state := t.TempDir()
	conf := filepath.Join(state, "flurry.toml")
	text := `
[store]
database = ""
[[upstream]]
url = "` + upstream + `"
keys = ["` + key + `"]
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
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.run(ctx, []net.Listener{ln}) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return a.socket, "http://" + ln.Addr().String()
}

// TestTheDashboardNamesThingsOnlyAfterALoginOverTheSocket goes the user's way with a whole agent.
func TestTheDashboardNamesThingsOnlyAfterALoginOverTheSocket(t *testing.T) {
	socket, base := startBare(t, "http://127.0.0.1:1/secret-team", config.DefaultUpstreamKey)
	ctx := t.Context()
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
		if c, err = control.Dial([]string{socket}); err != nil && time.Now().After(deadline) {
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

// BenchmarkNarInfoBesideOpenPages asks as Nix does while nobody looks, and while as many pages are open as
// may be.
func BenchmarkNarInfoBesideOpenPages(b *testing.B) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		b.Fatal(err)
	}
	hash := strings.Repeat("0", 32)
	n, err := verify.ParseNarInfo("StorePath: /nix/store/" + hash + "-x\nURL: nar/x\nCompression: none\nNarHash: sha256:" + strings.Repeat("0", 52) + "\nNarSize: 120\nReferences: \n")
	if err != nil {
		b.Fatal(err)
	}
	n.Sigs = []string{"test-1:" + base64.StdEncoding.EncodeToString(ed25519.Sign(private, []byte(n.Fingerprint())))}
	cache := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, n.String()) }))
	defer cache.Close()
	for _, pages := range []int{0, 32} {
		b.Run(fmt.Sprintf("pages=%d", pages), func(b *testing.B) {
			_, base := startBare(b, cache.URL, "test-1:"+base64.StdEncoding.EncodeToString(public))
			ctx, stop := context.WithCancel(b.Context())
			defer stop()
			for range pages {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/events", nil)
				if err != nil {
					b.Fatal(err)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil || resp.StatusCode != http.StatusOK {
					b.Fatal(err, resp)
				}
				go io.Copy(io.Discard, resp.Body)
			}
			var took []time.Duration
			for b.Loop() {
				asked := time.Now()
				resp, err := http.Get(base + "/" + hash + ".narinfo")
				if err != nil || resp.StatusCode != http.StatusOK {
					b.Fatal(err, resp)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				took = append(took, time.Since(asked))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
