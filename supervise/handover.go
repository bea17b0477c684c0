package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The take-over, on a unix stream socket of mode 0600:
//
//	child → one JSON offer; if it is an orphan, its listeners' descriptors come along (SCM_RIGHTS)
//	new supervisor → one byte, once it has every address it wants; or it hangs up, and nothing changes
//	child: stops accepting, answers what it can within its usual time, ends

const (
	handoverTimeout = 2 * time.Second         // for either side's next message
	dismissTimeout  = 1500 * time.Millisecond // an agent ends within 1 s of being told to
	maxListeners    = 64                      // descriptors in one offer; the kernel allows 253
	maxOffer        = 512                     // bytes
)

type offer struct {
	Supervisor int  `json:"supervisor"` // pid of the process that started the child
	Orphan     bool `json:"orphan"`     // that process is gone
}

// Handover is what a supervised child does for the next supervisor.
type Handover struct {
	Socket    string         // the same as the supervisor's Config.Socket
	Listeners []net.Listener // as Listeners returned them
	Stop      func()         // begins an orderly end of the process, as SIGTERM does; must not block
	Log       *slog.Logger   // nil discards
}

// ServeHandover answers new supervisors until ctx ends. While the own supervisor lives they are
// refused; an orphan hands its listeners over and stops. It returns nil at once in a process that no
// supervisor started: systemd's sockets are not given away.
func ServeHandover(ctx context.Context, h Handover) error {
	if !IsChild() {
		return nil
	}
	if h.Log == nil {
		h.Log = slog.New(slog.DiscardHandler)
	}
	_ = os.Remove(h.Socket) // of a predecessor; the supervisor's lock says there is no other owner
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.Socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for a successor: %w", err)
	}
	if err := os.Chmod(h.Socket, 0o600); err != nil {
		ln.Close()
		return fmt.Errorf("listen for a successor: %w", err)
	}
	end := context.AfterFunc(ctx, func() { ln.Close() })
	defer end()
	defer ln.Close()
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("wait for a successor: %w", err)
		}
		if err := h.answer(conn); err != nil {
			h.Log.Warn("take-over failed; serving on", "err", err)
		}
		conn.Close()
	}
}

// answer serves one new supervisor. One at a time is enough.
func (h *Handover) answer(conn *net.UnixConn) error {
	_ = conn.SetDeadline(time.Now().Add(handoverTimeout))
	if _, err := peer(conn); err != nil {
		return err
	}
	o := offer{Supervisor: supervisorPID()}
	o.Orphan = os.Getppid() != o.Supervisor
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if !o.Orphan {
		_, err = conn.Write(text)
		return err
	}
	files, err := h.files()
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix(text, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the new supervisor changed its mind: %w", err)
	}
	h.Log.Info("handing the port over to a new supervisor")
	h.Stop()
	for _, ln := range h.Listeners {
		ln.Close() // the successor holds the socket; what waits there is the next child's
	}
	return nil
}

func (h *Handover) files() (files []*os.File, err error) {
	for _, ln := range h.Listeners {
		t, ok := ln.(*net.TCPListener)
		if !ok {
			return files, fmt.Errorf("listener %s is no TCP listener", ln.Addr())
		}
		f, err := passable(t)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// orphan is a child without supervisor, as its next supervisor sees it.
type orphan struct {
	pid       int
	conn      *net.UnixConn
	process   process
	listeners []*net.TCPListener
}

// findOrphan returns nil if nobody answers at socket, and a *RunningError if a supervised child does.
func findOrphan(ctx context.Context, socket string) (*orphan, error) {
	c, err := (&net.Dialer{Timeout: handoverTimeout}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, nil //nolint:nilerr // no socket, or one that a dead agent left: there is no orphan
	}
	o := &orphan{conn: c.(*net.UnixConn), process: noProcess}
	if err := o.receive(); err != nil {
		o.close()
		if _, ok := errors.AsType[*RunningError](err); ok {
			return nil, err
		}
		return nil, fmt.Errorf("an agent whose supervisor was killed does not hand its port over: %w; end it (pid %d) and start again", err, o.pid)
	}
	return o, nil
}

func (o *orphan) receive() (err error) {
	_ = o.conn.SetDeadline(time.Now().Add(handoverTimeout))
	if o.pid, err = peer(o.conn); err != nil {
		return err
	}
	if o.process, err = openProcess(o.pid); err != nil {
		return err
	}
	buf, oob := make([]byte, maxOffer), make([]byte, unix.CmsgSpace(4*maxListeners))
	n, oobn, _, _, err := o.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	lnErr := o.adopt(oob[:oobn])
	var of offer
	if err := json.Unmarshal(buf[:n], &of); err != nil {
		return err
	}
	if !of.Orphan {
		return &RunningError{PID: of.Supervisor}
	}
	return lnErr
}

// adopt makes listeners of the descriptors that came with the offer.
func (o *orphan) adopt(oob []byte) (err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		fds, rerr := unix.ParseUnixRights(&m)
		err = errors.Join(err, rerr)
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			f := os.NewFile(uintptr(fd), "handed over")
			ln, lerr := net.FileListener(f)
			f.Close()
			if t, ok := ln.(*net.TCPListener); ok {
				o.listeners = append(o.listeners, t)
			}
			err = errors.Join(err, lerr)
		}
	}
	return err
}

// take returns the orphan's listener for addr and gives up its ownership, nil if it has none. Port 0
// is any port of that host.
func (o *orphan) take(addr string) *net.TCPListener {
	if o == nil {
		return nil
	}
	want, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil
	}
	i := slices.IndexFunc(o.listeners, func(ln *net.TCPListener) bool {
		have := ln.Addr().(*net.TCPAddr)
		sameIP := want.IP.Equal(have.IP) || (len(want.IP) == 0 || want.IP.IsUnspecified()) && have.IP.IsUnspecified()
		return sameIP && (want.Port == 0 || want.Port == have.Port)
	})
	if i < 0 {
		return nil
	}
	ln := o.listeners[i]
	o.listeners = slices.Delete(o.listeners, i, i+1)
	return ln
}

// dismiss tells the orphan to go and waits until it is gone, so that the next child finds the state
// directory and the peers' port free. One that stays is killed.
func (o *orphan) dismiss() error {
	if _, err := o.conn.Write([]byte{1}); err != nil {
		return fmt.Errorf("take over from pid %d: %w", o.pid, err)
	}
	if gone, err := o.process.waitGone(dismissTimeout); gone || err != nil {
		return err
	}
	if err := o.process.kill(); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill the agent that was taken over (pid %d): %w", o.pid, err)
	}
	if gone, err := o.process.waitGone(dismissTimeout); !gone {
		return fmt.Errorf("the agent that was taken over (pid %d) does not end: %w", o.pid, errors.Join(err, context.DeadlineExceeded))
	}
	return nil
}

func (o *orphan) close() {
	o.conn.Close()
	closeAll(o.listeners)
	o.process.close()
}
