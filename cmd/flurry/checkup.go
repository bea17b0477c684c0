package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/flurry-nix/flurry/doctor"
	"github.com/flurry-nix/flurry/p2p"
	"github.com/flurry-nix/flurry/store"
	"github.com/flurry-nix/flurry/upstream"
	"github.com/flurry-nix/flurry/verify"
)

// How long a checkup listens and waits: for neighbours' answers, whose quiet time is a second, and for
// what does not answer at all.
const (
	checkupListen = 2 * time.Second
	checkupMost   = 8 * time.Second
)

// checkup looks at what only the agent knows. It takes seconds; one at a time.
func (a *agent) checkup(ctx context.Context) []doctor.Finding {
	a.checkups.Lock()
	defer a.checkups.Unlock()
	ctx, cancel := context.WithTimeout(ctx, checkupMost)
	defer cancel()
	m := doctor.Machine{Now: time.Now()}
	var wg sync.WaitGroup
	wg.Go(func() { m.Store = a.lookAtStore(ctx) })
	wg.Go(func() { m.Upstreams = a.lookAtUpstreams(ctx) })
	wg.Go(func() { m.Peers = a.lookAtPeers(ctx) })
	m.Disks = []doctor.Disk{doctor.LookAtDisk("state", a.cfg.State.Dir)}
	if a.cfg.Store.Database != "" {
		m.Disks = append(m.Disks, doctor.LookAtDisk("store", a.storeFiles()))
	}
	wg.Wait()
	return m.Check()
}

// storeFiles is where the store's files lie.
func (a *agent) storeFiles() string {
	if a.cfg.Store.RealDir != "" {
		return a.cfg.Store.RealDir
	}
	return a.cfg.Store.Dir
}

func (a *agent) lookAtStore(ctx context.Context) doctor.Store {
	st := a.store.Stats()
	s := doctor.Store{Database: a.cfg.Store.Database, Dir: a.storeFiles(), Paths: st.Paths, Stale: st.Stale}
	if s.Database == "" {
		return s
	}
	// A question about a path that nobody has goes to the database all the same.
	if _, err := a.store.Info(ctx, verify.StoreHash{}); err != nil && !errors.Is(err, store.ErrAbsent) {
		s.Err = err
	}
	s.DirErr = doctor.Readable(s.Dir)
	return s
}

func (a *agent) lookAtUpstreams(ctx context.Context) []doctor.Upstream {
	out := make([]doctor.Upstream, len(a.upstreams))
	var wg sync.WaitGroup
	for i, u := range a.upstreams {
		wg.Go(func() {
			began := time.Now()
			_, err := u.CacheInfo(ctx)
			if errors.Is(err, upstream.ErrAbsent) {
				err = fmt.Errorf("%s has no nix-cache-info: it is no binary cache, or asks for a password", u.URL())
			}
			st := u.Status()
			out[i] = doctor.Upstream{URL: u.URL(), Err: err, Took: time.Since(began), Skew: st.Skew, HasDate: err == nil && st.Dated}
		})
	}
	wg.Wait()
	if len(out) > 0 {
		out[0].Rate = a.savings.Savings().UpstreamRate // of all together; said once
	}
	return out
}

func (a *agent) lookAtPeers(ctx context.Context) doctor.Peers {
	p := doctor.Peers{MDNS: a.cfg.Peers.MDNS, Version: "flurry/" + version, Off: len(a.cfg.Peers.Listen) == 0}
	if a.host == nil {
		p.Problem = "peers are off: " + a.peerProblem
		return p
	}
	p.Paused, p.Port = a.host.Paused(), a.host.Port()
	var wg sync.WaitGroup
	if a.mdns != nil {
		wg.Go(func() { p.Links, p.Passed, p.Routed = a.lookAtLinks(ctx) })
	}
	wg.Go(func() {
		backs, err := a.host.DialBacks(ctx)
		if err != nil && !errors.Is(err, p2p.ErrDialBack) {
			a.log.Debug("neighbours do not dial back", "err", err)
		}
		for _, b := range backs {
			p.DialBacks = append(p.DialBacks, doctor.DialBack{TCP: b.TCP, UDP: b.UDP})
		}
	})
	wg.Wait()
	for _, s := range a.host.Peers() {
		if s.Connected == 0 {
			p.KnownOnce++
			continue
		}
		n := doctor.Neighbour{ID: s.ID, Via: s.Via, Version: s.Agent}
		for _, addr := range s.Addrs {
			if ip, ok := p2p.AddrIP(addr); ok {
				n.Addrs = append(n.Addrs, ip)
			}
		}
		p.Neighbours = append(p.Neighbours, n)
	}
	return p
}

// lookAtLinks asks for neighbours on every interface, and where packets for their networks would go.
func (a *agent) lookAtLinks(ctx context.Context) (links []doctor.Link, passed []doctor.Passed, routed []doctor.Routed) {
	ctx, cancel := context.WithTimeout(ctx, checkupListen)
	defer cancel()
	looked, others, err := a.mdns.Look(ctx)
	if err != nil {
		return []doctor.Link{{Name: "every interface", Err: err}}, nil, nil
	}
	for _, l := range looked {
		links = append(links, doctor.Link{Name: l.Interface, Networks: l.Addrs, Returned: l.Returned, Answered: l.Answered, Err: l.Err})
		for _, n := range l.Addrs {
			if by := elsewhere(n); by != "" {
				routed = append(routed, doctor.Routed{Network: n.Masked(), Link: l.Interface, By: by})
			}
		}
	}
	for _, o := range others {
		passed = append(passed, doctor.Passed{Name: o.Interface, Why: o.Why})
	}
	return links, passed, routed
}

// elsewhere tells by which local address the kernel would send to another machine of own's network, if
// not by own. It sends nothing.
func elsewhere(own netip.Prefix) string {
	if own.Addr().IsLinkLocalUnicast() || own.Addr().IsLoopback() || own.IsSingleIP() {
		return ""
	}
	other := own.Masked().Addr().Next()
	if other == own.Addr() {
		other = other.Next()
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(other, 9))) // connecting only looks the route up
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	local, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return ""
	}
	ip := local.AddrPort().Addr().Unmap()
	if ip == own.Addr() || own.Contains(ip) { // a second address in the same network is as good
		return ""
	}
	return "from " + ip.String()
}
