package status

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func report() Report {
	return Report{
		Version: "1", PeerID: "12D3secret", Listen: []string{"host-secret:1"}, Problems: []string{"path-secret"},
		Upstreams: []Upstream{{URL: "https://upstream-secret"}},
		Peers:     []Peer{{ID: "peer-secret", Addrs: []string{"addr-secret"}, Reason: "reason-secret", State: "banned", Via: "mdns"}},
		Bytes:     Bytes{FromPeers: 42},
	}
}

func TestAnybodySeesAggregatesOnly(t *testing.T) {
	h := Handler(report)
	for _, path := range []string{"/status.json", "/metrics"} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		body := rec.Body.String()
		if rec.Code != 200 || !strings.Contains(body, "42") {
			t.Errorf("%s: %d %s", path, rec.Code, body)
		}
		if strings.Contains(body, "secret") {
			t.Errorf("%s names what it must not:\n%s", path, body)
		}
	}
}

func TestMetricsFollowTheConventions(t *testing.T) {
	for _, m := range metrics() {
		name := m.desc.String()
		if !strings.Contains(name, `fqName: "flurry_`) {
			t.Error("prefix:", name)
		}
	}
	rec := httptest.NewRecorder()
	Handler(report).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if want := `flurry_nar_received_bytes_total{source="peers"} 42`; !strings.Contains(rec.Body.String(), want) {
		t.Errorf("no line %q in:\n%s", want, rec.Body.String())
	}
}
