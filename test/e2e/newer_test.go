//go:build linux

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Debian 12's Nix is 2.8; the releases since download 16 NARs at a time and insist on more. FLURRY_NIX_SUITES
// names the Debian releases to take one from.
func TestNewerNixFillsFromANeighbour(t *testing.T) {
	w := needWorld(t)
	suites := os.Getenv("FLURRY_NIX_SUITES")
	if suites == "" {
		suites = "trixie"
	}
	for suite := range strings.FieldsSeq(suites) {
		t.Run(suite, func(t *testing.T) {
			dir := filepath.Join(w.cache, "nix-"+suite)
			if out, err := exec.Command(filepath.Join(w.scripts, "newer-nix"), "-s", suite, dir).CombinedOutput(); err != nil {
				missing(t, string(out))
			}
			fillWith(t, filepath.Join(dir, "bin"))
		})
	}
}

func fillWith(t *testing.T, nix string) {
	l := newLab(t, labConfig{machines: 2})
	m1, m2 := l.machine[1], l.machine[2]
	root := l.w.corpus.roots["system"]
	all := l.w.corpus.closure(root)
	m1.preload(root)
	m2.nix = nix
	t.Log(strings.TrimSpace(m2.must("nix", "--version")))
	m1.startAgent(agentConfig{})
	m2.startAgent(agentConfig{})
	m2.agent.knows(m1.agent, len(all))
	l.killUpstream()
	r := m2.realise(root)
	succeeded(t, r)
	m2.hasExactly(all)

	// It knows the cache now, and has no other to turn to.
	m2.must("nix-store", "--delete", "--ignore-liveness", root)
	m2.agent.killServing()
	succeeded(t, m2.realise(root))
}
