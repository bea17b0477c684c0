//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/p2p/p2ptest"
)

func peerRows() []row {
	return []row{
		{"peer", "a 1 GiB NAR from a peer, verified, against HTTP over libp2p carrying the same bytes unverified", "≥ 0.85× its rate", peerRow},
		{"cpu", "CPU seconds per GB of a NAR from a peer, sender and receiver, against the stages alone", "≤ 1.15× their sum", cpuRow},
		{"firstbyte", "first byte of a 1 MiB NAR held by a neighbour, through a delaying relay", "≤ 3 round trips + transfer + 2 ms", firstByteRow},
		{"sixteen", "16 NARs of 1 GiB at once from a peer, and from the local store", "RSS ≤ 160 MB, each agent", sixteenRow},
	}
}

// neighbours is two agents: one that has a corpus, one that has nothing but the other.
type neighbours struct{ has, asks *server }

func (n *neighbours) stop() {
	if n.asks != nil {
		n.asks.stop()
	}
	if n.has != nil {
		n.has.stop()
	}
}

// neighbours starts both; the connection goes through a relay if through is not nil.
func (b *bench) neighbours(c *corpus, through func(target string) (string, error)) (n *neighbours, err error) {
	n = &neighbours{}
	defer func() {
		if err != nil {
			n.stop()
		}
	}()
	if n.has, err = b.agent(agentConfig{store: c}); err != nil {
		return n, err
	}
	addr, err := n.has.multiaddr(b)
	if err != nil {
		return n, err
	}
	if through != nil {
		parts := strings.Split(addr, "/") // "" ip4 127.0.0.1 tcp PORT p2p ID
		other, err := through("127.0.0.1:" + parts[4])
		if err != nil {
			return n, err
		}
		_, parts[4], _ = net.SplitHostPort(other)
		addr = strings.Join(parts, "/")
	}
	if n.asks, err = b.agent(agentConfig{static: addr}); err != nil {
		return n, err
	}
	return n, n.asks.knows(b, len(c.Paths))
}

// forget drops the NARs that the asking agent keeps, so that it asks again.
func (n *neighbours) forget(b *bench) error {
	if _, err := n.asks.flurry(b, "cache", "clear"); err != nil {
		return fmt.Errorf("flurry cache clear: %w", err)
	}
	return nil
}

// fromPeer times one NAR through the asking agent, with the CPU that both used.
func (n *neighbours) fromPeer(b *bench, p item) (took, first, cpu time.Duration, err error) {
	if err := n.forget(b); err != nil {
		return 0, 0, 0, err
	}
	c, err := dial(n.asks.addr)
	if err != nil {
		return 0, 0, 0, err
	}
	defer c.close()
	if a, err := c.get(p.Hash + ".narinfo"); err != nil || a.status != 200 {
		return 0, 0, 0, fmt.Errorf("narinfo: status %d, %w", a.status, err)
	}
	used := n.has.cpu() + n.asks.cpu()
	start := time.Now()
	a, err := c.get(p.NARName)
	took = time.Since(start)
	if err == nil && (a.status != 200 || a.bytes != p.Size) {
		err = fmt.Errorf("status %d, %d bytes", a.status, a.bytes)
	}
	return took, a.first, n.has.cpu() + n.asks.cpu() - used, err
}

func peerRow(b *bench) (*result, error) {
	c, err := b.corpus("gib")
	if err != nil {
		return nil, err
	}
	n, err := b.neighbours(c, nil)
	if err != nil {
		return nil, err
	}
	defer n.stop()
	addr, raw, err := b.helper(libp2pServe, c.static())
	if err != nil {
		return nil, err
	}
	defer raw.stop()
	client, err := p2ptest.DialRaw(b.ctx, addr)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	res := &result{}
	p := c.Paths[0]
	err = b.turns([]contender{{name: "libp2p"}, {name: "flurry"}}, func(x contender) error {
		if x.name == "libp2p" {
			start := time.Now()
			got, err := client.Get(b.ctx, p.NARName)
			if err == nil && got != p.Size {
				err = fmt.Errorf("%d bytes", got)
			}
			res.sample("HTTP over libp2p, unverified", "GB/s", float64(p.Size)/1e9/time.Since(start).Seconds())
			return err
		}
		took, first, _, err := n.fromPeer(b, p)
		res.sample("flurry, to the last byte at Nix", "GB/s", float64(p.Size)/1e9/took.Seconds())
		res.sample("flurry, until all is verified", "GB/s", float64(p.Size)/1e9/first.Seconds())
		return err
	})
	if err != nil {
		return nil, err
	}
	res.least("rate of flurry / libp2p", res.median("flurry, to the last byte at Nix")/res.median("HTTP over libp2p, unverified"), 0.85)
	res.plain("rate until verified / libp2p", res.median("flurry, until all is verified")/res.median("HTTP over libp2p, unverified"))
	return res, nil
}

func firstByteRow(b *bench) (*result, error) {
	const delay = 10 * time.Millisecond // one way
	c, err := b.corpus("mib")
	if err != nil {
		return nil, err
	}
	near, err := b.neighbours(c, nil)
	if err != nil {
		return nil, err
	}
	defer near.stop()
	var r *relay
	far, err := b.neighbours(c, func(target string) (string, error) {
		if r, err = newRelay(target, delay); err != nil {
			return "", err
		}
		return r.addr(), nil
	})
	if err != nil {
		return nil, err
	}
	defer r.close()
	defer far.stop()
	res := &result{}
	for i := range min(len(c.Paths), 4*b.rounds) {
		_, first, _, err := near.fromPeer(b, c.Paths[i])
		if err != nil {
			return nil, err
		}
		res.sample("no delay (the transfer)", "ms", first.Seconds()*1e3)
		if _, first, _, err = far.fromPeer(b, c.Paths[i]); err != nil {
			return nil, err
		}
		res.sample("20 ms round trip", "ms", first.Seconds()*1e3)
	}
	rtt := 2 * delay.Seconds() * 1e3
	over := res.median("20 ms round trip") - res.median("no delay (the transfer)")
	res.plain("round trips beyond the transfer", over/rtt)
	res.most("ms beyond 3 round trips and the transfer", over-3*rtt, 2)
	return res, nil
}

func sixteenRow(b *bench) (*result, error) {
	c, err := b.corpus("sixteen")
	if err != nil {
		return nil, err
	}
	n, err := b.neighbours(c, nil)
	if err != nil {
		return nil, err
	}
	defer n.stop()
	res := &result{}
	names, sizes := c.nars()
	d, err := fetch(n.has.addr, 16, 1, names, 200, sizes)
	if err != nil {
		return nil, err
	}
	res.sample("from the store, 16 GiB", "s", d.Seconds())
	res.sample("serving from the store: peak RSS", "MB", float64(n.has.agentMemory("VmHWM"))/1e6)
	if _, err = fetch(n.asks.addr, 16, 1, c.narInfos(), 200, nil); err != nil {
		return nil, err
	}
	if d, err = fetch(n.asks.addr, 16, 1, names, 200, sizes); err != nil {
		return nil, err
	}
	res.sample("from a peer, 16 GiB", "s", d.Seconds())
	res.sample("sending agent: peak RSS", "MB", float64(n.has.agentMemory("VmHWM"))/1e6)
	res.sample("receiving agent: peak RSS", "MB", float64(n.asks.agentMemory("VmHWM"))/1e6)
	res.most("peak RSS, the larger agent, MB", max(res.median("sending agent: peak RSS"), res.median("receiving agent: peak RSS")), 160)
	return res, os.RemoveAll(filepath.Join(n.asks.dir, "state", "spool"))
}
