package upstream

import (
	"bytes"
	"os/exec"
	"testing"
)

func pipeThrough(t testing.TB, in []byte, cmd ...string) []byte {
	t.Helper()
	c := exec.Command(cmd[0], cmd[1:]...)
	c.Stdin = bytes.NewReader(in)
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	return out
}
