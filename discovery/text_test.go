package discovery

import (
	"net/netip"
	"strings"
	"testing"
)

func TestAddressesAreWrittenAsMultiaddrs(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1:6491":          "/ip4/10.0.0.1/tcp/6491",
		"[::ffff:10.0.0.1]:6491": "/ip4/10.0.0.1/tcp/6491",
		"[fd00::1]:1":            "/ip6/fd00::1/tcp/1",
		"[fe80::1%eth0]:65535":   "/ip6zone/eth0/ip6/fe80::1/tcp/65535",
	} {
		if got := TCP(netip.MustParseAddrPort(in)); got != want {
			t.Errorf("TCP(%s) = %s, want %s", in, got, want)
		}
	}
	if got, want := QUIC(netip.MustParseAddrPort("[fd00::1]:6491")), "/ip6/fd00::1/udp/6491/quic-v1"; got != want {
		t.Errorf("QUIC = %s, want %s", got, want)
	}
}

func TestPeerIDsAreToldFromOtherText(t *testing.T) {
	good := []string{
		"12D3KooWGzBXWNvHpLALvSZv9dSLyJBa6yyZzCMGDz4V7wV4ZkFB",
		"QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
		"bafzaajaiaejcbsmlxz6wfsqmhzcbbfmvsvgnf5gkxjr3xkd2ypc5c6chkyzu44ph",
		"k51qzi5uqu5dhb6l8spkdx7yxafegfkee5by8h7lmjh2ehc2sgg34z7c15vzqs",
	}
	for _, s := range good {
		if !PlausiblePeerID(s) {
			t.Errorf("%q refused", s)
		}
	}
	bad := []string{
		"", "me", strings.Repeat("Q", 81), strings.Repeat("x", 50),
		"12D3KooWGzBXWNvHpLALvSZv9dSLyJBa6yyZzCMGDz4V7wV4ZkF0", // 0 is not in base58
		"12D3KooWGzBXWNvHpLALvSZv9dS/../../../../../etc/passwd",
		"12D3KooWGzBXWNvHpLALvSZv9dSLyJBa6yyZz\nMGDz4V7wV4ZkFB",
		"bAFZAAJAIAEJCBSMLXZ6WFSQMHZCBBFMVSVGNF5GKXJR3XKD2YPC5C6CHKYZU44PH",
	}
	for _, s := range bad {
		if PlausiblePeerID(s) {
			t.Errorf("%q accepted", s)
		}
	}
}
