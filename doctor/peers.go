package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

func (p Peers) check() []Finding {
	switch {
	case p.Off:
		return []Finding{{Check: CheckPeers, ID: "peers-off", Level: Note, What: "peers are switched off; everything comes from the central caches", Remedy: "set peers.listen"}}
	case p.Problem != "":
		return []Finding{{Check: CheckPeers, ID: "peer-port-taken", Level: Fail, What: p.Problem,
			Why:    "Without it nothing is taken from neighbours, nor given to them.",
			Remedy: "ss -tulpn 'sport = :6491' tells who has the port; end it, or set peers.listen to a free one",
			NixOS:  `services.flurry.settings.peers.listen = [ ":6492" ]`}}
	}
	var out []Finding
	out = append(out, p.multicast()...)
	out = append(out, p.reachable()...)
	return append(out, p.neighbours()...)
}

func (p Peers) multicast() []Finding {
	if !p.MDNS {
		return []Finding{{Check: CheckMulticast, ID: "mdns-off", Level: Note, What: "peers.mdns is off; neighbours are found by address only"}}
	}
	const why = "Neighbours find each other by multicast (mDNS, UDP 5353)."
	if len(p.Links) == 0 {
		what := "no network interface to look for neighbours on"
		for _, i := range p.Passed {
			what += fmt.Sprintf("; %s: %s", i.Name, i.Why)
		}
		return []Finding{{Check: CheckMulticast, ID: "multicast-no-interface", Level: Fail, What: what,
			Why:    why + " A VPN's interface, one without a private address, or none at all leaves nobody to find.",
			Remedy: "connect to the LAN; or name interface and network in peers.interfaces and peers.networks, or neighbours in peers.static",
			NixOS:  "services.flurry.settings.peers.networks, .interfaces, .static"}}
	}
	var out []Finding
	for _, l := range p.Links {
		out = append(out, p.link(l, why)...)
	}
	for _, r := range p.Routed {
		out = append(out, Finding{Check: CheckMulticast, ID: "lan-routed-elsewhere", Level: Fail,
			What:   fmt.Sprintf("packets for the LAN %s (%s) leave by another way: %s", r.Network, r.Link, r.By),
			Why:    "A VPN takes the local network's traffic over, so that neighbours are heard but not reached.",
			Remedy: fmt.Sprintf("allow local network access in the VPN client; ip route get %s shows the way", r.Network.Addr().Next()),
			NixOS:  "allowedIPs of networking.wireguard, without the LAN's range"})
	}
	return orWell(out, CheckMulticast, "packets come back on "+linkNames(p.Links))
}

func (p Peers) link(l Link, why string) []Finding {
	switch {
	case !l.Returned && l.Err != nil:
		return []Finding{{Check: CheckMulticast, ID: "multicast-blocked", Level: Fail,
			What: "multicast cannot be sent on " + l.Name + ": " + oneLine(l.Err), Why: why, Remedy: openMDNS, NixOS: nixosFirewall}}
	case !l.Returned:
		return []Finding{{Check: CheckMulticast, ID: "multicast-blocked", Level: Fail,
			What: "a multicast packet sent on " + l.Name + " did not come back: a firewall on this machine drops it", Why: why,
			Remedy: openMDNS, NixOS: nixosFirewall}}
	case len(l.Answered) > 0:
		return nil
	}
	silent := 0
	for _, n := range p.Neighbours {
		if slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return inAny(l.Networks, a) }) {
			silent++
		}
	}
	if silent == 0 {
		return nil // whether anybody is there cannot be told; see neighbours
	}
	return []Finding{{Check: CheckMulticast, ID: "multicast-filtered", Level: Fail,
		What:   fmt.Sprintf("%d neighbours on %s are connected, but no multicast of theirs arrives", silent, l.Name),
		Why:    why + " Switches (IGMP snooping), access points (client isolation) and VLANs may drop it; who is not known by address stays unknown.",
		Remedy: "allow multicast between clients in the access point or switch, or name neighbours in peers.static",
		NixOS:  "services.flurry.settings.peers.static"}}
}

const (
	openMDNS      = "nft add rule inet filter input udp dport 5353 accept (or: ufw allow 5353/udp; firewall-cmd --add-service=mdns)"
	openPeers     = "nft add rule inet filter input tcp dport 6491 accept, and the same for udp (or: ufw allow 6491; firewall-cmd --add-port=6491/tcp --add-port=6491/udp)"
	nixosFirewall = "services.flurry.openFirewall = true"
)

func (p Peers) reachable() []Finding {
	if len(p.DialBacks) == 0 {
		return []Finding{{Check: CheckReachable, ID: "reachable-unknown", Level: Note, What: "no neighbour could be asked to dial back just now"}}
	}
	tcp, udp := 0, 0
	for _, d := range p.DialBacks {
		if d.TCP {
			tcp++
		}
		if d.UDP {
			udp++
		}
	}
	var out []Finding
	add := func(id, level, proto string, why string) {
		out = append(out, Finding{Check: CheckReachable, ID: id, Level: level,
			What: fmt.Sprintf("none of %d neighbours that tried reaches this machine's port %d by %s", len(p.DialBacks), p.Port, proto),
			Why:  why, Remedy: openPeers, NixOS: nixosFirewall})
	}
	if tcp == 0 {
		add("peer-tcp-blocked", Fail, "TCP", "Neighbours cannot connect; only those that this machine finds by itself exchange anything with it.")
	}
	if udp == 0 {
		add("peer-udp-blocked", Warn, "UDP", "QUIC, the way through NATs and the second try where TCP fails, does not work.")
	}
	return orWell(out, CheckReachable, fmt.Sprintf("%d of %d neighbours reach port %d by TCP, %d by UDP", tcp, len(p.DialBacks), p.Port, udp))
}

func (p Peers) neighbours() []Finding {
	var out []Finding
	heard := map[string]bool{}
	for _, l := range p.Links {
		for _, id := range l.Answered {
			heard[id] = true
		}
	}
	var strange []string // heard, not connected
	for id := range heard {
		if !slices.ContainsFunc(p.Neighbours, func(n Neighbour) bool { return n.ID == id }) {
			strange = append(strange, tailOf(id))
		}
	}
	if len(strange) > 0 {
		slices.Sort(strange)
		out = append(out, Finding{Check: CheckPeers, ID: "neighbour-unreachable", Level: Warn,
			What:   fmt.Sprintf("%d of %d neighbours answer by multicast but are not connected: %s", len(strange), len(heard), strings.Join(strange, ", ")),
			Why:    "Their firewall, or client isolation in the access point, lets multicast through and connections not; nothing can be taken from them.",
			Remedy: "on those machines: " + openPeers + "; on this one: flurry peers tells if one is shut out", NixOS: nixosFirewall})
	}
	if len(p.Neighbours) == 0 && len(strange) == 0 {
		what := "no other agent is connected"
		if p.KnownOnce > 0 {
			what += fmt.Sprintf("; %d were known before", p.KnownOnce)
		}
		out = append(out, Finding{Check: CheckPeers, ID: "no-neighbours", Level: Warn, What: what,
			Why:    "Either nobody else here runs Flurry, or this machine is kept apart: another VLAN, a guest network, an access point with client isolation.",
			Remedy: "run flurry id on another machine and name it in peers.static here: if that works, multicast is what fails",
			NixOS:  "services.flurry.settings.peers.static"})
	}
	if others := p.otherVersions(); len(others) > 0 {
		out = append(out, Finding{Check: CheckPeers, ID: "neighbour-version", Level: Warn,
			What:   fmt.Sprintf("neighbours run other versions than this one (%s): %s", p.Version, strings.Join(others, ", ")),
			Why:    "One version before and one after are understood; beyond that they do not talk.",
			Remedy: "upgrade the older ones", NixOS: "nix flake update flurry"})
	}
	if p.Paused {
		out = append(out, Finding{Check: CheckPeers, ID: "sharing-paused", Level: Note, What: "sharing is paused", Remedy: "flurry resume"})
	}
	return orWell(out, CheckPeers, fmt.Sprintf("%d connected", len(p.Neighbours)))
}

func (p Peers) otherVersions() []string {
	count := map[string]int{}
	for _, n := range p.Neighbours {
		if n.Version != "" && p.Version != "" && n.Version != p.Version {
			count[n.Version]++
		}
	}
	var out []string
	for v, n := range count {
		out = append(out, fmt.Sprintf("%d × %s", n, v))
	}
	slices.Sort(out)
	return out
}

// tailOf is what tells peer ids apart at a glance: their beginnings are all alike.
func tailOf(id string) string {
	if len(id) > 12 {
		return "…" + id[len(id)-12:]
	}
	return id
}

func linkNames(links []Link) string {
	var names []string
	for _, l := range links {
		names = append(names, l.Name)
	}
	return strings.Join(names, ", ")
}
