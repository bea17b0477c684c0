//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Two private caches behind a dead one: real Nix gets its paths through the agent, which alone knows the
// tokens; nobody else learns of the tokens or of the paths.
func TestPrivateCachesServeNixThroughTheAgent(t *testing.T) {
	l := newLab(t, labConfig{machines: 2})
	m1, m2 := l.machine[1], l.machine[2]
	c := l.w.corpus
	attic, cachix := newStandin(t, "attic", m2.ip+":9000"), newStandin(t, "cachix", m2.ip+":9000")
	tools, docs, both, later := c.closure(c.find(t, "libacl1-").path), c.find(t, "git-man-"), c.find(t, "debconf-"), c.find(t, "media-types-")
	attic.add(c, append(tools, both, later)...)
	cachix.add(c, docs, both)
	const upstreamIP = "10.77.0.1"
	closeAttic := l.listen("up", upstreamIP+":8091", attic)
	l.listen("up", upstreamIP+":8092", cachix)
	l.listen("m2", m2.ip+":9000", bucket(attic, cachix))

	netrc := m1.secret("netrc", "machine "+upstreamIP+"\npassword "+attic.token+"\n")
	headers := m1.secret("headers", "Authorization: Bearer "+cachix.token+"\nX-Team: blue\n")
	m1.startAgent(agentConfig{asRoot: true, upstreams: []string{}, toml: fmt.Sprintf(`
[[upstream]]
url = "http://%[1]s:8099"
keys = [%[2]q]
public = true
[[upstream]]
url = "http://%[1]s:8091/attic"
keys = [%[3]q]
netrc_file = %[4]q
[[upstream]]
url = "http://%[1]s:8092/cachix"
keys = [%[5]q]
headers_file = %[6]q
`, upstreamIP, c.key, attic.publicKey(), netrc, cachix.publicKey(), headers)})
	m2.startAgent(agentConfig{})
	m1.trust(attic.publicKey(), cachix.publicKey())

	succeeded(t, m1.realise(tools[0].path))
	succeeded(t, m1.realise(docs.path))
	for _, s := range []*standin{attic, cachix} {
		s.check(t)
	}
	if attic.served == 0 || attic.stored == 0 {
		t.Errorf("attic streamed %d NARs and had %d fetched from its storage: want some of both", attic.served, attic.stored)
	}
	var ups []struct {
		URL, State string
		Reachable  bool
	}
	look := func() {
		t.Helper()
		var s struct{ Upstreams json.RawMessage }
		r := m1.agent.cli("status", "--json")
		if err := json.Unmarshal([]byte(r.out), &s); err != nil {
			t.Fatal(err, r.err)
		}
		if err := json.Unmarshal(s.Upstreams, &ups); err != nil || len(ups) != 3 {
			t.Fatal(err, string(s.Upstreams))
		}
	}
	if look(); ups[0].Reachable || ups[0].State == "ok" || !ups[1].Reachable || ups[2].State != "ok" {
		t.Errorf("the first cache is dead, the others are well: %+v", ups)
	}

	closeAttic()
	succeeded(t, m1.realise(both.path))
	if look(); ups[1].Reachable {
		t.Errorf("attic is gone: %+v", ups)
	}
	l.listen("up", upstreamIP+":8091", attic)
	eventually(t, "attic is asked again", func() bool {
		a, err := m1.agent.get("/" + storeHash(later.path) + ".narinfo")
		return err == nil && a.status == http.StatusOK
	})
	succeeded(t, m1.realise(later.path))
	if look(); !ups[1].Reachable {
		t.Errorf("attic is back: %+v", ups)
	}

	if n := m1.agent.status().Store.Shareable; n != 0 {
		t.Errorf("%d private paths are shareable", n)
	}
	for _, p := range append(tools, docs) {
		if r := m2.agent.cli("locate", p.path); strings.Contains(r.out, m1.agent.status().PeerID) {
			t.Errorf("a neighbour without the group's secret is told of %s", p.path)
		}
	}
	log, err := os.ReadFile(filepath.Join(m1.agent.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(log), m1.agent.cli("status", "--json").out, m1.agent.cli("doctor", "--json").out} {
		for _, secret := range []string{"s3cret", "X-Amz-Signature", "X-Team"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s is shown:\n%s", secret, text)
			}
		}
	}
}

// check tells whether the cache and its storage were asked as they should be.
func (s *standin) check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refused > 0 {
		t.Errorf("%s was asked %d times without its token", s.name, s.refused)
	}
	if len(s.leaked) > 0 {
		t.Errorf("the storage of %s was told %q", s.name, s.leaked)
	}
	if s.served+s.stored == 0 {
		t.Errorf("%s gave no NAR", s.name)
	}
}

// secret writes a file for the machine's agent alone.
func (m *machine) secret(name, text string) string {
	m.lab.t.Helper()
	file := filepath.Join(m.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		m.lab.t.Fatal(err)
	}
	return file
}

// trust makes the machine's Nix believe further keys.
func (m *machine) trust(keys ...string) {
	m.lab.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.dir, "etc", "nix.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		m.lab.t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "extra-trusted-public-keys = %s\n", strings.Join(keys, " ")); err != nil {
		m.lab.t.Fatal(err)
	}
}
