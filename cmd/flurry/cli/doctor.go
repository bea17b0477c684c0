package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/doctor"
	"github.com/flurry-nix/flurry/status"
)

// doctorPatience bounds the whole: the agent takes at most 8 s for its part.
const doctorPatience = 20 * time.Second

func (a *App) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for whatever could be wrong, and name what mends it",
		Long: "Check Nix's configuration, the agent's port, keys, proxies, store, disk, central caches, clock, multicast,\n" +
			"reachability and neighbours. Each finding says what, why it matters and what mends it; docs/doctor.md lists them.\n" +
			"Takes a few seconds: neighbours are asked. Exit status 1 if anything fails.",
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		r := a.examine(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if asJSON {
			if err := a.printJSON(r); err != nil {
				return err
			}
		} else {
			renderDoctor(a.Out, r, a.palette())
		}
		if !r.Healthy {
			failed := 0
			for _, f := range r.Findings {
				if f.Level == doctor.Fail {
					failed++
				}
			}
			return fmt.Errorf("%s failed; the findings name what mends them", status.Count(failed, "check"))
		}
		return nil
	})
	return cmd
}

// examine asks the agent and looks around here, both at once.
func (a *App) examine(ctx context.Context) doctor.Report {
	ctx, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	here := doctor.Here{Env: a.Env, Listen: a.listens()}
	c, err := a.dial()
	if err != nil {
		here.AgentErr = err
		return doctor.NewReport(here.Check(ctx)...)
	}
	defer c.Close()
	var findings []doctor.Finding
	var wg sync.WaitGroup
	wg.Go(func() {
		list, err := c.Doctor(ctx)
		if err != nil {
			list = []doctor.Finding{{Check: doctor.CheckAgent, ID: "agent-mute", Level: doctor.Fail, What: oneLine(err.Error()),
				Why: "What only the agent knows cannot be checked.", Remedy: "systemctl restart flurry: it may be of another version than this program"}}
		}
		findings = list
	})
	r, err := c.Status(ctx)
	if err == nil {
		here.Instance, here.Listen = r.Instance, r.Listen
	}
	if k, kerr := c.Keys(ctx); kerr == nil {
		here.Keys = append(k.Public, k.Private...)
	}
	here.AgentErr = err
	local := here.Check(ctx)
	wg.Wait()
	return doctor.NewReport(append(local, findings...)...)
}

// listens is where the agent would answer by the configuration, for when none can be asked.
func (a *App) listens() []string {
	cfg, problems := config.Load(a.config, nil, a.Env)
	if len(problems) > 0 {
		cfg = config.Default(config.DefaultStateDir(a.Env))
	}
	return cfg.Substituter.Listen
}

// renderDoctor shows a line per check, and for what is not well also why and what mends it.
func renderDoctor(w io.Writer, r doctor.Report, p palette) {
	marks := map[string]string{doctor.OK: p.green("ok  "), doctor.Note: "note", doctor.Warn: p.yellow("warn"), doctor.Fail: p.red("FAIL")}
	width := 0
	for _, f := range r.Findings {
		width = max(width, len(f.Check))
	}
	for _, f := range r.Findings {
		mark := marks[f.Level]
		if mark == "" {
			mark = "?   " // of a newer agent
		}
		fmt.Fprintf(w, "%s  %-*s  %s\n", mark, width, clean(f.Check), clean(f.What))
		if f.Level == doctor.OK {
			continue
		}
		indent := strings.Repeat(" ", 6+width+2)
		for _, line := range []struct{ label, text string }{{"", f.Why}, {"mend:  ", f.Remedy}, {"NixOS: ", f.NixOS}, {"id:    ", f.ID}} {
			if line.text != "" {
				fmt.Fprintln(w, indent+p.dim(line.label)+clean(line.text))
			}
		}
	}
}
