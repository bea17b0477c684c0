package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/discovery"
	"github.com/flurry-nix/flurry/discovery/dht"
	"github.com/flurry-nix/flurry/p2p"
	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/store"
	"github.com/flurry-nix/flurry/substituter"
	"github.com/flurry-nix/flurry/verify"
)

const (
	reachPatience = 5 * time.Second // for one agent of the internet, hole punching included
	reachGrace    = 250 * time.Millisecond
	reachAtOnce   = 4
)

// internetOf translates the configuration, nil while the internet is off.
func internetOf(cfg config.Internet) *p2p.Internet {
	if !cfg.Enable {
		return nil
	}
	return &p2p.Internet{PublicAddresses: cfg.PublicAddresses, Relay: cfg.Relay, ServeRelay: cfg.ServeRelay, Upload: int64(cfg.Upload),
		Quiet: func() bool { return onBattery(powerSupplies) }}
}

// newInternet prepares the hash table; the host exists.
func (a *agent) newInternet() error {
	cfg := a.cfg.Internet
	if !cfg.Enable {
		return nil
	}
	var err error
	a.dht, err = dht.New(a.host.Libp2p(), dht.Config{
		Bootstrap: cfg.Bootstrap, Server: cfg.ServeRelay, Quiet: a.quiet,
		PeersFile: filepath.Join(a.cfg.State.Dir, "internet-peers"),
		Catalog:   provided{a.store, int64(cfg.MinNarSize)},
		Provide:   dht.ProvideConfig{StampFile: filepath.Join(a.cfg.State.Dir, "internet-announced")},
		Log:       a.log.With("part", "internet"),
	})
	if err != nil {
		return err
	}
	a.host.SetRelaySource(a.dht.RelaySource)
	a.finders = append(a.finders, a.dht)
	return nil
}

// quiet tells whether the internet is to be left alone: sharing is paused, for whatever reason, or the
// machine runs on battery.
func (a *agent) quiet() bool { return a.host.Paused() || onBattery(powerSupplies) }

const powerSupplies = "/sys/class/power_supply" // of Linux; elsewhere a machine is never on battery

// onBattery tells whether the kernel knows of mains supplies below dir and none is on.
func onBattery(dir string) bool {
	supplies, _ := filepath.Glob(filepath.Join(dir, "*", "type"))
	mains := false
	for _, f := range supplies {
		kind, err := os.ReadFile(f)
		if err != nil || strings.TrimSpace(string(kind)) != "Mains" {
			continue
		}
		on, err := os.ReadFile(filepath.Join(filepath.Dir(f), "online"))
		if err != nil || strings.TrimSpace(string(on)) == "1" {
			return false
		}
		mains = true
	}
	return mains
}

// internetReport is the report's part on the internet.
func (a *agent) internetReport() status.Internet {
	if a.dht == nil {
		return status.Internet{}
	}
	s, cfg := a.dht.Stats(), a.cfg.Internet
	return status.Internet{
		Enabled: true, Reachable: a.host.Reachable(), ProvidedKeys: s.Provided, Prefer: cfg.Prefer, Quiet: a.quiet(),
		Server: s.Server, Relay: cfg.ServeRelay, Agents: s.Peers, Lookups: s.Lookups, Found: s.Found,
		BytesFrom: a.nix.Stats.FromInternet.Load(), UploadRate: int64(cfg.Upload),
	}
}

// provided is the store as the hash table announces it: public paths that are worth a record.
type provided struct {
	store *store.Store
	least int64 // bytes of a NAR
}

func (p provided) Provided(ctx context.Context) ([]verify.StoreHash, error) {
	return p.store.Large(ctx, p.least, verify.ScopePublic)
}

func (p provided) Provides(ctx context.Context, h verify.StoreHash) bool {
	info, err := p.store.Info(ctx, h)
	return err == nil && info.NarSize >= p.least && p.store.Shared(h, verify.ScopePublic)
}

func (p provided) WatchProvided(fn func(added, removed []verify.StoreHash)) func() {
	return p.store.Subscribe(func(c store.Change) { fn(publicOf(c.Added), publicOf(c.Removed)) })
}

func publicOf(list []store.Entry) []verify.StoreHash {
	var out []verify.StoreHash
	for _, e := range list {
		if e.Scope == verify.ScopePublic {
			out = append(out, e.Hash)
		}
	}
	return out
}

// beyond is the agents of the internet as the substituter sees them.
type beyond struct {
	host  *p2p.Host
	dht   *dht.DHT
	least int64 // bytes of a NAR worth a look-up
}

func (b beyond) Told(d verify.PathDigest, size int64) []substituter.Peer {
	list := b.host.FarHolders(d, size)
	out := make([]substituter.Peer, len(list))
	for i, p := range list {
		out[i] = neighbour{p}
	}
	return out
}

func (b beyond) Find(ctx context.Context, v *verify.Verified) []substituter.Peer {
	if v.NarSize() < b.least {
		return nil
	}
	return b.reach(ctx, b.dht.Find(ctx, v))
}

// reach connects to those that a look-up named, the first few, and does not wait for stragglers.
func (b beyond) reach(ctx context.Context, list []discovery.Found) []substituter.Peer {
	list = list[:min(len(list), reachAtOnce)]
	if len(list) == 0 {
		return nil
	}
	dialling, cancel := context.WithTimeout(ctx, reachPatience)
	defer cancel()
	reached := make(chan substituter.Peer, len(list))
	var all sync.WaitGroup
	for _, f := range list {
		all.Go(func() {
			p, err := b.host.Reach(dialling, f)
			switch {
			case err == nil:
				reached <- remote{neighbour{p}, b.dht}
			case dialling.Err() == nil:
				b.dht.Dead(f.PeerID)
			}
		})
	}
	go func() { all.Wait(); close(reached) }()
	var out []substituter.Peer
	enough := dialling.Done()
	for {
		select {
		case p, ok := <-reached:
			if !ok {
				return out
			}
			if out = append(out, p); len(out) == 1 {
				grace, stop := context.WithTimeout(dialling, reachGrace)
				defer stop()
				enough = grace.Done()
			}
		case <-enough:
			return out
		}
	}
}

// remote is an agent that a record named; that it does not have the path after all is remembered.
type remote struct {
	neighbour
	dht *dht.DHT
}

func (r remote) NAR(ctx context.Context, h verify.StoreHash, narHash verify.Hash, size, from, to int64) (io.ReadCloser, error) {
	body, err := r.neighbour.NAR(ctx, h, narHash, size, from, to)
	if errors.Is(err, substituter.ErrAbsent) {
		r.dht.Dead(r.ID())
	}
	return body, err
}
