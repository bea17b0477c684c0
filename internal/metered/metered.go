// Package metered tells whether the machine's link is paid by the byte, as NetworkManager knows or
// guesses it. It only listens; without NetworkManager, or without a system bus, no link is metered.
//
// Format: org.freedesktop.NetworkManager, property Metered (NMMetered), of NetworkManager's D-Bus API.
package metered

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	service  = "org.freedesktop.NetworkManager"
	path     = dbus.ObjectPath("/org/freedesktop/NetworkManager")
	property = "Metered"

	// A bus that cannot be reached is tried again that often: NetworkManager may be installed, or the bus
	// restarted, while the agent runs.
	retryEvery = time.Minute
	// callPatience bounds one question to the bus.
	callPatience = 5 * time.Second
)

// NetworkManager's NMMetered values that mean "paid by the byte".
const (
	meteredYes      = 1
	meteredGuessYes = 3
)

// Watch calls changed with what is so whenever it becomes known or changes, until ctx ends. It starts
// from "not metered", which is not told. changed is called by one goroutine.
func Watch(ctx context.Context, log *slog.Logger, changed func(metered bool)) {
	w := &watcher{tell: changed}
	for ctx.Err() == nil {
		err := w.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		w.set(false) // nobody knows
		log.Debug("NetworkManager cannot be asked whether the network is metered", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryEvery):
		}
	}
}

type watcher struct {
	metered bool
	tell    func(bool)
}

func (w *watcher) set(metered bool) {
	if w.metered != metered {
		w.metered = metered
		w.tell(metered)
	}
}

// address is the system bus's.
func address() string {
	if a := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return "unix:path=/run/dbus/system_bus_socket"
}

// listen follows the property until the bus is lost or ctx ends. It subscribes before it asks, so that no
// change is missed in between.
func (w *watcher) listen(ctx context.Context) error {
	conn, err := dbus.Connect(address(), dbus.WithContext(ctx))
	if err != nil {
		return err
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchObjectPath(path), dbus.WithMatchSender(service),
		dbus.WithMatchInterface("org.freedesktop.DBus.Properties"), dbus.WithMatchMember("PropertiesChanged")); err != nil {
		return err
	}
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, service)); err != nil {
		return err
	}
	w.ask(ctx, conn)
	for {
		select {
		case s, ok := <-signals:
			if !ok {
				return dbus.ErrClosed
			}
			w.heard(ctx, conn, s)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ask reads the property; where NetworkManager does not run, nothing is metered.
func (w *watcher) ask(ctx context.Context, conn *dbus.Conn) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	var v dbus.Variant
	// No auto-start: whether NetworkManager runs is none of our business.
	call := conn.Object(service, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, service, property)
	if call.Store(&v) != nil {
		w.set(false)
		return
	}
	w.set(means(v))
}

func means(v dbus.Variant) bool {
	n, _ := v.Value().(uint32)
	return n == meteredYes || n == meteredGuessYes
}

// heard takes a signal, of which another program chose every part.
func (w *watcher) heard(ctx context.Context, conn *dbus.Conn, s *dbus.Signal) {
	switch s.Name {
	case "org.freedesktop.DBus.NameOwnerChanged": // NetworkManager came or went
		w.ask(ctx, conn)
	case "org.freedesktop.DBus.Properties.PropertiesChanged":
		if len(s.Body) < 3 || s.Path != path {
			return
		}
		if name, ok := s.Body[0].(string); !ok || name != service {
			return
		}
		if values, ok := s.Body[1].(map[string]dbus.Variant); ok {
			if v, ok := values[property]; ok {
				w.set(means(v))
				return
			}
		}
		if stale, ok := s.Body[2].([]string); ok {
			for _, name := range stale {
				if name == property {
					w.ask(ctx, conn)
				}
			}
		}
	}
}
