package node

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Sandbox is what is known of how a pod is attached to its node.
type Sandbox struct {
	// HostInterface is the node's end of the pod's own link, empty if unknown.
	HostInterface string
	// MAC is the address of the pod's end, nil if unknown.
	MAC net.HardwareAddr
	// Addresses are those of the pod.
	Addresses []netip.Addr
}

// Mismatch is why a source cannot be the pod's that it seems to be. The values are fit for a metric's label.
type Mismatch string

// Where a Mismatch says that something is not known, it is a mismatch because we refuse when in doubt.
const (
	// MismatchNowhere: no route leads to the source.
	MismatchNowhere Mismatch = "no_route"
	// MismatchLocal: the source is the node's own.
	MismatchLocal Mismatch = "node_address"
	// MismatchGateway: the source is behind a router.
	MismatchGateway Mismatch = "behind_gateway"
	// MismatchUnattached: it is not known how the pod is attached.
	MismatchUnattached Mismatch = "host_interface_unknown"
	// MismatchInterface: the route leads to another interface than the pod's.
	MismatchInterface Mismatch = "other_interface"
	// MismatchAddress: the source is none of the pod's addresses.
	MismatchAddress Mismatch = "address_not_listed"
	// MismatchNoNeighbour: no neighbour entry says which MAC address has the source.
	MismatchNoNeighbour Mismatch = "no_neighbour_entry"
	// MismatchMAC: another MAC address than the pod's has the source.
	MismatchMAC Mismatch = "other_mac"
	// MismatchNoPort: the bridge does not know behind which port that MAC address is.
	MismatchNoPort Mismatch = "no_forwarding_entry"
	// MismatchPort: that MAC address is behind another port than the pod's.
	MismatchPort Mismatch = "other_port"
)

// MismatchError is a Mismatch with what was expected and found.
type MismatchError struct {
	Mismatch    Mismatch
	Source      netip.Addr
	Want, Found string // interfaces or MAC addresses; empty where there is nothing to compare
}

// Error implements error.
func (e *MismatchError) Error() string {
	what := map[Mismatch]string{
		MismatchNowhere:     "no route leads to it",
		MismatchLocal:       "it is an address of the node itself",
		MismatchGateway:     "it is behind a router, not attached to this node",
		MismatchUnattached:  "the host interface of the pod is not known",
		MismatchInterface:   "its route leads to another interface than the pod's",
		MismatchAddress:     "it is not among the pod's addresses",
		MismatchNoNeighbour: "its neighbour entry is missing or not resolved",
		MismatchMAC:         "its neighbour entry has another MAC address than the pod's",
		MismatchNoPort:      "the bridge does not know the port of its MAC address, or tells VLANs apart",
		MismatchPort:        "its MAC address is behind another port of the bridge than the pod's",
	}[e.Mismatch]
	if e.Want == "" && e.Found == "" {
		return fmt.Sprintf("source %v: %s", e.Source, what)
	}
	return fmt.Sprintf("source %v: %s (want %q, found %q)", e.Source, what, e.Want, e.Found)
}

// Judge returns nil if a connection from source, which was located at p, can be the pod's with this sandbox, and a
// *[MismatchError] otherwise. Shared names the interfaces that the CNI puts all pods of a node behind.
//
// Which of three rules applies, the Place says. On a bridge: source is one of the pod's addresses, its neighbour
// entry has the pod's MAC address, if that is known, and the bridge has this MAC address behind the pod's host
// interface. Behind a shared interface: source is one of the pod's addresses, and that is all there is to check.
// Else the pod's host interface is where the route leads to, whether or not the address is listed: Amazon VPC CNI
// gives pods of IPv6 clusters an IPv4 address for egress that it tells nobody.
func (p Place) Judge(source netip.Addr, sandbox Sandbox, shared []string) error {
	source = source.Unmap()
	mismatch := func(m Mismatch, want, found string) error {
		return &MismatchError{Mismatch: m, Source: source, Want: want, Found: found}
	}
	listed := slices.Contains(sandbox.Addresses, source)
	switch {
	case p.Interface == "":
		return mismatch(MismatchNowhere, "", "")
	case p.Local:
		return mismatch(MismatchLocal, "", "")
	case !p.Bridge && slices.Contains(shared, p.Interface): // and maybe Gateway: Cilium's routes name the node itself
		if !listed {
			return mismatch(MismatchAddress, "", "")
		}
		return nil
	case p.Gateway:
		return mismatch(MismatchGateway, "", "")
	case sandbox.HostInterface == "":
		return mismatch(MismatchUnattached, "", p.Interface)
	case p.Bridge:
		return p.judgeBridge(listed, sandbox, mismatch)
	case p.Interface != sandbox.HostInterface:
		return mismatch(MismatchInterface, sandbox.HostInterface, p.Interface)
	}
	return nil
}

func (p Place) judgeBridge(listed bool, sandbox Sandbox, mismatch func(m Mismatch, want, found string) error) error {
	switch {
	case !listed:
		return mismatch(MismatchAddress, "", "")
	case len(p.MAC) == 0:
		return mismatch(MismatchNoNeighbour, "", "")
	case len(sandbox.MAC) > 0 && !bytes.Equal(p.MAC, sandbox.MAC):
		return mismatch(MismatchMAC, sandbox.MAC.String(), p.MAC.String())
	case p.Port == "":
		return mismatch(MismatchNoPort, "", "")
	case p.Port != sandbox.HostInterface:
		return mismatch(MismatchPort, sandbox.HostInterface, p.Port)
	}
	return nil
}
