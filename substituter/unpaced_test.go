//go:build linux

package substituter

import (
	"net"
	"strings"
	"testing"

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
