package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Group is the group whose members may use the socket, beside root and the agent's user.
const Group = "flurry"

const (
	dialTimeout = 2 * time.Second        // a unix socket answers at once, or its backlog is full
	stopGrace   = 200 * time.Millisecond // for answers when the agent ends, which it must within 1 s
	idleTimeout = time.Minute            // of a connection nobody uses
)

// Candidates returns where the socket may be, in the order in which both sides look: the runtime
// directory of environ ("NAME=value"), /run/flurry, the state directory.
func Candidates(environ []string, stateDir string) []string {
	var dirs []string
	for _, e := range environ {
		if v, ok := strings.CutPrefix(e, "RUNTIME_DIRECTORY="); ok {
			first, _, _ := strings.Cut(v, ":") // systemd may list several
			dirs = []string{first}             // the last one counts, as everywhere
		}
	}
	dirs = append(dirs, "/run/flurry", stateDir)
	var sockets []string
	for _, d := range dirs {
		if filepath.IsAbs(d) {
			sockets = append(sockets, filepath.Join(d, SocketName))
		}
	}
	return sockets
}

// Listen opens the socket at the first candidate whose directory exists and can be written, and
// where no other agent answers. Mode 0660 and group flurry if there is such a group that may be
// given, else 0600.
func Listen(candidates []string) (net.Listener, error) {
	var trouble []error
	for _, name := range candidates {
		ln, err := listen(name)
		if err == nil {
			return ln, nil
		}
		trouble = append(trouble, err)
	}
	return nil, fmt.Errorf("nowhere to put the control socket: %w; set RUNTIME_DIRECTORY or state.dir to a directory of the agent's own", errors.Join(trouble...))
}

func listen(name string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", name, dialTimeout); err == nil {
		c.Close()
		return nil, fmt.Errorf("another agent has %s", name)
	}
	info, err := os.Lstat(name)
	switch {
	case err == nil && info.Mode()&fs.ModeSocket == 0:
		return nil, fmt.Errorf("%s is in the way, and no socket", name)
	case err == nil:
		if err := os.Remove(name); err != nil {
			return nil, err
		}
	}
	// Nobody may connect before the mode is right: the umask would decide, and it belongs to all
	// threads. The check of who connects does not depend on it.
	ln, err := net.Listen("unix", name)
	if err != nil {
		return nil, err
	}
	mode := fs.FileMode(0o600)
	// A sandbox may forbid chown; where the group is the process's own, it is right already.
	if gid, ok := groupID(); ok && (gid == os.Getegid() || os.Lchown(name, -1, gid) == nil) {
		mode = 0o660
	}
	if err := os.Chmod(name, mode); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

func groupID() (int, bool) {
	g, err := user.LookupGroup(Group)
	if err != nil {
		return 0, false
	}
	gid, err := strconv.Atoi(g.Gid)
	return gid, err == nil
}

// Serve answers on the socket until ctx ends, and nobody but root, this process's user and members of
// group flurry. It returns nil when ctx ended.
func Serve(ctx context.Context, ln net.Listener, h http.Handler, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	srv := &http.Server{
		Handler:           guard(h),
		ReadHeaderTimeout: dialTimeout,
		IdleTimeout:       idleTimeout,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			err := allowed(c)
			if err != nil {
				log.Warn("refused on the control socket", "err", err)
			}
			return withVerdict(ctx, err)
		},
	}
	stopped := make(chan struct{})
	end := context.AfterFunc(ctx, func() {
		defer close(stopped)
		short, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		if srv.Shutdown(short) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(ln)
	if end() { // ctx did not end: the listener broke
		srv.Close()
		return fmt.Errorf("control socket: %w", err)
	}
	<-stopped
	return nil
}

// allowed asks the kernel who is at the other end.
func allowed(c net.Conn) error {
	uc, ok := c.(*net.UnixConn)
	if !ok {
		return errors.New("not a unix socket")
	}
	sc, err := uc.SyscallConn()
	if err != nil {
		return err
	}
	var uid int
	var groups []uint32
	if cerr := sc.Control(func(fd uintptr) { uid, groups, err = peerOf(fd) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("ask who connects: %w", err)
	}
	if mayControl(uid, groups) {
		return nil
	}
	return fmt.Errorf("user %d is neither root nor the agent's user nor in group %s", uid, Group)
}

func mayControl(uid int, groups []uint32) bool {
	if uid == 0 || uid == os.Geteuid() {
		return true
	}
	gid, ok := groupID()
	return ok && slices.Contains(groups, uint32(gid))
}
