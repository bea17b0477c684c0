package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flurry-nix/flurry/status"
)

// TestMain lets the test binary be a client of another user: with FLURRY_TEST_SOCKET set it asks for
// the status and prints the answer.
func TestMain(m *testing.M) {
	if name := os.Getenv("FLURRY_TEST_SOCKET"); name != "" {
		c, err := Dial([]string{name})
		if err == nil {
			_, err = c.Status(context.Background())
		}
		fmt.Println(err)
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func run(t *testing.T, a Agent) (*Client, string) {
	t.Helper()
	dir := t.TempDir()
	ln, err := Listen([]string{filepath.Join(dir, "missing", SocketName), filepath.Join(dir, SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, Handler(a), nil) }()
	name := ln.Addr().String()
	c, err := Dial([]string{filepath.Join(dir, "missing", SocketName), name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c, name
}

func TestTheLookupOrderIsTheContracts(t *testing.T) {
	for want, env := range map[string][]string{
		"/r/flurry.sock /run/flurry/flurry.sock /s/flurry.sock": {"RUNTIME_DIRECTORY=/x", "RUNTIME_DIRECTORY=/r:/r2"},
		"/run/flurry/flurry.sock /s/flurry.sock":                {"RUNTIME_DIRECTORY="},
	} {
		if got := strings.Join(Candidates(env, "/s"), " "); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestAnswersArriveAsTheyWereGiven(t *testing.T) {
	until := time.Unix(1700000000, 0).UTC()
	var paused time.Duration
	c, _ := run(t, Agent{
		Report: func() status.Report { return status.Report{Version: "1", InFlight: 7} },
		Pause: func(d time.Duration) Sharing {
			paused = d
			return Sharing{Paused: true, Until: &until}
		},
		Clear: func(_ context.Context, w What) (Cleared, error) { return Cleared{}, fmt.Errorf("cannot clear %s", w) },
		Locate: func(_ context.Context, t Target) (Location, error) {
			return Location{Path: t.Base, Hash: t.Hash.String()}, nil
		},
	})
	ctx := t.Context()
	if r, err := c.Status(ctx); err != nil || r.Version != "1" || r.InFlight != 7 {
		t.Errorf("%+v, %v", r, err)
	}
	if p, err := c.Peers(ctx); err != nil || p == nil || len(p) != 0 {
		t.Errorf("%v, %v; want an empty list", p, err)
	}
	if s, err := c.Pause(ctx, 90*time.Second); err != nil || paused != 90*time.Second || !s.Until.Equal(until) {
		t.Errorf("%+v, %v; paused for %s", s, err, paused)
	}
	if _, err := c.Clear(ctx, ClearNARs); err == nil || err.Error() != "cannot clear nars" {
		t.Errorf("%v; want the agent's own words", err)
	}
	if _, err := c.Clear(ctx, "everything"); err == nil || !strings.Contains(err.Error(), "cannot be cleared") {
		t.Error(err)
	}
	target, err := ParseTarget("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x")
	if err != nil {
		t.Fatal(err)
	}
	if l, err := c.Locate(ctx, target); err != nil || l.Path != target.Base || l.Hash != target.Hash.String() || l.Sources == nil {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := c.ID(ctx); err == nil || err.Error() != "this agent cannot do that" {
		t.Error(err)
	}
	if _, err := c.Raw(ctx, http.MethodGet, "/nonsense", nil); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Error(err)
	}
	if _, err := c.Raw(ctx, http.MethodPost, "/pause", map[string][]string{"duration": {"-1s"}}); err == nil {
		t.Error("a negative pause was accepted")
	}
}

func TestTheCacheIsReachedUnderALocalName(t *testing.T) {
	c, _ := run(t, Agent{Cache: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/whole":
			fmt.Fprint(w, "whole ", r.Host)
		case "/part":
			w.Header().Set("Content-Range", "bytes 3-5/6")
			w.WriteHeader(http.StatusPartialContent)
			fmt.Fprint(w, r.Header.Get("Range"))
		default:
			http.NotFound(w, r)
		}
	})})
	for _, tc := range []struct {
		name         string
		offset, from int64
		want         string
	}{{"whole", 0, 0, "whole localhost"}, {"whole", 9, 0, "whole localhost"}, {"part", 3, 3, "bytes=3-"}} {
		body, start, err := c.Cache(t.Context(), tc.name, tc.offset)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(body); string(b) != tc.want || start != tc.from || err != nil {
			t.Errorf("%+v: %q from %d, %v", tc, b, start, err)
		}
		body.Close()
	}
	if _, _, err := c.Cache(t.Context(), "none", 0); !errors.Is(err, ErrNotThere) {
		t.Error(err)
	}
	if _, _, err := c.Cache(t.Context(), "part", 4); err == nil || !strings.Contains(err.Error(), "another part") {
		t.Error(err)
	}
}

func TestTheSocketIsTakenFromTheDeadOnly(t *testing.T) {
	_, name := run(t, Agent{})
	if _, err := Listen([]string{name}); err == nil || !strings.Contains(err.Error(), "another agent has "+name) {
		t.Error(err)
	}
	stale := filepath.Join(t.TempDir(), SocketName)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false) // as SIGKILL leaves it
	ln.Close()
	again, err := Listen([]string{stale})
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	file := filepath.Join(t.TempDir(), SocketName)
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen([]string{file}); err == nil || !strings.Contains(err.Error(), "is in the way") {
		t.Error(err)
	}
}

func TestWhoMayControl(t *testing.T) {
	gid, grouped := groupID()
	for name, tc := range map[string]struct {
		uid    int
		groups []uint32
		want   bool
	}{
		"root":             {0, []uint32{5}, true},
		"the agent's user": {os.Geteuid(), []uint32{5}, true},
		"a stranger":       {1 << 30, []uint32{0, 1 << 29, 1 << 30}, false},
		"members":          {1 << 30, []uint32{7, uint32(gid)}, grouped},
	} {
		if got := mayControl(tc.uid, tc.groups); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestAnotherUserIsKeptOutByTheModeAndByTheKernelsWord(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can ask as another user")
	}
	_, name := run(t, Agent{Report: func() status.Report { return status.Report{} }})
	for dir := filepath.Dir(name); dir != "/"; dir = filepath.Dir(dir) { // let others come as far as the socket
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 && strings.Contains(dir, "Test") {
			if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask := func() string {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{"FLURRY_TEST_SOCKET=" + name}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{65533}}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := ask(); !strings.HasPrefix(got, "not allowed to use "+name) {
		t.Errorf("by the mode: %s", got)
	}
	if err := os.Chmod(name, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := ask(); !strings.HasPrefix(got, "not allowed; be root") {
		t.Errorf("by credentials: %s", got)
	}
}

func TestNoConnectionWithoutAVerdictIsServed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Serve(ctx, ln, Handler(Agent{Resume: func() Sharing { t.Error("reached"); return Sharing{} }}), nil)
	}()
	resp, err := http.Post("http://"+ln.Addr().String()+"/resume", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Error(resp.Status)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
