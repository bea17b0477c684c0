package mdns

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/flurry-nix/flurry/discovery"
)

// loopback starts an agent on loopback; stop ends it and waits.
func loopback(t *testing.T, name string) (found <-chan discovery.Found, stop func()) {
	t.Helper()
	f, err := New(Config{PeerID: testID(name), Interfaces: []string{"lo"}})
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan discovery.Found, 100)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, func(p discovery.Found) { out <- p }) }()
	return out, func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not return")
		}
	}
}

func waitFor(t *testing.T, found <-chan discovery.Found, id string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case f := <-found:
			if f.PeerID == id {
				return
			}
		case <-deadline:
			t.Fatalf("%s was never found", id)
		}
	}
}

func TestAgentsOnLoopbackFindEachOtherAndLeaveNothingRunning(t *testing.T) {
	before := goleak.IgnoreCurrent()
	first, stopFirst := loopback(t, "A")
	second, stopSecond := loopback(t, "B")
	waitFor(t, first, testID("B"))
	waitFor(t, second, testID("A"))
	stopSecond()
	again, stopAgain := loopback(t, "B") // its goodbye makes it news
	waitFor(t, first, testID("B"))
	waitFor(t, again, testID("A"))
	stopAgain()
	stopFirst()
	goleak.VerifyNone(t, before)
}

func TestWithoutAnyInterfaceRunWaitsAndEnds(t *testing.T) {
	before := goleak.IgnoreCurrent()
	waiting := make(chan struct{})
	f, err := New(Config{
		PeerID: testID("A"), Interfaces: []string{"no-such-interface"},
		Log: slog.New(slog.NewTextHandler(closer{waiting, new(sync.Once)}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx, func(discovery.Found) {}) }()
	select {
	case <-waiting: // it says that it has no interface
	case err := <-done:
		t.Fatalf("Run gave up: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	goleak.VerifyNone(t, before)
}

// closer is a writer that closes a channel at the first write.
type closer struct {
	written chan struct{}
	once    *sync.Once
}

func (c closer) Write(b []byte) (int, error) {
	c.once.Do(func() { close(c.written) })
	return len(b), nil
}
