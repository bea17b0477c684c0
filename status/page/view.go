package page

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/status/savings"
)

const (
	maxPeerRows   = 100
	maxFlightRows = 20
)

// view is what the templates show: text only, untrusted text cleaned.
type view struct {
	Known    bool // logged in
	State    string
	Mood     string // class of State: good, idle or bad
	Headline string
	Lede     string
	Shares   []share
	Figures  []figure
	Chart    chart
	Flying   string
	Flights  []flightRow
	Peers    []peerRow
	PeersAll string
	Caches   []cacheRow
	CachesUp string
	Health   healthView
	Version  string
	Uptime   string
}

// share is one part of the bar of all bytes since the start, in percent of its width.
type share struct {
	Class, Name, Bytes string
	From, Width        float64
}

type figure struct{ Name, Value, Note string }

type flightRow struct {
	Name, Full, Done, From string
	Got, Size              int64
}

type peerRow struct {
	Name, ID, Short, State, Mood, Via, RTT, Rate, Paths, In, Out, Note string
}

type cacheRow struct{ URL, State, Mood, RTT, Bytes, Note string }

type healthView struct {
	Mood, Summary string
	Findings      []findingRow
}

type findingRow struct{ Mood, Word, What, Why, Remedy, NixOS string }

// newView shows all but health.
func newView(r status.Report, known bool, s span, samples []sample) view {
	if !known {
		r = r.Aggregates()
	}
	v := view{Known: known, Version: clean(r.Version), Uptime: ago(time.Duration(r.UptimeSeconds * float64(time.Second)))}
	v.Chart = newChart(s, samples)
	v.peers(r)
	v.sharing(r)
	v.figures(r)
	v.flights(r)
	v.caches(r)
	return v
}

func (v *view) sharing(r status.Report) {
	neighbours := 0
	for _, p := range r.Peers {
		if p.State == "connected" {
			neighbours++
		}
	}
	switch r.Sharing {
	case "on":
		v.State, v.Mood = "Sharing", "good"
		v.Lede = fmt.Sprintf("%s offered to %s.", status.Count(r.Store.ShareablePaths, "store path"), status.Count(neighbours, "neighbour"))
		if neighbours == 0 {
			v.Lede = fmt.Sprintf("%s to offer; no neighbour is connected.", status.Count(r.Store.ShareablePaths, "store path"))
		}
	case "metered":
		v.State, v.Mood = "Paused", "idle"
		v.Lede = "This network is paid by the byte: neighbours get nothing from here; Nix is served as ever."
	case "paused":
		v.State, v.Mood = "Paused", "idle"
		v.Lede = "Neighbours get nothing from here; Nix is served as ever."
	default:
		v.State, v.Mood = "Not sharing", "bad"
		v.Lede = "The part that talks to neighbours does not work; Nix is served from central caches."
	}
	b := r.Bytes
	fetched := b.FromPeers + b.FromUpstream
	v.Headline = "Nothing fetched yet"
	if fetched > 0 {
		v.Headline = percent(b.FromPeers, fetched) + " of what was fetched came from neighbours"
	}
	all, from := float64(fetched+b.FromStore), 0.0
	for _, s := range []struct {
		class, name string
		n           int64
	}{{"peers", "neighbours", b.FromPeers}, {"upstream", "central caches", b.FromUpstream}, {"store", "this machine’s store", b.FromStore}} {
		width := 0.0
		if all > 0 {
			width = float64(s.n) / all * 100
		}
		v.Shares = append(v.Shares, share{s.class, s.name, bytesText(s.n), from, width})
		from += width
	}
}

func (v *view) figures(r status.Report) {
	v.Figures = []figure{
		{"NARs served to Nix", status.Number(r.NAR.Served), fmt.Sprintf("%s; %s failed", bytesText(r.Bytes.ToNix), status.Number(r.NAR.Failed))},
		{"Given to neighbours", bytesText(r.Bytes.ToPeers), "since the start"},
		{"Central caches sent", bytesText(r.Wire.FromUpstream), "as compressed, on the wire"},
		{"Mended on the way", status.Number(r.NAR.SwitchedSource), fmt.Sprintf("changes of source; %s refused for wrong bytes", status.Number(r.NAR.Rejected))},
	}
	if t := r.Savings; t != nil {
		v.Figures = append(v.Figures, saved("Saved this month", t.ThisMonth), saved("Saved since "+t.SinceInstallation.Since.Format("2 January 2006"), t.SinceInstallation))
	}
}

// saved is what neighbours spared the central caches, and the time that it gained.
func saved(name string, t savings.Totals) figure {
	word, gained := "gained", time.Duration(t.SecondsGained*float64(time.Second))
	if gained < 0 {
		word, gained = "lost", -gained
	}
	return figure{name, bytesText(t.FromPeers), ago(gained) + " " + word}
}

func (v *view) flights(r status.Report) {
	names := map[string]string{}
	for _, p := range r.Peers {
		if len(p.Addrs) > 0 {
			names["peer "+p.ID] = host(p.Addrs[0])
		}
	}
	v.Flying = "Nothing is on its way."
	if r.InFlight > 0 {
		v.Flying = status.Count(r.InFlight, "NAR") + " on the way."
	}
	for i, f := range r.Flights {
		if i == maxFlightRows {
			v.Flying += fmt.Sprintf(" The first %d are listed.", maxFlightRows)
			break
		}
		full := clean(f.Path)
		name := full
		if hash, rest, ok := strings.Cut(full, "-"); ok && len(hash) == 32 {
			name = rest
		}
		from := make([]string, len(f.From))
		for i, source := range f.From {
			from[i] = cmp.Or(names[source], source)
		}
		v.Flights = append(v.Flights, flightRow{
			Name: name, Full: full, Got: f.Got, Size: max(f.Size, 1), From: clean(strings.Join(from, ", ")),
			Done: bytesText(f.Got) + " of " + bytesText(f.Size),
		})
	}
}

var peerMoods = map[string]string{"connected": "good", "away": "idle", "suspect": "bad", "banned": "bad"}

// peerWords are a peer's standing in words.
var peerWords = map[string]string{"connected": "connected", "away": "away", "suspect": "resting after trouble", "banned": "banned for wrong bytes"}

func (v *view) peers(r status.Report) {
	list := slices.Clone(r.Peers)
	rank := func(p status.Peer) int {
		return slices.Index([]string{"away", "banned", "suspect", "connected"}, p.State)
	}
	slices.SortStableFunc(list, func(a, b status.Peer) int {
		return cmp.Or(cmp.Compare(rank(b), rank(a)), cmp.Compare(b.BytesIn, a.BytesIn), cmp.Compare(a.ID, b.ID))
	})
	v.PeersAll = status.Count(len(list), "neighbour") + " known."
	if len(list) == 0 {
		v.PeersAll = "No neighbour yet. Agents on this network appear within seconds; others are named in peers.static."
	}
	if len(list) > maxPeerRows {
		v.PeersAll += fmt.Sprintf(" The first %d are listed.", maxPeerRows)
		list = list[:maxPeerRows]
	}
	for i, p := range list {
		name := fmt.Sprintf("Neighbour %d", i+1)
		if len(p.Addrs) > 0 {
			name = host(p.Addrs[0])
		} else if p.ID != "" {
			name = "no address now"
		}
		state := clean(p.State)
		v.Peers = append(v.Peers, peerRow{
			Name: name, ID: clean(p.ID), Short: short(clean(p.ID)), State: cmp.Or(peerWords[p.State], state), Mood: cmp.Or(peerMoods[p.State], "idle"),
			Via: clean(p.Via), RTT: millis(p.RTTMillis), Rate: rateText(p.BytesPerSec), Paths: status.Number(int64(p.Paths)),
			In: bytesText(p.BytesIn), Out: bytesText(p.BytesOut), Note: clean(p.Reason),
		})
	}
}

// short is the end of an id: the beginnings are all alike.
func short(id string) string {
	if r := []rune(id); len(r) > 16 {
		return "…" + string(r[len(r)-12:])
	}
	return id
}

// host is the address in a multiaddr, or all of what is none.
func host(addr string) string {
	parts := strings.Split(addr, "/")
	if len(parts) > 2 && parts[0] == "" {
		if ip, err := netip.ParseAddr(parts[2]); err == nil {
			return ip.String()
		}
	}
	return clean(addr)
}

func (v *view) caches(r status.Report) {
	up := 0
	for _, u := range r.Upstreams {
		row := cacheRow{URL: clean(u.URL), State: "answers", Mood: "good", RTT: millis(u.RTTMillis), Bytes: bytesText(u.WireBytes), Note: clean(u.LastError)}
		switch {
		case u.Reachable:
			up++
			row.Note = ""
		case u.State == "denied":
			row.State, row.Mood = "refuses the credentials", "bad"
		default:
			row.State, row.Mood = "does not answer; left alone for a while", "bad"
		}
		v.Caches = append(v.Caches, row)
	}
	v.CachesUp = fmt.Sprintf("%d of %s can be asked, in this order.", up, status.Count(len(r.Upstreams), "central cache"))
}

var levels = map[Level]struct{ mood, word string }{
	OK: {"good", "fine"}, Note: {"idle", "note"}, Warn: {"idle", "look at it"}, Fail: {"bad", "mend it"},
}

// health shows what is wrong: to everybody how much, with names only who is logged in.
func (v *view) health(problems []string, h health, checks bool, now time.Time) {
	findings := slices.Clone(h.findings)
	for _, problem := range problems {
		findings = append(findings, Finding{Level: Fail, What: problem})
	}
	bad := map[Level]int{}
	for _, f := range findings {
		bad[f.Level]++
	}
	v.Health.Mood = "good"
	switch {
	case bad[Fail] > 0:
		v.Health.Mood, v.Health.Summary = "bad", status.Count(bad[Fail], "thing")+" to mend"
	case bad[Warn] > 0:
		v.Health.Mood, v.Health.Summary = "idle", status.Count(bad[Warn], "thing")+" to look at"
	case checks && h.at.IsZero():
		v.Health.Mood, v.Health.Summary = "idle", "being checked"
	case checks:
		v.Health.Summary = "all is well: " + status.Count(len(findings), "check") + ", " + ago(now.Sub(h.at)) + " ago"
	default:
		v.Health.Summary = "nothing amiss that the agent knows of"
	}
	if !v.Known {
		return
	}
	for _, l := range []Level{Fail, Warn, Note, OK} {
		for _, f := range findings {
			if f.Level == l {
				v.Health.Findings = append(v.Health.Findings, findingRow{levels[l].mood, levels[l].word, clean(f.What), clean(f.Why), clean(f.Remedy), clean(f.NixOS)})
			}
		}
	}
}
