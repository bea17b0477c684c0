package dht

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	kad "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/provider"
	ma "github.com/multiformats/go-multiaddr"
	mh "github.com/multiformats/go-multihash"
	"golang.org/x/time/rate"

	"github.com/flurry-nix/flurry/verify"
)

// Catalog is what this machine can give to anybody. Safe for concurrent use.
type Catalog interface {
	// Provided returns all paths that are to be provided.
	Provided(ctx context.Context) ([]verify.StoreHash, error)
	// Provides tells whether a path is one of them now.
	Provides(ctx context.Context, h verify.StoreHash) bool
	// WatchProvided calls fn, which does not block, with every change of what may be among them, until
	// cancel is called.
	WatchProvided(fn func(added, removed []verify.StoreHash)) (cancel func())
}

// ProvideConfig says how records are kept alive. The zero value means the defaults.
type ProvideConfig struct {
	// Interval between two announcements of a key; others forget it after 48 h. 0 means 22 h.
	Interval time.Duration
	// KeysPerSecond bounds first announcements; 0 means 50. Each is 20 messages of some 100 bytes.
	KeysPerSecond float64
	// StampFile remembers when everything was last announced, so that a restart does not repeat it.
	StampFile string
}

func (c *ProvideConfig) fill() {
	if c.Interval == 0 {
		c.Interval = 22 * time.Hour
	}
	if c.KeysPerSecond == 0 {
		c.KeysPerSecond = 50
	}
}

// provideStep is how many keys are announced together: neighbours in the key space, so that they share
// look-ups.
const provideStep = 128

// manyChanges are looked at by reading everything again.
const manyChanges = 256

// changes are paths that came and went and are not announced yet.
type changes struct{ added, removed []verify.StoreHash }

// provide keeps records of the catalog's keys alive until ctx ends.
func (d *DHT) provide(ctx context.Context, node *kad.IpfsDHT) {
	if d.cfg.Catalog == nil {
		return
	}
	queue := make(chan changes, 64)
	lost := make(chan struct{}, 1)
	unwatch := d.cfg.Catalog.WatchProvided(func(added, removed []verify.StoreHash) {
		if len(added)+len(removed) <= manyChanges {
			select {
			case queue <- changes{added, removed}:
				return
			default:
			}
		}
		select {
		case lost <- struct{}{}:
		default:
		}
	})
	defer unwatch()
	// A record without an address leads nowhere: who is behind a NAT needs a relay's first.
	for (node.RoutingTable().Size() == 0 || len(d.ownAddrs()) == 0) && ctx.Err() == nil {
		sleep(ctx, time.Second)
	}
	if ctx.Err() != nil {
		return
	}
	sweep, err := d.newProvider(node)
	if err != nil {
		d.log.Error("paths are not announced to the internet", "err", err)
		return
	}
	defer sweep.Close()
	pace := rate.NewLimiter(rate.Limit(d.cfg.Provide.KeysPerSecond), provideStep)
	d.provideAll(ctx, sweep, pace)
	for {
		select {
		case <-ctx.Done():
			return
		case c := <-queue:
			d.announce(ctx, sweep, pace, d.ofThese(ctx, c.added))
			sweep.StopProviding(multihashes(keysOf(c.removed))...)
			d.count()
		case <-lost:
			d.provideAll(ctx, sweep, pace)
		}
	}
}

// newProvider makes the library's sweeping provider: it walks the key space once per interval and visits each
// region once, so that look-ups grow with the network's size and not with the number of keys.
func (d *DHT) newProvider(node *kad.IpfsDHT) (*provider.SweepingProvider, error) {
	return provider.New(
		provider.WithHost(d.host),
		provider.WithRouter(node),
		provider.WithMessageSender(node.MessageSender()),
		provider.WithSelfAddrs(d.ownAddrs),
		provider.WithKeystore(&d.keys),
		provider.WithReprovideInterval(d.cfg.Provide.Interval),
		provider.WithConnectivityCheckOnlineInterval(10*time.Second),
		provider.WithMaxWorkers(4),
		provider.WithMaxProvideConnsPerWorker(8),
	)
}

// ownAddrs are those under which the internet reaches this machine, directly or through a relay.
func (d *DHT) ownAddrs() []ma.Multiaddr { return d.publicOnly(d.host.Addrs()) }

// provideAll announces everything; what an earlier run announced within the interval is only scheduled.
func (d *DHT) provideAll(ctx context.Context, sweep *provider.SweepingProvider, pace *rate.Limiter) {
	paths, err := d.cfg.Catalog.Provided(ctx)
	if err != nil {
		d.log.Warn("what to announce to the internet could not be read", "err", err)
		return
	}
	keys := keysOf(paths)
	d.forgetOthers(sweep, keys)
	if d.announcedLately() {
		d.keys.Put(ctx, multihashes(keys)...)
		d.count()
		if err := sweep.RefreshSchedule(); err != nil {
			d.log.Debug("announcements are not scheduled yet", "err", err)
		}
		return
	}
	d.announce(ctx, sweep, pace, keys)
	if ctx.Err() == nil {
		d.stamp()
	}
}

// forgetOthers stops what is not to be provided any more.
func (d *DHT) forgetOthers(sweep *provider.SweepingProvider, keep []Key) {
	wanted := make(map[Key]bool, len(keep))
	for _, k := range keep {
		wanted[k] = true
	}
	d.keys.mu.Lock()
	var gone []Key
	for _, e := range d.keys.list {
		if !wanted[e.key] {
			gone = append(gone, e.key)
		}
	}
	d.keys.mu.Unlock()
	if len(gone) > 0 {
		sweep.StopProviding(multihashes(gone)...)
	}
}

// ofThese returns the keys of those paths that are to be provided.
func (d *DHT) ofThese(ctx context.Context, paths []verify.StoreHash) []Key {
	var out []Key
	for _, h := range paths {
		if d.cfg.Catalog.Provides(ctx, h) {
			out = append(out, KeyOf(h))
		}
	}
	return out
}

func keysOf(paths []verify.StoreHash) []Key {
	out := make([]Key, len(paths))
	for i, h := range paths {
		out[i] = KeyOf(h)
	}
	return out
}

// announce provides keys, in the order of their places and no faster than pace.
func (d *DHT) announce(ctx context.Context, sweep *provider.SweepingProvider, pace *rate.Limiter, keys []Key) {
	keys = inOrder(keys)
	for len(keys) > 0 {
		n := min(len(keys), provideStep)
		if pace.WaitN(ctx, n) != nil {
			return
		}
		if err := sweep.StartProviding(false, multihashes(keys[:n])...); err != nil {
			d.log.Debug("keys are not announced yet", "err", err)
		}
		keys = keys[n:]
		d.count()
	}
}

func (d *DHT) count() {
	n, _ := d.keys.Size(context.Background())
	d.provided.Store(int64(n))
}

func multihashes(keys []Key) []mh.Multihash {
	out := make([]mh.Multihash, len(keys))
	for i, k := range keys {
		out[i] = k.multihash()
	}
	return out
}

// announcedLately tells whether records of a former run are alive.
func (d *DHT) announcedLately() bool {
	if d.cfg.Provide.StampFile == "" {
		return false
	}
	text, err := os.ReadFile(d.cfg.Provide.StampFile)
	if err != nil {
		return false
	}
	at, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	age := d.now().Sub(time.Unix(at, 0))
	return err == nil && age >= 0 && age < d.cfg.Provide.Interval
}

func (d *DHT) stamp() {
	if d.cfg.Provide.StampFile == "" {
		return
	}
	if err := os.WriteFile(d.cfg.Provide.StampFile, []byte(strconv.FormatInt(d.now().Unix(), 10)+"\n"), 0o600); err != nil {
		d.log.Debug("announcements are not remembered", "err", err)
	}
}
