package p2p

import (
	"net"
	"strings"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func TestALinkLocalAddressTravelsAsAStandIn(t *testing.T) {
	ifaces, err := net.Interfaces()
	if err != nil || len(ifaces) == 0 {
		t.Fatal("no interface:", err)
	}
	name := ifaces[0].Name
	a := ma.StringCast("/ip6zone/" + name + "/ip6/fe80::1:2:3:4/tcp/6491")
	s := standIn(a)
	if !strings.HasPrefix(s.String(), "/ip6/fd66:6c75:7279:") || !realAddr(s).Equal(a) {
		t.Errorf("%s became %s and then %s", a, s, realAddr(s))
	}
	if ip, ok := ipOf(s); !ok || ip.String() != "fe80::1:2:3:4" {
		t.Error("the gater would judge", ip)
	}
	for _, other := range []string{"/ip4/10.0.0.1/tcp/1", "/ip6/2001:db8::1/tcp/1", "/ip6zone/nosuchif0/ip6/fe80::1/tcp/1", "/ip6/fe80::1/udp/1/quic-v1"} {
		if a := ma.StringCast(other); !standIn(a).Equal(a) || !realAddr(a).Equal(a) {
			t.Error(other, "is changed")
		}
	}
}
