package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/flurry-nix/flurry/cmd/flurry/control"
	"github.com/flurry-nix/flurry/status"
)

func TestBytesHaveThreeDigitsAndAUnit(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.00 kB", 9994: "9.99 kB", 9996: "10.0 kB", 99_949: "99.9 kB",
		99_951: "100 kB", 999_499: "999 kB", 999_500: "1.00 MB", 1_500_000_000: "1.50 GB", 9e18: "9.00 EB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestDurationsAreReadable(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s",
		3*time.Hour + 5*time.Minute: "3h05m", 49 * time.Hour: "2d01h"} {
		if got := duration(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestTheBarFitsItsTerminal(t *testing.T) {
	if got, want := barLine(100, 45, 100, 1, 3, 11), "[##################----------------------]  45 %  45 B of 100 B  1/3 paths  11 B/s  5s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for width := range 120 {
		for _, have := range []int64{-5, 0, 50, 100, 200} {
			line := barLine(width, have, 100, 1, 3, 1e9)
			if n := utf8.RuneCountInString(line); n > max(width-1, 0) {
				t.Errorf("width %d: %d columns: %q", width, n, line)
			}
		}
	}
	if line := barLine(100, 0, 0, 0, 0, 0); !strings.Contains(line, "100 %") {
		t.Errorf("nothing to do is not done: %q", line)
	}
}

func TestTheRateFollowsTheLastSeconds(t *testing.T) {
	m, now := meter{}, time.Unix(0, 0)
	if m.note(now, 0); m.rate() != 0 {
		t.Error("a rate without a past")
	}
	for i := range int64(100) { // 1 kB/s, then nothing
		m.note(now.Add(time.Duration(i)*time.Second), min(i, 50)*1000)
		if i == 50 && m.rate() != 1000 {
			t.Errorf("%f B/s, want 1000", m.rate())
		}
	}
	if m.rate() != 0 || len(m.at) > 10 {
		t.Errorf("%f B/s from %d samples, long after the last byte", m.rate(), len(m.at))
	}
}

func TestColoursDoNotShiftColumns(t *testing.T) {
	var plain, coloured bytes.Buffer
	renderStatus(&plain, fullReport(), status.Report{}, palette{})
	renderStatus(&coloured, fullReport(), status.Report{}, palette{on: true})
	if strings.Contains(plain.String(), "\x1b") {
		t.Error("colour where there is no terminal")
	}
	text := coloured.String()
	for _, code := range []string{"\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"} {
		if !strings.Contains(text, code) {
			t.Errorf("%q is not used", code)
		}
		text = strings.ReplaceAll(text, code, "")
	}
	if text != plain.String() {
		t.Errorf("without colours:\n%s\nwant\n%s", text, &plain)
	}
}

func TestWatchingShowsWhatMovesNow(t *testing.T) {
	before, r := fullReport(), fullReport()
	if got := liveText(r, status.Report{}); got != "" {
		t.Errorf("at the first look: %q", got)
	}
	r.UptimeSeconds += 2
	if got := liveText(r, before); got != "quiet" {
		t.Errorf("%q", got)
	}
	r.Bytes.FromPeers += 200e6
	r.Bytes.ToNix += 3e6
	if got := liveText(r, before); got != "100 MB/s from peers, 1.50 MB/s to Nix" {
		t.Errorf("%q", got)
	}
	r.Instance = "another"
	if got := liveText(r, before); got != "" {
		t.Errorf("after a restart: %q", got)
	}
}

func TestTextFromPeersCannotSteerTheTerminal(t *testing.T) {
	if got, want := clean("a\x1b[2J\r\n\u202eb\x9b\u0085é"), "a?[2J???b??é"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestOnlyOneFetchWritesToADirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := openCacheDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openCacheDir(dir); err == nil || !strings.Contains(err.Error(), "another fetch is writing to "+dir) {
		t.Errorf("second fetch: %v", err)
	}
	unlock()
	if unlock, err = openCacheDir(dir); err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestOnlyNamesWithinTheCacheAreAskedFor(t *testing.T) {
	for _, url := range []string{"nar/a-b.nar", "x"} {
		if !plainURL(url) {
			t.Errorf("%q refused", url)
		}
	}
	for _, url := range []string{"", "/nar/x", "nar/../x", "http://h/x", "nar/x?y", "nar/x#y", "nar/%2e", "a b", strings.Repeat("x", 1001)} {
		if plainURL(url) {
			t.Errorf("%q accepted", url)
		}
	}
}

func TestWatchEndsWhenInterruptedAndOutlivesTheAgent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := &waitFor{text: "no agent answers", then: cancel}
	app := &App{Out: &bytes.Buffer{}, Err: w, Env: []string{"STATE_DIRECTORY=" + t.TempDir(), "FLURRY_SOCKET=/nonexistent/" + control.SocketName}}
	if status := app.Main(ctx, []string{"status", "--watch"}); status != 0 {
		t.Errorf("status %d: %s", status, &w.Buffer)
	}
	if !strings.Contains(w.String(), "no agent answers") {
		t.Errorf("said %q", w.String())
	}
}

// waitFor calls a function once a text was written.
type waitFor struct {
	bytes.Buffer
	text string
	then func()
}

func (w *waitFor) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), w.text) {
		w.then()
	}
	return n, err
}
