package nodebox

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// testPacket assembles the head of a packet from source to destination.
func testPacket(source, destination netip.Addr, protocol byte, payload ...byte) []byte {
	if source.Is4() {
		p := make([]byte, 20)
		p[0], p[9] = 0x45, protocol
		copy(p[12:], source.AsSlice())
		copy(p[16:], destination.AsSlice())
		return append(p, payload...)
	}
	p := make([]byte, 40)
	p[0], p[6] = 0x60, protocol
	copy(p[8:], source.AsSlice())
	copy(p[24:], destination.AsSlice())
	return append(p, payload...)
}

func TestParsePacket(t *testing.T) {
	pod, podIPv6 := firstPodIP(), pairedIPv6(firstPodIP())
	ports := []byte{0x30, 0x39, 0, 80} // 12345 to 80
	fragment := testPacket(pod, metadataIP(), unix.IPPROTO_UDP, ports...)
	fragment[7] = 1
	options := testPacket(pod, metadataIP(), unix.IPPROTO_TCP, append([]byte{1, 1, 1, 1}, ports...)...)
	options[0] = 0x46
	packet := func(source, destination netip.Addr, sourcePort, destinationPort uint16, protocol int) Packet {
		return Packet{
			Source:      netip.AddrPortFrom(source, sourcePort),
			Destination: netip.AddrPortFrom(destination, destinationPort),
			Protocol:    protocol,
		}
	}
	for name, c := range map[string]struct {
		data []byte
		want Packet
		ok   bool
	}{
		"tcp": {testPacket(pod, metadataIP(), unix.IPPROTO_TCP, ports...),
			packet(pod, metadataIP(), 12345, 80, unix.IPPROTO_TCP), true},
		"udp_over_ipv6": {testPacket(podIPv6, metadataIPv6(), unix.IPPROTO_UDP, ports...),
			packet(podIPv6, metadataIPv6(), 12345, 80, unix.IPPROTO_UDP), true},
		"icmp": {testPacket(pod, metadataIP(), unix.IPPROTO_ICMP, 8, 0, 0, 0),
			packet(pod, metadataIP(), 0, 0, unix.IPPROTO_ICMP), true},
		"no_payload": {testPacket(pod, metadataIP(), unix.IPPROTO_TCP),
			packet(pod, metadataIP(), 0, 0, unix.IPPROTO_TCP), true},
		"options":         {options, packet(pod, metadataIP(), 12345, 80, unix.IPPROTO_TCP), true},
		"later_fragment":  {fragment, packet(pod, metadataIP(), 0, 0, unix.IPPROTO_UDP), true},
		"short":           {testPacket(pod, metadataIP(), unix.IPPROTO_TCP)[:19], Packet{}, false},
		"short_ipv6":      {testPacket(podIPv6, metadataIPv6(), unix.IPPROTO_TCP)[:39], Packet{}, false},
		"another_version": {[]byte{0x50, 39: 0}, Packet{}, false},
		"nothing":         {nil, Packet{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := parsePacket(c.data); got != c.want || ok != c.ok {
				t.Errorf("got %v, %v, want %v, %v", got, ok, c.want, c.ok)
			}
		})
	}
}

// Packets come from whatever runs in a pod.
func FuzzParsePacket(f *testing.F) {
	f.Add(testPacket(firstPodIP(), metadataIP(), unix.IPPROTO_TCP, 1, 2, 3, 4))
	f.Add(testPacket(nodeIPv6(), metadataIPv6(), unix.IPPROTO_UDP, 1, 2, 3))
	f.Add([]byte{0x4f, 19: 0})
	f.Add([]byte{0x40, 30: 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		p, ok := parsePacket(data)
		if ok != p.Destination.Addr().IsValid() {
			t.Errorf("parsePacket = %v, %v", p, ok)
		}
		if ok && p.String() == "" {
			t.Error("no text")
		}
	})
}

// The filter, run as the kernel runs it.
func TestPacketFilter(t *testing.T) {
	other, otherIPv6 := netip.MustParseAddr("169.254.169.253"), netip.MustParseAddr("fd00:ec2::253")
	destinations := []netip.Addr{metadataIP(), metadataIPv6(), outsideIP(), outsideIPv6()}
	exempt := []netip.Addr{nodeIP(), nodeIPv6()}
	pod, podIPv6 := firstPodIP(), pairedIPv6(firstPodIP())
	for name, c := range map[string]struct {
		source, destination netip.Addr
		exempt              []netip.Addr
		outgoing            bool
		want                bool
	}{
		"pod":              {source: pod, destination: metadataIP(), exempt: exempt, want: true},
		"pod_ipv6":         {source: podIPv6, destination: metadataIPv6(), exempt: exempt, want: true},
		"last":             {source: pod, destination: outsideIP(), exempt: exempt, want: true},
		"last_ipv6":        {source: podIPv6, destination: outsideIPv6(), exempt: exempt, want: true},
		"node":             {source: nodeIP(), destination: metadataIP(), exempt: exempt},
		"node_ipv6":        {source: nodeIPv6(), destination: metadataIPv6(), exempt: exempt},
		"node_not_exempt":  {source: nodeIP(), destination: metadataIP(), want: true},
		"node_ipv6_either": {source: nodeIPv6(), destination: metadataIPv6(), want: true},
		"other":            {source: pod, destination: other, exempt: exempt},
		"other_ipv6":       {source: podIPv6, destination: otherIPv6, exempt: exempt},
		"outgoing":         {source: pod, destination: metadataIP(), exempt: exempt, outgoing: true},
	} {
		t.Run(name, func(t *testing.T) {
			data := testPacket(c.source, c.destination, unix.IPPROTO_TCP)
			protocol, kind := uint32(unix.ETH_P_IP), uint32(unix.PACKET_HOST)
			if c.source.Is6() {
				protocol = unix.ETH_P_IPV6
			}
			if c.outgoing {
				kind = unix.PACKET_OUTGOING
			}
			if got := runFilter(t, packetFilter(destinations, c.exempt), data, protocol, kind); got != c.want {
				t.Errorf("accepted = %v, want %v", got, c.want)
			}
		})
	}
	arp := runFilter(t, packetFilter(destinations, exempt), make([]byte, 28), unix.ETH_P_ARP, unix.PACKET_BROADCAST)
	if arp {
		t.Error("accepted ARP")
	}
}

// runFilter interprets the instructions that packetFilter uses.
func runFilter(t *testing.T, filter []unix.SockFilter, data []byte, protocol, kind uint32) bool {
	t.Helper()
	var word uint32
	for i := 0; i < len(filter); i++ {
		in := filter[i]
		switch in.Code {
		case unix.BPF_LD | unix.BPF_ABS | unix.BPF_W:
			switch {
			case in.K == 0xfffff000:
				word = protocol
			case in.K == 0xfffff004:
				word = kind
			case int(in.K)+4 > len(data):
				return false
			default:
				word = binary.BigEndian.Uint32(data[in.K:])
			}
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			if word == in.K {
				i += int(in.Jt)
			} else {
				i += int(in.Jf)
			}
		case unix.BPF_JMP | unix.BPF_JA:
			i += int(in.K)
		case unix.BPF_RET | unix.BPF_K:
			return in.K != 0
		default:
			t.Fatalf("instruction %#x", in.Code)
		}
	}
	t.Fatal("the filter has no end")
	return false
}
