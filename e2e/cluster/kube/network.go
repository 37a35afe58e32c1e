package kube

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// Outside is the address of the control plane, and of what the caller serves.
func Outside() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, 1}) }

// Metadata is the address of the nodes' metadata service, which the outside holds.
func Metadata() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 169, 254}) }

func services() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 96, 0, 0}), 16) }

// apiService is the first address of services: the Service kubernetes of namespace default.
func apiService() netip.Addr { return services().Addr().Next() }

func allPods() netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, 0, 0}), 16) }

// apiPort is the API server's.
const apiPort = 6443

// Server is the URL of the API server, which is also the issuer of its ServiceAccounts' tokens.
func Server() string { return "https://" + netip.AddrPortFrom(Outside(), apiPort).String() }

// nodeAddress is the address of the node with this number, 1 to 9.
func nodeAddress(number int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + number)}) }

// nodePods are the addresses of its pods.
func nodePods(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(number), 0}), 24)
}

// layFabric lays the network that the nodes are attached to.
func layFabric() error {
	return sandbox.IP(
		"link add fabric type bridge",
		"link set fabric up",
		fmt.Sprintf("addr add %s/24 dev fabric", Outside()),
		fmt.Sprintf("addr add %s/32 dev lo", Metadata()),
	)
}

// attach gives the machine an uplink to the fabric. An earlier one of the same number must have ended.
func attach(m *sandbox.Machine, number int) error {
	port := "node" + strconv.Itoa(number)
	// The kernel takes its time with the network of a machine that has ended.
	_ = sandbox.IP("link del " + port)
	err := sandbox.IP(
		fmt.Sprintf("link add %s type veth peer name eth0 netns %d", port, m.PID()),
		fmt.Sprintf("link set %s master fabric up", port),
		fmt.Sprintf("route replace %s via %s", nodePods(number), nodeAddress(number)),
	)
	if err != nil {
		return err
	}
	return m.IP(
		fmt.Sprintf("addr add %s/24 dev eth0", nodeAddress(number)),
		"link set eth0 up",
		fmt.Sprintf("route add default via %s", Outside()),
	)
}
