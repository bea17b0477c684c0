package static

import (
	"slices"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/flurry-nix/flurry/discovery"
)

const someID = "12D3KooWGzBXWNvHpLALvSZv9dSLyJBa6yyZzCMGDz4V7wV4ZkFB"

func both(host, port string) []string {
	return []string{host + "/tcp/" + port, host + "/udp/" + port + "/quic-v1"}
}

func TestEveryWayToWriteAPeerIsUnderstood(t *testing.T) {
	for entry, want := range map[string]discovery.Found{
		"10.0.0.1:7000":                      {Addrs: both("/ip4/10.0.0.1", "7000")},
		"10.0.0.1":                           {Addrs: both("/ip4/10.0.0.1", "6491")},
		" build.example.org ":                {Addrs: both("/dns/build.example.org", "6491")},
		"build.example.org.:7000":            {Addrs: both("/dns/build.example.org", "7000")},
		"build_1:7000":                       {Addrs: both("/dns/build_1", "7000")},
		"[fd00::1]:7000":                     {Addrs: both("/ip6/fd00::1", "7000")},
		"[fd00::1]":                          {Addrs: both("/ip6/fd00::1", "6491")},
		"fd00::1":                            {Addrs: both("/ip6/fd00::1", "6491")},
		"[fe80::1%eth0]:7000":                {Addrs: both("/ip6zone/eth0/ip6/fe80::1", "7000")},
		"/ip4/10.0.0.1":                      {Addrs: both("/ip4/10.0.0.1", "6491")},
		"/ip4/10.0.0.1/tcp/7000":             {Addrs: []string{"/ip4/10.0.0.1/tcp/7000"}},
		"/dns4/b.example/tcp/7000":           {Addrs: []string{"/dns4/b.example/tcp/7000"}},
		"/dnsaddr/b.example":                 {Addrs: []string{"/dnsaddr/b.example"}},
		"/ip6/fd00::1/udp/1/quic-v1":         {Addrs: []string{"/ip6/fd00::1/udp/1/quic-v1"}},
		"/ip4/10.0.0.1/p2p/" + someID:        {Addrs: both("/ip4/10.0.0.1", "6491"), PeerID: someID},
		"/ip6zone/eth0/ip6/fe80::1/tcp/7000": {Addrs: []string{"/ip6zone/eth0/ip6/fe80::1/tcp/7000"}},
		"/ip4/10.0.0.1/udp/7000/quic-v1/p2p/" + someID: {
			Addrs: []string{"/ip4/10.0.0.1/udp/7000/quic-v1"}, PeerID: someID,
		},
	} {
		got, err := Parse(entry, DefaultPort)
		if err != nil {
			t.Errorf("Parse(%q): %v", entry, err)
			continue
		}
		if !slices.Equal(got.Addrs, want.Addrs) || got.PeerID != want.PeerID {
			t.Errorf("Parse(%q) = %v %q, want %v %q", entry, got.Addrs, got.PeerID, want.Addrs, want.PeerID)
		}
		if got.Via != discovery.ViaStatic || !got.Keep || got.Name != strings.TrimSpace(entry) {
			t.Errorf("Parse(%q) = %+v, want via static, kept, named by the entry", entry, got)
		}
	}
}

func TestAMistakeIsNamedWithItsRemedy(t *testing.T) {
	for entry, says := range map[string]string{
		"":                                 "empty",
		"http://10.0.0.1:6491":             "URL",
		"10.0.0.1:":                        "port \"\"",
		"10.0.0.1:0":                       "port \"0\"",
		"10.0.0.1:65536":                   "between 1 and 65535",
		"10.0.0.1:http":                    "between 1 and 65535",
		":6491":                            "no host name",
		"10.0.0.256":                       "neither an IP address nor a name",
		"10.0.0":                           "neither an IP address nor a name",
		"0.0.0.0:6491":                     "any address",
		"224.0.0.251:6491":                 "group",
		"fe80::1":                          "interface",
		"[fd00::1":                         "closing bracket",
		"[fd00::1]6491":                    "after the bracket",
		"[10.0.0.1]:6491":                  "no IPv6 address in its brackets",
		"fd00::1::6491":                    "needs brackets",
		"a b:6491":                         "malformed host name",
		"-a.example":                       "malformed host name",
		"a..example":                       "malformed host name",
		someID + "@10.0.0.1:6491":          "/p2p/ID",
		"/ip4/10.0.0.1/tcp":                "no multiaddr",
		"/ip4/10.0.0.1/udp/6491":           "/quic-v1",
		"/ip4/10.0.0.1/tcp/0":              "between 1 and 65535",
		"/ip4/0.0.0.0/tcp/6491":            "any address",
		"/ip4/10.0.0.1/tcp/1/p2p/nonsense": "no multiaddr",
		"/p2p/" + someID:                   "no address",
		"/unix/run/flurry.sock":            "no address of a machine",
		strings.Repeat("a", 2000):          "too long",
	} {
		_, err := Parse(entry, DefaultPort)
		if err == nil {
			t.Errorf("Parse(%q) succeeded", entry)
			continue
		}
		if !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "write host:port") {
			t.Errorf("Parse(%q): %v; want it to say %q and what to write", entry, err, says)
		}
	}
	if _, err := Parse("10.0.0.1", 0); err == nil {
		t.Error("a default port of 0 is accepted")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"10.0.0.1:7000", "host", "[fe80::1%eth0]:1", "/ip4/10.0.0.1/tcp/7000/p2p/" + someID,
		"/dns4/a/udp/1/quic-v1", "/ip6zone/e/ip6/fe80::1/tcp/1", "/dnsaddr/x", "::", "[", "/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, entry string) {
		got, err := Parse(entry, DefaultPort)
		if err != nil {
			return
		}
		if len(got.Addrs) == 0 || len(got.Addrs) > discovery.MaxAddrs {
			t.Fatalf("%d addresses", len(got.Addrs))
		}
		for _, a := range got.Addrs {
			m, err := ma.NewMultiaddr(a)
			if err != nil {
				t.Fatalf("Parse(%q) gives %q, which is no multiaddr: %v", entry, a, err)
			}
			if again, err := Parse(m.String(), DefaultPort); err != nil || !slices.Equal(again.Addrs, []string{a}) {
				t.Fatalf("Parse(%q) gives %q, which parses as %v, %v", entry, a, again.Addrs, err)
			}
		}
	})
}
