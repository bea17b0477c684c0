package p2p

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"github.com/flurry-nix/flurry/discovery"
)

func newTestIdentity(t testing.TB) *Identity {
	t.Helper()
	id, err := LoadIdentity(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// running is a Host whose Run can be ended before the test.
type running struct {
	*Host
	stop func()
}

// startHostWith runs a host on loopback until the test ends or it is stopped.
func startHostWith(t testing.TB, cfg Config, id *Identity, c Catalog, finders ...discovery.Finder) running {
	t.Helper()
	if cfg.Listen == nil {
		cfg.Listen = []string{"127.0.0.1:0"}
	}
	cfg.StoreDir, cfg.UserAgent = "/nix/store", "flurry/test"
	if cfg.ConnectionsPerIP == 0 {
		cfg.ConnectionsPerIP = 256
	}
	h, err := New(cfg, id, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx, finders...) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error("Run:", err)
			}
		})
	}
	t.Cleanup(stop)
	return running{h, stop}
}

func discoveryOf(a at) discovery.Found { return discovery.Found(a) }
