//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A machine's own paths: one built and unsigned, one signed with a key that the agent trusts and
// that is not public. A public one is the positive control: what gets that must not get these.
func TestUnsignedAndPrivatelySignedPathsStayHome(t *testing.T) {
	l := newLab(t, labConfig{machines: 2})
	m1, m2 := l.machine[1], l.machine[2]
	public := l.w.corpus.find(t, "zlib1g-")
	m1.preload(public.path)
	built, signed := m1.build("secret-built"), m1.build("secret-signed")
	key := m1.sign(signed)
	m1.startAgent(agentConfig{
		listen: "0.0.0.0:" + agentPort,
		toml:   fmt.Sprintf("[[upstream]]\nurl = %q\nkeys = [%q]\npublic = false\n", upstreamURL+"/private", key),
	})
	m2.startAgent(agentConfig{})
	m1.agent.shares(1)
	m2.agent.knows(m1.agent, 1)

	for _, p := range []string{built, signed} {
		for _, url := range m1.waysToAsk(p) {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				a := ask(t, m2, method, "http://"+m1.ip+":"+agentPort+url, nil)
				if a.status < 400 {
					t.Errorf("%s %s from next door: status %d", method, url, a.status)
				}
				if bytes.Contains(a.body, []byte("secret-")) {
					t.Errorf("%s %s from next door names the path: %s", method, url, a.body)
				}
			}
		}
		if r := m2.realise(p); r.code == 0 {
			t.Errorf("machine 2 substituted %s", p)
		}
		if r := m2.agent.cli("fetch", p, "-o", filepath.Join(m2.dir, "fetched")); r.code == 0 {
			t.Errorf("flurry fetch %s succeeded on machine 2", p)
		}
		if r := m2.agent.cli("locate", p); strings.Contains(r.out, m1.agent.status().PeerID) {
			t.Errorf("flurry locate names machine 1 for %s:\n%s", p, r.out)
		}
	}
	for _, page := range []string{"/", "/metrics", "/status.json"} {
		if a := ask(t, m2, http.MethodGet, "http://"+m1.ip+":"+agentPort+page, nil); bytes.Contains(a.body, []byte("secret-")) {
			t.Errorf("%s names a private path", page)
		}
	}

	for _, url := range m1.waysToAsk(public.path)[:2] {
		if a := ask(t, m2, http.MethodGet, "http://"+m1.ip+":"+agentPort+url, nil); a.status != http.StatusOK {
			t.Errorf("GET %s of a public path from next door: status %d", url, a.status)
		}
	}
	l.killUpstream()
	succeeded(t, m2.realise(public.path))
	if n, want := m2.agent.offered(m1.agent.status().PeerID), len(l.w.corpus.closure(public.path)); n != want {
		t.Errorf("machine 2 was told of %d paths, want the %d public ones only", n, want)
	}
}

// build makes a path of the machine's own, without a signature.
func (m *machine) build(name string) string {
	m.lab.t.Helper()
	expr := `derivation { name = "` + name + `"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo ` + name + ` >$out" ]; }`
	file := filepath.Join(m.dir, name+".nix")
	if err := os.WriteFile(file, []byte(expr), 0o644); err != nil {
		m.lab.t.Fatal(err)
	}
	return strings.TrimSpace(m.must("nix-build", "--no-out-link", "--option", "substitute", "false", file))
}

// sign gives a path a signature of a new key, and returns the key's public half.
func (m *machine) sign(path string) string {
	m.lab.t.Helper()
	sec, pub := filepath.Join(m.dir, "private.sec"), filepath.Join(m.dir, "private.pub")
	m.must("nix-store", "--generate-binary-cache-key", "private-1", sec, pub)
	m.must("nix", "store", "sign", "--key-file", sec, path)
	key, err := os.ReadFile(pub)
	if err != nil {
		m.lab.t.Fatal(err)
	}
	return strings.TrimSpace(string(key))
}

// waysToAsk lists every request under which a path, its listing or its log could be had; the first
// two are those that give a shareable one.
func (m *machine) waysToAsk(path string) []string {
	m.lab.t.Helper()
	hash := storeHash(path)
	nar := strings.TrimPrefix(strings.TrimSpace(m.must("nix-store", "-q", "--hash", path)), "sha256:")
	base := filepath.Base(path)
	return []string{
		"/" + hash + ".narinfo",
		"/nar/" + hash + "-" + nar + ".nar",
		"/nar/" + nar + ".nar",
		"/nar/" + hash + ".nar",
		"/nar/" + nar + ".nar?hash=" + hash,
		"/nar/" + base + ".nar",
		"/" + hash + ".ls",
		"/log/" + base,
		"/log/" + base + ".drv",
		"/" + base,
		"/nix/store/" + base,
	}
}
