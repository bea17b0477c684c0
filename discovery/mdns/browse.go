package mdns

import (
	"context"
	"net"
	"time"

	"github.com/grandcat/zeroconf"
)

const (
	// browseFor is how long one browse lasts. zeroconf reports an instance once per browse unless it
	// said goodbye, so this is also how soon a neighbour that came back unnoticed is told again.
	browseFor = 30 * time.Second

	// maxBrowsed ends a browse early, counted in instances and their addresses: zeroconf remembers all
	// it heard for as long as it browses. A thousand ordinary machines take 4000.
	maxBrowsed = 8192

	// firstPause follows a browse that ended so; repeated, it doubles up to lastPause. It is all that
	// bounds what a flood costs: zeroconf gives every instance in a packet every address in it, so that
	// one of 63 KB takes 0.1 GB for a moment and a good part of a second.
	firstPause = time.Second
	lastPause  = 15 * time.Second
)

// browse reports the instances heard over one IP version on the interfaces, until ctx ends or browsing
// fails. One version at a time: a resolver of both fails when one does.
func browse(ctx context.Context, f family, ifis []net.Interface, t *teller) error {
	pause := firstPause
	for ctx.Err() == nil {
		flooded, err := browseOnce(ctx, f, ifis, t)
		if err != nil {
			return err
		}
		if !flooded {
			pause = firstPause
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
	return nil
}

// browseOnce is one resolver's life: a used one finds nothing more.
func browseOnce(ctx context.Context, f family, ifis []net.Interface, t *teller) (flooded bool, err error) {
	traffic := zeroconf.IPType(zeroconf.IPv4)
	if f == ipv6Family {
		traffic = zeroconf.IPv6
	}
	resolver, err := zeroconf.NewResolver(zeroconf.SelectIfaces(ifis), zeroconf.SelectIPTraffic(traffic))
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, browseFor)
	defer cancel()
	// zeroconf closes the channel when ctx has ended, and hangs for ever if nobody reads until then.
	entries := make(chan *zeroconf.ServiceEntry, 64)
	err = resolver.Browse(ctx, Service, domain, entries)
	if err != nil {
		cancel()
	}
	browsed := 0
	for e := range entries {
		if browsed += 1 + len(e.AddrIPv4) + len(e.AddrIPv6); browsed > maxBrowsed {
			flooded = true
			cancel()
		}
		if !flooded {
			t.heard(e)
		}
	}
	return flooded, err
}
