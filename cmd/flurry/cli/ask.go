package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/status"
)

func (a *App) idCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "id",
		Short: "Print this agent's addresses with its peer id, for another's peers.static",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			id, err := c.ID(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, clean(id.PeerID))
			for _, addr := range id.Addrs {
				fmt.Fprintln(a.Out, clean(addr))
			}
			return nil
		}),
	}
}

func (a *App) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pause [DURATION]",
		Short: "Stop sharing with peers, for a while or until resumed; substituting goes on",
		Args:  cobra.MaximumNArgs(1),
		RunE: a.run(func(ctx context.Context, args []string) error {
			var d time.Duration
			if len(args) == 1 {
				var err error
				if d, err = config.ParseDuration(args[0]); err != nil || d == 0 {
					return fmt.Errorf("%q is no time to pause for; write 10m, 2h, 1d or the like: %w", args[0], ErrUsage)
				}
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			s, err := c.Pause(ctx, d)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, describeSharing(s))
			return nil
		}),
	}
}

func (a *App) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Share with peers again", Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			s, err := c.Resume(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.Out, describeSharing(s))
			return nil
		}),
	}
}

func describeSharing(s control.Sharing) string {
	switch {
	case !s.Paused && s.Metered:
		return `not sharing: the network is metered; limits.metered = "no" shares all the same`
	case !s.Paused:
		return "sharing"
	case s.Until == nil:
		return `paused until "flurry resume"`
	}
	return "paused until " + s.Until.Local().Format("2006-01-02 15:04:05")
}

func (a *App) cacheCommand() *cobra.Command {
	cache := &cobra.Command{
		Use: "cache", Short: "Manage what the agent remembers",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf(`say what to do: "flurry cache clear"`)
			}
			return fmt.Errorf(`unknown command %q for "flurry cache"; there is "clear"`, args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args never lets it run
	}
	var narinfos, negative, nars bool
	clearCmd := &cobra.Command{
		Use: "clear", Short: "Forget cached narinfos and spooled NARs", Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			what := control.ClearAll
			switch {
			case narinfos:
				what = control.ClearNarInfos
			case negative:
				what = control.ClearNegative
			case nars:
				what = control.ClearNARs
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			defer c.Close()
			n, err := c.Clear(ctx, what)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.Out, "forgot %s, %s, %s (%s)\n", status.Count(n.NarInfos, "narinfo"), status.Count(n.Negative, "miss"), status.Count(n.NARs, "NAR"), bytesText(n.Bytes))
			return nil
		}),
	}
	f := clearCmd.Flags()
	f.BoolVar(&narinfos, "narinfos", false, "only narinfos, misses included")
	f.BoolVar(&negative, "negative", false, "only misses: ask upstream again for what it did not have")
	f.BoolVar(&nars, "nars", false, "only spooled NARs")
	clearCmd.MarkFlagsMutuallyExclusive("narinfos", "negative", "nars")
	cache.AddCommand(clearCmd)
	return cache
}

func (a *App) locateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "locate PATH…",
		Short: "Tell who has a store path, and what would be used",
		Long:  "Tell who has a store path, and what would be used. " + pathHelp + "\nExit status 1 if nobody has one of them.",
		Args:  cobra.MinimumNArgs(1),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: one object per path, in a list")
	cmd.RunE = a.run(func(ctx context.Context, args []string) error {
		targets, err := parseTargets(args)
		if err != nil {
			return err
		}
		c, err := a.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		var all []control.Location
		missing := 0
		for _, t := range targets {
			loc, err := c.Locate(ctx, t)
			if err != nil {
				return err
			}
			if len(loc.Sources) == 0 {
				missing++
			}
			all = append(all, loc)
			if !asJSON {
				a.printLocation(t, loc)
			}
		}
		if asJSON {
			if err := a.printJSON(all); err != nil {
				return err
			}
		}
		if missing > 0 {
			return fmt.Errorf("nobody has %d of %s; the agent may not have reached everyone: see \"flurry status\"", missing, status.Count(len(targets), "path"))
		}
		return nil
	})
	return cmd
}

func (a *App) printLocation(t control.Target, loc control.Location) {
	p := a.palette()
	name := loc.Path
	if name == "" {
		name = t.String()
	}
	fmt.Fprint(a.Out, p.bold(clean(name)))
	if loc.NarSize > 0 {
		fmt.Fprint(a.Out, "  ", bytesText(loc.NarSize))
	}
	fmt.Fprintln(a.Out)
	if len(loc.Sources) == 0 {
		fmt.Fprintln(a.Out, "  "+p.red("nobody has it"))
		return
	}
	var rows [][]cell
	for _, s := range loc.Sources {
		mark := cell{text: ""}
		if s.Use {
			mark = cell{text: "use", paint: p.green}
		}
		rows = append(rows, []cell{{text: ""}, mark, {text: clean(s.Kind)}, {text: clean(s.ID)}, {text: clean(s.Via)},
			{text: millis(s.RTTMillis), right: true}, {text: rate(s.BytesPerSec), right: true}, {text: clean(s.Note)}})
	}
	printTable(a.Out, rows)
}

const pathHelp = "PATH is a store path, its base name, its 32-character hash, or a link to it such as ./result."

func parseTargets(args []string) ([]control.Target, error) {
	var targets []control.Target
	for _, arg := range args {
		t, err := parseTarget(arg)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrUsage)
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// parseTarget follows links until something looks like a store path: the path need not be there, but
// the link's text names it.
func parseTarget(arg string) (control.Target, error) {
	const maxLinks = 10 // the way from ./result through a profile takes three
	name := strings.TrimSuffix(arg, "/")
	for range maxLinks {
		if t, err := control.ParseTarget(name); err == nil {
			return t, nil
		}
		next, err := os.Readlink(name)
		if err != nil {
			break
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(name), next)
		}
		name = next
	}
	return control.ParseTarget(arg)
}

func (a *App) printJSON(v any) error {
	enc := json.NewEncoder(a.Out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
