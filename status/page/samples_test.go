package page

import (
	"context"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/status/savings"
)

// fullReport is an agent with something of everything.
func fullReport() status.Report {
	return status.Report{
		Version: "1.2.3", PeerID: "12D3KooWSelf", UptimeSeconds: 93784, Sharing: "on", Listen: []string{"127.0.0.1:6490"},
		Store: status.Store{Paths: 41234, ShareablePaths: 40870},
		Peers: []status.Peer{
			{ID: "12D3KooWExampleAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Addrs: []string{"/ip4/192.168.1.23/tcp/6491"}, Via: "mdns", RTTMillis: 0.42, BytesPerSec: 96e6, Paths: 38012, BytesIn: 3_120_000_000, BytesOut: 812_000_000, State: "connected"},
			{ID: "12D3KooWSecondBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB", Addrs: []string{"/ip6/fd00::17/tcp/6491"}, Via: "static", RTTMillis: 11.2, BytesPerSec: 14e6, Paths: 51877, BytesIn: 1_040_000_000, BytesOut: 5_400_000, State: "connected"},
			{ID: "12D3KooWThirdCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC", Addrs: []string{"/ip4/192.168.1.77/tcp/6491"}, Via: "mdns", RTTMillis: 3.1, Paths: 120, State: "banned", Reason: "NAR does not match its signed hash"},
			{ID: "12D3KooWFourthDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD", Via: "mdns", Paths: 900, BytesOut: 1_900_000, State: "away"},
		},
		Bytes:   status.Bytes{FromPeers: 4_160_000_000, FromUpstream: 852_000_000, FromStore: 61_000_000, ToPeers: 819_300_000, ToNix: 5_004_000_000},
		Wire:    status.Wire{FromPeers: 4_160_000_000, FromUpstream: 241_000_000, ToPeers: 819_300_000},
		NarInfo: status.NarInfo{Hits: 2912, Misses: 13, UpstreamRequests: 245},
		NAR:     status.NAR{Served: 1304, SwitchedSource: 2, Rejected: 1},
		Savings: &savings.Savings{
			SinceInstallation: savings.Totals{Since: time.Date(2026, 3, 14, 0, 0, 0, 0, time.UTC), FromPeers: 91_300_000_000, SecondsGained: 19_400},
			ThisMonth:         savings.Totals{FromPeers: 12_400_000_000, SecondsGained: -1300},
		},
		InFlight: 2,
		Flights: []status.Flight{
			{Path: "0c0rjpmmlm8nrpg4nl2lr3w7v3p3cs8a-firefox-128.0", Got: 88_000_000, Size: 251_000_000, From: []string{"peer 12D3KooWExampleAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}},
			{Path: "1c0rjpmmlm8nrpg4nl2lr3w7v3p3cs8a-linux-6.12.9-modules", Got: 3_000_000, Size: 121_000_000, From: []string{"https://cache.example.org"}},
		},
		Upstreams: []status.Upstream{
			{URL: "https://cache.example.org", Reachable: true, RTTMillis: 23},
			{URL: "https://private.example.net/team", LastError: "https://private.example.net/team/nix-cache-info: upstream cannot be asked: connection refused"},
		},
		Problems: []string{"the port could not be opened by upnp; forward 6491 by hand"},
	}
}

// hostileReport has names that try to be more than text.
func hostileReport() status.Report {
	r := fullReport()
	r.Flights = []status.Flight{
		{Path: "<img src=x onerror=alert(1)>", Got: 1, Size: 2, From: []string{"</ul><script>alert(2)</script>"}},
		{Path: "\u202egnp.live\u2066\u200f" + strings.Repeat("W", 5000), Got: 1, Size: 2},
		{Path: "\" onclick=\"alert(3)", Got: -5, Size: 0},
		{Path: "z" + strings.Repeat("\u0301", 400), Got: 1, Size: 2},
	}
	r.Peers = append(r.Peers, status.Peer{
		ID: "<b>bold</b>" + strings.Repeat("x", 900), Addrs: []string{"javascript:alert(4)//" + strings.Repeat("y", 900)},
		Via: "<script>alert(2)</script>", State: "\x00<i>", Reason: strings.Repeat("\u05d0", 900), RTTMillis: -1, BytesIn: -7,
	})
	r.Upstreams = append(r.Upstreams, status.Upstream{URL: "javascript:alert(5)" + strings.Repeat("z", 900), LastError: "<svg onload=alert(6)>"})
	r.Problems = []string{"<iframe src=//evil.example></iframe>"}
	return r
}

// lively is a health report with one finding of each level.
func lively(context.Context) []Finding {
	return []Finding{
		{Level: OK, What: "Nix asks this agent first"},
		{Level: Warn, What: "Multicast packets do not come back on wlan0", Why: "Neighbours on this network are not found by themselves.", Remedy: `peers.static = ["192.168.1.23"]`, NixOS: `services.flurry.settings.peers.static = [ "192.168.1.23" ];`},
		{Level: Note, What: "Nobody could be asked whether port 6491 is reachable"},
	}
}

// fillHistory gives a page a day that looks like one.
func fillHistory(p *Page) {
	var t sample
	p.history.add(t)
	for i := range longSamples * longEvery {
		burst := func(every, length int, n int64) int64 {
			if at := i % every; at < length {
				return n * int64(length-at+2) / int64(length)
			}
			return 0
		}
		t = t.plus(sample{
			peers: burst(47, 17, 220e6) + burst(4000, 260, 90e6), upstream: burst(61, 8, 70e6) + burst(5200, 140, 60e6), store: burst(83, 5, 25e6),
		})
		p.history.add(t)
	}
	p.history.last = totalsOf(fullReport().Bytes) // what is sampled next is no leap
}
