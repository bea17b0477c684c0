// Package status is what an operator sees of a running agent: the report as JSON and as Prometheus
// metrics. It only presents; whoever wires the agent supplies the figures.
//
// What names a path or a peer is for the control socket; [Report.Aggregates] is what anybody on the
// machine may see on the substituter's port. No metric has a label taken from the network.
package status

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/flurry-nix/flurry/status/savings"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Report is the whole state, as `flurry status --json` prints it. Field names are a contract.
type Report struct {
	Version       string           `json:"version"`
	PeerID        string           `json:"peer_id,omitempty"`
	Instance      string           `json:"instance,omitempty"` // random, another at each start; tells who answers at a port
	UptimeSeconds float64          `json:"uptime_seconds"`
	Sharing       string           `json:"sharing"` // "on", "paused", "metered" or, without a peer port, "off"
	Listen        []string         `json:"listen,omitempty"`
	Store         Store            `json:"store"`
	Peers         []Peer           `json:"peers"`
	Bytes         Bytes            `json:"bytes"`
	Wire          Wire             `json:"wire"`
	NarInfo       NarInfo          `json:"narinfo"`
	NAR           NAR              `json:"nar"`
	Site          Site             `json:"site"`
	InFlight      int              `json:"in_flight"`
	Flights       []Flight         `json:"flights,omitempty"` // what is in flight, the oldest first
	Internet      Internet         `json:"internet"`
	Upstreams     []Upstream       `json:"upstreams,omitempty"`
	Savings       *savings.Savings `json:"savings,omitempty"`
	Problems      []string         `json:"problems,omitempty"` // what keeps a part from working, each with its remedy
}

// Store is the local Nix store.
type Store struct {
	Paths          int    `json:"paths"`
	ShareablePaths int    `json:"shareable_paths"`
	UncheckedPaths int    `json:"unchecked_paths"` // signatures not verified yet; not shared
	Access         string `json:"access"`          // how the database is read
}

// Peer is another agent.
type Peer struct {
	ID            string   `json:"id"`
	Addrs         []string `json:"addrs,omitempty"`
	Via           string   `json:"via"`                     // mdns, dht, static or introduced
	IntroducedBy  string   `json:"introduced_by,omitempty"` // a peer id
	RTTMillis     float64  `json:"rtt_ms"`
	BytesPerSec   float64  `json:"bytes_per_second"` // of its NARs, 0 unknown
	Paths         int      `json:"paths"`
	BytesIn       int64    `json:"bytes_in"`
	BytesOut      int64    `json:"bytes_out"`
	State         string   `json:"state"` // connected, away, suspect or banned
	Reason        string   `json:"reason,omitempty"`
	ConnectedSecs float64  `json:"connected_seconds,omitempty"`
	Version       string   `json:"version,omitempty"` // what it says it runs
}

// Bytes counts uncompressed NAR bytes since the agent started.
type Bytes struct {
	FromPeers    int64 `json:"from_peers"`
	FromUpstream int64 `json:"from_upstream"`
	FromStore    int64 `json:"from_store"`
	ToPeers      int64 `json:"to_peers"`
	ToNix        int64 `json:"to_nix"`
}

// Wire counts the same as sent over the network.
type Wire struct {
	FromPeers    int64 `json:"from_peers"`
	FromUpstream int64 `json:"from_upstream"`
	ToPeers      int64 `json:"to_peers"`
}

// NarInfo counts narinfo questions of Nix.
type NarInfo struct {
	Hits             int64 `json:"hits"`
	Misses           int64 `json:"misses"`
	UpstreamRequests int64 `json:"upstream_requests"`
}

// NAR counts NARs.
type NAR struct {
	Served         int64 `json:"served"`
	Failed         int64 `json:"failed"`
	SwitchedSource int64 `json:"switched_source"`
	Rejected       int64 `json:"rejected"`
}

// Site counts the NARs that were asked of an upstream although a neighbour had them or had claimed them,
// by why: both claimed it at the same moment, none of its bytes came, they came much too slowly.
type Site struct {
	Crossed int64 `json:"crossed"`
	Silent  int64 `json:"silent"`
	Slow    int64 `json:"slow"`
}

// Flight is one NAR on its way.
type Flight struct {
	Path string   `json:"path"` // base name
	Got  int64    `json:"got"`  // bytes of NAR
	Size int64    `json:"size"`
	From []string `json:"from"` // peers' ids and upstreams' URLs that send now
}

// Internet is the part beyond the site.
type Internet struct {
	Enabled      bool  `json:"enabled"`
	Reachable    bool  `json:"reachable"`
	ProvidedKeys int64 `json:"provided_keys"`

	Prefer     string `json:"prefer,omitempty"`
	Quiet      bool   `json:"quiet"` // left alone now: paused, metered or on battery
	Server     bool   `json:"server"`
	Relay      bool   `json:"relay"` // serves as a relay
	Agents     int    `json:"agents"`
	Lookups    int64  `json:"lookups"`
	Found      int64  `json:"lookups_found"`
	BytesFrom  int64  `json:"bytes_from"` // the part of bytes.from_peers that came from beyond the site
	UploadRate int64  `json:"upload_limit"`
}

// Upstream is one central cache.
type Upstream struct {
	URL       string  `json:"url"`
	Reachable bool    `json:"reachable"`
	LastError string  `json:"last_error,omitempty"`
	RTTMillis float64 `json:"rtt_ms"`
	XZ        string  `json:"xz"`
	State     string  `json:"state"`                   // ok, resting (left alone for a while after trouble), probing, denied
	RetrySecs float64 `json:"retry_seconds,omitempty"` // of a resting one
	WireBytes int64   `json:"wire_bytes"`              // received from it
}

// Aggregates returns the report without what names a path, a peer, an upstream or this machine.
func (r Report) Aggregates() Report {
	r.PeerID, r.Listen, r.Upstreams, r.Problems, r.Flights = "", nil, nil, nil, nil
	peers := make([]Peer, 0, len(r.Peers))
	for _, p := range r.Peers {
		peers = append(peers, Peer{Via: p.Via, RTTMillis: p.RTTMillis, BytesPerSec: p.BytesPerSec, Paths: p.Paths,
			BytesIn: p.BytesIn, BytesOut: p.BytesOut, State: p.State, ConnectedSecs: p.ConnectedSecs})
	}
	r.Peers = peers
	return r
}

// Handler serves /status.json and /metrics with aggregates only, 404 else. report is asked for at every
// request and must be quick.
func Handler(report func() Report) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{report}, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) {
		WriteJSON(w, report().Aggregates())
	})
	return mux
}

// WriteJSON answers with v, not to be cached.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}

// Millis is d in milliseconds, as reports have it.
func Millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
