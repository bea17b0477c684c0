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
)

// Catalog is what this machine can give to anybody.
type Catalog interface {
	// Provided returns the keys of all paths that are to be provided.
	Provided(ctx context.Context) ([]Key, error)
	// WatchProvided calls fn with every change until cancel is called; fn must not block for long.
	WatchProvided(fn func(added, removed []Key)) (cancel func())
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

// changes are keys that came and went and are not announced yet.
type changes struct {
	added   []Key
	removed []Key
}

// provide keeps records of the catalog's keys alive until ctx ends.
func (d *DHT) provide(ctx context.Context, node *kad.IpfsDHT) {
	if d.cfg.Catalog == nil {
		return
	}
	queue := make(chan changes, 64)
	lost := make(chan struct{}, 1)
	unwatch := d.cfg.Catalog.WatchProvided(func(added, removed []Key) {
		select {
		case queue <- changes{added, removed}:
		default:
			select { // too much at once: look at everything again
			case lost <- struct{}{}:
			default:
			}
		}
	})
	defer unwatch()
	for node.RoutingTable().Size() == 0 && ctx.Err() == nil {
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
			d.announce(ctx, sweep, pace, c.added)
			sweep.StopProviding(multihashes(c.removed)...)
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
		provider.WithSelfAddrs(func() []ma.Multiaddr { return d.publicOnly(d.host.Addrs()) }),
		provider.WithKeystore(&d.keys),
		provider.WithReprovideInterval(d.cfg.Provide.Interval),
		provider.WithConnectivityCheckOnlineInterval(10*time.Second),
		provider.WithMaxWorkers(4),
		provider.WithMaxProvideConnsPerWorker(8),
	)
}

// provideAll announces everything; what an earlier run announced within the interval is only scheduled.
func (d *DHT) provideAll(ctx context.Context, sweep *provider.SweepingProvider, pace *rate.Limiter) {
	keys, err := d.cfg.Catalog.Provided(ctx)
	if err != nil {
		d.log.Warn("what to announce to the internet could not be read", "err", err)
		return
	}
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
