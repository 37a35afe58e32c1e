package cni

import (
	"net"
	"net/netip"
	"time"
)

// Sandbox is a pod sandbox's attachment to its default network, as its CNI result tells it. It must not be changed:
// snapshots share its slices.
type Sandbox struct {
	// ID is the runtime's identifier of the sandbox (containerID).
	ID string
	// PodUID, Namespace and Name are the pod's, as the runtime passed them to the plugin. Of a static pod the runtime
	// knows the hash of its manifest instead of the UID that the API has.
	PodUID, Namespace, Name string
	// NetNS is the path of the network namespace. The sandbox lives while it exists.
	NetNS string
	// Addresses are those of the container's interface, sorted and unmapped: global unicast ones only. There may be
	// more in the sandbox than the result tells, as the egress addresses of EKS.
	Addresses []netip.Addr
	// HostInterface is the interface on the node that is paired with the container's; empty where the pod has none of
	// its own. It is a name out of a file: whether there is such a link, and whether it is of a kind that leads into one
	// sandbox only (veth, netkit), is for the kernel to say.
	HostInterface string
	// OtherInterfaces are further interfaces on the node that lead into this sandbox and no other one, sorted: those of
	// EKS' egress plugin and of additional network cards.
	OtherInterfaces []string
	// MAC is the address of the container's interface; nil where the result has none.
	MAC net.HardwareAddr
	// Network is the name of the network configuration.
	Network string
	// Written is when the result was last written. Parse leaves it zero.
	Written time.Time
}
