package node

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podIdentityLink is the interface on which the EKS Pod Identity Agent holds its addresses (AgentLinkName of
// aws/eks-pod-identity-agent).
const podIdentityLink = "pod-id-link0"

// PodIdentityAddresses returns where the EKS Pod Identity Agent serves:
// https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html
func PodIdentityAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("169.254.170.23"), netip.MustParseAddr("fd00:ec2::23")}
}

// PodIdentityAgentError is why the addresses of the EKS Pod Identity Agent must not be redirected: that agent is on the
// node, and the pods that are associated with a role there would lose it.
type PodIdentityAgentError struct {
	// Interface is the agent's, pod-id-link0, or the one that has Address.
	Interface string
	// Address is the agent's that is local to the node; the zero Addr if none is.
	Address netip.Addr
}

// Error implements error.
func (e *PodIdentityAgentError) Error() string {
	what := "interface " + e.Interface
	if e.Address.IsValid() {
		what += " with address " + e.Address.String()
	}
	return fmt.Sprintf("the EKS Pod Identity Agent is on this node (%s), and pods that it serves would lose their roles: "+
		"leave its addresses out, or remove the add-on eks-pod-identity-agent", what)
}

// CheckPodIdentityAgent reports the EKS Pod Identity Agent as *[PodIdentityAgentError], or nil where there is none:
// neither its interface nor one of its addresses. It looks in the network namespace of the calling thread. CheckNode
// asks the same where a target is one of these addresses.
func CheckPodIdentityAgent() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("look for the EKS Pod Identity Agent: open netlink socket: %w", err)
	}
	defer handle.Close()
	return checkPodIdentityAgent(handle)
}

func checkPodIdentityAgent(handle *netlink.Handle) error {
	links, err := handle.LinkList()
	if err != nil {
		return fmt.Errorf("look for the EKS Pod Identity Agent: list interfaces: %w", err)
	}
	addrs, err := handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("look for the EKS Pod Identity Agent: list addresses: %w", err)
	}
	names := map[int]string{}
	var found *PodIdentityAgentError
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
		if link.Attrs().Name == podIdentityLink {
			found = &PodIdentityAgentError{Interface: podIdentityLink}
		}
	}
	for _, have := range addrs {
		addr, _ := netip.AddrFromSlice(have.IP)
		if addr = addr.Unmap(); isPodIdentityAddress(addr) {
			found = &PodIdentityAgentError{Interface: names[have.LinkIndex], Address: addr}
			break
		}
	}
	if found == nil {
		return nil
	}
	return found
}

func isPodIdentityAddress(addr netip.Addr) bool { return slices.Contains(PodIdentityAddresses(), addr) }
