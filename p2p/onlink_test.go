package p2p

import (
	"slices"
	"testing"
	"time"

	"github.com/flurry-nix/flurry/discovery"
)

func TestWhatMDNSSaidAWhileAgoIsDialledOnThisMachinesLinksOnly(t *testing.T) {
	h := startHostWith(t, Config{}, newTestIdentity(t), newFakeCatalog())
	here, elsewhere := "/ip4/127.0.0.7/tcp/6491", "/ip4/203.0.113.7/tcp/6491"
	for _, c := range []struct {
		what string
		via  discovery.Via
		age  time.Duration
		want []string
	}{
		{"just heard, as by a reflector", discovery.ViaMDNS, 0, []string{here, elsewhere}},
		{"heard a while ago", discovery.ViaMDNS, time.Minute, []string{here}},
		{"named by the operator", discovery.ViaStatic, time.Minute, []string{here, elsewhere}},
	} {
		n := &hint{Found: discovery.Found{Via: c.via, Addrs: []string{here, elsewhere}}, heard: h.now().Add(-c.age)}
		if got := h.dialable(n); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}
