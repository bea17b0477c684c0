package status

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/flurry-nix/flurry/status/savings"
)

// metric is one figure of a report. Names follow the conventions: prefix, base unit, _total for counters.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(r *Report) float64
	label string // the value of the metric's only label, if it has one
}

// family makes metrics that share a name and differ in one label, whose values are fixed here.
func family(name, help, label string, kind prometheus.ValueType, values map[string]func(r *Report) float64) []metric {
	desc := prometheus.NewDesc("flurry_"+name, help, []string{label}, nil)
	var out []metric
	for l, f := range values {
		out = append(out, metric{desc, kind, f, l})
	}
	return out
}

func single(name, help string, kind prometheus.ValueType, f func(r *Report) float64) metric {
	return metric{desc: prometheus.NewDesc("flurry_"+name, help, nil, nil), kind: kind, value: f}
}

func metrics() []metric {
	type get = func(r *Report) float64
	const counter, gauge = prometheus.CounterValue, prometheus.GaugeValue
	var out []metric
	out = append(out, family("nar_received_bytes_total", "Uncompressed NAR bytes obtained, by where from.", "source", counter, map[string]get{
		"peers":    func(r *Report) float64 { return float64(r.Bytes.FromPeers) },
		"upstream": func(r *Report) float64 { return float64(r.Bytes.FromUpstream) },
		"store":    func(r *Report) float64 { return float64(r.Bytes.FromStore) },
	})...)
	out = append(out, family("nar_sent_bytes_total", "Uncompressed NAR bytes served, by whom to.", "to", counter, map[string]get{
		"peers": func(r *Report) float64 { return float64(r.Bytes.ToPeers) },
		"nix":   func(r *Report) float64 { return float64(r.Bytes.ToNix) },
	})...)
	out = append(out, family("wire_received_bytes_total", "Bytes of NARs received as sent over the network.", "source", counter, map[string]get{
		"peers":    func(r *Report) float64 { return float64(r.Wire.FromPeers) },
		"upstream": func(r *Report) float64 { return float64(r.Wire.FromUpstream) },
	})...)
	out = append(out, family("narinfo_requests_total", "Narinfo questions of Nix, by answer.", "result", counter, map[string]get{
		"hit":  func(r *Report) float64 { return float64(r.NarInfo.Hits) },
		"miss": func(r *Report) float64 { return float64(r.NarInfo.Misses) },
	})...)
	out = append(out, family("nars_total", "NARs asked for by Nix, by outcome.", "result", counter, map[string]get{
		"served": func(r *Report) float64 { return float64(r.NAR.Served) },
		"failed": func(r *Report) float64 { return float64(r.NAR.Failed) },
	})...)
	out = append(out, family("upstream_duplicates_total", "NARs asked of an upstream although a neighbour had claimed them, by why.", "reason", counter, map[string]get{
		"crossed": func(r *Report) float64 { return float64(r.Site.Crossed) },
		"silent":  func(r *Report) float64 { return float64(r.Site.Silent) },
		"slow":    func(r *Report) float64 { return float64(r.Site.Slow) },
	})...)
	out = append(out, family("peers", "Known peers, by state.", "state", gauge, map[string]get{
		"connected": countPeers("connected"), "suspect": countPeers("suspect"), "banned": countPeers("banned"), "away": countPeers("away"),
	})...)
	out = append(out, family("upstreams", "Configured central caches, by whether they answer.", "state", gauge, map[string]get{
		"reachable":   countUpstreams(true),
		"unreachable": countUpstreams(false),
	})...)
	return append(out,
		single("saved_bytes_total", "Uncompressed NAR bytes from peers instead of upstreams, since installation.", counter, func(r *Report) float64 { return float64(r.saved().FromPeers) }),
		single("gained_seconds", "Seconds gained by peers since installation; negative: lost.", gauge, func(r *Report) float64 { return r.saved().SecondsGained }),
		single("problems", "Parts that do not work.", gauge, func(r *Report) float64 { return float64(len(r.Problems)) }),
		single("sharing", "1 while this machine serves peers, else 0.", gauge, func(r *Report) float64 {
			if r.Sharing == "on" {
				return 1
			}
			return 0
		}),
		single("upstream_narinfo_requests_total", "Narinfo questions sent to upstreams.", counter, func(r *Report) float64 { return float64(r.NarInfo.UpstreamRequests) }),
		single("nar_source_switches_total", "Changes of source in the middle of a NAR.", counter, func(r *Report) float64 { return float64(r.NAR.SwitchedSource) }),
		single("nar_rejections_total", "NARs whose bytes did not match their signature.", counter, func(r *Report) float64 { return float64(r.NAR.Rejected) }),
		single("goroutines", "Goroutines of the agent.", gauge, func(*Report) float64 { return float64(runtime.NumGoroutine()) }),
		single("nars_in_flight", "NARs being fetched now.", gauge, func(r *Report) float64 { return float64(r.InFlight) }),
		single("store_paths", "Valid paths of the local store.", gauge, func(r *Report) float64 { return float64(r.Store.Paths) }),
		single("store_shareable_paths", "Paths that may leave this machine.", gauge, func(r *Report) float64 { return float64(r.Store.ShareablePaths) }),
		single("uptime_seconds", "Time since the agent started.", gauge, func(r *Report) float64 { return r.UptimeSeconds }),
	)
}

// saved is what sharing saved since installation.
func (r *Report) saved() savings.Totals {
	if r.Savings == nil {
		return savings.Totals{}
	}
	return r.Savings.SinceInstallation
}

func countUpstreams(reachable bool) func(r *Report) float64 {
	return func(r *Report) float64 {
		n := 0
		for _, u := range r.Upstreams {
			if u.Reachable == reachable {
				n++
			}
		}
		return float64(n)
	}
}

func countPeers(state string) func(r *Report) float64 {
	return func(r *Report) float64 {
		n := 0
		for _, p := range r.Peers {
			if p.State == state {
				n++
			}
		}
		return float64(n)
	}
}

// collector turns a report into metrics at scrape time.
type collector struct{ report func() Report }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics() {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	r := c.report()
	for _, m := range metrics() {
		var labels []string
		if m.label != "" {
			labels = []string{m.label}
		}
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&r), labels...)
	}
}
