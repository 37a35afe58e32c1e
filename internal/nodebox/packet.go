package nodebox

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is what is kept of a recorded packet.
type Packet struct {
	// Time is when the kernel received it.
	Time time.Time
	// Source and Destination are its addresses, with ports where Protocol has them and the packet shows them.
	Source, Destination netip.AddrPort
	// Protocol is the IP protocol number, such as unix.IPPROTO_TCP.
	Protocol int
}

// String implements fmt.Stringer.
func (p Packet) String() string {
	protocol := fmt.Sprintf("protocol %d", p.Protocol)
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		protocol = "tcp"
	case unix.IPPROTO_UDP:
		protocol = "udp"
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		protocol = "icmp"
	}
	return fmt.Sprintf("%s %s %s -> %s", p.Time.Format(time.RFC3339Nano), protocol, p.Source, p.Destination)
}

// parsePacket reads the head of an IPv4 (RFC 791) or IPv6 (RFC 8200) packet. Protocols behind IPv6 extension headers
// are not looked for: what matters is that the packet is there.
func parsePacket(data []byte) (Packet, bool) {
	const ipv4Head, ipv6Head = 20, 40
	var (
		p                   Packet
		source, destination netip.Addr
		payload             []byte
	)
	switch {
	case len(data) >= ipv4Head && data[0]>>4 == 4:
		p.Protocol = int(data[9])
		source, destination = netip.AddrFrom4([4]byte(data[12:16])), netip.AddrFrom4([4]byte(data[16:20]))
		fragmentOffset := binary.BigEndian.Uint16(data[6:]) & 0x1fff
		if head := int(data[0]&0x0f) * 4; fragmentOffset == 0 && head >= ipv4Head && len(data) > head {
			payload = data[head:]
		}
	case len(data) >= ipv6Head && data[0]>>4 == 6:
		p.Protocol = int(data[6])
		source, destination = netip.AddrFrom16([16]byte(data[8:24])), netip.AddrFrom16([16]byte(data[24:40]))
		payload = data[ipv6Head:]
	default:
		return Packet{}, false
	}
	var sourcePort, destinationPort uint16
	if (p.Protocol == unix.IPPROTO_TCP || p.Protocol == unix.IPPROTO_UDP) && len(payload) >= 4 {
		sourcePort, destinationPort = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	}
	p.Source = netip.AddrPortFrom(source, sourcePort)
	p.Destination = netip.AddrPortFrom(destination, destinationPort)
	return p, true
}
