package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/flurry-nix/flurry/config"
	"github.com/flurry-nix/flurry/standby"
	"github.com/flurry-nix/flurry/supervise"
)

const (
	// degradedRetry is how long an agent that could not start answers in this way, before it ends to be
	// started anew: short enough that what was mended is soon in use.
	degradedRetry = 30 * time.Second
	// degradedRequest bounds one request, both ways: there is hardly anything to say.
	degradedRequest = 5 * time.Second
	// What the configuration might say otherwise; it cannot be read.
	degradedStoreDir = "/nix/store"
	degradedPriority = 30
)

// wrongConfig is what "flurry agent" does when the configuration is wrong. Where systemd holds the port,
// going away would leave Nix with a socket that is silent for minutes: the process stays, tells what is
// wrong and answers that it has nothing, until it is restarted. handled is false elsewhere.
func wrongConfig(ctx context.Context, problems []config.Problem) (handled bool, err error) {
	if supervise.IsChild() {
		return false, nil
	}
	listeners, passed, err := supervise.Listeners()
	if err != nil || !passed {
		return false, err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	for _, p := range problems {
		log.Error("the configuration is wrong; Nix gets nothing from this agent", "problem", p.Error())
	}
	return true, serveDegraded(ctx, listeners, problems[0].Error())
}

// cannotStart serves in the same way for a while where the agent cannot be made, then returns err.
func cannotStart(ctx context.Context, listeners []net.Listener, log *slog.Logger, err error) error {
	log.Error("the agent cannot start; Nix gets nothing from it", "err", err, "retry", degradedRetry)
	ctx, cancel := context.WithTimeout(ctx, degradedRetry)
	defer cancel()
	if serr := serveDegraded(ctx, listeners, err.Error()); serr != nil {
		return serr
	}
	return err
}

// serveDegraded answers Nix that there is nothing, until ctx ends. why is shown by systemctl status.
func serveDegraded(ctx context.Context, listeners []net.Listener, why string) error {
	supervise.Ready()
	_, _ = daemon.SdNotify(false, "STATUS=Answering nothing but 404: "+why)
	done := make(chan struct{})
	alive, stop := context.WithCancel(ctx)
	go func() {
		defer close(done)
		supervise.KeepAlive(alive, func(ctx context.Context) error { return probe(ctx, listeners[0].Addr()) })
	}()
	defer func() { stop(); <-done }()
	srv := &http.Server{
		Handler:      standby.Handler(degradedStoreDir, degradedPriority),
		ReadTimeout:  degradedRequest,
		WriteTimeout: degradedRequest,
	}
	err := supervise.Serve(ctx, srv, listeners, stopGrace)
	supervise.Stopping()
	return err
}

// standIn answers Nix from the supervisor while no agent takes its connections: one that crashes for
// ever, or hangs. Where systemd holds the port flurry-standby does the same.
func standIn(cfg *config.Config, log *slog.Logger) func(context.Context, []*net.TCPListener) {
	return func(ctx context.Context, listeners []*net.TCPListener) {
		var patient []net.Listener
		for _, ln := range listeners {
			p, err := standby.NewPatient(ln, standby.DefaultPatience, standby.Tell(log))
			if err != nil {
				log.Error("Nix gets no answer while no agent gives one", "err", err)
				continue
			}
			patient = append(patient, p)
		}
		srv := &http.Server{
			Handler:      standby.Handler(cfg.Store.Dir, cfg.Substituter.Priority),
			ReadTimeout:  degradedRequest,
			WriteTimeout: degradedRequest,
		}
		if err := supervise.Serve(ctx, srv, patient, 0); err != nil {
			log.Error("Nix gets no answer while no agent gives one", "err", err)
		}
	}
}
