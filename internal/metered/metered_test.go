package metered

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startBus runs a real dbus-daemon and makes it the system bus. It returns what ends it.
func startBus(t *testing.T, dir string) (stop func()) {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		if os.Getenv("FLURRY_REQUIRE_ALL") == "1" {
			t.Fatal("dbus-daemon is not installed: apt-get install dbus")
		}
		t.Skip("dbus-daemon is not installed: apt-get install dbus")
	}
	socket := filepath.Join(dir, "bus")
	os.Remove(socket)
	conf := filepath.Join(dir, "bus.conf")
	text := fmt.Sprintf(`<busconfig><type>system</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/></policy></busconfig>`, socket)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+conf, "--nofork", "--print-address=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "unix:") {
		t.Fatalf("dbus-daemon says %q, %v", line, err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	return func() {
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
	}
}

// manager stands for NetworkManager.
type manager struct {
	conn  *dbus.Conn
	props *prop.Properties
}

func startManager(t *testing.T, metered uint32) *manager {
	t.Helper()
	conn, err := dbus.Connect(address())
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{conn: conn}
	m.props, err = prop.Export(conn, path, prop.Map{service: {property: {Value: metered, Emit: prop.EmitTrue}, "State": {Value: uint32(70), Emit: prop.EmitTrue}}})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := conn.RequestName(service, dbus.NameFlagDoNotQueue); err != nil || r != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(r, err)
	}
	return m
}

func TestWhatNetworkManagerSaysIsFollowed(t *testing.T) {
	stop := startBus(t, t.TempDir())
	defer stop()
	m := startManager(t, meteredGuessYes)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan bool, 10)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Watch(ctx, slog.New(slog.NewTextHandler(t.Output(), nil)), func(b bool) { told <- b })
	}()
	defer func() {
		cancel()
		<-ended
	}()
	want := func(b bool, what string) {
		t.Helper()
		select {
		case got := <-told:
			if got != b {
				t.Fatalf("%s: told %v", what, got)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s: nothing is told", what)
		}
	}
	want(true, "at the start, a guess")
	m.props.SetMust(service, "State", uint32(20)) // another property
	m.props.SetMust(service, property, uint32(2))
	want(false, "no")
	m.props.SetMust(service, property, uint32(1))
	want(true, "yes")
	m.props.SetMust(service, property, uint32(0))
	want(false, "unknown")
	m.props.SetMust(service, property, uint32(meteredYes))
	want(true, "yes again")
	m.conn.Close()
	want(false, "NetworkManager is gone")
	m = startManager(t, meteredYes)
	want(true, "NetworkManager is back")
	m.conn.Close()
	want(false, "and gone")
	if len(told) != 0 {
		t.Error("told more than changed")
	}
}

func TestWithoutABusNothingIsMetered(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	Watch(ctx, slog.New(slog.DiscardHandler), func(bool) { t.Error("told") })
}

func TestStrangeSignalsChangeNothing(t *testing.T) {
	w := &watcher{tell: func(bool) { t.Error("told") }}
	for _, body := range [][]any{nil, {1, 2, 3}, {service, "x", []string{}}, {service, map[string]dbus.Variant{}, 5}, {"other", map[string]dbus.Variant{property: dbus.MakeVariant(uint32(1))}, []string{}}, {service, map[string]dbus.Variant{property: dbus.MakeVariant("yes")}, []string{}}} {
		w.heard(t.Context(), nil, &dbus.Signal{Name: "org.freedesktop.DBus.Properties.PropertiesChanged", Path: path, Body: body})
	}
}
