package doctor

import (
	"net"
	"net/netip"
	"strings"
)

// proxy finds a proxy that Nix would ask for 127.0.0.1. Nix fetches with curl, which reads these variables.
func (h Here) proxy() []Finding {
	var out []Finding
	check := func(who string, env func(string) string) {
		for _, l := range h.Listen {
			host, _, _ := net.SplitHostPort(dialable(l))
			proxy := first(env, "http_proxy", "all_proxy", "ALL_PROXY") // curl reads HTTP_PROXY in small letters only
			if proxy == "" || exempt(first(env, "no_proxy", "NO_PROXY"), host) {
				continue
			}
			out = append(out, Finding{Check: CheckProxy, ID: "proxy-swallows-localhost", Level: Fail,
				What:   who + " sends requests for " + host + " to the proxy " + withoutUser(proxy),
				Why:    "The proxy asks its own machine instead of this one, so Nix never reaches the agent.",
				Remedy: "add " + host + ",localhost to no_proxy, in the environment and in nix-daemon's unit",
				NixOS:  `networking.proxy.noProxy = "127.0.0.1,localhost"`})
			return
		}
	}
	check("this environment", h.env)
	if env, ok := daemonEnv(); ok {
		check("the nix-daemon", env)
	}
	return orWell(out, CheckProxy, "none in the way")
}

func first(env func(string) string, names ...string) string {
	for _, n := range names {
		if v := env(n); v != "" {
			return v
		}
	}
	return ""
}

// exempt tells whether curl goes to host without a proxy: a list of names, whose subdomains count, of
// addresses and networks, or * for all.
func exempt(list, host string) bool {
	ip, ipErr := netip.ParseAddr(host)
	for _, e := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }) {
		e = strings.TrimPrefix(e, ".")
		if e == "*" || strings.EqualFold(e, host) || strings.HasSuffix(strings.ToLower(host), "."+strings.ToLower(e)) {
			return true
		}
		if p, err := netip.ParsePrefix(e); err == nil && ipErr == nil && p.Contains(ip) {
			return true
		}
	}
	return false
}

// withoutUser hides a proxy's password.
func withoutUser(proxy string) string {
	scheme, rest, found := strings.Cut(proxy, "://")
	if !found {
		scheme, rest = "", proxy
	}
	if _, host, ok := strings.Cut(rest, "@"); ok {
		rest = host
	}
	if scheme == "" {
		return rest
	}
	return scheme + "://" + rest
}
