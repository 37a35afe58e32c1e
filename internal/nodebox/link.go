package nodebox

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	uplinkName  = "eth0"  // in the node
	outsideName = "node0" // the other end of the uplink
	podName     = "eth0"  // in each pod
	bridgeName  = "cni0"
)

// applySysctls sets the calling thread's namespace up: /proc/sys/net shows the namespace of the thread that opens it.
func applySysctls(ipv6, forward bool) error {
	settings := [][2]string{
		// A new namespace takes IPv4 settings over from the machine; a box is the same everywhere. Without filters on
		// reverse paths, what leaks gets its answer.
		{"ipv4/conf/all/rp_filter", "0"},
		{"ipv4/conf/default/rp_filter", "0"},
		{"ipv4/ip_forward", "0"},
	}
	if forward {
		settings = append(settings, [2]string{"ipv4/ip_forward", "1"})
	}
	if ipv6 {
		settings = append(settings,
			[2]string{"ipv6/conf/all/disable_ipv6", "0"},
			[2]string{"ipv6/conf/default/disable_ipv6", "0"},
			// Duplicate address detection takes seconds; it is off where both agree.
			[2]string{"ipv6/conf/all/accept_dad", "0"},
			[2]string{"ipv6/conf/default/accept_dad", "0"},
			[2]string{"ipv6/conf/all/accept_ra", "0"},
			[2]string{"ipv6/conf/default/accept_ra", "0"},
		)
	}
	if ipv6 && forward {
		settings = append(settings,
			[2]string{"ipv6/conf/all/forwarding", "1"},
			[2]string{"ipv6/conf/default/forwarding", "1"},
		)
	}
	for _, s := range settings {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", s[0]), []byte(s[1]), 0); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}

// linkUp sets a link of the calling thread's namespace up.
func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	return wrapf(netlink.LinkSetUp(link), "set link %s up", name)
}

// end is one end of a link, with the handle of its namespace.
type end struct {
	handle *netlink.Handle
	link   netlink.Link
}

func findEnd(h *netlink.Handle, name string) (end, error) {
	link, err := h.LinkByName(name)
	return end{handle: h, link: link}, wrapf(err, "find link %s", name)
}

func (e end) mac() net.HardwareAddr { return e.link.Attrs().HardwareAddr }

func (e end) up() error {
	return wrapf(e.handle.LinkSetUp(e.link), "set link %s up", e.link.Attrs().Name)
}

// assign adds an address that is usable at once.
func (e end) assign(address netip.Addr, bits int) error {
	a := &netlink.Addr{IPNet: ipNet(address, bits)}
	if address.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return wrapf(e.handle.AddrAdd(e.link, a), "add address %s to %s", address, e.link.Attrs().Name)
}

// reach adds a route to what is on the link itself.
func (e end) reach(destination netip.Prefix) error {
	r := &netlink.Route{
		LinkIndex: e.link.Attrs().Index,
		Dst:       ipNet(destination.Addr(), destination.Bits()),
		Scope:     netlink.SCOPE_LINK,
	}
	return wrapf(e.handle.RouteAdd(r), "add route to %s", destination)
}

// route adds a route by way of a gateway.
func (e end) route(destination netip.Prefix, gateway netip.Addr) error {
	r := &netlink.Route{
		LinkIndex: e.link.Attrs().Index,
		Dst:       ipNet(destination.Addr(), destination.Bits()),
		Gw:        gateway.AsSlice(),
	}
	return wrapf(e.handle.RouteAdd(r), "add route to %s via %s", destination, gateway)
}

// know adds a permanent neighbour entry.
func (e end) know(neighbour netip.Addr, mac net.HardwareAddr) error {
	n := &netlink.Neigh{
		LinkIndex:    e.link.Attrs().Index,
		State:        netlink.NUD_PERMANENT,
		IP:           neighbour.AsSlice(),
		HardwareAddr: mac,
	}
	return wrapf(e.handle.NeighAdd(n), "add neighbour %s", neighbour)
}

// readyWait bounds the wait for a new link, readyPoll is the time between two looks at it.
const (
	readyWait = 5 * time.Second
	readyPoll = time.Millisecond
)

// ready waits until the link passes packets. Until the kernel has noticed the carrier and given the link its
// link-local address, IPv6 cannot look for neighbours on it and tries again only after a second.
func (e end) ready(ipv6 bool) error {
	name := e.link.Attrs().Name
	for deadline := time.Now().Add(readyWait); time.Now().Before(deadline); time.Sleep(readyPoll) {
		link, err := e.handle.LinkByIndex(e.link.Attrs().Index)
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		if link.Attrs().OperState != netlink.OperUp {
			continue
		}
		if !ipv6 {
			return nil
		}
		addresses, err := e.handle.AddrList(link, netlink.FAMILY_V6)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("list addresses of %s: %w", name, err)
		}
		if slices.ContainsFunc(addresses, func(a netlink.Addr) bool {
			return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
		}) {
			return nil
		}
	}
	return fmt.Errorf("wait for link %s: not up after %s", name, readyWait)
}

// connect creates a veth pair directly inside the two namespaces, lets setup address the ends once they are up, and
// returns when they pass packets.
func (b *Box) connect(
	near *Namespace, nearName string,
	far *Namespace, farName string,
	setup func(near, far end) error,
) error {
	nearHandle, err := near.netlink()
	if err != nil {
		return err
	}
	defer nearHandle.Close()
	farHandle, err := far.netlink()
	if err != nil {
		return err
	}
	defer farHandle.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = nearName
	veth := &netlink.Veth{LinkAttrs: attributes, PeerName: farName, PeerNamespace: netlink.NsFd(far.handle)}
	if err := nearHandle.LinkAdd(veth); err != nil {
		return fmt.Errorf("create veth pair %s and %s: %w", nearName, farName, err)
	}
	n, err := findEnd(nearHandle, nearName)
	if err != nil {
		return err
	}
	f, err := findEnd(farHandle, farName)
	if err != nil {
		return err
	}
	if err := errors.Join(n.up(), f.up()); err != nil {
		return err
	}
	if err := setup(n, f); err != nil {
		return err
	}
	return errors.Join(n.ready(b.HasIPv6()), f.ready(b.HasIPv6()))
}

// connectOutside lays the node's uplink and gives the outside its addresses and its routes back.
func (b *Box) connectOutside() error {
	return b.connect(b.Node, uplinkName, b.Outside, outsideName, func(node, outside end) error {
		lo, err := findEnd(outside.handle, "lo")
		if err != nil {
			return err
		}
		err = errors.Join(
			node.assign(b.NodeIP, 24),
			outside.assign(gatewayIP(), 24),
			lo.assign(b.OutsideIP, 32),
			lo.assign(b.MetadataIP, 32),
			node.route(everywhere(false), gatewayIP()),
			outside.route(podRange(), b.NodeIP),
		)
		if err != nil || !b.HasIPv6() {
			return err
		}
		return errors.Join(
			node.assign(b.NodeIPv6, 64),
			outside.assign(gatewayIPv6(), 64),
			lo.assign(b.OutsideIPv6, 128),
			lo.assign(b.MetadataIPv6, 128),
			node.route(everywhere(true), gatewayIPv6()),
			outside.route(podRangeIPv6(), b.NodeIPv6),
		)
	})
}

func everywhere(ipv6 bool) netip.Prefix {
	if ipv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// createBridge creates cni0 in the node.
func (b *Box) createBridge() error {
	node, err := b.Node.netlink()
	if err != nil {
		return err
	}
	defer node.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = bridgeName
	// Without an address of its own, a bridge changes it with its ports, and pods lose their gateway for a moment.
	b.bridgeMAC = randomMAC()
	attributes.HardwareAddr = b.bridgeMAC
	if err := node.LinkAdd(&netlink.Bridge{LinkAttrs: attributes}); err != nil {
		return fmt.Errorf("create bridge: %w", err)
	}
	bridge, err := findEnd(node, bridgeName)
	if err != nil {
		return err
	}
	if err := errors.Join(bridge.up(), bridge.assign(bridgeIP(), podRange().Bits())); err != nil || !b.HasIPv6() {
		return err
	}
	return bridge.assign(pairedIPv6(bridgeIP()), podRangeIPv6().Bits())
}

// attachToBridge connects a pod to cni0.
func (b *Box) attachToBridge(p *Pod) error {
	return b.attach(p, func(host, pod end) error {
		bridge, err := findEnd(host.handle, bridgeName)
		if err != nil {
			return err
		}
		if err := host.handle.LinkSetMaster(host.link, bridge.link); err != nil {
			return fmt.Errorf("add %s to bridge: %w", p.HostInterface, err)
		}
		err = errors.Join(
			pod.assign(p.IP, podRange().Bits()),
			pod.route(everywhere(false), bridgeIP()),
		)
		if err != nil || !b.HasIPv6() {
			return err
		}
		return errors.Join(
			pod.assign(p.IPv6, podRangeIPv6().Bits()),
			pod.route(everywhere(true), pairedIPv6(bridgeIP())),
		)
	})
}

// attachRouted gives a pod a link of its own and the node a route to it.
func (b *Box) attachRouted(p *Pod) error {
	return b.attach(p, func(host, pod end) error {
		err := errors.Join(
			pod.assign(p.IP, 32),
			pod.reach(netip.PrefixFrom(podGatewayIP(), 32)),
			pod.route(everywhere(false), podGatewayIP()),
			pod.know(podGatewayIP(), host.mac()),
			host.reach(netip.PrefixFrom(p.IP, 32)),
		)
		if err != nil || !b.HasIPv6() {
			return err
		}
		return errors.Join(
			pod.assign(p.IPv6, 128),
			pod.reach(netip.PrefixFrom(podGatewayIPv6(), 128)),
			pod.route(everywhere(true), podGatewayIPv6()),
			pod.know(podGatewayIPv6(), host.mac()),
			host.reach(netip.PrefixFrom(p.IPv6, 128)),
		)
	})
}

// attach connects a pod's eth0 to its host interface and lets setup address the two.
func (b *Box) attach(p *Pod, setup func(host, pod end) error) error {
	return b.connect(b.Node, p.HostInterface, p.Namespace, podName, func(host, pod end) error {
		p.HostMAC, p.MAC = host.mac(), pod.mac()
		return setup(host, pod)
	})
}

// removeLinks deletes the veth pairs and bridges that have an end in the namespace.
func (n *Namespace) removeLinks() error {
	h, err := n.netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // something changed while the kernel was listing
		links, err = h.LinkList()
	}
	if err != nil {
		return fmt.Errorf("list links of %s: %w", n.name, err)
	}
	var errs []error
	for _, link := range links {
		if link.Type() != "veth" && link.Type() != "bridge" {
			continue
		}
		// Gone already: the other end was deleted.
		if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// randomMAC returns a locally administered unicast address.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}
