//go:build linux

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Four machines that start together: the central cache sends what one needs, not four times that. The bound
// leaves room for what a busy machine sends twice; make bench-site measures.
func TestOneSiteDownloadsOnce(t *testing.T) {
	l := newLab(t, labConfig{machines: 4, upstreamRate: "20mbit", linkRate: "1gbit"})
	root := l.w.corpus.roots["python3"]
	all := l.w.corpus.closure(root)
	for _, m := range l.machine[1:] {
		m.startAgent(agentConfig{})
	}
	for _, m := range l.machine[1:] {
		eventually(t, "the machines know each other", func() bool { return m.agent.connected() == len(l.machine)-2 })
	}
	var running []*running
	for _, m := range l.machine[1:] {
		running = append(running, m.start("nix-store", "-r", root))
	}
	for _, r := range running {
		succeeded(t, r.wait())
	}
	var sent, size int64
	for _, r := range l.upstreamLog() {
		if strings.HasPrefix(r.uri, "/nar/") {
			sent += r.bytes
		}
	}
	for _, p := range all {
		size += fileSize(t, filepath.Join(l.w.corpus.dir, "cache", p.url))
	}
	for _, m := range l.machine[1:] {
		m.hasExactly(all)
	}
	t.Logf("measured: the central cache sent %.3f closures to four machines", float64(sent)/float64(size))
	if sent > 3*size/2 {
		t.Errorf("the central cache sent %d bytes of NARs for a closure of %d", sent, size)
	}
}

// Two neighbours have a closure, one of them with a wrong byte in every large file, so that it is not found out
// before a large NAR: the third gets it without the central cache, and a chain was asked for.
func TestALiarBesideAnHonestNeighbourCostsNixNothing(t *testing.T) {
	l := newLab(t, labConfig{machines: 3})
	root := l.w.corpus.roots["python3"]
	all := l.w.corpus.closure(root)
	liar, honest, m := l.machine[1], l.machine[2], l.machine[3]
	liar.preload(root)
	honest.preload(root)
	liar.spoil(t, 1<<20)
	l.killUpstream()
	for _, m := range l.machine[1:] {
		m.startAgent(agentConfig{})
	}
	m.agent.knows(liar.agent, len(all))
	m.agent.knows(honest.agent, len(all))
	succeeded(t, m.realise(root))
	m.hasExactly(all)
	chains := func() (n int) {
		for _, m := range []*machine{liar, honest} {
			files, _ := filepath.Glob(filepath.Join(m.agent.dir, "state", "chain", "*"))
			n += len(files)
		}
		return n
	}
	eventually(t, "a neighbour has made a chain", func() bool { return chains() > 0 })
}

// spoil flips the first byte of every file of least bytes or more in a machine's store; sizes stay.
func (m *machine) spoil(t *testing.T, least int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(m.dir, "nix", "store"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil || len(b) < least {
			return err
		}
		b[0] ^= 1
		os.Chmod(name, 0o644)
		return os.WriteFile(name, b, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// connected is with how many neighbours the agent is connected.
func (a *agent) connected() (n int) {
	s, err := a.tryStatus()
	if err != nil {
		return 0
	}
	for _, p := range s.Peers {
		if p.State == "connected" {
			n++
		}
	}
	return n
}

func fileSize(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
