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

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/status"
)

// watchInterval is between two looks with --watch: fast enough to follow a copy.
const watchInterval = 2 * time.Second

func (a *App) statusCommand() *cobra.Command {
	var asJSON, watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell whether the agent works, and what it saved",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&watch, "watch", false, "print anew every 2 s until interrupted; with --json, one object a line")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		if watch {
			return a.watchStatus(ctx, asJSON)
		}
		c, err := a.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return a.showStatus(ctx, c, a.Out, asJSON, false)
	})
	return cmd
}

// showStatus writes to w, which belongs to what goes to a.Out.
func (a *App) showStatus(ctx context.Context, c *control.Client, w io.Writer, asJSON, oneLine bool) error {
	raw, err := c.Raw(ctx, http.MethodGet, "/status", nil)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(w, raw, oneLine)
	}
	var r status.Report
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("the agent's status makes no sense: %w", err)
	}
	renderStatus(w, r, a.palette())
	return nil
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

// watchStatus goes on while the agent restarts.
func (a *App) watchStatus(ctx context.Context, asJSON bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var page bytes.Buffer
		c, err := a.dial()
		if err == nil {
			err = a.showStatus(ctx, c, &page, asJSON, true)
			c.Close()
		}
		if ctx.Err() != nil {
			return nil
		}
		if isTerminal(a.Out) && !asJSON {
			fmt.Fprint(a.Out, "\x1b[H\x1b[2J") // home, clear
		}
		if err != nil {
			fmt.Fprintln(a.Err, "flurry:", oneLine(err.Error()))
		}
		if _, err := page.WriteTo(a.Out); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (a *App) peersCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the other agents that are known",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		c, err := a.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		if asJSON {
			raw, err := c.Raw(ctx, http.MethodGet, "/peers", nil)
			if err != nil {
				return err
			}
			return writeJSON(a.Out, raw, false)
		}
		peers, err := c.Peers(ctx)
		if err != nil {
			return err
		}
		if len(peers) == 0 {
			fmt.Fprintln(a.Out, "no peers yet; agents on this network appear within seconds, others are named in peers.static")
			return nil
		}
		renderPeers(a.Out, peers, a.palette(), true)
		return nil
	})
	return cmd
}

// renderStatus answers the two questions first: does it work, and what did it save.
func renderStatus(w io.Writer, r status.Report, p palette) {
	connected := 0
	for _, peer := range r.Peers {
		if peer.State == "connected" {
			connected++
		}
	}
	verdict := p.green("working")
	if len(r.Problems) > 0 {
		verdict = p.yellow("working, with " + count(len(r.Problems), "problem"))
	}
	fmt.Fprintf(w, "%s  %s, up %s, %s connected\n", verdict, "flurry "+clean(r.Version),
		duration(time.Duration(r.UptimeSeconds*float64(time.Second))), count(connected, "peer"))
	for _, problem := range r.Problems {
		fmt.Fprintln(w, "  "+p.yellow("! ")+clean(problem))
	}
	if total := r.Bytes.FromPeers + r.Bytes.FromUpstream; total > 0 {
		fmt.Fprintf(w, "%s of %s came from peers instead of a central cache (%d %%)\n",
			p.bold(bytesText(r.Bytes.FromPeers)), bytesText(total), r.Bytes.FromPeers*100/total)
	}
	fmt.Fprintln(w)
	row := func(name, format string, args ...any) []cell {
		return []cell{{text: name}, {text: fmt.Sprintf(format, args...)}}
	}
	rows := [][]cell{
		row("peer id", "%s", orNone(clean(r.PeerID))),
		row("substituter", "%s", orNone(clean(strings.Join(r.Listen, ", ")))),
		row("sharing", "%s", clean(r.Sharing)),
		row("store", "%s, %s shareable", count(r.Store.Paths, "path"), number(int64(r.Store.ShareablePaths))),
		row("from", "peers %s, upstream %s, store %s", bytesText(r.Bytes.FromPeers), bytesText(r.Bytes.FromUpstream), bytesText(r.Bytes.FromStore)),
		row("to", "Nix %s, peers %s", bytesText(r.Bytes.ToNix), bytesText(r.Bytes.ToPeers)),
		row("on the wire", "from peers %s, from upstream %s, to peers %s", bytesText(r.Wire.FromPeers), bytesText(r.Wire.FromUpstream), bytesText(r.Wire.ToPeers)),
		row("narinfos", "%s, %s, %s to upstream", count(int(r.NarInfo.Hits), "hit"), count(int(r.NarInfo.Misses), "miss"), count(int(r.NarInfo.UpstreamRequests), "request")),
		row("NARs", "%s served, %s failed, %s switched source, %s rejected, %s in flight", number(r.NAR.Served), number(r.NAR.Failed),
			number(r.NAR.SwitchedSource), number(r.NAR.Rejected), number(int64(r.InFlight))),
		row("internet", "%s", internet(r.Internet)),
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
	text += ", " + count(i.Agents, "agent") + ", " + count(int(i.ProvidedKeys), "path") + " announced"
	if i.Relay {
		text += ", serving as a relay"
	}
	return text
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
			{text: rate(peer.BytesPerSec), right: true}, {text: number(int64(peer.Paths)), right: true},
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
