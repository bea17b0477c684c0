//go:build linux

package substituter

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Of a kernel whose own choice is Reno this says nothing.
func TestAnswersWithinTheMachineAreNotPaced(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := (&Server{}).Listener(ln).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*quickConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		var name string
		if name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && strings.TrimRight(name, "\x00") != "reno" {
			t.Errorf("congestion control %q", name)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// One connection that asks alone for NARs waits in the kernel, of several none does.
func TestWhoAsksAloneForNARsIsWaitedForInTheKernel(t *testing.T) {
	w := newWorld(t, 3000)
	w.store.add(w.info, w.nar)
	s := w.start()
	var conns [2]*quickConn
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for i := range conns {
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := s.Listener(ln).Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns[i] = c.(*quickConn)
	}
	waits := func(c *quickConn) (yes bool) {
		c.raw.Control(func(fd uintptr) {
			flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
			if err != nil {
				t.Fatal(err)
			}
			yes = flags&unix.O_NONBLOCK == 0
		})
		return yes
	}
	a, b := conns[0], conns[1]
	for i, step := range []struct {
		asks      *quickConn
		nar, want bool
	}{{a, true, false}, {a, true, true}, {a, false, false}, {a, true, true}, {b, true, false}, {a, true, false}, {b, true, false}, {b, true, true}} {
		if step.asks.asked(step.nar); waits(step.asks) != step.want {
			t.Errorf("step %d: waits in the kernel: %v", i, !step.want)
		}
	}
	// Nothing comes for longer than the kernel waits; a deadline ends that still.
	b.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := b.Read(make([]byte, 100)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}
