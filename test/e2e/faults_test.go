//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// midway is how much of a NAR of 36 MB has to be on its way before a fault strikes.
const midway = 10e6

// faultLab is slow enough that a fault can strike while a NAR of some megabytes is on its way:
// 36 MB take 3 s from a neighbour; the 10 MB that they are compressed take 4 s from the central cache.
// Such labs mostly wait for their links, so several run at once.
func faultLab(t *testing.T) (l *lab, nar *corpusPath) {
	t.Helper()
	t.Parallel()
	l = newLab(t, labConfig{machines: 3, linkRate: "100mbit", upstreamRate: "20mbit"})
	return l, l.w.corpus.find(t, "vim-runtime-")
}

// strike starts a substitution on a machine, lets some bytes come over its cable, does the damage and
// requires that Nix gets its path all the same.
func strike(t *testing.T, m *machine, path string, after int64, damage func()) {
	t.Helper()
	before := m.received()
	r := m.start("nix-store", "-r", path)
	eventually(t, "bytes are on their way", func() bool {
		return r.over() || m.received()-before >= after
	})
	if r.over() {
		t.Fatalf("Nix was done before the fault struck: %s", tail(r.wait().err, 1000))
	}
	damage()
	hit := time.Now()
	succeeded(t, r.wait())
	logTook(t, "after the fault, Nix went on for", time.Since(hit))
	m.must("nix-store", "--verify", "--check-contents")
}

func succeeded(t *testing.T, r result) {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("Nix: exit status %d after %v\n%s", r.code, r.took, tail(r.err, 3000))
	}
	logTook(t, "the whole command", r.took)
}

func TestNixSucceedsWhenAPeerDiesMidNAR(t *testing.T) {
	t.Parallel()
	t.Run("another peer has it, the central cache is off", func(t *testing.T) {
		l, nar := faultLab(t)
		l.machine[1].preload(nar.path)
		l.machine[1].startAgent(agentConfig{})
		m2, m3 := l.machine[2], l.machine[3]
		m2.startAgent(agentConfig{})
		m3.preload(nar.path)
		m3.startAgent(agentConfig{})
		m2.agent.knows(l.machine[1].agent, 1)
		m2.agent.knows(m3.agent, 1)
		l.killUpstream()
		strike(t, m2, nar.path, midway, func() { servingPeer(l, m2).kill() })
	})
	t.Run("only the central cache is left", func(t *testing.T) {
		l, nar := faultLab(t)
		m1, m2 := l.machine[1], l.machine[2]
		m1.preload(nar.path)
		m1.startAgent(agentConfig{})
		m2.startAgent(agentConfig{})
		m2.agent.knows(m1.agent, 1)
		strike(t, m2, nar.path, midway, m1.agent.kill)
	})
	t.Run("its cable is cut, only the central cache is left", func(t *testing.T) {
		l, nar := faultLab(t)
		m1, m2 := l.machine[1], l.machine[2]
		m1.preload(nar.path)
		m1.startAgent(agentConfig{})
		m2.startAgent(agentConfig{})
		m2.agent.knows(m1.agent, 1)
		strike(t, m2, nar.path, midway, m1.cut)
	})
}

// servingPeer is the agent, other than its own, that has given the most.
func servingPeer(l *lab, to *machine) (best *agent) {
	most := int64(-1)
	for _, m := range l.machine[1:] {
		if m == to || m.agent == nil {
			continue
		}
		if sent := m.agent.status().Bytes.ToPeers; sent > most {
			best, most = m.agent, sent
		}
	}
	return best
}

func TestNixSucceedsWhenTheCentralCacheDiesMidNAR(t *testing.T) {
	t.Parallel()
	const some = 3e6
	t.Run("a second one is configured", func(t *testing.T) {
		l, nar := faultLab(t)
		second := l.machine[3].serve(l.w.corpus.dir, "8081")
		m := l.machine[1]
		m.startAgent(agentConfig{upstreams: []string{upstreamURL, second}})
		strike(t, m, nar.path, some, l.killUpstream)
	})
	t.Run("it comes back", func(t *testing.T) {
		l, nar := faultLab(t)
		m := l.machine[1]
		m.startAgent(agentConfig{})
		strike(t, m, nar.path, some, func() {
			l.killUpstream()
			l.startUpstream()
		})
	})
	t.Run("a neighbour that has it appears", func(t *testing.T) {
		l, nar := faultLab(t)
		m, late := l.machine[1], l.machine[2]
		m.startAgent(agentConfig{})
		late.preload(nar.path)
		strike(t, m, nar.path, some, func() {
			late.startAgent(agentConfig{})
			m.agent.knows(late.agent, 1)
			l.killUpstream()
		})
	})
}

func TestNixSucceedsWhenItsAgentDiesMidCopy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		kill func(*agent)
	}{
		{"the serving process", (*agent).killServing},
		{"the supervisor", func(a *agent) { a.signal(syscall.SIGKILL) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, nar := faultLab(t)
			m1, m2 := l.machine[1], l.machine[2]
			m1.preload(nar.path)
			m1.startAgent(agentConfig{})
			m2.startAgent(agentConfig{})
			m2.agent.knows(m1.agent, 1)
			strike(t, m2, nar.path, midway, func() { c.kill(m2.agent) })
		})
	}
}

// Nix that already knows the cache, and no other to turn to: a dead port would fail the build.
func TestNixSucceedsWhenItsAgentDiedBetweenCommands(t *testing.T) {
	l := newLab(t, labConfig{machines: 1})
	m := l.machine[1]
	m.startAgent(agentConfig{})
	succeeded(t, m.realise(l.w.corpus.find(t, "libc6-2").path))
	for _, step := range []struct {
		what string
		path *corpusPath
		kill func()
	}{
		{"serving process killed", l.w.corpus.find(t, "zlib1g-"), m.agent.killServing},
		{"serving process killed again", l.w.corpus.find(t, "libexpat1-"), m.agent.killServing},
		{"supervisor killed", l.w.corpus.find(t, "libffi8-"), func() { m.agent.signal(syscall.SIGKILL) }},
	} {
		step.kill()
		r := m.realise(step.path.path)
		if r.code != 0 {
			t.Errorf("%s: Nix: exit status %d after %v\n%s", step.what, r.code, r.took, tail(r.err, 2000))
		}
		logTook(t, step.what+", Nix command at once", r.took)
	}
}

func TestStateSurvivesBeingKilled(t *testing.T) {
	l := newLab(t, labConfig{machines: 1})
	m := l.machine[1]
	m.startAgent(agentConfig{})
	id := m.agent.status().PeerID
	succeeded(t, m.realise(l.w.corpus.roots["openssh-client"]))
	m.agent.kill()
	m.agent.start()
	if got := m.agent.status().PeerID; got != id {
		t.Errorf("peer id after SIGKILL: %s, want %s", got, id)
	}
	key := filepath.Join(m.agent.dir, "state")
	filepath.WalkDir(key, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), "key") {
			if info, err := d.Info(); err == nil && info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, want 0600", d.Name(), info.Mode().Perm())
			}
		}
		return nil
	})
	l.killUpstream()
	m.forget()
	for _, p := range l.w.corpus.closure(l.w.corpus.roots["openssh-client"]) {
		a, err := m.agent.get("/" + storeHash(p.path) + ".narinfo")
		if err != nil || a.status != 200 {
			t.Fatalf("a narinfo of %s that it had before being killed: %v, status %d", p.path, err, a.status)
		}
	}
}
