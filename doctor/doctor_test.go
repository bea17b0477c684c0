package doctor

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// healthy is a machine that lacks nothing.
func healthy() Machine {
	return Machine{
		Store:     Store{Database: "/nix/var/nix/db/db.sqlite", Dir: "/nix/store", Paths: 3},
		Disks:     []Disk{{Name: "state", Dir: "/s", Free: 1e10, FreeInodes: -1}, {Name: "store", Dir: "/nix/store", Free: 1e10, FreeInodes: 1e6}},
		Upstreams: []Upstream{{URL: "https://a", Took: time.Millisecond, HasDate: true}},
		Peers: Peers{MDNS: true, Port: 6491, Version: "flurry/1",
			Links:      []Link{{Name: "eth0", Returned: true, Answered: []string{"p"}, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}},
			Neighbours: []Neighbour{{ID: "p", Version: "flurry/1", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}},
			DialBacks:  []DialBack{{TCP: true, UDP: true}}},
	}
}

func ids(list []Finding) (out []string) {
	for _, f := range list {
		if f.Level != OK {
			out = append(out, f.ID)
		}
	}
	return out
}

// What the lab cannot break is broken here; the rest is in test/e2e.
func TestFindingsFollowFromWhatWasSeen(t *testing.T) {
	if got := ids(healthy().Check()); len(got) > 0 {
		t.Errorf("in health: %v", got)
	}
	for want, breaks := range map[string]func(*Machine){
		"store-off":              func(m *Machine) { m.Store = Store{} },
		"store-unreadable":       func(m *Machine) { m.Store.Err = errors.New("x") },
		"disk-store":             func(m *Machine) { m.Disks[1].FreeInodes = 3 },
		"upstream-slow":          func(m *Machine) { m.Upstreams[0].Rate = 1000 },
		"clock-skew":             func(m *Machine) { m.Upstreams[0].Skew = -time.Minute },
		"clock-unknown":          func(m *Machine) { m.Upstreams[0].HasDate = false },
		"peers-off":              func(m *Machine) { m.Peers.Off = true },
		"mdns-off":               func(m *Machine) { m.Peers.MDNS = false },
		"multicast-no-interface": func(m *Machine) { m.Peers.Links = nil },
		"multicast-filtered":     func(m *Machine) { m.Peers.Links[0].Answered = nil },
		"neighbour-unreachable":  func(m *Machine) { m.Peers.Links[0].Answered = []string{"p", "q"} },
		"neighbour-version":      func(m *Machine) { m.Peers.Version = "flurry/2" },
		"reachable-unknown":      func(m *Machine) { m.Peers.DialBacks = nil },
		"sharing-paused":         func(m *Machine) { m.Peers.Paused = true },
	} {
		m := healthy()
		breaks(&m)
		if got := ids(m.Check()); !slices.Equal(got, []string{want}) {
			t.Errorf("%v, want %s", got, want)
		}
	}
}

func TestOneCentralCacheOfTwoIsAWarning(t *testing.T) {
	m := healthy()
	m.Upstreams = append(m.Upstreams, Upstream{URL: "https://b", Err: errors.New("no\nroute")})
	if r := NewReport(m.Check()...); !r.Healthy {
		t.Error("it fails")
	}
	m.Upstreams = m.Upstreams[1:]
	if r := NewReport(m.Check()...); r.Healthy {
		t.Error("all are gone, and it does not fail")
	}
}

func TestEveryFindingIsInTheTable(t *testing.T) {
	table, err := os.ReadFile("../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob("*.go")
	var code strings.Builder
	for _, name := range append(files, "../cmd/flurry/cli/doctor.go") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(b)
	}
	inCode := map[string]bool{"disk-state": true, "disk-store": true}
	for _, m := range regexp.MustCompile(`(?:ID: |add\()"([a-z-]+)"[,}]`).FindAllStringSubmatch(code.String(), -1) {
		inCode[m[1]] = true
	}
	inTable := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\|[^|]*\\| `([a-z-]+)`").FindAllStringSubmatch(string(table), -1) {
		inTable[m[1]] = true
	}
	if len(inCode) < 30 {
		t.Fatalf("only %d ids found", len(inCode))
	}
	for id := range inCode {
		if !inTable[id] {
			t.Errorf("docs/doctor.md lacks %s", id)
		}
	}
	for id := range inTable {
		if !inCode[id] {
			t.Errorf("docs/doctor.md has %s, which is never found", id)
		}
	}
}

// TestNixConfIsReadAsNixDoes has the order of Nix's own: the system's file, users' files, NIX_CONFIG.
func TestNixConfIsReadAsNixDoes(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sys/nix.conf":      "# a comment\nsubstituters = a b # more\n!include none.conf\ninclude sub/more.conf\n",
		"sys/sub/more.conf": "extra-substituters = c\ntrusted-users = @wheel\n!include nix.conf\n",
		"home/nix/nix.conf": "extra-trusted-substituters = t\nbinary-caches = d\n",
		"xdg/nix/nix.conf":  "extra-substituters = never\nextra-trusted-public-keys = k",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"NIX_CONF_DIR": dir + "/sys", "XDG_CONFIG_HOME": dir + "/home", "XDG_CONFIG_DIRS": dir + "/xdg", "NIX_CONFIG": "extra-substituters = e"}
	look := func(name string) string { return env[name] }
	s := readNixSettings(look, true)
	if !slices.Equal(s.substituters, []string{"a", "b", "c"}) || !slices.Equal(s.trustedUsers, []string{"@wheel"}) || len(s.files) != 2 || len(s.problems) > 0 {
		t.Errorf("the daemon's: %+v", s)
	}
	s = readNixSettings(look, false)
	if !slices.Equal(s.substituters, []string{"d", "e"}) || !slices.Equal(s.trustedSubstituters, []string{"t"}) || len(s.keys) != 2 || s.keys[1] != "k" {
		t.Errorf("the caller's: %+v", s)
	}
	env["NIX_USER_CONF_FILES"] = dir + "/xdg/nix/nix.conf"
	if s = readNixSettings(look, false); !slices.Equal(s.substituters, []string{"a", "b", "c", "never", "e"}) {
		t.Errorf("with NIX_USER_CONF_FILES: %v", s.substituters)
	}
}

func TestNoProxyIsReadAsCurlDoes(t *testing.T) {
	for list, want := range map[string]bool{
		"": false, "*": true, "127.0.0.1": true, "localhost": false, "127.0.0.0/8": true, "example.org, 127.0.0.1": true, "0.0.1": true, "10.0.0.0/8": false,
	} {
		if got := exempt(list, "127.0.0.1"); got != want {
			t.Errorf("no_proxy=%q: %v", list, got)
		}
	}
	if got := withoutUser("http://me:secret@proxy:1"); got != "http://proxy:1" {
		t.Error(got)
	}
}

func TestOurAddressIsKnownInEveryForm(t *testing.T) {
	h := Here{Listen: []string{":6490", "10.0.0.1:80"}}
	for url, want := range map[string]bool{
		"http://127.0.0.1:6490": true, "http://localhost:6490/?priority=3": true, "http://[::1]:6490": true, "http://10.0.0.1": true,
		"https://127.0.0.1:6490": false, "http://127.0.0.1:6491": false, "http://10.0.0.2:6490": false, "file:///x": false,
	} {
		if got := h.isOurs(url); got != want {
			t.Errorf("%s: %v", url, got)
		}
	}
}
