package discovery

import (
	"net/netip"
	"strconv"
	"strings"
)

// TCP returns the multiaddr text of a TCP listener.
func TCP(at netip.AddrPort) string {
	return IP(at.Addr()) + "/tcp/" + strconv.Itoa(int(at.Port()))
}

// QUIC returns the multiaddr text of a QUIC (version 1) listener.
func QUIC(at netip.AddrPort) string {
	return IP(at.Addr()) + "/udp/" + strconv.Itoa(int(at.Port())) + "/quic-v1"
}

// IP returns the multiaddr text of an IP address. An IPv6 zone becomes an /ip6zone component.
func IP(ip netip.Addr) string {
	ip = ip.Unmap()
	switch {
	case ip.Is4():
		return "/ip4/" + ip.String()
	case ip.Zone() != "":
		return "/ip6zone/" + ip.Zone() + "/ip6/" + ip.WithZone("").String()
	default:
		return "/ip6/" + ip.String()
	}
}

// Lengths of a peer id's text, in characters: 46 is a SHA-256 multihash in base58, the shortest; an
// ed25519 key as a CID in base32 takes 65, and 80 leaves room.
const (
	minPeerID = 46
	maxPeerID = 80
)

const (
	base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	base32 = "abcdefghijklmnopqrstuvwxyz234567"
	base36 = "0123456789abcdefghijklmnopqrstuvwxyz"
)

// PlausiblePeerID reports whether s could be the text of a libp2p peer id: a multihash in base58
// ("Qm…", "12D3…") or a CID in base32, base36 or base58 ("b…", "k…", "z…"). It looks at length and
// alphabet only; a dial proves the rest.
func PlausiblePeerID(s string) bool {
	if len(s) < minPeerID || len(s) > maxPeerID {
		return false
	}
	alphabet := ""
	switch s[0] {
	case 'Q', '1', 'z':
		alphabet = base58
	case 'b':
		alphabet = base32
	case 'k':
		alphabet = base36
	default:
		return false
	}
	return strings.Trim(s[1:], alphabet) == ""
}
