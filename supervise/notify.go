package supervise

import (
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

const (
	maxMessage = 4 << 10     // bytes of a notification; longer ones lose their end, as with systemd
	lastWords  = time.Second // a child that is gone is read for no longer: its own children may go on talking
)

// message is one notification and the process that sent it, by the kernel's word.
type message struct {
	pid  int
	text string
}

// notifySocket receives the child's sd_notify messages.
type notifySocket struct {
	name     string // for NOTIFY_SOCKET
	remove   func() // what the name left in the file system
	conn     *net.UnixConn
	messages chan message
	stop     chan struct{}
	done     sync.WaitGroup
}

func listenNotify() (*notifySocket, error) {
	name, remove, err := notifyName()
	if err != nil {
		return nil, err
	}
	n := &notifySocket{name: name, remove: remove, messages: make(chan message), stop: make(chan struct{})}
	n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.name, Net: "unixgram"})
	if err != nil {
		remove()
		return nil, fmt.Errorf("listen for the agent's signs of life: %w", err)
	}
	if err := askForSenders(n.conn); err != nil {
		n.conn.Close()
		remove()
		return nil, fmt.Errorf("ask for the senders of signs of life: %w", err)
	}
	n.done.Go(n.read)
	return n, nil
}

func (n *notifySocket) close() {
	close(n.stop)
	n.conn.Close()
	n.done.Wait()
	n.remove()
}

func (n *notifySocket) read() {
	buf, oob := make([]byte, maxMessage), make([]byte, credentialsSpace+unix.CmsgSpace(4*4))
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

// rest hands over what was sent until now, for lastWords at most. A socket keeps the order, so a message of our own is
// the last of it.
func (n *notifySocket) rest(hear func(message)) {
	enough := time.After(lastWords)
	last := rand.Text()
	sent := make(chan error, 1)
	go func() {
		_, err := n.conn.WriteTo([]byte(last), n.conn.LocalAddr())
		sent <- err
	}()
	for {
		select {
		case m := <-n.messages:
			if m.text == last {
				return
			}
			hear(m)
		case err := <-sent:
			if err != nil {
				return
			}
			sent = nil
		case <-enough:
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
		if p := credentialsPID(&m); p != 0 {
			pid = p
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
