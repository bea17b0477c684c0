// Command flurry is the agent and its command line. This package only wires: configuration, parts, run,
// shut down.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/flurry-nix/flurry/cmd/flurry/cli"
	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/p2p"
	"github.com/flurry-nix/flurry/supervise"
)

// Stamped by the linker, see the Makefile.
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	app := &cli.App{Agent: runAgent, WrongConfig: wrongConfig, Secret: p2p.GenerateSecret, Version: version, Commit: commit}
	status := app.Main(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}

// runAgent is the body of "flurry agent". Where systemd or a parent of the same program passed
// listeners it is the agent; else it is that parent, which owns the port and keeps an agent alive.
func runAgent(ctx context.Context, call cli.AgentCall) error {
	cfg, log := call.Config, newLogger(call.Config.Log)
	listeners, passed, err := supervise.Listeners()
	if err != nil {
		return err
	}
	if !passed {
		if err := os.MkdirAll(cfg.State.Dir, 0o700); err != nil {
			return fmt.Errorf("%w; make it writable or set state.dir", err)
		}
		return supervise.Run(ctx, supervise.Config{
			Addrs: cfg.Substituter.Listen, Args: call.Args, Socket: handoverSocket(cfg), Log: log,
			StandIn: standIn(cfg, log),
		})
	}
	a, err := newAgent(cfg, log)
	if err != nil {
		return cannotStart(ctx, listeners, log, err)
	}
	a.socket = call.Socket
	return a.run(ctx, listeners)
}

// handoverSocket is where a new supervisor takes listeners over from an orphaned agent.
func handoverSocket(cfg *config.Config) string { return filepath.Join(cfg.State.Dir, "handover.sock") }

// newLogger logs to stderr, as text or JSON.
func newLogger(cfg config.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
