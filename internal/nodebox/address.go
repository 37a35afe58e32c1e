package nodebox

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
)

// The address plan. Boxes share it: each lives in namespaces of its own. The ranges are those for documentation
// (RFC 5737, RFC 3849) and benchmarks (RFC 2544), which no real network of the machine uses.

func nodeIP() netip.Addr      { return netip.AddrFrom4([4]byte{192, 0, 2, 10}) }
func gatewayIP() netip.Addr   { return netip.AddrFrom4([4]byte{192, 0, 2, 1}) }
func outsideIP() netip.Addr   { return netip.AddrFrom4([4]byte{203, 0, 113, 10}) }
func nodeIPv6() netip.Addr    { return netip.MustParseAddr("2001:db8:0:1::10") }
func gatewayIPv6() netip.Addr { return netip.MustParseAddr("2001:db8:0:1::1") }
func outsideIPv6() netip.Addr { return netip.MustParseAddr("2001:db8:0:2::10") }

// The addresses of the EC2 instance metadata service:
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
func metadataIP() netip.Addr   { return netip.AddrFrom4([4]byte{169, 254, 169, 254}) }
func metadataIPv6() netip.Addr { return netip.MustParseAddr("fd00:ec2::254") }

// The gateways that Amazon VPC CNI and Calico give to pods.
func podGatewayIP() netip.Addr   { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }
func podGatewayIPv6() netip.Addr { return netip.MustParseAddr("fe80::1") }

// podRange holds the pods' addresses. The bridge holds the first of it.
func podRange() netip.Prefix     { return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 0, 0}), 16) }
func podRangeIPv6() netip.Prefix { return netip.MustParsePrefix("2001:db8:0:3::/64") }
func bridgeIP() netip.Addr       { return netip.AddrFrom4([4]byte{198, 18, 0, 1}) }
func firstPodIP() netip.Addr     { return netip.AddrFrom4([4]byte{198, 18, 1, 1}) }
func lastPodIP() netip.Addr      { return netip.AddrFrom4([4]byte{198, 18, 255, 254}) }

// pairedIPv6 returns the IPv6 address that goes with an address of podRange.
func pairedIPv6(ip netip.Addr) netip.Addr {
	v4, v6 := ip.As4(), podRangeIPv6().Addr().As16()
	v6[14], v6[15] = v4[2], v4[3]
	return netip.AddrFrom16(v6)
}

// addressPool gives out pod addresses. Not safe for concurrent use.
type addressPool struct {
	used map[netip.Addr]bool
	last netip.Addr
}

// take reserves the chosen address, or the one after the last given out: a freed address comes back late, unless it
// is asked for.
func (p *addressPool) take(chosen netip.Addr) (netip.Addr, error) {
	if p.used == nil {
		p.used = make(map[netip.Addr]bool)
	}
	if chosen.IsValid() {
		if chosen.Less(firstPodIP()) || lastPodIP().Less(chosen) {
			return netip.Addr{}, fmt.Errorf("choose pod address %s: choose one of %s to %s", chosen, firstPodIP(), lastPodIP())
		}
		if p.used[chosen] {
			return netip.Addr{}, fmt.Errorf("choose pod address %s: another pod has it; remove that first", chosen)
		}
		p.used[chosen] = true
		return chosen, nil
	}
	const size = 1 << 16
	next := p.last
	for range size {
		if next = next.Next(); !next.IsValid() || next.Less(firstPodIP()) || lastPodIP().Less(next) {
			next = firstPodIP()
		}
		if !p.used[next] {
			p.used[next], p.last = true, next
			return next, nil
		}
	}
	return netip.Addr{}, errors.New("choose pod address: all are in use")
}

func (p *addressPool) release(ip netip.Addr) { delete(p.used, ip) }

// kernelHasIPv6 reports whether namespaces will have IPv6.
func kernelHasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// validAddresses drops the zero ones.
func validAddresses(addresses ...netip.Addr) []netip.Addr {
	var valid []netip.Addr
	for _, a := range addresses {
		if a.IsValid() {
			valid = append(valid, a)
		}
	}
	return valid
}

// ipNet converts an address with a prefix length to what package netlink takes.
func ipNet(address netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(bits, address.BitLen())}
}
