package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flurry-nix/flurry/status"
	"github.com/flurry-nix/flurry/status/savings"
)

// watchInterval is between two looks with --watch: fast enough to follow a copy.
const watchInterval = 2 * time.Second

const watchHelp = "print anew every 2 s until interrupted; with --json, one line each time"

func (a *App) statusCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether the agent works, and what it saved",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, watchHelp)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		var before status.Report
		return a.show(ctx, "/status", asJSON, watch, func(w io.Writer, raw json.RawMessage) error {
			var r status.Report
			if err := json.Unmarshal(raw, &r); err != nil {
				return fmt.Errorf("the agent's status makes no sense: %w", err)
			}
			renderStatus(w, r, before, a.palette())
			before = r
			return nil
		})
	})
	return cmd
}

// page writes what one answer of the agent looks like to people.
type page func(w io.Writer, raw json.RawMessage) error

// show prints an endpoint's answer, once or again and again.
func (a *App) show(ctx context.Context, path string, asJSON, watch bool, people page) error {
	look := func(w io.Writer) error {
		c, err := a.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.Raw(ctx, http.MethodGet, path, nil)
		switch {
		case err != nil:
			return err
		case asJSON:
			return writeJSON(w, raw, watch)
		}
		return people(w, raw)
	}
	if !watch {
		return look(a.Out)
	}
	return a.watch(ctx, look, isTerminal(a.Out) && !asJSON)
}

func writeJSON(w io.Writer, raw json.RawMessage, oneLine bool) error {
	var b bytes.Buffer
	err := json.Indent(&b, bytes.TrimSpace(raw), "", "  ")
	if oneLine {
		b.Reset()
		err = json.Compact(&b, raw)
	}
	if err != nil {
		return fmt.Errorf("the agent's answer is not JSON: %w", err)
	}
	b.WriteByte('\n')
	_, err = w.Write(b.Bytes())
	return err
}

// watch looks every two seconds until it is interrupted, and goes on while the agent restarts. On a
// screen each page is written over the one before, line by line, so that nothing flickers.
func (a *App) watch(ctx context.Context, look func(io.Writer) error, screen bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		var page bytes.Buffer
		err := look(&page)
		if ctx.Err() != nil {
			return nil
		}
		text := page.String()
		if screen {
			if err != nil { // what was there stays, below the trouble
				text = a.palette().yellow("flurry: "+oneLine(err.Error())) + "\n"
			}
			text = overwrite(text, first)
		} else if err != nil {
			fmt.Fprintln(a.Err, "flurry:", oneLine(err.Error()))
		}
		if _, err := a.Out.Write([]byte(text)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// overwrite makes a page go over the one before: home, clear the rest of each line, clear what is below.
func overwrite(page string, first bool) string {
	home := "\x1b[H"
	if first {
		home = "\x1b[2J" + home
	}
	return home + strings.ReplaceAll(page, "\n", "\x1b[K\n") + "\x1b[J"
}

func (a *App) peersCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the other agents that are known",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, watchHelp)
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		return a.show(ctx, "/peers", asJSON, watch, func(w io.Writer, raw json.RawMessage) error {
			var peers []status.Peer
			if err := json.Unmarshal(raw, &peers); err != nil {
				return fmt.Errorf("the agent's list of peers makes no sense: %w", err)
			}
			if len(peers) == 0 {
				fmt.Fprintln(w, "no peers yet; agents on this network appear within seconds, others are named in peers.static")
				return nil
			}
			renderPeers(w, peers, a.palette(), true)
			return nil
		})
	})
	return cmd
}

// renderStatus answers the two questions first: does it work, and what did it save. before is the report
// of the look before, if there was one.
func renderStatus(w io.Writer, r, before status.Report, p palette) {
	connected := 0
	for _, peer := range r.Peers {
		if peer.State == "connected" {
			connected++
		}
	}
	verdict := p.green("working")
	if len(r.Problems) > 0 {
		verdict = p.yellow("working, with " + status.Count(len(r.Problems), "problem"))
	}
	fmt.Fprintf(w, "%s  %s, up %s, %s connected\n", verdict, "flurry "+clean(r.Version),
		duration(time.Duration(r.UptimeSeconds*float64(time.Second))), status.Count(connected, "peer"))
	for _, problem := range r.Problems {
		fmt.Fprintln(w, "  "+p.yellow("! ")+clean(problem))
	}
	if total := r.Bytes.FromPeers + r.Bytes.FromUpstream; total > 0 {
		fmt.Fprintf(w, "%s of %s came from peers instead of a central cache (%d %%)\n",
			p.bold(bytesText(r.Bytes.FromPeers)), bytesText(total), r.Bytes.FromPeers*100/total)
	}
	fmt.Fprintln(w)
	rows := savedRows(r, p)
	row := func(name, format string, args ...any) []cell {
		return []cell{{text: name}, {text: fmt.Sprintf(format, args...)}}
	}
	if live := liveText(r, before); live != "" {
		rows = append(rows, row("now", "%s", live))
	}
	rows = append(rows, [][]cell{
		row("peer id", "%s", orNone(clean(r.PeerID))),
		row("substituter", "%s", orNone(clean(strings.Join(r.Listen, ", ")))),
		row("sharing", "%s", clean(r.Sharing)),
		row("store", "%s, %s shareable", status.Count(r.Store.Paths, "path"), status.Number(int64(r.Store.ShareablePaths))),
		row("from", "peers %s, upstream %s, store %s", bytesText(r.Bytes.FromPeers), bytesText(r.Bytes.FromUpstream), bytesText(r.Bytes.FromStore)),
		row("to", "Nix %s, peers %s", bytesText(r.Bytes.ToNix), bytesText(r.Bytes.ToPeers)),
		row("on the wire", "from peers %s, from upstream %s, to peers %s", bytesText(r.Wire.FromPeers), bytesText(r.Wire.FromUpstream), bytesText(r.Wire.ToPeers)),
		row("narinfos", "%s, %s, %s to upstream", status.Count(int(r.NarInfo.Hits), "hit"), status.Count(int(r.NarInfo.Misses), "miss"), status.Count(int(r.NarInfo.UpstreamRequests), "request")),
		row("NARs", "%s served, %s failed, %s switched source, %s rejected, %s in flight", status.Number(r.NAR.Served), status.Number(r.NAR.Failed),
			status.Number(r.NAR.SwitchedSource), status.Number(r.NAR.Rejected), status.Number(int64(r.InFlight))),
		row("internet", "%s", internet(r.Internet)),
	}...)
	if r.Internet.Enabled {
		rows = append(rows, row("", "%s", internetUse(r.Internet)))
	}
	for i, u := range r.Upstreams {
		name := ""
		if i == 0 {
			name = "upstream"
		}
		rows = append(rows, []cell{{text: name}, upstreamCell(u, p)})
	}
	printTable(w, rows)
	if len(r.Peers) > 0 {
		fmt.Fprintln(w)
		renderPeers(w, r.Peers, p, false)
	}
}

// savedRows say what sharing saved over restarts. Seconds may be lost as well as gained.
func savedRows(r status.Report, p palette) (rows [][]cell) {
	if r.Savings == nil {
		return nil
	}
	of := func(name, when string, t savings.Totals) {
		text := when + " " + bytesText(t.FromPeers) + " from peers"
		if total := t.FromPeers + t.FromUpstream; total > 0 {
			text += fmt.Sprintf(" (%d %%)", t.FromPeers*100/total)
		}
		paint := p.green
		switch {
		case t.SecondsGained >= 0.5:
			text += ", " + duration(time.Duration(t.SecondsGained*float64(time.Second))) + " gained"
		case t.SecondsGained <= -0.5:
			paint = p.yellow
			text += ", " + duration(time.Duration(-t.SecondsGained*float64(time.Second))) + " lost"
		}
		rows = append(rows, []cell{{text: name}, {text: text, paint: paint}})
	}
	of("saved", "this month", r.Savings.ThisMonth)
	of("", "since "+r.Savings.SinceInstallation.Since.Local().Format("2006-01-02"), r.Savings.SinceInstallation)
	return rows
}

// liveText is what moved between two looks at the same agent, "" without a look before.
func liveText(r, before status.Report) string {
	seconds := r.UptimeSeconds - before.UptimeSeconds
	if before.Version == "" || r.Instance != before.Instance || seconds <= 0 {
		return ""
	}
	var parts []string
	for _, flow := range []struct {
		name     string
		now, was int64
	}{
		{"from peers", r.Bytes.FromPeers, before.Bytes.FromPeers}, {"from upstream", r.Bytes.FromUpstream, before.Bytes.FromUpstream},
		{"to Nix", r.Bytes.ToNix, before.Bytes.ToNix}, {"to peers", r.Bytes.ToPeers, before.Bytes.ToPeers},
	} {
		if flow.now > flow.was {
			parts = append(parts, rate(float64(flow.now-flow.was)/seconds)+" "+flow.name)
		}
	}
	if len(parts) == 0 {
		return "quiet"
	}
	return strings.Join(parts, ", ")
}

func upstreamCell(u status.Upstream, p palette) cell {
	text := strings.TrimSpace(clean(u.URL) + " " + millis(u.RTTMillis))
	if u.Reachable {
		if u.LastError != "" {
			text += " (lately: " + clean(u.LastError) + ")"
		}
		return cell{text: text}
	}
	if text += " not reachable"; u.LastError != "" {
		text += ": " + clean(u.LastError)
	}
	return cell{text: text, paint: p.yellow}
}

func internet(i status.Internet) string {
	if !i.Enabled {
		return "off"
	}
	text := "not reachable from outside"
	if i.Reachable {
		text = "reachable"
	}
	if i.Quiet {
		text = "left alone (paused, metered or on battery)"
	}
	text += ", " + status.Count(i.Agents, "agent") + ", " + status.Count(int(i.ProvidedKeys), "path") + " announced"
	if i.Relay {
		text += ", serving as a relay"
	}
	return text
}

// internetUse is what an agent does with the internet.
func internetUse(i status.Internet) string {
	text := fmt.Sprintf("prefers %s, %d of %s found, %s from there, ", clean(i.Prefer), i.Found, status.Count(int(i.Lookups), "look-up"), bytesText(i.BytesFrom))
	if i.UploadRate > 0 {
		text += rate(float64(i.UploadRate)) + " to there at most, "
	}
	if i.Server {
		return text + "answers the table's questions"
	}
	return text + "asks the table only"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// renderPeers lists peers; full adds whole ids and addresses.
func renderPeers(w io.Writer, peers []status.Peer, p palette, full bool) {
	head := []cell{{text: "PEER"}, {text: "STATE"}, {text: "VIA"}, {text: "RTT", right: true}, {text: "RATE", right: true},
		{text: "PATHS", right: true}, {text: "IN", right: true}, {text: "OUT", right: true}}
	if full {
		head = append(head, cell{text: "ADDRESS"})
	}
	for i := range head {
		head[i].paint = p.bold
	}
	rows := [][]cell{head}
	for _, peer := range peers {
		id := clean(peer.ID)
		if !full && len(id) > 16 {
			id = "…" + id[len(id)-12:] // the beginnings of peer ids are all alike
		}
		paint := p.yellow
		switch peer.State {
		case "connected":
			paint = p.green
		case "banned", "suspect":
			paint = p.red
		}
		row := []cell{{text: id}, {text: clean(peer.State), paint: paint}, {text: clean(peer.Via)}, {text: millis(peer.RTTMillis), right: true},
			{text: rate(peer.BytesPerSec), right: true}, {text: status.Number(int64(peer.Paths)), right: true},
			{text: bytesText(peer.BytesIn), right: true}, {text: bytesText(peer.BytesOut), right: true}}
		if full {
			note := strings.Join(peer.Addrs[:min(1, len(peer.Addrs))], "")
			if peer.Reason != "" {
				note = strings.TrimSpace(note + " (" + peer.Reason + ")")
			}
			row = append(row, cell{text: clean(note)})
		}
		rows = append(rows, row)
	}
	printTable(w, rows)
}
