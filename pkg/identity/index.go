package identity

import (
	"net/netip"
	"slices"

	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/role"
)

// pod is what the Directory holds of one pod. It is immutable.
type pod struct {
	workload   role.Workload
	cniUID     string
	assumed    bool         // the API has not named it yet
	sandbox    *cni.Sandbox // its current one; nil if no CNI result tells
	hadSandbox bool         // it had one, now or before
	addresses  []netip.Addr // that it claims, sorted
}

// claims returns the addresses that p claims. A sandbox knows its own; what the API says then is older or the same. A
// pod whose sandbox is gone claims nothing, whatever the API still says: its addresses may be another's. Where no CNI
// results are to be had at all, the API is all there is.
func (p *pod) claims(status []netip.Addr, results bool) []netip.Addr {
	switch {
	case p.sandbox != nil && len(p.sandbox.Addresses) > 0:
		return p.sandbox.Addresses
	case p.sandbox == nil && p.hadSandbox && results:
		return nil
	}
	return status
}

// interfaces returns the node's interfaces that lead to p alone.
func (p *pod) interfaces() []string {
	if p.sandbox == nil {
		return nil
	}
	if p.sandbox.HostInterface == "" {
		return p.sandbox.OtherInterfaces
	}
	return append([]string{p.sandbox.HostInterface}, p.sandbox.OtherInterfaces...)
}

func (p *pod) same(other *pod) bool {
	if (p.sandbox == nil) != (other.sandbox == nil) || p.sandbox != nil && !sameSandbox(*p.sandbox, *other.sandbox) {
		return false
	}
	return p.workload == other.workload && p.cniUID == other.cniUID &&
		p.assumed == other.assumed && p.hadSandbox == other.hadSandbox &&
		slices.Equal(p.addresses, other.addresses)
}

func sameSandbox(a, b cni.Sandbox) bool {
	return a.ID == b.ID && a.HostInterface == b.HostInterface && string(a.MAC) == string(b.MAC) &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.OtherInterfaces, b.OtherInterfaces)
}

// spot is where a pod can be: an address, or an interface of the node. The other one is zero.
type spot struct {
	address netip.Addr
	device  string
}

// index is which pods are where.
type index map[spot][]*pod

func (p *pod) spots() []spot {
	spots := make([]spot, 0, len(p.addresses)+2)
	for _, a := range p.addresses {
		spots = append(spots, spot{address: a})
	}
	for _, name := range p.interfaces() {
		spots = append(spots, spot{device: name})
	}
	return spots
}

// occupied returns where sandboxes are, and the UIDs of their pods as the CNI knows them; nobody's where several are.
func occupied(sandboxes map[string]cni.Sandbox) map[spot]string {
	occupied := make(map[spot]string)
	for uid, s := range sandboxes {
		p := pod{sandbox: &s, addresses: s.Addresses}
		for _, at := range p.spots() {
			if _, several := occupied[at]; several {
				occupied[at] = ""
			} else {
				occupied[at] = uid
			}
		}
	}
	return occupied
}

// add returns the spots where something changed.
func (x index) add(p *pod) []spot {
	spots := p.spots()
	for _, s := range spots {
		x[s] = append(x[s], p)
	}
	return spots
}

// remove returns the spots where something changed.
func (x index) remove(p *pod) []spot {
	spots := p.spots()
	for _, s := range spots {
		left := slices.DeleteFunc(x[s], func(q *pod) bool { return q == p })
		if len(left) == 0 {
			delete(x, s)
		} else {
			x[s] = left
		}
	}
	return spots
}

// at returns the one pod that claims an address. Pods whose sandbox is known come before those of which only the API
// speaks: of a sandbox the kernel still has its namespace, while the API may be seconds behind. Of several, nobody is
// meant, and the number says so.
func (x index) at(source netip.Addr) (p *pod, claimants int) {
	sandboxed := false
	for _, q := range x[spot{address: source}] {
		switch {
		case q.sandbox != nil && !sandboxed:
			sandboxed, p, claimants = true, q, 1
		case (q.sandbox != nil) == sandboxed:
			p = q
			claimants++
		}
	}
	if claimants > 1 {
		return nil, claimants
	}
	return p, claimants
}

// behind returns the one pod that an interface leads to.
func (x index) behind(device string) (p *pod, claimants int) {
	owners := x[spot{device: device}]
	if len(owners) == 1 {
		return owners[0], 1
	}
	return nil, len(owners)
}
