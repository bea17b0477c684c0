//go:build linux

// Command bench measures the real flurry binary against its baselines, by turns, on this machine. It
// prints medians, spreads and ratios and writes them as JSON; it asserts nothing.
//
// usage: bench [-row NAME,…] [-rounds N] [-quick] [-json FILE] [-dir DIR] -flurry BINARY
//
// Everything listens on loopback. Absolute figures do not travel between machines, ratios do.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// row is one line of the table: what is measured, and what is asked of it.
type row struct {
	name, what, reach string
	run               func(*bench) (*result, error)
}

// bench is what rows share.
type bench struct {
	ctx    context.Context
	dir    string // of corpora, kept between runs
	tmp    string // of this run: states, logs, configurations
	flurry string // the binary
	rounds int
	quick  bool
	key    *signer

	harmoniaBinary string // harmonia-cache, for comparison; "" for none
	before         string // an older flurry, for comparison; "" for none
	spool          string // where the receiver of the row "sixteen" keeps its state; "": in tmp
}

func rows() []row {
	return slices.Concat(localRows(), peerRows(), upstreamRows(), scaleRows(), nixRows())
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case libp2pServe:
			serveLibp2p(os.Args[2:])
		case trivialServe:
			serveTrivial()
		case proxyServe:
			serveProxy(os.Args[2:])
		case floorServe:
			serveFloor(os.Args[2:])
		}
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	b := &bench{}
	var only, out string
	cache, _ := os.UserCacheDir()
	flag.StringVar(&only, "row", "", "rows to run, by name, with commas; empty: all")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds of each row, the contenders by turns")
	flag.BoolVar(&b.quick, "quick", false, "less of everything, for a look; not for figures")
	flag.StringVar(&out, "json", "", "file for the results")
	flag.StringVar(&b.dir, "dir", filepath.Join(cache, "flurry-lab", "bench"), "where corpora are made and kept, about 30 GiB with every row")
	flag.StringVar(&b.flurry, "flurry", "bin/flurry", "the binary to measure")
	flag.StringVar(&b.harmoniaBinary, "harmonia", os.Getenv("HARMONIA"), "a harmonia-cache to measure beside it; default $HARMONIA")
	flag.StringVar(&b.before, "before", os.Getenv("BEFORE"), "another flurry to measure beside it in the rows of local serving, upstream, xz and cpu; default $BEFORE")
	flag.StringVar(&b.spool, "spool", os.Getenv("SPOOL"), "directory for the spool of the row sixteen, 18 GB, where the disk would bind; default $SPOOL")
	flag.Parse()
	chosen, err := choose(rows(), only)
	if err != nil {
		return err
	}
	if b.flurry, err = filepath.Abs(b.flurry); err != nil {
		return err
	}
	for _, tool := range []string{b.flurry, "nginx", "nix-store", "sqlite3", "xz"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w; run scripts/install-deps test and make build", err)
		}
	}
	var stop context.CancelFunc
	b.ctx, stop = signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if b.tmp, err = os.MkdirTemp("", "flurry-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.tmp)
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	b.key = newSigner()
	report := report{Date: time.Now().UTC().Format(time.RFC3339), Cores: runtime.NumCPU(), CPU: cpuModel(), Rounds: b.rounds, Quick: b.quick}
	var failed error
	for _, r := range chosen {
		fmt.Fprintf(os.Stderr, "%s  %s …\n", time.Now().Format("15:04:05"), r.name)
		began := processors()
		res, err := r.run(b)
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		if err != nil { // the other rows' figures are as good without it
			failed = errors.Join(failed, fmt.Errorf("%s: %w", r.name, err))
			fmt.Fprintf(os.Stderr, "%s failed: %v\n", r.name, err)
			continue
		}
		res.Row, res.What, res.Reach = r.name, r.what, r.reach
		res.plain("% of the "+hostTook, processors().since(began))
		report.Results = append(report.Results, res)
		res.print(os.Stdout)
		if err := report.write(out); err != nil {
			return err
		}
	}
	report.printRatios(os.Stdout)
	return failed
}

// write puts the results so far into a file, "" for none.
func (r *report) write(name string) error {
	if name == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(text, '\n'), 0o644)
}

func choose(all []row, only string) ([]row, error) {
	if only == "" {
		return all, nil
	}
	var out []row
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(all, func(r row) bool { return r.name == name })
		if i < 0 {
			var names []string
			for _, r := range all {
				names = append(names, r.name)
			}
			return nil, fmt.Errorf("no row %q; there are %s", name, strings.Join(names, ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}
