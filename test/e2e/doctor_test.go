//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// finding is one of `flurry doctor --json`, as far as the tests look.
type finding struct {
	ID, Level, What, Why, Remedy string
}

// diagnosis is what the doctor found that is not well: warnings and failures by id.
type diagnosis map[string]finding

func (d diagnosis) ids() []string {
	var out []string
	for id := range d {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// farOff are findings about other machines, which are being broken at the same time.
var farOff = []string{"neighbour-unreachable", "neighbour-version", "no-neighbours", "peer-tcp-blocked", "peer-udp-blocked"}

// doctor runs the doctor beside the agent. extra are variables; user is "" for root.
func (a *agent) doctor(user string, extra ...string) diagnosis {
	t := a.m.lab.t
	t.Helper()
	args := append([]string{"env", "-u", "http_proxy", "-u", "all_proxy"}, extra...)
	args = append(args, a.m.lab.w.flurry, "doctor", "--json", "--config", filepath.Join(a.dir, "flurry.toml"),
		"--socket", filepath.Join(a.dir, "run", "flurry.sock"))
	cmd := a.m.lab.command(t.Context(), user, fmt.Sprint(a.m.n), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r struct {
		Healthy  bool
		Findings []finding
	}
	if jerr := json.Unmarshal(out, &r); jerr != nil {
		t.Fatalf("flurry doctor: %v, %v\n%s\n%s", err, jerr, out, stderr.Bytes())
	}
	d, failed := diagnosis{}, false
	for _, f := range r.Findings {
		if f.Level == "warn" || f.Level == "fail" {
			d[f.ID] = f
			failed = failed || f.Level == "fail"
			if f.What == "" || f.Why == "" || f.Remedy == "" {
				t.Errorf("%s does not say what, why and what to do: %+v", f.ID, f)
			}
		}
	}
	if status := cmd.ProcessState.ExitCode(); failed != (status == 1) || failed == r.Healthy {
		t.Errorf("exit status %d, healthy %v, findings %v", status, r.Healthy, d.ids())
	}
	return d
}

// sick breaks something, expects exactly these findings, and mends it again.
type sick struct {
	name    string
	breaks  func() (mend func())
	user    string
	env     []string
	finds   []string
	besides []string // that may come with it, depending on how long it lasts
}

func (a *agent) suffer(t *testing.T, cases ...sick) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			mend := func() {}
			if c.breaks != nil {
				mend = c.breaks()
			}
			defer mend()
			var got diagnosis
			if !within(patience, func() bool {
				got = a.doctor(c.user, c.env...)
				for _, id := range slices.Concat(c.besides, farOff) {
					if !slices.Contains(c.finds, id) {
						delete(got, id)
					}
				}
				return slices.Equal(got.ids(), c.finds)
			}) {
				t.Errorf("found %v, want %v\n%v", got.ids(), c.finds, got)
			}
		})
	}
}

// TestTheDoctorFindsWhatIsBroken breaks a machine in every way the doctor knows of, one at a time, and
// expects that finding and no other; and none in health. docs/doctor.md is the table of it.
func TestTheDoctorFindsWhatIsBroken(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("nft"); err != nil {
		missing(t, err.Error()+"; try: scripts/install-deps test")
	}
	l := newLab(t, labConfig{machines: 6})
	l.ownVLAN(6)
	standIn := newStandIn(l.machine[2])
	agents := []*agent{nil}
	for _, m := range l.machine[1:] {
		cfg := agentConfig{}
		if m.n == 2 {
			cfg.upstreams = []string{standIn.url}
		}
		m.must("nix-store", "--init")
		a := m.startAgent(cfg)
		agents = append(agents, a)
	}
	for _, a := range agents[1:6] {
		eventually(t, "no finding in health", func() bool {
			d := a.doctor("")
			if len(d) > 0 {
				t.Logf("machine %d: %v", a.m.n, d)
			}
			return len(d) == 0
		})
	}
	t.Run("broken", func(t *testing.T) {
		for name, suffer := range map[string]func(*testing.T){
			"nix":     func(t *testing.T) { agents[1].nixIsWrong(t) },
			"machine": func(t *testing.T) { agents[2].machineIsWrong(t, standIn) },
			"network": func(t *testing.T) { agents[3].networkIsWrong(t) },
			"walled":  func(t *testing.T) { agents[4].isWalled(t); agents[4].portIsWrong(t) },
			"others":  func(t *testing.T) { agents[5].othersAreWrong(t) },
			"own VLAN": func(t *testing.T) {
				agents[6].suffer(t, sick{name: "another VLAN", finds: []string{"no-neighbours"}})
			},
		} {
			t.Run(name, func(t *testing.T) { t.Parallel(); suffer(t) })
		}
	})
	t.Run("clients are isolated", func(t *testing.T) {
		for _, m := range l.machine[1:6] {
			l.ip("sw", "link", "set", fmt.Sprintf("m%d", m.n), "type", "bridge_slave", "isolated", "on")
		}
		agents[1].stop()
		agents[1].start() // so that nobody is connected from before
		agents[1].suffer(t, sick{name: "access point", finds: []string{"no-neighbours"}})
	})
}

// nixIsWrong breaks what Nix is told.
func (a *agent) nixIsWrong(t *testing.T) {
	m, key := a.m, a.m.lab.w.corpus.key
	conf := filepath.Join(m.dir, "etc", "nix.conf")
	const other = "other-1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	// with writes a nix.conf whose last lines are these; later ones win.
	with := func(lines string) func() func() {
		return func() func() {
			was, err := os.ReadFile(conf)
			if err == nil {
				err = os.WriteFile(conf, []byte(string(was)+lines+"\n"), 0o644)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(m.dir, "etc", "more.conf"), []byte("substituters = https://cache.nixos.org\n"), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() { os.WriteFile(conf, was, 0o644) }
		}
	}
	daemon := func() func() {
		d := a.nixDaemon(t)
		mended := with("")()
		d.touch(conf)
		return func() { mended(); d.stop() }
	}
	a.suffer(t,
		sick{name: "another substituter", breaks: with("substituters = " + upstreamURL), finds: []string{"nix-not-asking"}},
		sick{name: "an included file overrides", breaks: with("!include more.conf"), finds: []string{"nix-not-asking"}},
		sick{name: "an include is missing", breaks: with("!include none.conf\nextra-substituters ="), finds: nil},
		sick{name: "NIX_CONFIG overrides", env: []string{"NIX_CONFIG=substituters = https://cache.nixos.org"}, finds: []string{"nix-not-asking"}},
		sick{name: "a required include is missing", breaks: with("include none.conf"), finds: []string{"nix-conf-broken"}},
		sick{name: "another cache before us", breaks: with("extra-substituters = " + upstreamURL + "?priority=10"), finds: []string{"nix-order"}},
		sick{name: "another cache after us", breaks: with("extra-substituters = " + upstreamURL + "?priority=50"), finds: nil},
		sick{name: "Nix trusts nobody", breaks: with("trusted-public-keys ="), finds: []string{"keys-nix-lacks"}},
		sick{name: "Nix trusts somebody else", breaks: with("trusted-public-keys = " + other), finds: []string{"keys-flurry-lacks", "keys-nix-lacks"}},
		sick{name: "Nix trusts one more", breaks: with("trusted-public-keys = " + key + " " + other), finds: []string{"keys-flurry-lacks"}},
		sick{name: "an untrusted user's own substituter", breaks: with("substituters ="), user: "nobody",
			env: []string{"NIX_REMOTE=daemon", "NIX_CONFIG=extra-substituters = " + agentURL}, finds: []string{"nix-user-not-trusted"}},
		sick{name: "a trusted user's own substituter", breaks: with("substituters =\ntrusted-users = nobody"), user: "nobody",
			env: []string{"NIX_REMOTE=daemon", "NIX_CONFIG=extra-substituters = " + agentURL}, finds: nil},
		sick{name: "the daemon is older than nix.conf", breaks: daemon, finds: []string{"nix-daemon-stale"}},
		sick{name: "a proxy for everything", env: []string{"http_proxy=http://user:secret@10.77.0.1:3128"}, finds: []string{"proxy-swallows-localhost"}},
		sick{name: "a proxy with exceptions", env: []string{"http_proxy=http://10.77.0.1:3128", "no_proxy=localhost,127.0.0.0/8"}, finds: nil},
	)
}

// machineIsWrong breaks what the agent needs of its machine and its central cache.
func (a *agent) machineIsWrong(t *testing.T, cache *standIn) {
	db, files := filepath.Join(a.m.dir, "nix/var/nix/db"), filepath.Join(a.m.dir, "nix/store")
	closed := func(name string) func() func() {
		return func() func() {
			info, err := os.Stat(name)
			if err == nil {
				err = os.Chmod(name, 0o700)
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() { os.Chmod(name, info.Mode().Perm()) }
		}
	}
	small := func(where string) func() func() {
		return func() func() {
			a.inside(t, "mount", "-t", "tmpfs", "-o", "size=32m,mode=777", "none", where)
			return func() { a.inside(t, "umount", "-l", where) }
		}
	}
	a.suffer(t,
		sick{name: "no access to the database", breaks: closed(db), finds: []string{"store-unreadable"}},
		sick{name: "no access to the store", breaks: closed(files), finds: []string{"store-files-unreadable"}},
		sick{name: "state on a small disk", breaks: small(filepath.Join(a.dir, "state")), finds: []string{"disk-state"}},
		sick{name: "store on a small disk", breaks: small("/nix/store"), finds: []string{"disk-store"}},
		sick{name: "a slow central cache", breaks: cache.slow, finds: []string{"upstream-slow"}},
		sick{name: "a clock that is behind", breaks: cache.fromTheFuture, finds: []string{"clock-skew"}},
		sick{name: "a central cache that is gone", breaks: cache.gone, finds: []string{"upstream-unreachable"}},
	)
}

// networkIsWrong breaks the ways to neighbours.
func (a *agent) networkIsWrong(t *testing.T) {
	l, me := a.m.lab, fmt.Sprint(a.m.n)
	port := "m" + me
	noMulticast := func() func() {
		l.ip("sw", "link", "set", port, "type", "bridge_slave", "mcast_flood", "off")
		return func() { l.ip("sw", "link", "set", port, "type", "bridge_slave", "mcast_flood", "on") }
	}
	noRoute := func() func() {
		l.ip("m"+me, "route", "del", "default")
		return func() { l.ip("m"+me, "route", "add", "default", "via", "10.77.1.254") }
	}
	vpn := func() func() {
		l.ip("m"+me, "link", "add", "tun0", "type", "veth", "peer", "name", "tun1")
		l.ip("m"+me, "link", "set", "tun0", "up")
		l.ip("m"+me, "link", "set", "tun1", "up")
		l.ip("m"+me, "addr", "add", "10.99.0.1/32", "dev", "tun0")
		for _, half := range []string{"10.77.1.0/25", "10.77.1.128/25"} {
			l.ip("m"+me, "route", "add", half, "dev", "tun0", "src", "10.99.0.1")
		}
		return func() { l.ip("m"+me, "link", "del", "tun0") }
	}
	noCable := func() func() {
		l.ip("m"+me, "link", "set", "eth0", "down")
		return func() {
			l.ip("m"+me, "link", "set", "eth0", "up")
			l.ip("m"+me, "route", "replace", "default", "via", "10.77.1.254")
		}
	}
	a.suffer(t,
		sick{name: "a firewall that drops multicast", breaks: a.m.firewall(t, "udp dport 5353 drop"), finds: []string{"multicast-blocked"}},
		sick{name: "a switch that drops multicast", breaks: noMulticast, finds: []string{"multicast-filtered"}},
		sick{name: "no route to the central cache", breaks: noRoute, finds: []string{"upstream-unreachable"}},
		sick{name: "a VPN that takes the LAN over", breaks: vpn, finds: []string{"lan-routed-elsewhere"}, besides: []string{"upstream-unreachable", "multicast-filtered"}},
		sick{name: "a VPN's interface only", breaks: noCable, finds: []string{"multicast-no-interface", "upstream-unreachable"}},
	)
}

// isWalled closes the agent's port with a firewall.
func (a *agent) isWalled(t *testing.T) {
	a.suffer(t,
		sick{name: "a firewall before TCP", breaks: a.m.firewall(t, "tcp dport 6491 ct state new drop"), finds: []string{"peer-tcp-blocked"}},
		sick{name: "a firewall before UDP", breaks: a.m.firewall(t, "udp dport 6491 drop"), finds: []string{"peer-udp-blocked"}},
	)
}

// portIsWrong lets others have the agent's ports.
func (a *agent) portIsWrong(t *testing.T) {
	second := *a
	a.suffer(t,
		sick{name: "Nix's packets go to another program", breaks: func() func() {
			web := newWeb(a.m, "127.0.0.1:6499")
			open := a.m.nft(t, "table ip doctor { chain out { type nat hook output priority -100; tcp dport 6490 redirect to :6499; }; }")
			return func() { open(); web.Close() }
		}, finds: []string{"port-taken"}},
		sick{name: "a second agent", breaks: func() func() {
			second = *a.m.launchSecond(t)
			return func() {}
		}, finds: nil},
	)
	second.suffer(t, sick{name: "the peer port is another's", finds: []string{"nix-not-asking", "peer-port-taken"}})
	second.kill()
	a.stop()
	a.suffer(t,
		sick{name: "no agent", finds: []string{"agent-down", "port-closed"}},
		sick{name: "no agent, and somebody else at its port", breaks: func() func() {
			return newWeb(a.m, "127.0.0.1:6490").Close
		}, finds: []string{"agent-down", "port-taken"}},
	)
}

// othersAreWrong looks at neighbours that are walled off or of another version: this one becomes both.
func (a *agent) othersAreWrong(t *testing.T) {
	a.stop()
	a.cfg.binary = anotherVersion(t, a.m.lab.w.flurry, a.dir)
	a.start()
	a.suffer(t,
		sick{name: "neighbours of another version", finds: []string{"neighbour-version"}},
		sick{name: "neighbours that are walled off", breaks: func() func() {
			open := a.m.firewall(t, "tcp dport 6491 drop; tcp sport 6491 drop; udp dport 6491 drop; udp sport 6491 drop")()
			a.stop()
			a.start()
			return open
		}, finds: []string{"neighbour-unreachable"}},
	)
}

// anotherVersion is a copy of the program that says it is of another version.
func anotherVersion(t *testing.T, flurry, dir string) string {
	t.Helper()
	out, err := exec.Command(flurry, "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	was := strings.TrimPrefix(line, "flurry ")
	digit := strings.IndexAny(was, "0123456789")
	if len(was) < 7 || digit < 0 {
		t.Fatalf("the program's version is %q: build it with one that is found in it only where it is meant (make build)", was)
	}
	is := was[:digit] + string('0'+(was[digit]-'0'+1)%10) + was[digit+1:]
	b, err := os.ReadFile(flurry)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "flurry-"+is)
	if err := os.WriteFile(name, bytes.ReplaceAll(b, []byte(was), []byte(is)), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}
