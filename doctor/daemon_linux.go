package doctor

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// clockTicks is USER_HZ, which Linux shows process times in on every architecture that Nix runs on.
const clockTicks = 100

// daemonPID finds the oldest nix-daemon that sees the same file systems as we do; those of containers and
// the children that serve one connection each are others.
func daemonPID() (pid int, ticks int64) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	ours, _ := os.Readlink("/proc/self/ns/mnt")
	ourStore := deviceOf("/nix/store")
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(b)) != "nix-daemon" {
			continue
		}
		dir := filepath.Dir(name)
		theirs, err := os.Readlink(dir + "/ns/mnt")
		if err == nil && theirs != ours && deviceOf(dir+"/root/nix/store") != ourStore {
			continue
		}
		t := startTicks(dir)
		if n, err := strconv.Atoi(filepath.Base(dir)); err == nil && t > 0 && (pid == 0 || t < ticks) {
			pid, ticks = n, t
		}
	}
	return pid, ticks
}

// startTicks is when a process started, since boot.
func startTicks(dir string) int64 {
	b, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	f := strings.Fields(string(rest))
	if len(f) < 20 {
		return 0
	}
	t, _ := strconv.ParseInt(f[19], 10, 64) // starttime, field 22 of proc(5)
	return t
}

// daemonStart is when the nix-daemon started.
func daemonStart() (time.Time, bool) {
	pid, ticks := daemonPID()
	if pid == 0 {
		return time.Time{}, false
	}
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "btime "); ok {
			boot, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return time.Unix(boot, 0).Add(time.Duration(ticks) * time.Second / clockTicks), err == nil
		}
	}
	return time.Time{}, false
}

// daemonEnv is the nix-daemon's environment, which only root may read.
func daemonEnv() (func(string) string, bool) {
	pid, _ := daemonPID()
	if pid == 0 {
		return nil, false
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return nil, false
	}
	h := Here{Env: strings.Split(string(b), "\x00")}
	return h.env, true
}
