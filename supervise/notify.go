package supervise

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// maxMessage bounds a notification, in bytes; longer ones lose their end, as with systemd.
const maxMessage = 4 << 10

// message is one notification and the process that sent it, by the kernel's word.
type message struct {
	pid  int
	text string
}

// notifySocket receives the child's sd_notify messages. Its name is abstract, so that a killed
// supervisor leaves nothing behind, and drawn by lot; anybody might still write to it, so the kernel
// says who did.
type notifySocket struct {
	name     string // for NOTIFY_SOCKET
	conn     *net.UnixConn
	messages chan message
	stop     chan struct{}
	done     sync.WaitGroup
}

func listenNotify() (*notifySocket, error) {
	n := &notifySocket{name: "@flurry-notify-" + rand.Text(), messages: make(chan message), stop: make(chan struct{})}
	var err error
	n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the agent's signs of life: %w", err)
	}
	sc, err := n.conn.SyscallConn()
	if err == nil {
		cerr := sc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		if err == nil {
			err = cerr
		}
	}
	if err != nil {
		n.conn.Close()
		return nil, fmt.Errorf("ask for the senders of signs of life: %w", err)
	}
	n.done.Go(n.read)
	return n, nil
}

func (n *notifySocket) close() {
	close(n.stop)
	n.conn.Close()
	n.done.Wait()
}

func (n *notifySocket) read() {
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*4))
	for {
		size, oobSize, _, _, err := n.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return // closed; nothing else happens to a bound datagram socket
		}
		m := message{pid: sender(oob[:oobSize]), text: string(buf[:size])}
		select {
		case n.messages <- m:
		case <-n.stop:
			return
		}
	}
}

// sender returns the pid in a message's credentials, 0 if there are none. Descriptors that came along
// are closed.
func sender(oob []byte) (pid int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if cred, err := unix.ParseUnixCredentials(&m); err == nil {
			pid = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}
	return pid
}

// relay passes on what the supervisor's own service manager wants to know, if there is one.
func relay(text string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	var keep []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch name, _, _ := strings.Cut(line, "="); name {
		case "READY", "STOPPING", "RELOADING", "STATUS", "WATCHDOG", "MONOTONIC_USEC":
			keep = append(keep, line)
		}
	}
	if keep != nil {
		_, _ = daemon.SdNotify(false, strings.Join(keep, "\n")) // nobody to tell if it fails
	}
}
