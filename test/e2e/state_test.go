//go:build linux

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever became of the files that an agent keeps, it starts, serves, and says what it could not use. Only the
// identity is not among them: without it the agent would be somebody else.
func TestDamagedStateIsNoReasonNotToServe(t *testing.T) {
	t.Parallel()
	l := newLab(t, labConfig{machines: 2})
	m := l.machine[1]
	m.startAgent(agentConfig{})
	a := m.agent
	root := l.w.corpus.roots["openssh-client"]
	succeeded(t, m.realise(root))
	l.machine[2].startAgent(agentConfig{})
	l.machine[2].agent.knows(a, 2)
	succeeded(t, l.machine[2].realise(l.w.corpus.find(t, "libc6-2").path))
	for _, damage := range []struct {
		name string

		apply func(file string) error
	}{
		{"torn in the middle", func(file string) error {
			info, err := os.Stat(file)
			if err == nil {
				err = os.Truncate(file, info.Size()/2)
			}
			return err
		}},
		{"garbage", func(file string) error { return os.WriteFile(file, []byte(strings.Repeat("\x00\xff{", 500)), 0o600) }},
		{"empty", func(file string) error { return os.Truncate(file, 0) }},
		{"neither to be read nor to be replaced", func(file string) error { // reading gives EISDIR, renaming onto it ENOTEMPTY
			if err := os.Remove(file); err != nil {
				return err
			}
			return os.MkdirAll(filepath.Join(file, "in the way"), 0o755)
		}},
	} {
		a.stop()
		logged := len(a.logText())
		state, n := filepath.Join(a.dir, "state"), 0
		err := filepath.WalkDir(state, func(file string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || d.Name() == "identity" || strings.HasSuffix(d.Name(), ".lock") {
				return err
			}
			n++

			return damage.apply(file)
		})
		if err != nil || n < 3 {
			t.Fatalf("%s: %d files, %v", damage.name, n, err)
		}
		a.start()
		a.shares(1)
		m.forget()
		succeeded(t, m.do("nix", "path-info", "-r", "--store", agentURL, root))
		m.must("nix-store", "--delete", "--ignore-liveness", root)
		succeeded(t, m.realise(root))
		log := a.logText()[logged:]
		if !strings.Contains(log, "standing") {
			t.Errorf("%s: nothing is said of the standing:\n%s", damage.name, tail(log, 2000))
		}
		if strings.Contains(log, "panic") {
			t.Errorf("%s:\n%s", damage.name, tail(log, 3000))
		}
	}
}

func (a *agent) logText() string {
	b, _ := os.ReadFile(filepath.Join(a.dir, "log"))
	return string(b)
}
