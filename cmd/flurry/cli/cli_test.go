package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/doctor"
	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/status/savings"
	"github.com/flurry-nix/flurry/verify"
)

// tidy fails the tests where they leave goroutines behind.
type tidy struct{ *testing.M }

func (m tidy) Run() int {
	if status := m.M.Run(); status != 0 {
		return status
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func TestMain(m *testing.M) {
	testscript.Main(tidy{m}, map[string]func(){"flurry": func() {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
		defer stop()
		app := &App{Version: "1.2.3", Commit: "abc", Secret: func() string { return "c2VjcmV0\n" }, Agent: func(_ context.Context, c AgentCall) error {
			fmt.Println("agent", c.Config.Substituter.Listen, c.Config.Log.Format, c.Args)
			if c.Config.Log.Format == "json" {
				return fmt.Errorf("no room; make some")
			}
			return nil
		}}
		os.Exit(app.Main(ctx, os.Args[1:]))
	}})
}

// TestCommands drives the program by the scripts in testdata, against a control socket served here.
func TestCommands(t *testing.T) {
	time.Local = time.UTC
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("STATE_DIRECTORY", e.WorkDir)
			e.Setenv("TZ", "UTC")
			e.Setenv("SOURCE_DATE_EPOCH", "0")
			f := newFakeAgent(t, e.WorkDir)
			e.Values["agent"] = f
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Value("agent").(*fakeAgent).serve(ts, args) },
			"break":  func(ts *testscript.TestScript, _ bool, args []string) { ts.Value("agent").(*fakeAgent).breakNext(args) },
			"status": exitStatus,
			"intact": intact,
		},
	})
}

// exitStatus runs a program that must end with a given status.
func exitStatus(ts *testscript.TestScript, _ bool, args []string) {
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = e.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("status %d, want %s", got, args[0])
	}
}

// intact checks with a fresh eye that a directory is a binary cache of so many paths, all right.
func intact(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	if info := ts.ReadFile(filepath.Join(dir, "nix-cache-info")); !strings.Contains(info, "StoreDir: /nix/store\n") {
		ts.Fatalf("nix-cache-info: %s", info)
	}
	list, err := filepath.Glob(filepath.Join(dir, "*.narinfo"))
	ts.Check(err)
	if fmt.Sprint(len(list)) != args[1] {
		ts.Fatalf("%d narinfos, want %s", len(list), args[1])
	}
	keys := ts.Value("agent").(*fakeAgent).cache.keys()
	for _, name := range list {
		n, err := verify.ParseNarInfo(ts.ReadFile(name))
		ts.Check(err)
		v, err := keys.Verify(n)
		ts.Check(err)
		c := verify.NewChecker(v.NarHash(), v.NarSize())
		nar := ts.ReadFile(filepath.Join(dir, n.URL))
		if _, err := c.Write([]byte(nar)); err != nil || c.Finish() != nil || n.Compression != "none" {
			ts.Fatalf("%s: wrong NAR", n.StorePath)
		}
	}
	if rest, _ := filepath.Glob(filepath.Join(dir, "nar", "*.part")); len(rest) > 0 {
		ts.Fatalf("left over: %s", rest)
	}
}

// fakeAgent answers on a real control socket with figures made up here.
type fakeAgent struct {
	t      *testing.T
	dir    string
	report status.Report
	cache  *fakeCache

	findings []doctor.Finding
	mu       sync.Mutex // guards what follows
	requests []string
	faults   map[string]string // by NAR's path: how its next answer breaks
}

func newFakeAgent(t *testing.T, dir string) *fakeAgent {
	return &fakeAgent{t: t, dir: dir, cache: newFakeCache(t), faults: map[string]string{}}
}

// serve begins to answer; "serve full" as an agent with peers.
func (f *fakeAgent) serve(ts *testscript.TestScript, args []string) {
	f.report = status.Report{Version: "1.2.3", Sharing: "on", UptimeSeconds: 59, Store: status.Store{Paths: 1, ShareablePaths: 1}}
	if len(args) > 0 {
		f.report = fullReport()
	}
	f.findings = []doctor.Finding{{Check: doctor.CheckStore, ID: doctor.CheckStore, Level: doctor.OK, What: "readable"},
		{Check: doctor.CheckClock, ID: "clock-skew", Level: doctor.Fail, What: "an hour \x1b[2Jbehind", Why: "Certificates.", Remedy: "set it", NixOS: "services.ntp"}}
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ln, err := control.Listen([]string{filepath.Join(f.dir, control.SocketName)})
	ts.Check(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- control.Serve(ctx, ln, control.Handler(control.Agent{
			Report: func() status.Report { return f.report },
			ID: func() control.ID {
				return control.ID{PeerID: "12D3KooWA", Addrs: []string{"/ip4/10.0.0.1/tcp/6491/p2p/12D3KooWA", "/ip4/10.0.0.1/udp/6491/quic-v1/p2p/12D3KooWA"}}
			},
			Keys:   func() control.Keys { return control.Keys{Public: []string{f.cache.publicKey}} },
			Locate: f.locate,
			Pause: func(d time.Duration) control.Sharing {
				if d == 0 {
					return control.Sharing{Paused: true}
				}
				u := until.Add(d)
				return control.Sharing{Paused: true, Until: &u}
			},
			Resume: func() control.Sharing { return control.Sharing{} },
			Clear: func(_ context.Context, w control.What) (control.Cleared, error) {
				if w == control.ClearNegative {
					return control.Cleared{Negative: 1}, nil
				}
				return control.Cleared{NarInfos: 1234, Negative: 2, NARs: 1, Bytes: 5_000_000}, nil
			},
			Login: func() control.Dashboard {
				return control.Dashboard{URL: "http://127.0.0.1:6490/login?token=ABC", Seconds: 120}
			},
			Doctor: func(context.Context) []doctor.Finding { return f.findings },
			Cache:  http.HandlerFunc(f.serveCache),
		}), nil)
	}()
	ts.Defer(func() {
		stop()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

func (f *fakeAgent) locate(_ context.Context, t control.Target) (control.Location, error) {
	loc := control.Location{Hash: t.Hash.String()}
	if n := f.cache.byHash[t.Hash.String()]; n != nil {
		loc.Path, loc.NarHash, loc.NarSize = n.StorePath.String(), n.NarHash.String(), n.NarSize
		loc.Sources = []control.Source{
			{Kind: control.SourcePeer, ID: "12D3KooWB", Via: "mdns", RTTMillis: 0.42, BytesPerSec: 112e6, Use: true},
			{Kind: control.SourceUpstream, ID: "https://cache.nixos.org", RTTMillis: 23, Note: "\x1b[31mslow"},
		}
	}
	return loc, nil
}

// breakNext makes the next answers with a NAR of that name go wrong.
func (f *fakeAgent) breakNext(args []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[f.cache.byName[args[0]].URL] = args[1]
}

// serveCache also writes down who asked for what, where scripts can read it.
func (f *fakeAgent) serveCache(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
	text := strings.Join(f.requests, "\n") + "\n"
	fault := f.faults[strings.TrimPrefix(r.URL.Path, "/")]
	if fault == "cut" || fault == "ignore-range" {
		delete(f.faults, strings.TrimPrefix(r.URL.Path, "/"))
	}
	err := os.WriteFile(filepath.Join(f.dir, "requests"), []byte(text), 0o644)
	f.mu.Unlock()
	if err != nil {
		f.t.Error(err)
	}
	f.cache.serve(w, r, fault)
}

func fullReport() status.Report {
	return status.Report{
		Version: "1.2.3", PeerID: "12D3KooWAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA1", UptimeSeconds: 3*3600 + 12*60 + 9, Sharing: "on",
		Listen:  []string{"127.0.0.1:6490"},
		Store:   status.Store{Paths: 41234, ShareablePaths: 40870},
		Bytes:   status.Bytes{FromPeers: 3_000_000_000, FromUpstream: 1_000_000_000, FromStore: 12, ToPeers: 5_400_000, ToNix: 4_000_000_000},
		Wire:    status.Wire{FromPeers: 3_000_000_000, FromUpstream: 250_000_000, ToPeers: 5_400_000},
		NarInfo: status.NarInfo{Hits: 912, Misses: 1, UpstreamRequests: 45},
		NAR:     status.NAR{Served: 1300, SwitchedSource: 2, Rejected: 1}, InFlight: 3,
		Internet: status.Internet{Enabled: true, Reachable: true, ProvidedKeys: 4000, Agents: 12, Prefer: "speed", Lookups: 30, Found: 12, BytesFrom: 33_000_000, UploadRate: 2_500_000, Server: true},
		Upstreams: []status.Upstream{
			{URL: "https://cache.nixos.org", Reachable: true, RTTMillis: 23.4},
			{URL: "http://cache.corp", LastError: "connection refused"},
		},
		Problems: []string{"the Nix database is locked; wait"},
		Savings: &savings.Savings{
			SinceInstallation: savings.Totals{Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), FromPeers: 120_000_000_000, FromUpstream: 40_000_000_000, SecondsGained: 3725},
			ThisMonth:         savings.Totals{Since: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), FromPeers: 12_300_000_000, FromUpstream: 5_000_000_000, SecondsGained: -12.4},
		},
		Peers: []status.Peer{
			{ID: "12D3KooWBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB2", Via: "mdns", RTTMillis: 0.42, BytesPerSec: 112e6, Paths: 20000,
				BytesIn: 3_000_000_000, BytesOut: 5_400_000, State: "connected", Addrs: []string{"/ip4/10.0.0.2/tcp/6491"}},
			{ID: "12D3KooWCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC3", Via: "static", State: "banned", Reason: "sent \x1b[2Jwrong bytes"},
		},
	}
}
