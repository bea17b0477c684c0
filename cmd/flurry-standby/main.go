// Command flurry-standby answers Nix when the agent, on the same systemd socket, does not: see package
// standby. It is a program of its own, small, so that whatever breaks the agent leaves it whole.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/flurry-nix/flurry/standby"
	"github.com/flurry-nix/flurry/supervise"
)

// requestTime bounds one request, both ways: there is hardly anything to say.
const requestTime = 5 * time.Second

func main() {
	priority := flag.Int("priority", 30, "place among Nix's substituters")
	storeDir := flag.String("store-dir", "/nix/store", "directory of the Nix store")
	patience := flag.Duration("patience", standby.DefaultPatience, "how long a connection must have waited")
	flag.Parse()
	if flag.NArg() > 0 || *patience <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *storeDir, *priority, *patience); err != nil {
		fmt.Fprintln(os.Stderr, "flurry-standby:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, storeDir string, priority int, patience time.Duration) error {
	listeners, ok, err := supervise.Listeners()
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("systemd passed no socket; it is started with flurry.socket, not by hand")
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("see", "systemctl status flurry")
	var patient []net.Listener
	for _, ln := range listeners {
		t, ok := ln.(*net.TCPListener)
		if !ok {
			return fmt.Errorf("%s is no TCP socket; correct flurry.socket", ln.Addr())
		}
		p, err := standby.NewPatient(t, patience, standby.Tell(log))
		if err != nil {
			return err
		}
		patient = append(patient, p)
	}
	srv := &http.Server{Handler: standby.Handler(storeDir, priority), ReadTimeout: requestTime, WriteTimeout: requestTime}
	return supervise.Serve(ctx, srv, patient, 0)
}
