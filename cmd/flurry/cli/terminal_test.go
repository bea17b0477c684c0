//go:build linux

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/status"
)

// terminal opens a pseudo-terminal: the program's end, and all that was written to it once it is closed.
func terminal(t *testing.T) (end *os.File, written func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	end, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(end.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120}); err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&all, master) // ends with EIO when the other end is closed
	}()
	return end, func() string {
		end.Close()
		<-read
		master.Close()
		return strings.ReplaceAll(all.String(), "\r\n", "\n")
	}
}

// golden compares with a file, in which escapes are readable.
func golden(t *testing.T, name, got string) {
	t.Helper()
	got = strings.ReplaceAll(got, "\x1b", "␛")
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// onTerminal runs a page of the full report's as a command would show it there.
func onTerminal(t *testing.T, env []string, show func(a *App, w io.Writer)) string {
	t.Helper()
	end, written := terminal(t)
	a := &App{Out: end, Err: end, Env: env}
	show(a, a.Out)
	return written()
}

func TestColoursOnATerminalAndNowhereElse(t *testing.T) {
	time.Local = time.UTC
	status1 := func(a *App, w io.Writer) { renderStatus(w, fullReport(), status.Report{}, a.palette()) }
	golden(t, "status.terminal", onTerminal(t, nil, status1))
	golden(t, "peers.terminal", onTerminal(t, nil, func(a *App, w io.Writer) { renderPeers(w, fullReport().Peers, a.palette(), true) }))
	for _, env := range []string{"NO_COLOR=1", "TERM=dumb"} {
		if got := onTerminal(t, []string{env}, status1); strings.Contains(got, "\x1b") {
			t.Errorf("with %s: %q", env, got)
		}
	}
}

func TestAWatchedPageIsWrittenOverTheOneBefore(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	got := onTerminal(t, nil, func(a *App, _ io.Writer) {
		err := a.watch(ctx, func(w io.Writer) error {
			fmt.Fprintln(w, "one")
			fmt.Fprintln(w, "two")
			time.AfterFunc(100*time.Millisecond, stop)
			return nil
		}, isTerminal(a.Out))
		if err != nil {
			t.Error(err)
		}
	})
	if want := "\x1b[2J\x1b[Hone\x1b[K\ntwo\x1b[K\n\x1b[J"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAFetchShowsABarWithRateAndTimeLeft(t *testing.T) {
	got := onTerminal(t, nil, func(a *App, _ io.Writer) {
		p := &progress{bar: a.Err, total: 100e6, count: 4, stop: make(chan struct{})}
		p.finished.Store(2)
		p.drawing.Go(p.draw)
		for range 4 {
			p.add(10e6, true)
			time.Sleep(redraw)
		}
		p.finish()
	})
	if !strings.Contains(got, " of 100 MB  2/4 paths") || !strings.Contains(got, "MB/s  ") || !strings.Contains(got, " left") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("%q", got)
	}
}

func TestPeersAreWatchedToo(t *testing.T) {
	dir := t.TempDir()
	ln, err := control.Listen([]string{filepath.Join(dir, control.SocketName)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, ln, control.Handler(control.Agent{Report: fullReport}), nil) }()
	out := &waitFor{text: "\n", then: stop}
	app := &App{Out: out, Err: io.Discard, Env: []string{"FLURRY_SOCKET=" + filepath.Join(dir, control.SocketName)}}
	if status := app.Main(ctx, []string{"peers", "--watch", "--json"}); status != 0 {
		t.Errorf("status %d", status)
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	var peers []status.Peer
	if err := json.Unmarshal([]byte(line), &peers); err != nil || len(peers) != 2 {
		t.Errorf("%v: %q", err, line)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
