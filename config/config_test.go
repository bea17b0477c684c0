package config

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
)

const labKey = "lab-1:krUXB0R6t+YpFAZU8CODImWRS86vEsWKny7+SPQoOgM="

// environment is enough for defaults and keeps tests from reading the machine's own.
var environment = []string{"STATE_DIRECTORY=/var/lib/flurry"}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func flagSet(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	AddFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

func mustLoad(t *testing.T, text string, fs *pflag.FlagSet, env ...string) *Config {
	t.Helper()
	c, problems := Load(write(t, text), fs, slices.Concat(environment, env))
	if len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	return c
}

func TestNothingConfiguredGivesTheContractsDefaults(t *testing.T) {
	c := mustLoad(t, "", nil)
	want := &Config{
		State:       State{Dir: "/var/lib/flurry"},
		Substituter: Substituter{Listen: []string{"127.0.0.1:6490"}, Priority: 30, MaxBuffer: 8 << 20},
		Store:       Store{Dir: "/nix/store", Database: "/nix/var/nix/db/db.sqlite"},
		Upstreams:   []Upstream{{URL: DefaultUpstreamURL, Keys: []string{DefaultUpstreamKey}, Public: true}},
		Peers:       Peers{Listen: []string{":6491"}, MDNS: true, Introduce: true},
		Internet:    Internet{Prefer: "speed", Relay: true, Upload: 2_500_000, MinNarSize: 256 << 10},
		Limits:      Limits{Connections: 256, CacheSize: 4 << 30, KeepForOthers: time.Minute, Metered: MeteredAuto},
		Log:         Log{Level: slog.LevelInfo, Format: "text"},
	}
	for _, n := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"} {
		want.Peers.Networks = append(want.Peers.Networks, netip.MustParsePrefix(n))
	}
	if d := diff(want, c); d != "" {
		t.Error(d)
	}
	if d := diff(want, Default("/var/lib/flurry")); d != "" {
		t.Error(d)
	}
}

func diff(want, got *Config) string {
	return cmp.Diff(want, got, cmpopts.IgnoreUnexported(Config{}), cmpopts.IgnoreFields(Config{}, "Path"),
		cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }))
}

func TestEveryKeyCanBeSetInTheFile(t *testing.T) {
	got := mustLoad(t, `
[state]
dir = "/s/"
[substituter]
listen = ["127.0.0.1:1", "[::1]:2"]
priority = 10
max_buffer = "1MiB"
allowed_hosts = ["Cache.LAN."]
[store]
dir = "/mnt/nix/store"
database = ""
[[upstream]]
url = "https://cache.nixos.org/"
[[upstream]]
url = "http://cache.corp/team/"
keys = ["`+labKey+`"]
headers_file = "/run/secrets/headers"
netrc_file = "/run/secrets/netrc"
[peers]
listen = ["0.0.0.0:7000"]
mdns = false
interfaces = ["eth0"]
networks = ["10.77.0.0/16"]
static = ["m2", "10.0.0.1", "::1", "m3:7000", "/dns4/m4/tcp/6491/p2p/12D3"]
introduce = false
secret_file = "/run/secrets/group"
[internet]
enable = true
prefer = "offload"
bootstrap = ["/dnsaddr/bootstrap.libp2p.io/p2p/QmX"]
public_addresses = ["/ip4/192.0.2.1/tcp/6491"]
relay = false
serve_relay = true
upload = "1MB/s"
min_nar_size = 4096
[limits]
upload = "50Mbit/s"
download = "6MB/s"
connections = 5
cache_size = "1.5GiB"
keep_for_others = "2d"
metered = true
[log]
level = "debug"
format = "json"
`, nil)
	want := &Config{
		State:       State{Dir: "/s"},
		Substituter: Substituter{Listen: []string{"127.0.0.1:1", "[::1]:2"}, Priority: 10, MaxBuffer: 1 << 20, AllowedHosts: []string{"cache.lan"}},
		Store:       Store{Dir: "/mnt/nix/store"},
		Upstreams: []Upstream{
			{URL: DefaultUpstreamURL, Keys: []string{DefaultUpstreamKey}, Public: true},
			{URL: "http://cache.corp/team", Keys: []string{labKey}, HeadersFile: "/run/secrets/headers", NetrcFile: "/run/secrets/netrc"},
		},
		Peers: Peers{Listen: []string{"0.0.0.0:7000"}, Interfaces: []string{"eth0"},
			Networks:   []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")},
			Static:     []string{"m2:6491", "10.0.0.1:6491", "[::1]:6491", "m3:7000", "/dns4/m4/tcp/6491/p2p/12D3"},
			SecretFile: "/run/secrets/group"},
		Internet: Internet{Enable: true, Prefer: "offload", Bootstrap: []string{"/dnsaddr/bootstrap.libp2p.io/p2p/QmX"},
			PublicAddresses: []string{"/ip4/192.0.2.1/tcp/6491"}, ServeRelay: true, Upload: 1e6, MinNarSize: 4096},
		Limits: Limits{Upload: 6250000, Download: 6000000, Connections: 5, CacheSize: 3 << 29, KeepForOthers: 48 * time.Hour, Metered: MeteredYes},
		Log:    Log{Level: slog.LevelDebug, Format: "json"},
	}
	if d := diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestAllSpellingsOfTOMLMeanTheSame(t *testing.T) {
	want := mustLoad(t, "[log]\nformat = \"json\"\n[[upstream]]\nurl = \"http://c\"\nkeys = [\""+labKey+"\"]\n", nil)
	for _, text := range []string{
		"log.format = 'json'\nupstream = [{url = \"http://c\", keys = '" + labKey + "'}]",
		"log = {format = \"json\"}\n[[upstream]]\n\"url\" = \"http://c\"\nkeys = [ # why\n '" + labKey + "',\n]",
	} {
		if d := diff(want, mustLoad(t, text, nil)); d != "" {
			t.Errorf("%s:\n%s", text, d)
		}
	}
}

func TestFlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	const file = "[substituter]\npriority = 1\n[log]\nlevel = \"warn\"\n"
	env := []string{"FLURRY_SUBSTITUTER_PRIORITY=2", "FLURRY_LIMITS_CONNECTIONS=7"}
	for name, tc := range map[string]struct {
		fs   *pflag.FlagSet
		env  []string
		want int
	}{
		"file":        {nil, nil, 1},
		"environment": {nil, env, 2},
		"flag":        {flagSet(t, "--substituter-priority=3"), env, 3},
	} {
		t.Run(name, func(t *testing.T) {
			c := mustLoad(t, file, tc.fs, tc.env...)
			if c.Substituter.Priority != tc.want || c.Log.Level != slog.LevelWarn || c.Log.Format != "text" {
				t.Errorf("priority %d, log %+v", c.Substituter.Priority, c.Log)
			}
		})
	}
}

func TestFlagsMayBeSpelledWithDotsAndLists(t *testing.T) {
	c := mustLoad(t, "[peers]\nstatic = [\"x\"]\n", flagSet(t, "--peers.static", "a,b", "--peers_static=c",
		"--internet.enable", "--internet.min_nar_size=1", "--peers-mdns=false", "--store-database="))
	if d := cmp.Diff([]string{"a:6491", "b:6491", "c:6491"}, c.Peers.Static); d != "" {
		t.Error(d)
	}
	if !c.Internet.Enable || c.Internet.MinNarSize != 1 || c.Peers.MDNS || c.Store.Database != "" {
		t.Errorf("%+v %+v %+v", c.Internet, c.Peers, c.Store)
	}
}

func TestUpstreamFlags(t *testing.T) {
	const two = "[[upstream]]\nurl=\"http://a\"\nkeys=[\"" + labKey + "\"]\n[[upstream]]\nurl=\"http://b\"\nkeys=[\"" + labKey + "\"]\n"
	const one = "[[upstream]]\nurl=\"http://a\"\nkeys=[\"" + labKey + "\"]\n"
	lab := []string{labKey}
	for name, tc := range map[string]struct {
		file string
		args []string
		want []Upstream
	}{
		"a URL replaces the list":            {two, []string{"--upstream-url=http://c/", "--upstream-keys", labKey}, []Upstream{{URL: "http://c", Keys: lab}}},
		"several URLs share the other keys":  {"", []string{"--upstream-url=http://c,http://d", "--upstream-public", "--upstream-keys", labKey}, []Upstream{{URL: "http://c", Keys: lab, Public: true}, {URL: "http://d", Keys: lab, Public: true}}},
		"without URL, the only one is meant": {one, []string{"--upstream-public"}, []Upstream{{URL: "http://a", Keys: lab, Public: true}}},
		"without URL and file, the default":  {"", []string{"--upstream-public=false"}, []Upstream{{URL: DefaultUpstreamURL, Keys: []string{DefaultUpstreamKey}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, mustLoad(t, tc.file, flagSet(t, tc.args...)).Upstreams); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestRelativePathsFromTheShellAreResolved(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	c := mustLoad(t, "", flagSet(t, "--state-dir=s"), "FLURRY_PEERS_SECRET_FILE=x")
	if c.State.Dir != filepath.Join(here, "s") || c.Peers.SecretFile != filepath.Join(here, "x") {
		t.Errorf("%q %q", c.State.Dir, c.Peers.SecretFile)
	}
}

func TestStateDirectoryFollowsSystemdThenXDG(t *testing.T) {
	for want, env := range map[string][]string{
		"/a":                      {"STATE_DIRECTORY=/a:/b", "XDG_STATE_HOME=/x", "HOME=/h"},
		"/x/flurry":               {"XDG_STATE_HOME=/x", "HOME=/h"},
		"/h/.local/state/flurry":  {"HOME=/h", "XDG_STATE_HOME="},
		"/h2/.local/state/flurry": {"HOME=/h", "HOME=/h2", "XDG_STATE_HOME=relative"},
		"":                        nil,
	} {
		if got := DefaultStateDir(env); got != want {
			t.Errorf("%v: %q, want %q", env, got, want)
		}
	}
}

var commented = regexp.MustCompile(`(?m)^#([a-z_]+ = |\[\[)`)

func TestTheExampleSaysTheDefaults(t *testing.T) {
	want := Default("/var/lib/flurry")
	for name, text := range map[string]string{"as it is": Example(), "uncommented": commented.ReplaceAllString(Example(), "$1")} {
		t.Run(name, func(t *testing.T) {
			if d := diff(want, mustLoad(t, text, nil)); d != "" {
				t.Error(d)
			}
		})
	}
	if n := len(commented.FindAllString(Example(), -1)); n != len(table())+1 {
		t.Errorf("%d keys commented out, the table has %d", n, len(table()))
	}
}

func TestEveryKeyIsDocumentedEverywhere(t *testing.T) {
	md, flags := Markdown(), flagSet(t)
	for _, k := range table() {
		if k.doc == "" || !strings.HasSuffix(k.doc, ".") {
			t.Errorf("%s: no sentence of documentation", k.name)
		}
		if !isSection(k.section()) {
			t.Errorf("%s: section is not listed", k.name)
		}
		if !strings.Contains(md, "`--"+k.flag()+"`, `"+k.env()+"`") || flags.Lookup(k.flag()) == nil {
			t.Errorf("%s: missing from the manual or the flags", k.name)
		}
	}
}

func TestSizesRatesAndTimes(t *testing.T) {
	for in, want := range map[string]Size{"0": 0, "7": 7, "8MiB": 8 << 20, "1.5 GB": 15e8, "1kB": 1000, "2TiB": 2 << 40, "3B": 3} {
		if got, err := ParseSize(in); got != want || err != nil {
			t.Errorf("ParseSize(%q) = %d, %v", in, got, err)
		}
	}
	for in, want := range map[string]Rate{"0": 0, "unlimited": 0, "50Mbit/s": 6250000, "1Gbit/s": 125e6, "8bit/s": 1, "6MB/s": 6e6, "1MiB/s": 1 << 20} {
		if got, err := ParseRate(in); got != want || err != nil {
			t.Errorf("ParseRate(%q) = %d, %v", in, got, err)
		}
	}
	for in, want := range map[string]time.Duration{"2s": 2 * time.Second, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour, "0": 0, "0s": 0} {
		if got, err := ParseDuration(in); got != want || err != nil {
			t.Errorf("ParseDuration(%q) = %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "MiB", "8mib", "8Mb", "-1", "1e3", "8 M", "9999999TiB", "1..2", "0x10"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d", in, got)
		}
	}
	for _, in := range []string{"", "50", "50Mbit", "50Mb/s", "/s", "0bit/s", "1bit/s", "-1MB/s"} {
		if got, err := ParseRate(in); err == nil {
			t.Errorf("ParseRate(%q) = %d", in, got)
		}
	}
	for _, in := range []string{"", "2", "-1s", "d", "1.5d", "99999999d", "tomorrow"} {
		if got, err := ParseDuration(in); err == nil {
			t.Errorf("ParseDuration(%q) = %s", in, got)
		}
	}
}

func TestPrintedSizesAndRatesReadBack(t *testing.T) {
	for _, n := range []int64{0, 1, 999, 1000, 1024, 125000, 6250000, 8 << 20, 12345678901} {
		if got, err := ParseSize(Size(n).String()); int64(got) != n || err != nil {
			t.Errorf("%s: %d, %v", Size(n), got, err)
		}
		if got, err := ParseRate(Rate(n).String()); int64(got) != n || err != nil {
			t.Errorf("%s: %d, %v", Rate(n), got, err)
		}
	}
}
