//go:build linux

package e2e

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkNeighbourAgainstNginx times Nix getting the medium closure through its agent from a
// neighbour, and straight from an nginx with uncompressed NARs on that same neighbour, by turns. It
// reports both medians and their ratio. The link is unlimited: it is the software that is measured.
// Rounds: -benchtime 5x.
func BenchmarkNeighbourAgainstNginx(b *testing.B) {
	l := newLab(b, labConfig{machines: 2})
	plain := filepath.Join(l.w.cache, "medium-plain")
	if out, err := exec.Command(filepath.Join(l.w.scripts, "plain-cache"), l.w.corpus.dir, plain).CombinedOutput(); err != nil {
		b.Fatalf("plain-cache: %v\n%s", err, out)
	}
	m1, m2 := l.machine[1], l.machine[2]
	root := l.w.corpus.roots["system"]
	all := l.w.corpus.closure(root)
	m1.preload(root)
	m1.startAgent(agentConfig{})
	m1.agent.shares(len(all))
	nginx := m1.serve(plain, "8081")
	l.killUpstream()

	var fromNginx, fromNeighbour []time.Duration
	for b.Loop() {
		m2.wipe()
		m2.substituters(nginx)
		fromNginx = append(fromNginx, m2.timed(root))

		m2.wipe()
		m2.substituters(agentURL)
		m2.startAgent(agentConfig{})
		m2.agent.knows(m1.agent, len(all))
		fromNeighbour = append(fromNeighbour, m2.timed(root))
		m2.agent.stop()
	}
	m2.hasExactly(all)
	n, f := median(fromNginx), median(fromNeighbour)
	b.Logf("nginx %v, neighbour %v", fromNginx, fromNeighbour)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(n.Seconds(), "s/nginx")
	b.ReportMetric(f.Seconds(), "s/neighbour")
	b.ReportMetric(f.Seconds()/n.Seconds(), "ratio")
}

// timed is how long Nix takes to substitute a closure.
func (m *machine) timed(root string) time.Duration {
	m.lab.t.Helper()
	r := m.realise(root)
	if r.code != 0 {
		m.lab.t.Fatalf("Nix: exit status %d\n%s", r.code, tail(r.err, 2000))
	}
	return r.took
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}
