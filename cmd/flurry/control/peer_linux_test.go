package control

import (
	"net"
	"os"
	"testing"
)

func TestTheKernelTellsSupplementaryGroups(t *testing.T) {
	_, name := run(t, Agent{})
	c, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sc, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got []uint32
	if err := sc.Control(func(fd uintptr) { got = peerGroups(fd) }); err != nil {
		t.Fatal(err)
	}
	want, err := os.Getgroups() // the listener is this process
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%v, want %v", got, want)
	}
}
