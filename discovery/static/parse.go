package static

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/flurry-nix/flurry/discovery"
)

// maxEntry bounds an entry's length in bytes: a DNS name has at most 253, a relayed multiaddr some 300.
const maxEntry = 1024

// forms ends every error: what can be written instead.
const forms = "write host:port, [IPv6]:port, a host alone, or a multiaddr as `flurry id` prints it"

// Parse reads one entry of peers.static. It touches no network. Accepted are
//
//	host:port, host                      a DNS name or IPv4 address
//	[v6]:port, [v6], v6, [v6%zone]:port  an IPv6 address
//	/ip4/…/tcp/…[/p2p/ID]                a multiaddr; also /ip6, /ip6zone, /dns, /dns4, /dns6, /dnsaddr, /udp/…/quic-v1
//
// Without a port, defaultPort is meant. The hint's Addrs may begin with a DNS name, which a Finder
// resolves; PeerID is empty unless the entry ends in /p2p/ID. Errors name the remedy.
func Parse(entry string, defaultPort int) (discovery.Found, error) {
	entry = strings.TrimSpace(entry)
	f := discovery.Found{Via: discovery.ViaStatic, Name: entry, Keep: true}
	var err error
	switch {
	case defaultPort < 1 || defaultPort > 65535:
		return discovery.Found{}, fmt.Errorf("default port %d: give one between 1 and 65535", defaultPort)
	case entry == "":
		err = errors.New("is empty")
	case len(entry) > maxEntry:
		return discovery.Found{}, fmt.Errorf("static peer of %d bytes is too long: %s", len(entry), forms)
	case strings.Contains(entry, "://"):
		err = errors.New("is a URL")
	case entry[0] == '/':
		f.PeerID, f.Addrs, err = parseMultiaddr(entry, defaultPort)
	default:
		f.Addrs, err = parseHostPort(entry, defaultPort)
	}
	if err != nil {
		return discovery.Found{}, fmt.Errorf("static peer %q: %w; %s", entry, err, forms)
	}
	return f, nil
}

func parseHostPort(entry string, defaultPort int) ([]string, error) {
	host, port, err := splitHostPort(entry, defaultPort)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if err := checkIP(ip); err != nil {
			return nil, err
		}
		at := netip.AddrPortFrom(ip, port)
		return []string{discovery.TCP(at), discovery.QUIC(at)}, nil
	}
	host = strings.TrimSuffix(host, ".")
	if err := checkName(host); err != nil {
		return nil, err
	}
	p := strconv.Itoa(int(port))
	return []string{"/dns/" + host + "/tcp/" + p, "/dns/" + host + "/udp/" + p + "/quic-v1"}, nil
}

// splitHostPort takes an entry apart; brackets are removed.
func splitHostPort(entry string, defaultPort int) (host string, port uint16, err error) {
	port = uint16(defaultPort)
	portText := ""
	switch {
	case entry[0] == '[':
		end := strings.IndexByte(entry, ']')
		if end < 0 {
			return "", 0, errors.New("lacks the closing bracket")
		}
		host, portText = entry[1:end], entry[end+1:]
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is6() {
			return "", 0, errors.New("has no IPv6 address in its brackets")
		}
	case strings.Count(entry, ":") > 1:
		if _, err := netip.ParseAddr(entry); err != nil {
			return "", 0, errors.New("has too many colons (an IPv6 address with a port needs brackets)")
		}
		return entry, port, nil
	default:
		i := strings.IndexByte(entry, ':')
		if i < 0 {
			i = len(entry)
		}
		host, portText = entry[:i], entry[i:]
	}
	if portText == "" {
		return host, port, nil
	}
	number, ok := strings.CutPrefix(portText, ":")
	if !ok {
		return "", 0, errors.New("has something other than :port after the bracket")
	}
	port, err = parsePort(number)
	return host, port, err
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("has port %q, which is not between 1 and 65535", s)
	}
	return uint16(n), nil
}

// checkIP refuses addresses that nobody can be reached at.
func checkIP(ip netip.Addr) error {
	switch {
	case ip.IsUnspecified():
		return errors.New("means any address (give the peer's own)")
	case ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return errors.New("is a group's address (give the peer's own)")
	case ip.Is6() && ip.IsLinkLocalUnicast() && ip.Zone() == "":
		return errors.New("is link-local and lacks its interface (as in [fe80::1%eth0]:6491)")
	case strings.ContainsAny(ip.Zone(), "/ \t"):
		return errors.New("has an impossible interface name")
	}
	return nil
}

// checkName accepts host names as DNS and hosts files have them, underscores included.
func checkName(name string) error {
	if strings.Contains(name, "@") {
		return errors.New("contains @ (a peer id goes to the end of a multiaddr, as /p2p/ID)")
	}
	if len(name) == 0 || len(name) > 253 {
		return errors.New("has no host name of 1 to 253 characters")
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, hostChars) != "" {
			return fmt.Errorf("has a malformed host name %q", name)
		}
	}
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return fmt.Errorf("has %q, which is neither an IP address nor a name", name)
	}
	return nil
}

const hostChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

// parseMultiaddr returns the peer id at the end, if any, and the rest.
func parseMultiaddr(entry string, defaultPort int) (id string, addrs []string, err error) {
	m, err := ma.NewMultiaddr(entry)
	if err != nil {
		return "", nil, fmt.Errorf("is no multiaddr (%w)", err)
	}
	if rest, last := ma.SplitLast(m); last != nil && last.Protocol().Code == ma.P_P2P {
		m, id = rest, last.Value()
	}
	if len(m) == 0 {
		return "", nil, errors.New("has no address before the peer id")
	}
	if err := checkMultiaddr(m); err != nil {
		return "", nil, err
	}
	if m[0].Protocol().Code != ma.P_DNSADDR && len(transports(m)) == 0 {
		p := strconv.Itoa(defaultPort)
		return id, []string{m.String() + "/tcp/" + p, m.String() + "/udp/" + p + "/quic-v1"}, nil
	}
	return id, []string{m.String()}, nil
}

// transports are a multiaddr's components after the host.
func transports(m ma.Multiaddr) ma.Multiaddr {
	if m[0].Protocol().Code == ma.P_IP6ZONE && len(m) > 1 {
		return m[2:]
	}
	return m[1:]
}

func checkMultiaddr(m ma.Multiaddr) error {
	first := m[0]
	switch first.Protocol().Code {
	case ma.P_IP4, ma.P_IP6:
		ip, err := netip.ParseAddr(first.Value())
		if err != nil {
			return err
		}
		if err := checkIP(ip); err != nil {
			return err
		}
	case ma.P_IP6ZONE:
		if len(m) < 2 || m[1].Protocol().Code != ma.P_IP6 {
			return errors.New("has a zone without /ip6")
		}
	case ma.P_DNS, ma.P_DNS4, ma.P_DNS6, ma.P_DNSADDR:
		if err := checkName(strings.TrimSuffix(first.Value(), ".")); err != nil {
			return err
		}
	default:
		return fmt.Errorf("begins with /%s, which is no address of a machine", first.Protocol().Name)
	}
	return checkTransport(transports(m))
}

// checkTransport looks at what follows the host: TCP, or UDP with QUIC on it, then anything.
func checkTransport(rest ma.Multiaddr) error {
	if len(rest) == 0 {
		return nil
	}
	switch rest[0].Protocol().Code {
	case ma.P_TCP:
	case ma.P_UDP:
		if len(rest) < 2 {
			return errors.New("has /udp without what runs on it (add /quic-v1)")
		}
	default:
		return fmt.Errorf("has /%s where /tcp or /udp belongs", rest[0].Protocol().Name)
	}
	if _, err := parsePort(rest[0].Value()); err != nil {
		return err
	}
	return nil
}
