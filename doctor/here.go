package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// patience bounds each question to a program or a port.
const patience = 3 * time.Second

// Here is what the caller knows.
type Here struct {
	Env    []string // of the caller
	Listen []string // where the substituter should answer, host:port
	// AgentErr is why no agent could be asked; nil if one answers.
	AgentErr error
	Instance string   // of the agent that answers on the socket; see status.Report
	Keys     []string // that the agent trusts, name:base64; nil unknown
}

func (h Here) env(name string) (value string) {
	for _, e := range h.Env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			value = v
		}
	}
	return value
}

// Check looks at the caller's environment.
func (h Here) Check(ctx context.Context) []Finding {
	out := h.agent()
	out = append(out, h.port(ctx)...)
	out = append(out, h.nix(ctx)...)
	return append(out, h.proxy()...)
}

func (h Here) agent() []Finding {
	if h.AgentErr == nil {
		return []Finding{well(CheckAgent, "runs")}
	}
	return []Finding{{Check: CheckAgent, ID: "agent-down", Level: Fail, What: oneLine(h.AgentErr),
		Why:    "Nix loses time on a dead port, and fails builds up to version 2.31.",
		Remedy: "systemctl start flurry (or: flurry agent); sudo flurry doctor, if only permission lacks",
		NixOS:  "services.flurry.enable = true; users.users.NAME.extraGroups = [ \"flurry\" ]"}}
}

// dialable is where this machine itself reaches a listener.
func dialable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// port asks whoever answers at the substituter's address who it is.
func (h Here) port(ctx context.Context) []Finding {
	const why = "Nix asks that address, whoever answers there."
	var out []Finding
	for _, l := range h.Listen {
		addr := dialable(l)
		answered, instance := whoAnswers(ctx, addr)
		taken := Finding{Check: CheckPort, ID: "port-taken", Level: Fail, What: "another program answers at " + addr, Why: why,
			Remedy: "ss -tlnp 'sport = :" + portOf(addr) + "' tells which; end it, or set substituter.listen to a free port and Nix's substituters with it",
			NixOS:  "services.flurry.settings.substituter.listen"}
		switch {
		case answered && (h.AgentErr != nil && instance == "" || h.AgentErr == nil && instance != h.Instance):
			out = append(out, taken)
		case !answered:
			out = append(out, Finding{Check: CheckPort, ID: "port-closed", Level: Fail, What: "nothing answers at " + addr, Why: why,
				Remedy: "systemctl restart flurry.socket flurry (or: flurry agent)", NixOS: "services.flurry.enable = true"})
		}
	}
	return orWell(out, CheckPort, "this agent answers at "+strings.Join(h.Listen, ", "))
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// direct asks without a proxy.
func direct() *http.Client {
	return &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// whoAnswers tells whether something listens at addr, and which agent it says it is.
func whoAnswers(ctx context.Context, addr string) (answered bool, instance string) {
	c, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false, ""
	}
	c.Close()
	body, err := get(ctx, "http://"+addr+"/status.json")
	if err != nil {
		return true, ""
	}
	var r struct{ Instance string }
	if json.Unmarshal(body, &r) != nil {
		return true, ""
	}
	return true, r.Instance
}

func get(ctx context.Context, url string) ([]byte, error) {
	const most = 1 << 20 // bytes; a status with many peers
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := direct().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, os.ErrNotExist
	}
	var b bytes.Buffer
	_, err = b.ReadFrom(http.MaxBytesReader(nil, resp.Body, most))
	return b.Bytes(), err
}

// isOurs tells whether a substituter's URL is one of our addresses.
func (h Here) isOurs(substituter string) bool {
	u, err := url.Parse(substituter)
	if err != nil || u.Scheme != "http" {
		return false
	}
	port := u.Port()
	if port == "" {
		port = "80"
	}
	for _, l := range h.Listen {
		host, p, err := net.SplitHostPort(dialable(l))
		if err != nil || p != port {
			continue
		}
		if u.Hostname() == host || isLoopback(u.Hostname()) && isLoopback(host) {
			return true
		}
	}
	return false
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// caller is who runs this, as Nix's trusted-users name them.
func caller() (name string, groups []string) {
	u, err := user.Current()
	if err != nil {
		return "", nil
	}
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil {
			groups = append(groups, "@"+g.Name)
		}
	}
	return u.Username, groups
}

// askNix returns the settings as Nix itself sees them for the caller; ok is false where there is no Nix to ask.
func (h Here) askNix(ctx context.Context) (s nixSettings, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	for _, args := range [][]string{{"config", "show", "--json"}, {"show-config", "--json"}} {
		cmd := exec.CommandContext(ctx, h.lookPath("nix"), append([]string{"--extra-experimental-features", "nix-command"}, args...)...)
		cmd.Env = h.Env
		out, err := cmd.Output()
		if err != nil {
			continue
		}
		var all map[string]struct{ Value json.RawMessage }
		if json.Unmarshal(out, &all) != nil {
			continue
		}
		for name, list := range map[string]*[]string{"substituters": &s.substituters, "trusted-public-keys": &s.keys,
			"trusted-substituters": &s.trustedSubstituters, "trusted-users": &s.trustedUsers} {
			if json.Unmarshal(all[name].Value, list) != nil {
				return s, false
			}
		}
		return s, json.Unmarshal(all["store"].Value, &s.store) == nil
	}
	return s, false
}

// lookPath finds a program in the caller's PATH, or where installers put Nix.
func (h Here) lookPath(name string) string {
	for _, dir := range append(filepath.SplitList(h.env("PATH")), "/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin") {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return file
		}
	}
	return name
}

func without(list, others []string) (out []string) {
	for _, s := range list {
		if !slices.Contains(others, s) {
			out = append(out, s)
		}
	}
	return out
}
