package status

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const (
	alerts    = "../contrib/prometheus/alerts.yml"
	alertTest = "../contrib/prometheus/alerts_test.yml"
	dashboard = "../contrib/grafana/flurry.json"
)

func scrape(t *testing.T) string {
	t.Helper()
	rec := httptest.NewRecorder()
	Handler(report).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}

// promtool runs Prometheus's own checks.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath("promtool"); err != nil {
		if os.Getenv("FLURRY_REQUIRE_ALL") == "1" {
			t.Fatal("promtool is not installed; try: scripts/install-deps test")
		}
		t.Skip("promtool is not installed; try: scripts/install-deps test")
	}
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil || args[1] == "metrics" && len(out) > 0 { // it exits 0 on some complaints
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestPrometheusAcceptsMetricsAndAlerts(t *testing.T) {
	promtool(t, scrape(t), "check", "metrics")
	promtool(t, "", "check", "rules", alerts)
	promtool(t, "", "test", "rules", alertTest)
}

// TestDashboardAndAlertsUseMetricsThatExist compares names and the values of labels.
func TestDashboardAndAlertsUseMetricsThatExist(t *testing.T) {
	body := scrape(t)
	have := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z_]+)[{ ]`).FindAllStringSubmatch(body, -1) {
		have[m[1]] = true
	}
	metric := regexp.MustCompile(`\b((?:flurry|process)_[a-z_]+)((?:\{[^}]*\})?)`)
	label := regexp.MustCompile(`\b(source|state|result|to|reason)="([a-z]+)"`)
	for _, name := range []string{alerts, dashboard} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		used := metric.FindAllStringSubmatch(strings.ReplaceAll(string(text), `\"`, `"`), -1)
		if len(used) < 7 {
			t.Errorf("%s uses %d metrics", name, len(used))
		}
		for _, u := range used {
			if !have[u[1]] {
				t.Errorf("%s uses %s, which is not in /metrics", name, u[1])
			}
			for _, l := range label.FindAllString(u[2], -1) {
				if !strings.Contains(body, u[1]+"{"+l) {
					t.Errorf("%s uses %s{%s}, which is not in /metrics", name, u[1], l)
				}
			}
		}
	}
}

func TestDashboardIsOne(t *testing.T) {
	text, err := os.ReadFile(dashboard)
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID string
		Panels     []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil || d.Title == "" || d.UID == "" || len(d.Panels) < 8 {
		t.Fatalf("%v: %d panels", err, len(d.Panels))
	}
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q: %+v", p.Title, p)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if taken[at] != "" {
					t.Errorf("%q covers %q", p.Title, taken[at])
				}
				taken[at] = p.Title
			}
		}
	}
}
