//go:build linux

package e2e

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestTheSubstituterSpeaksTheBinaryCacheProtocol(t *testing.T) {
	l := newLab(t, labConfig{machines: 2})
	m := l.machine[1]
	m.startAgent(agentConfig{})
	p := l.w.corpus.find(t, "zlib1g-")
	get := func(path string, h map[string]string) answer {
		t.Helper()
		return ask(t, m, http.MethodGet, agentURL+path, h)
	}
	narinfo := get("/"+storeHash(p.path)+".narinfo", nil)
	fields := narinfoFields(string(narinfo.body))
	nar := "/" + fields["URL"]

	t.Run("nix-cache-info", func(t *testing.T) {
		f := narinfoFields(string(get("/nix-cache-info", nil).body))
		if f["StoreDir"] != "/nix/store" || f["WantMassQuery"] != "1" || f["Priority"] != "30" {
			t.Errorf("nix-cache-info: %v", f)
		}
	})
	t.Run("narinfo", func(t *testing.T) {
		if narinfo.status != 200 || fields["StorePath"] != p.path || fields["NarHash"] != p.narHash || fields["NarSize"] != strconv.FormatInt(p.narSize, 10) {
			t.Errorf("status %d: %s", narinfo.status, narinfo.body)
		}
		if fields["Sig"] == "" || strings.Contains(fields["URL"], "//") || strings.HasPrefix(fields["URL"], "/") {
			t.Errorf("Sig %q, URL %q", fields["Sig"], fields["URL"])
		}
		head := ask(t, m, http.MethodHead, agentURL+"/"+storeHash(p.path)+".narinfo", nil)
		if head.status != 200 || len(head.body) != 0 || head.header.Get("Content-Length") != strconv.Itoa(len(narinfo.body)) {
			t.Errorf("HEAD: status %d, Content-Length %s of %d", head.status, head.header.Get("Content-Length"), len(narinfo.body))
		}
	})
	t.Run("what nobody has is 404", func(t *testing.T) {
		for _, path := range []string{
			"/" + strings.Repeat("0", 32) + ".narinfo", "/" + strings.Repeat("e", 32) + ".narinfo", "/../etc/passwd.narinfo", "/x.narinfo",
			"/nar/" + strings.Repeat("0", 32) + "-" + strings.Repeat("0", 52) + ".nar", "/nar/x", "/nar/../flurry.toml", "/nosuch",
			"/" + strings.Repeat("0", 32) + ".ls", "/log/" + strings.Repeat("0", 32) + "-x.drv",
		} {
			if a := get(path, nil); a.status != http.StatusNotFound {
				t.Errorf("GET %s: status %d", path, a.status)
			}
		}
	})
	t.Run("NAR, whole and in parts", func(t *testing.T) { narInParts(t, m, p, nar) })
	t.Run("listings and logs come through unchanged", func(t *testing.T) { passedThrough(t, l, m, p) })
	t.Run("a remembered NAR URL outlives the agent", func(t *testing.T) {
		m.agent.stop()
		m.agent.start()
		if a := get(nar, nil); a.status != 200 || int64(len(a.body)) != p.narSize {
			t.Errorf("status %d, %d bytes", a.status, len(a.body))
		}
	})
	t.Run("other sites' pages are refused", func(t *testing.T) {
		for _, h := range []map[string]string{
			{"Host": "evil.example"}, {"Host": "evil.example:" + agentPort}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
		} {
			for _, path := range []string{"/nix-cache-info", "/", "/events", "/login?token=x", "/metrics", "/status.json", nar, "/" + storeHash(p.path) + ".narinfo"} {
				if a := get(path, h); a.status != http.StatusForbidden {
					t.Errorf("GET %s with %v: status %d, want 403", path, h, a.status)
				}
			}
		}
		for _, h := range []map[string]string{{"Host": "localhost:" + agentPort}, {"Host": "127.0.0.1:" + agentPort}, {"Sec-Fetch-Site": "none"}} {
			if a := get("/nix-cache-info", h); a.status != 200 {
				t.Errorf("with %v: status %d, want 200", h, a.status)
			}
		}
	})
	t.Run("a narinfo stays when the central cache goes", func(t *testing.T) {
		l.killUpstream()
		if a := get("/"+storeHash(p.path)+".narinfo", nil); a.status != 200 {
			t.Errorf("known: status %d", a.status)
		}
		if a := get("/"+storeHash(l.w.corpus.roots["gcc"])+".narinfo", nil); a.status != 404 {
			t.Errorf("unknown: status %d, want 404", a.status)
		}
		if a := get("/nix-cache-info", nil); a.status != 200 {
			t.Errorf("nix-cache-info: status %d", a.status)
		}
	})
}

func narInParts(t *testing.T, m *machine, p *corpusPath, nar string) {
	whole := ask(t, m, http.MethodGet, agentURL+nar, nil)
	if whole.status != 200 || int64(len(whole.body)) != p.narSize || whole.header.Get("Accept-Ranges") != "bytes" || whole.header.Get("Content-Encoding") != "" {
		t.Fatalf("status %d, %d bytes of %d, %v", whole.status, len(whole.body), p.narSize, whole.header)
	}
	if whole.header.Get("Content-Length") != strconv.FormatInt(p.narSize, 10) {
		t.Errorf("Content-Length %q, want %d", whole.header.Get("Content-Length"), p.narSize)
	}
	if head := ask(t, m, http.MethodHead, agentURL+nar, nil); head.status != 200 || len(head.body) != 0 {
		t.Errorf("HEAD: status %d, %d bytes", head.status, len(head.body))
	}
	for _, c := range []struct {
		header   string
		from, to int64
	}{{"bytes=1000-", 1000, p.narSize}, {"bytes=0-0", 0, 1}, {"bytes=5-104", 5, 105}, {"bytes=-7", p.narSize - 7, p.narSize}} {
		a := ask(t, m, http.MethodGet, agentURL+nar, map[string]string{"Range": c.header})
		if a.status != http.StatusPartialContent || !bytes.Equal(a.body, whole.body[c.from:c.to]) {
			t.Errorf("Range %s: status %d, %d bytes, want %d of the same", c.header, a.status, len(a.body), c.to-c.from)
		}
	}
	past := ask(t, m, http.MethodGet, agentURL+nar, map[string]string{"Range": "bytes=" + strconv.FormatInt(p.narSize, 10) + "-"})
	if past.status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("Range past the end: status %d, want 416", past.status)
	}
}

func passedThrough(t *testing.T, l *lab, m *machine, p *corpusPath) {
	logs, err := os.ReadDir(filepath.Join(l.w.corpus.dir, "cache", "log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("the corpus has no logs: %v", err)
	}
	for _, path := range []string{"/" + storeHash(p.path) + ".ls", "/log/" + logs[0].Name()} {
		want, err := os.ReadFile(filepath.Join(l.w.corpus.dir, "cache", filepath.FromSlash(path)))
		if err != nil {
			t.Fatal(err)
		}
		if a := ask(t, m, http.MethodGet, agentURL+path, nil); a.status != 200 || !bytes.Equal(a.body, want) {
			t.Errorf("GET %s: status %d, %d bytes, want %d", path, a.status, len(a.body), len(want))
		}
	}
}

// A machine without an agent can use a neighbour's as a plain binary cache.
func TestANeighbourWithoutAnAgentUsesItAsAPlainCache(t *testing.T) {
	l := newLab(t, labConfig{machines: 2})
	m1, m2 := l.machine[1], l.machine[2]
	root := l.w.corpus.roots["openssh-client"]
	m1.preload(root)
	m1.startAgent(agentConfig{listen: "0.0.0.0:" + agentPort})
	m1.agent.shares(len(l.w.corpus.closure(root)))
	l.killUpstream()
	m2.substituters("http://" + m1.ip + ":" + agentPort)
	succeeded(t, m2.realise(root))
	m2.hasExactly(l.w.corpus.closure(root))
}
