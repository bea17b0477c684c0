package supervise

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// IsChild tells whether this process was started by a supervisor. It then reports a wrong
// configuration by [ExitConfig].
func IsChild() bool { return supervisorPID() != 0 }

// supervisorPID returns the pid of the process that started this one as its child, 0 if none did.
func supervisorPID() int {
	pid, _ := strconv.Atoi(os.Getenv(marker))
	return pid
}

// Listeners returns the substituter's listeners that a supervisor or systemd passed to this process;
// ok is false if neither did, and then the caller supervises. Under systemd, sockets with another
// FileDescriptorName than "substituter" are ignored if any has that name. To be called once, early.
func Listeners() (listeners []net.Listener, ok bool, err error) {
	count, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if count <= 0 || count > 1024 || !IsChild() && pid != os.Getpid() {
		return nil, false, nil
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, name := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} {
		os.Unsetenv(name) // meant for this process alone
	}
	if IsChild() {
		// The kernel calls us "exe", after /proc/self/exe. Only ps and top care.
		_ = os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	}
	named := strings.Contains(":"+strings.Join(names, ":")+":", ":"+fdName+":")
	for i := range count {
		const first = 3 // SD_LISTEN_FDS_START
		f := os.NewFile(uintptr(first+i), "LISTEN_FD_"+strconv.Itoa(i))
		if named && (i >= len(names) || names[i] != fdName) {
			continue
		}
		ln, lerr := net.FileListener(f)
		f.Close()
		if lerr != nil {
			err = fmt.Errorf("descriptor %d, passed to this process, is no listening socket: %w", first+i, lerr)
			continue
		}
		listeners = append(listeners, ln)
	}
	if err != nil {
		for _, ln := range listeners {
			ln.Close()
		}
		return nil, true, err
	}
	return listeners, true, nil
}

// Ready tells the supervisor or systemd that the agent serves. From then on it must be kept alive.
func Ready() { _, _ = daemon.SdNotify(false, daemon.SdNotifyReady) }

// Stopping tells the supervisor or systemd that the agent is about to end.
func Stopping() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }

// KeepAlive gives signs of life until ctx ends, three in the time that one is expected, each only
// after check returned nil within that third. check should go the way of a request, so that a
// process that cannot serve is not taken for one that can. It returns at once if nobody listens.
func KeepAlive(ctx context.Context, check func(context.Context) error) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil || limit == 0 {
		return
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, limit/3)
		if check(attempt) == nil {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) // the supervisor may be gone; then nobody watches
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
