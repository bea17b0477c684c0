package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/flurry-nix/flurry/verify"
)

func optional(clean func(string) (string, error)) func(string) (string, error) {
	return func(s string) (string, error) {
		if s == "" {
			return "", nil
		}
		return clean(s)
	}
}

func oneOf(allowed ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(allowed, s) {
			return "", bad("write "+strings.Join(allowed, " or "), "%.40q is not one of them", s)
		}
		return s, nil
	}
}

func absolute(s string) (string, error) {
	if !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		return "", bad("write the path from the root, /…", "%.80q is not an absolute path", s)
	}
	return filepath.Clean(s), nil
}

const hostPortRemedy = `write host:port, such as "127.0.0.1:6490" or "[::1]:6490"`

func hostPort(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", bad(hostPortRemedy, "%.80q is not host:port", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", bad(hostPortRemedy, "%.80q has no port between 0 and 65535", s)
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && !isDNSName(host) {
		return "", bad(hostPortRemedy, "%.80q is neither an IP address nor a host name", host)
	}
	return s, nil
}

// isDNSName is lenient: letters, digits, dash, underscore and dots. A name that is only digits and
// dots would be a mistyped address.
func isDNSName(s string) bool {
	if s == "" || len(s) > 253 || strings.Trim(s, "0123456789.") == "" {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

func hostName(s string) (string, error) {
	if _, err := netip.ParseAddr(s); err == nil || isDNSName(s) {
		return strings.ToLower(strings.TrimSuffix(s, ".")), nil
	}
	return "", bad(`write a bare name such as "cache.example.org", without scheme and port`, "%.80q is not a host name", s)
}

func interfaceName(s string) (string, error) {
	if s == "" || len(s) > 15 || strings.ContainsAny(s, "/: \t\n") { // 15: the kernel's IFNAMSIZ less its NUL
		return "", bad(`write a name such as "eth0", as "ip link" shows it`, "%.40q is not the name of a network interface", s)
	}
	return s, nil
}

func cacheURL(s string) (string, error) {
	const remedy = `write an address such as "https://cache.example.org"`
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Hostname() == "" {
		return "", bad(remedy, "%.100q is not a URL", s)
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return "", bad(remedy, "scheme %.20q is not supported", u.Scheme)
	case u.User != nil:
		return "", bad("put it in netrc_file, or an Authorization line in headers_file", "a URL must not carry a password")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return "", bad("leave out what follows the ? or #; those are settings of Nix's own client", "a cache's URL has no parameters here")
	}
	u.Host = strings.ToLower(u.Host)
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	return u.String(), nil
}

func publicKey(s string) (string, error) {
	if _, _, err := verify.ParsePublicKey(s); err != nil {
		return "", bad(`write name:base64, as in nix.conf's trusted-public-keys`, "%.100q is not a public key", s)
	}
	return s, nil
}

const staticRemedy = `write host:port, or a multiaddr such as "/ip4/192.0.2.1/tcp/6491", as "flurry id" prints it`

func staticPeer(s string) (string, error) {
	if strings.HasPrefix(s, "/") {
		return multiaddr(s)
	}
	if a, err := netip.ParseAddr(s); err == nil || isDNSName(s) {
		if err == nil {
			s = a.String()
		}
		return net.JoinHostPort(s, strconv.Itoa(DefaultPeerPort)), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return "", bad(staticRemedy, "%.100q is not a peer's address", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", bad(staticRemedy, "%.100q has no port between 1 and 65535", s)
	}
	return hostPort(s)
}

// multiaddr checks the outline only: what the protocols mean is known where they are dialled.
func multiaddr(s string) (string, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 3 || parts[0] != "" || slices.Contains(parts[1:], "") || len(s) > 1000 {
		return "", bad(staticRemedy, "%.100q is not a multiaddr", s)
	}
	switch host := parts[2]; parts[1] {
	case "ip4", "ip6":
		if a, err := netip.ParseAddr(host); err != nil || a.Is4() != (parts[1] == "ip4") {
			return "", bad(staticRemedy, "%.60q is not an %s address", host, parts[1])
		}
	case "dns", "dns4", "dns6":
		if !isDNSName(host) {
			return "", bad(staticRemedy, "%.60q is not a host name", host)
		}
	case "dnsaddr":
		return s, nil
	default:
		return "", bad(staticRemedy, "a multiaddr cannot begin with %.40q here", "/"+parts[1])
	}
	if len(parts) < 5 || parts[3] != "tcp" && parts[3] != "udp" {
		return "", bad(staticRemedy, "%.100q names neither /tcp/PORT nor /udp/PORT", s)
	}
	if n, err := strconv.ParseUint(parts[4], 10, 16); err != nil || n == 0 {
		return "", bad(staticRemedy, "%.100q has no port between 1 and 65535", s)
	}
	return s, nil
}

func multiaddrWithID(s string) (string, error) {
	if i := strings.LastIndex(s, "/p2p/"); i < 0 || i+len("/p2p/") == len(s) {
		return "", bad("append /p2p/ and the node's peer id", "%.100q does not say whom to expect there", s)
	}
	return multiaddr(s)
}

func checkListen(c *Config) error {
	if len(c.Substituter.Listen) == 0 {
		return bad(hostPortRemedy, "Nix could not reach the agent anywhere")
	}
	return distinct(c.Substituter.Listen)
}

func checkPeersListen(c *Config) error { return distinct(c.Peers.Listen) }

func distinct(addrs []string) error {
	for i, a := range addrs {
		if !strings.HasSuffix(a, ":0") && slices.Contains(addrs[:i], a) {
			return bad("leave out the second", "%s is listed twice", a)
		}
	}
	return nil
}

func checkPriority(c *Config) error {
	p := c.Substituter.Priority
	if p == 0 {
		return bad("write 1 or more; the default is 30", "0 is what Nix takes for a cache that states no priority, so the order would be left to chance")
	}
	if p < 0 || p > math.MaxInt32 {
		return bad("write a number between 1 and 39 to be asked before cache.nixos.org", "%d is not a priority", p)
	}
	return nil
}

func checkMaxBuffer(c *Config) error {
	const least = 64 << 10 // bytes; below, every NAR would go through a file in tiny pieces
	if c.Substituter.MaxBuffer < least {
		return bad(`write at least "64KiB"`, "%s is too small to be of use", c.Substituter.MaxBuffer)
	}
	return nil
}

func checkConnections(c *Config) error {
	if n := c.Limits.Connections; n < 1 || n > 1<<16 {
		return bad("write a number between 1 and 65536", "%d connections are not possible", n)
	}
	return nil
}

func checkCacheSize(c *Config) error {
	if c.Limits.CacheSize < 1<<20 {
		return bad(`write at least "1MiB"; NARs are collected there before Nix gets them`, "%s is too small to be of use", c.Limits.CacheSize)
	}
	return nil
}

// checkTogether finds what no single key can know.
func (c *Config) checkTogether() (problems []Problem) {
	for _, a := range c.Substituter.Listen {
		for _, b := range c.Peers.Listen {
			if collide(a, b) {
				key := "peers.listen"
				if c.origins[key] == (origin{}) {
					key = "substituter.listen" // the one that somebody wrote
				}
				problems = append(problems, c.Problem(key,
					fmt.Sprintf("substituter.listen %s and peers.listen %s collide", a, b), "give one of them another port"))
			}
		}
	}
	return problems
}

// collide tells whether two TCP listeners could not both have their address.
func collide(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	wild := func(h string) bool { return h == "" || h == "0.0.0.0" || h == "::" }
	return portA == portB && portA != "0" && (hostA == hostB || wild(hostA) || wild(hostB))
}

// CheckFiles looks whether the files that hold secrets exist and are kept from other users. It does
// not open them: whoever checks a configuration need not be allowed to read them.
func (c *Config) CheckFiles() (problems []Problem) {
	check := func(key, name string) {
		if name == "" {
			return
		}
		info, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			problems = append(problems, c.Problem(key, name+" does not exist", "create it, or leave the key out"))
		case errors.Is(err, fs.ErrPermission):
		case err != nil:
			problems = append(problems, c.Problem(key, err.Error(), "name a readable file"))
		case !info.Mode().IsRegular():
			problems = append(problems, c.Problem(key, name+" is not a regular file", "name a regular file"))
		case info.Mode().Perm()&0o027 != 0: // a systemd credential is 0440
			problems = append(problems, c.Problem(key, fmt.Sprintf("%s holds a secret, but with mode %04o others may use it", name, info.Mode().Perm()), "chmod g-w,o= "+name))
		}
	}
	check("peers.secret_file", c.Peers.SecretFile)
	for i, u := range c.Upstreams {
		check(upstreamOrigin(i, "headers_file"), u.HeadersFile)
		check(upstreamOrigin(i, "netrc_file"), u.NetrcFile)
	}
	for i := range problems { // users count no caches
		if strings.HasPrefix(problems[i].Key, "upstream.") {
			problems[i].Key = "upstream." + problems[i].Key[strings.LastIndexByte(problems[i].Key, '.')+1:]
		}
	}
	return problems
}
