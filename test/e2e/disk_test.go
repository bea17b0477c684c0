//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNixSucceedsWhenTheAgentsDiskIsFull: a NAR of 36 MB and an agent whose disk has room for none, or
// for half of it. A neighbour has the path, too.
func TestNixSucceedsWhenTheAgentsDiskIsFull(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 3})
	nar := l.w.corpus.find(t, "vim-runtime-")
	l.machine[1].preload(nar.path)
	l.machine[1].startAgent(agentConfig{})
	for i, disk := range []string{"1m", "20m"} {
		m := l.machine[2+i]
		a := m.startAgent(agentConfig{disk: disk, toml: "[substituter]\nmax_buffer = \"1MiB\"\n"})
		a.knows(l.machine[1].agent, 1)
		succeeded(t, m.realise(nar.path))
		m.must("nix-store", "--verify", "--check-contents")
		log, err := os.ReadFile(filepath.Join(a.dir, "log"))
		if err != nil || !strings.Contains(string(log), "no room to collect NARs") {
			t.Errorf("the log of the agent with %s does not say what is wrong: %v\n%s", disk, err, tail(string(log), 1000))
		}
	}
}
