package mdns

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	mdnsPort = 5353
	// hops is the TTL or hop limit that RFC 6762 asks for, by which receivers can tell a local packet.
	hops = 255
	// sendTime bounds one send; a link that takes longer does without.
	sendTime = 200 * time.Millisecond
)

// socket is one IP family's end of the multicast group on several interfaces.
type socket interface {
	// read returns a packet, the interface it came in by, and whether it was sent to the group.
	read(buf []byte) (n, ifIndex int, toGroup bool, err error)
	// write sends to the group by one interface; no route is needed.
	write(packet []byte, ifIndex int) error
	Close() error
}

// openSocket joins the family's group on the interfaces. It fails if none of them can be joined.
func openSocket(f family, ifis []net.Interface) (socket, error) {
	if f == ipv4Family {
		return openV4(ifis)
	}
	return openV6(ifis)
}

// Given a group, ListenUDP binds the port on all addresses and shares it with other programs, so read
// must tell how a packet was addressed.

type v4Socket struct {
	*ipv4.PacketConn
	group *net.UDPAddr
}

func openV4(ifis []net.Interface) (socket, error) {
	group := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: mdnsPort}
	c, err := net.ListenUDP("udp4", group)
	if err != nil {
		return nil, fmt.Errorf("opening UDP port 5353: %w", err)
	}
	s := v4Socket{ipv4.NewPacketConn(c), group}
	err = s.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true)
	if err == nil {
		err = s.SetMulticastTTL(hops)
	}
	if err == nil {
		err = s.SetMulticastLoopback(true) // other agents on this machine
	}
	if err == nil {
		err = joinAny(ifis, func(ifi *net.Interface) error { return s.JoinGroup(ifi, &net.UDPAddr{IP: group.IP}) })
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (s v4Socket) read(buf []byte) (n, ifIndex int, toGroup bool, err error) {
	n, cm, _, err := s.ReadFrom(buf)
	if cm == nil {
		return n, 0, false, err
	}
	return n, cm.IfIndex, cm.Dst.Equal(s.group.IP), err
}

func (s v4Socket) write(packet []byte, ifIndex int) error {
	if err := s.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	_, err := s.WriteTo(packet, &ipv4.ControlMessage{IfIndex: ifIndex}, s.group)
	return err
}

type v6Socket struct {
	*ipv6.PacketConn
	group *net.UDPAddr
}

func openV6(ifis []net.Interface) (socket, error) {
	group := &net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: mdnsPort}
	c, err := net.ListenUDP("udp6", group)
	if err != nil {
		return nil, fmt.Errorf("opening UDP port 5353: %w", err)
	}
	s := v6Socket{ipv6.NewPacketConn(c), group}
	err = s.SetControlMessage(ipv6.FlagInterface|ipv6.FlagDst, true)
	if err == nil {
		err = s.SetMulticastHopLimit(hops)
	}
	if err == nil {
		err = s.SetMulticastLoopback(true)
	}
	if err == nil {
		err = joinAny(ifis, func(ifi *net.Interface) error { return s.JoinGroup(ifi, &net.UDPAddr{IP: group.IP}) })
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (s v6Socket) read(buf []byte) (n, ifIndex int, toGroup bool, err error) {
	n, cm, _, err := s.ReadFrom(buf)
	if cm == nil {
		return n, 0, false, err
	}
	return n, cm.IfIndex, cm.Dst.Equal(s.group.IP), err
}

func (s v6Socket) write(packet []byte, ifIndex int) error {
	if err := s.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	_, err := s.WriteTo(packet, &ipv6.ControlMessage{IfIndex: ifIndex}, s.group)
	return err
}

func joinAny(ifis []net.Interface, join func(*net.Interface) error) error {
	var last error
	joined := 0
	for i := range ifis {
		if err := join(&ifis[i]); err != nil {
			last = fmt.Errorf("joining the mDNS group on %s: %w", ifis[i].Name, err)
		} else {
			joined++
		}
	}
	if joined == 0 {
		return last
	}
	return nil
}
