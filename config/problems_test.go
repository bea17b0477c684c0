package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FILE stands for the configuration file in what is expected below.
func TestEveryMistakeIsNamedWithItsPlaceAndRemedy(t *testing.T) {
	upstream := func(s string) string { return "[[upstream]]\nkeys = [\"" + labKey + "\"]\n" + s }
	for _, tc := range []struct {
		name, file string
		args, env  []string
		want       string
	}{
		{name: "misspelled key", file: "[substituter]\nlisten_on = \"x\"\nlisen = \"x\"", want: `
FILE:2: substituter.listen_on: unknown key; did you mean substituter.listen?
FILE:3: substituter.lisen: unknown key; did you mean substituter.listen?`},
		{name: "key of another section", file: "[log]\nmdns = true", want: `FILE:2: log.mdns: unknown key; did you mean peers.mdns?`},
		{name: "hopeless key", file: "[log]\nzzzzzzzzzz = 1", want: `FILE:2: log.zzzzzzzzzz: unknown key; "flurry agent --help" lists them`},
		{name: "key outside sections", file: "format = \"json\"", want: `FILE:1: format: unknown key; did you mean log.format?`},
		{name: "misspelled section is reported once", file: "[substitutor]\nlisten = 1\npriority = 0", want: `FILE:1: substitutor: unknown section; did you mean substituter?`},
		{name: "unknown section", file: "[a.b]\nc = 1", want: `FILE:1: a.b: unknown section; known are state, substituter, store, upstream, peers, internet, limits, log`},
		{name: "single brackets", file: "[upstream]\nurl = \"x\"", want: `FILE:1: upstream: there may be several; write [[upstream]]`},
		{name: "double brackets", file: "[[log]]\nlevel = \"x\"", want: `FILE:1: log: there is only one; write [log]`},
		{name: "dotted upstream", file: "upstream.url = \"http://x\"", want: `FILE:1: upstream.url: there may be several upstreams; write [[upstream]] and the keys below it`},
		{name: "upstream of another kind", file: "upstream = [1]", want: `FILE:1: upstream: an upstream is a table; write [[upstream]] and the keys below it`},
		{name: "upstream as a table", file: "upstream = {}", want: `FILE:1: upstream: there may be several; write [[upstream]]`},
		{name: "no upstream", file: "upstream = []", want: `FILE:1: upstream: an agent without a central cache has no key to trust; leave it out to have cache.nixos.org, or list caches with their keys`},
		{name: "twice", file: "[log]\nlevel = \"info\"\nlevel = \"warn\"", want: `FILE:3: log.level: given twice, first in line 2; leave one out`},
		{name: "table twice", file: "[log]\n[peers]\n[log]", want: `FILE:3: table log already exists; see https://toml.io`},
		{name: "syntax, and what comes after", file: "[log]\nlevel = info\nformat = \"xml\"\n[substituter\nlisten = 1\n[limits]\nupload = \"5\"", want: `
FILE:2: not TOML: expected newline but got U+006F 'o'; see https://toml.io; strings need quotes
FILE:3: log.format: "xml" is not one of them; write text or json
FILE:4: not TOML: expected ']' to close table name; see https://toml.io; strings need quotes
FILE:7: limits.upload: "5" is not a rate; write a rate such as "50Mbit/s" or "6MB/s", or "unlimited"`},

		{name: "string for a number", file: "[substituter]\npriority = \"30\"", want: `FILE:2: substituter.priority: "30" is not a whole number; write a whole number, without quotes`},
		{name: "string for a bool", file: "[peers]\nmdns = \"yes\"", want: `FILE:2: peers.mdns: "yes" is neither true nor false; write true or false, without quotes`},
		{name: "number for a string", file: "[log]\nformat = 3", want: `FILE:2: log.format: 3 is not a string; write a string: "…"`},
		{name: "number for a list", file: "[peers]\nstatic = 3", want: `FILE:2: peers.static: 3 is not a list; write a list of strings: ["…", "…"]`},
		{name: "number in a list", file: "[peers]\nstatic = [\n\"a\",\n3]", want: `FILE:4: peers.static: 3 is not a string; write a list of strings: ["…", "…"]`},
		{name: "list for a size", file: "[limits]\ncache_size = []", want: `FILE:2: limits.cache_size: a list is not a string; write a string: "…"`},
		{name: "table for a string", file: "[log]\nformat = {}", want: `FILE:2: log.format: a table is not a string; write a string: "…"`},
		{name: "date for a time", file: "[limits]\nkeep_for_others = 2026-01-01", want: `FILE:2: limits.keep_for_others: 2026-01-01 is not a string; write a string: "…"`},

		{name: "size", file: "[limits]\ncache_size = \"8Mb\"", want: `FILE:2: limits.cache_size: "8Mb" is not a size; write a size such as "8MiB" or "2GB"`},
		{name: "rate", file: "[limits]\ndownload = 5", want: `FILE:2: limits.download: 5 is not a string; write a string: "…"`},
		{name: "time", file: "[limits]\nkeep_for_others = \"5\"", want: `FILE:2: limits.keep_for_others: "5" is not a time; write a time such as "2s", "10m", "12h" or "7d"`},
		{name: "level", file: "[log]\nlevel = \"loud\"", want: `FILE:2: log.level: "loud" is not a level; write debug, info, warn or error`},
		{name: "relative path", file: "[store]\ndir = \"store\"", want: `FILE:2: store.dir: "store" is not an absolute path; write the path from the root, /…`},
		{name: "relative state", file: "[state]\ndir = \"s\"", want: `FILE:2: state.dir: "s" is not an absolute path; write the path from the root, /…`},

		{name: "listen without port", file: "[substituter]\nlisten = \"127.0.0.1\"", want: `FILE:2: substituter.listen: "127.0.0.1" is not host:port; write host:port, such as "127.0.0.1:6490" or "[::1]:6490"`},
		{name: "listen on a large port", file: "[substituter]\nlisten = \"127.0.0.1:70000\"", want: `FILE:2: substituter.listen: "127.0.0.1:70000" has no port between 0 and 65535; write host:port, such as "127.0.0.1:6490" or "[::1]:6490"`},
		{name: "listen on half an address", file: "[substituter]\nlisten = \"127.0.0:1\"", want: `FILE:2: substituter.listen: "127.0.0" is neither an IP address nor a host name; write host:port, such as "127.0.0.1:6490" or "[::1]:6490"`},
		{name: "listen nowhere", file: "[substituter]\nlisten = []", want: `FILE:2: substituter.listen: Nix could not reach the agent anywhere; write host:port, such as "127.0.0.1:6490" or "[::1]:6490"`},
		{name: "listen twice", file: "[peers]\nlisten = [\":1\", \":1\"]", want: `FILE:2: peers.listen: :1 is listed twice; leave out the second`},
		{name: "listeners collide", file: "[substituter]\nlisten = \":6491\"", want: `FILE:2: substituter.listen: substituter.listen :6491 and peers.listen :6491 collide; give one of them another port`},
		{name: "priority 0", file: "[substituter]\npriority = 0", want: `FILE:2: substituter.priority: 0 is what Nix takes for a cache that states no priority, so the order would be left to chance; write 1 or more; the default is 30`},
		{name: "negative priority", file: "[substituter]\npriority = -1", want: `FILE:2: substituter.priority: -1 is not a priority; write a number between 1 and 39 to be asked before cache.nixos.org`},
		{name: "tiny buffer", file: "[substituter]\nmax_buffer = 1", want: `FILE:2: substituter.max_buffer: 1B is too small to be of use; write at least "64KiB"`},
		{name: "host with port", file: "[substituter]\nallowed_hosts = [\"a:1\"]", want: `FILE:2: substituter.allowed_hosts: "a:1" is not a host name; write a bare name such as "cache.example.org", without scheme and port`},
		{name: "interface", file: "[peers]\ninterfaces = [\"eth 0\"]", want: `FILE:2: peers.interfaces: "eth 0" is not the name of a network interface; write a name such as "eth0", as "ip link" shows it`},
		{name: "network", file: "[peers]\nnetworks = [\"10.0.0.0\"]", want: `FILE:2: peers.networks: "10.0.0.0" is not a network; write a network such as "192.168.0.0/16"`},
		{name: "network with host bits", file: "[peers]\nnetworks = [\"10.1.0.0/8\"]", want: `FILE:2: peers.networks: 10.1.0.0/8 has bits set beyond its length; write 10.0.0.0/8`},
		{name: "static peer", file: "[peers]\nstatic = [\"a b\"]", want: `FILE:2: peers.static: "a b" is not a peer's address; ` + staticRemedy},
		{name: "static peer at port 0", file: "[peers]\nstatic = [\"a:0\"]", want: `FILE:2: peers.static: "a:0" has no port between 1 and 65535; ` + staticRemedy},
		{name: "multiaddr", file: "[peers]\nstatic = [\"/ip4\", ]", want: `FILE:2: peers.static: "/ip4" is not a multiaddr; ` + staticRemedy},
		{name: "multiaddr of the wrong family", file: "[peers]\nstatic = \"/ip4/::1/tcp/1\"", want: `FILE:2: peers.static: "::1" is not an ip4 address; ` + staticRemedy},
		{name: "multiaddr without port", file: "[peers]\nstatic = \"/ip4/1.2.3.4\"", want: `FILE:2: peers.static: "/ip4/1.2.3.4" names neither /tcp/PORT nor /udp/PORT; ` + staticRemedy},
		{name: "multiaddr with a bad port", file: "[peers]\nstatic = \"/ip4/1.2.3.4/tcp/x\"", want: `FILE:2: peers.static: "/ip4/1.2.3.4/tcp/x" has no port between 1 and 65535; ` + staticRemedy},
		{name: "multiaddr with a bad name", file: "[peers]\nstatic = \"/dns/a b/tcp/1\"", want: `FILE:2: peers.static: "a b" is not a host name; ` + staticRemedy},
		{name: "multiaddr of a strange kind", file: "[internet]\npublic_addresses = [\"/unix/a/b\"]", want: `FILE:2: internet.public_addresses: a multiaddr cannot begin with "/unix" here; ` + staticRemedy},
		{name: "bootstrap without id", file: "[internet]\nbootstrap = [\"/ip4/1.2.3.4/tcp/1\"]", want: `FILE:2: internet.bootstrap: "/ip4/1.2.3.4/tcp/1" does not say whom to expect there; append /p2p/ and the node's peer id`},
		{name: "connections", file: "[limits]\nconnections = 0", want: `FILE:2: limits.connections: 0 connections are not possible; write a number between 1 and 65536`},
		{name: "small cache", file: "[limits]\ncache_size = 0", want: `FILE:2: limits.cache_size: 0B is too small to be of use; write at least "1MiB"; NARs are collected there before Nix gets them`},

		{name: "upstream without keys", file: "[[upstream]]\nurl = \"http://c\"", want: `FILE:2: upstream.keys: no key is given for http://c, so nothing from it could be trusted; add keys = ["name:base64"], as in nix.conf's trusted-public-keys`},
		{name: "upstream without url", file: upstream(""), want: `FILE:1: upstream.url: missing; add url = "https://…"`},
		{name: "upstream twice", file: upstream("url = \"http://c\"\n") + upstream("url = \"http://C/\""), want: `FILE:6: upstream.url: http://c is listed twice; join the two`},
		{name: "upstream of another scheme", file: upstream("url = \"s3://c\""), want: `FILE:3: upstream.url: scheme "s3" is not supported; write an address such as "https://cache.example.org"`},
		{name: "upstream without a host", file: upstream("url = \"c.org\""), want: `FILE:3: upstream.url: "c.org" is not a URL; write an address such as "https://cache.example.org"`},
		{name: "upstream with a password", file: upstream("url = \"https://u:p@c\""), want: `FILE:3: upstream.url: a URL must not carry a password; put it in netrc_file, or an Authorization line in headers_file`},
		{name: "upstream with parameters", file: upstream("url = \"https://c?priority=3\""), want: `FILE:3: upstream.url: a cache's URL has no parameters here; leave out what follows the ? or #; those are settings of Nix's own client`},
		{name: "upstream's key", file: "[[upstream]]\nurl = \"https://c\"\nkeys = [\"c-1:AAAA\"]", want: `FILE:3: upstream.keys: "c-1:AAAA" is not a public key; write name:base64, as in nix.conf's trusted-public-keys`},
		{name: "which upstream", file: upstream("url = \"http://a\"\n") + upstream("url = \"http://b\""), args: []string{"--upstream-public"}, want: `--upstream-public: upstream.public: the file lists several upstreams; say which is meant, with --upstream-url`},

		{name: "flag", args: []string{"--limits-upload=fast"}, want: `--limits-upload: limits.upload: "fast" is not a rate; ` + rateRemedy},
		{name: "environment", env: []string{"FLURRY_LOG_LEVEL=loud"}, want: `FLURRY_LOG_LEVEL: log.level: "loud" is not a level; write debug, info, warn or error`},
		{name: "misspelled variable", env: []string{"FLURRY_LOG_LEVLE=info"}, want: `FLURRY_LOG_LEVLE: unknown variable; did you mean FLURRY_LOG_LEVEL?`},
		{name: "control characters stay off the terminal", file: "[log]\nformat = \"\\u001b[31m\"", want: `FILE:2: log.format: "\x1b[31m" is not one of them; write text or json`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := write(t, tc.file)
			c, problems := Load(file, flagSet(t, tc.args...), append(tc.env, environment...))
			var lines []string
			for _, p := range problems {
				lines = append(lines, strings.ReplaceAll(p.Error(), file, "FILE"))
			}
			if got, want := strings.Join(lines, "\n"), strings.TrimPrefix(tc.want, "\n"); got != want || c != nil {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func TestOthersVariablesAreNoMistakes(t *testing.T) {
	mustLoad(t, "", nil, "FLURRY_SERVICE_HOST=10.0.0.1", "FLURRY_PORT=tcp://10.0.0.1:80", "FLURRY_CONFIG=/x", "FLURRY_SUPERVISED=1")
}

func TestAFileThatCannotBeReadIsOneProblem(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		filepath.Join(dir, "none"): "none: cannot read the configuration: no such file or directory; name a readable file with --config",
		dir:                        ": cannot read the configuration: is a directory; name a readable file with --config",
		big:                        "big: cannot read the configuration: larger than 1MiB; name a readable file with --config",
	} {
		_, problems := Load(name, nil, environment)
		if len(problems) != 1 || !strings.HasSuffix(problems[0].Error(), want) {
			t.Errorf("%v, want …%s", problems, want)
		}
	}
}

func TestWithoutAnyDirectoryForStateOneIsAskedFor(t *testing.T) {
	_, problems := Load(write(t, ""), nil, nil)
	const want = "state.dir: neither STATE_DIRECTORY nor XDG_STATE_HOME nor HOME is set to an absolute path; name a directory with --state-dir"
	if len(problems) != 1 || problems[0].Error() != want {
		t.Error(problems)
	}
}

func TestSecretFilesMustExistAndBePrivate(t *testing.T) {
	dir := t.TempDir()
	open, closed := filepath.Join(dir, "open"), filepath.Join(dir, "closed")
	for name, mode := range map[string]os.FileMode{open: 0o644, closed: 0o640} {
		if err := os.WriteFile(name, nil, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	for secret, want := range map[string]string{
		closed:                     "",
		open:                       "FILE:2: peers.secret_file: " + open + " holds a secret, but with mode 0644 others may use it; chmod g-w,o= " + open,
		filepath.Join(dir, "none"): "FILE:2: peers.secret_file: " + dir + "/none does not exist; create it, or leave the key out",
		dir:                        "FILE:2: peers.secret_file: " + dir + " is not a regular file; name a regular file",
	} {
		c := mustLoad(t, "[peers]\nsecret_file = \""+secret+"\"", nil)
		var got string
		for _, p := range c.CheckFiles() {
			got += strings.ReplaceAll(p.Error(), c.Path, "FILE")
		}
		if got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
	for _, key := range []string{"headers_file", "netrc_file"} {
		c := mustLoad(t, "[[upstream]]\nurl = \"https://cache.nixos.org\"\n"+key+" = \"/nonexistent\"", nil)
		if p := c.CheckFiles(); len(p) != 1 || p[0].Error() != c.Path+":3: upstream."+key+": /nonexistent does not exist; create it, or leave the key out" {
			t.Error(p)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(Example()))
	f.Add([]byte(commented.ReplaceAllString(Example(), "$1")))
	f.Add([]byte("upstream = [{url = 'http://c'}, 1]\nlog = {level = 2}\n[x\n\"a.b\".c = \"\"\"\n"))
	f.Add([]byte("[log]\nlevel = info\n[[log]]\nlog.level = 1e3\n= 3\n[peers]\r\nmdns = true\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, problems := load(data, "F", nil, environment)
		if (c == nil) != (len(problems) > 0) {
			t.Fatal("neither a configuration nor a problem")
		}
		lines := strings.Count(string(data), "\n") + 1
		for _, p := range problems {
			if strings.ContainsAny(p.Error(), "\n\x1b") {
				t.Errorf("not one clean line: %q", p.Error())
			}
			if at, ok := strings.CutPrefix(p.Where, "F:"); ok && (len(at) > 9 || atoi(at) < 1 || atoi(at) > lines) {
				t.Errorf("%q: no such line among %d", p.Where, lines)
			}
		}
	})
}

func atoi(s string) (n int) {
	for _, c := range s {
		n = n*10 + int(c-'0')
	}
	return n
}
