//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// vitals are what an agent holds.
type vitals struct {
	pid, goroutines, files int
	resident, peak         int64 // bytes
}

func (v vitals) String() string {
	return fmt.Sprintf("pid %d, %d goroutines, %d descriptors, %.0f MB resident, %.0f MB at its peak", v.pid, v.goroutines, v.files, float64(v.resident)/1e6, float64(v.peak)/1e6)
}

// vitalsOf looks at the process that serves.
func vitalsOf(t testing.TB, a *agent) vitals {
	t.Helper()
	c := a.children()
	if len(c) == 0 {
		t.Fatal("no agent serves")
	}
	v := vitals{pid: c[0]}
	for line := range strings.Lines(string(ask(t, a.m, "GET", agentURL+"/metrics", nil).body)) {
		if n, ok := strings.CutPrefix(line, "flurry_goroutines "); ok {
			v.goroutines, _ = strconv.Atoi(strings.TrimSpace(n))
		}
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", v.pid))
	if err != nil {
		t.Fatal(err)
	}
	v.files = len(files)
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(v.pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kb, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			v.resident = kb << 10
		case "VmHWM:":
			v.peak = kb << 10
		}
	}
	return v
}
