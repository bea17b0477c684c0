package standby_test

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/standby"
)

// patience is short in tests: what is tested are orders of events, not times.
const patience = 200 * time.Millisecond

// share returns two listeners of one socket, as an agent and its stand-in have.
func share(t *testing.T) (agent, standIn *net.TCPListener) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	agent = ln.(*net.TCPListener)
	f, err := agent.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Close() })
	return agent, other.(*net.TCPListener)
}

// serve runs a stand-in and returns the channel on which it tells whether the agent is away.
func serve(t *testing.T, ln *net.TCPListener) <-chan bool {
	t.Helper()
	away := make(chan bool, 16)
	p, err := standby.NewPatient(ln, patience, func(gone bool) { away <- gone })
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: standby.Handler("/nix/store", 30)}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(p) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return away
}

func get(t *testing.T, ln net.Listener, path string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + ln.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestWhereNoAgentAnswersTheStandInDoes(t *testing.T) {
	ln, other := share(t)
	away := serve(t, other)
	code, body := get(t, ln, "/nix-cache-info")
	if code != 200 || body != "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n" {
		t.Errorf("nix-cache-info: %d %q", code, body)
	}
	for _, path := range []string{"/00000000000000000000000000000000.narinfo", "/nar/x.nar", "/", "/status.json"} {
		if code, _ := get(t, ln, path); code != 404 {
			t.Errorf("%s: %d, want 404", path, code)
		}
	}
	if !<-away {
		t.Error("the stand-in answered, but did not say that the agent is away")
	}
}

func TestALivingAgentLosesNoConnectionToTheStandIn(t *testing.T) {
	ln, other := share(t)
	away := serve(t, other)
	agent := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "agent") })}
	done := make(chan error, 1)
	go func() { done <- agent.Serve(ln) }()
	defer func() { agent.Close(); <-done }()
	for until := time.Now().Add(3 * patience); time.Now().Before(until); {
		if _, body := get(t, ln, "/x.narinfo"); body != "agent" {
			t.Fatalf("the stand-in answered for a living agent: %q", body)
		}
	}
	if len(away) != 0 {
		t.Error("a living agent was taken for away")
	}
}

func TestTheAgentThatComesBackGetsTheConnections(t *testing.T) {
	ln, other := share(t)
	away := serve(t, other)
	if code, _ := get(t, ln, "/x.narinfo"); code != 404 || !<-away {
		t.Fatal("the stand-in did not step in")
	}
	agent := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "agent") })}
	done := make(chan error, 1)
	go func() { done <- agent.Serve(ln) }()
	defer func() { agent.Close(); <-done }()
	for {
		if _, body := get(t, ln, "/x.narinfo"); body == "agent" {
			break
		}
	}
	for range 200 {
		if _, body := get(t, ln, "/x.narinfo"); body != "agent" {
			t.Fatalf("the stand-in went on answering: %q", body)
		}
	}
}
