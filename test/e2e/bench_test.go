//go:build linux

package e2e

import (
	"cmp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// BenchmarkNeighbourAgainstNginx times Nix getting the medium closure through its agent from a
// neighbour, and straight from an nginx with uncompressed NARs on that same neighbour, by turns. It
// reports both medians, and the median of the rounds' ratios. The link is unlimited: it is the software that is measured.
// Each run has an empty ext4 in memory for store, home and agent, and pages that were freed a moment ago: on a disk where many files were
// removed lately, or in pages that were free for long, the same Nix takes up to eight times as long. Rounds: -benchtime 5x.
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
	var ratios []float64
	direct := func() {
		m2.freshDisk()
		m2.substituters(nginx)
		m2.freePages()
		fromNginx = append(fromNginx, m2.timed(root))
	}
	throughAgent := func() {
		m2.freshDisk()
		m2.substituters(agentURL)
		m2.startAgent(agentConfig{onDisk: true})
		m2.agent.knows(m1.agent, len(all))
		m2.freePages()
		fromNeighbour = append(fromNeighbour, m2.timed(root))
		m2.agent.stop()
	}
	for k := 0; b.Loop(); k++ {
		order := []func(){direct, throughAgent}
		if k%2 == 1 {
			slices.Reverse(order)
		}
		for _, run := range order {
			run()
		}
		ratios = append(ratios, fromNeighbour[k].Seconds()/fromNginx[k].Seconds())
	}
	m2.hasExactly(all)
	n, f := median(fromNginx), median(fromNeighbour)
	b.Logf("nginx %v, neighbour %v, ratios %.3f", fromNginx, fromNeighbour, ratios)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(n.Seconds(), "s/nginx")
	b.ReportMetric(f.Seconds(), "s/neighbour")
	b.ReportMetric(median(ratios), "ratio")
}

// freshDisk gives the machine an empty ext4 for its store, its home and, with agentConfig.onDisk, the state of its agents, in a
// file of a tmpfs. No agent may be running.
func (m *machine) freshDisk() {
	m.lab.t.Helper()
	memory := filepath.Join(m.dir, "memory")
	m.disk = filepath.Join(m.dir, "disk")
	script := `umount -l "$1/nix" "$1/home" "$3" "$2" 2>/dev/null || true
		mkdir -p "$2" "$3"; mount -t tmpfs -o size=4g disk "$2"; truncate -s 3g "$2/ext4"
		mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$2/ext4"; mount -o loop "$2/ext4" "$3"
		for d in nix home; do mkdir "$3/$d"; mount --bind "$3/$d" "$1/$d"; done`
	if out, err := exec.Command("bash", "-euc", script, "bash", m.dir, memory, m.disk).CombinedOutput(); err != nil {
		m.lab.t.Fatalf("an ext4 in memory: %v\n%s", err, out)
	}
	m.lab.t.Cleanup(func() {
		exec.Command("umount", "-l", filepath.Join(m.dir, "nix"), filepath.Join(m.dir, "home"), m.disk, memory).Run()
	})
}

// freePages writes a file into memory and removes it: what is written next gets its pages, and not those that the
// machine below this one would have to find first.
func (m *machine) freePages() {
	m.lab.t.Helper()
	name := filepath.Join(m.dir, "memory", "pages")
	if out, err := exec.Command("dd", "if=/dev/zero", "of="+name, "bs=1M", "count=900").CombinedOutput(); err != nil {
		m.lab.t.Fatalf("dd: %v\n%s", err, out)
	}
	if err := os.Remove(name); err != nil {
		m.lab.t.Fatal(err)
	}
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

func median[T cmp.Ordered](d []T) T {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}
