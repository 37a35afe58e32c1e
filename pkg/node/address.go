package node

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// loIndex is the interface index of lo, the first of every network namespace.
const loIndex = 1

// AddressInUseError is returned where another interface already has the agent's address.
type AddressInUseError struct {
	Address   netip.Addr
	Interface string
}

// Error implements error.
func (e *AddressInUseError) Error() string {
	return fmt.Sprintf("agent address %v belongs to interface %s: choose an address that nothing on the node uses",
		e.Address, e.Interface)
}

// agentAddress is how the agent's address is to stand on lo: so that no packet of the node's own ever takes it as its
// source. For unnumbered links, as routed CNIs use them, the kernel prefers an address of lo with wider scope
// to the node's own (inet_select_addr); for IPv6 it prefers what shares the longest prefix, but not once an
// address is deprecated (RFC 6724 section 5, rules 3 and 8).
func agentAddress(addr netip.Addr) *netlink.Addr {
	a := &netlink.Addr{IPNet: hostNet(addr), LinkIndex: loIndex}
	if addr.Is4() {
		a.Scope = unix.RT_SCOPE_HOST
		return a
	}
	// Usable at once, without duplicate address detection; and without a route of its own in table main.
	a.Flags = unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE
	a.ValidLft, a.PreferedLft = math.MaxUint32, 0
	return a
}

// addressState is how the agent's address stands.
type addressState struct {
	right bool
	wrong []netlink.Addr // the same address on lo, with another prefix, scope or lifetime
}

func (r *Redirect) addressState(addr netip.Addr) (addressState, error) {
	all, err := r.handle.AddrList(nil, familyOf(addr))
	if err != nil {
		return addressState{}, err
	}
	var state addressState
	for _, have := range all {
		if !have.IP.Equal(net.IP(addr.AsSlice())) {
			continue
		}
		if have.LinkIndex != loIndex {
			return addressState{}, &AddressInUseError{Address: addr, Interface: r.linkName(have.LinkIndex)}
		}
		ones, bits := have.Mask.Size()
		right := ones == bits && have.Peer == nil
		if addr.Is4() {
			right = right && have.Scope == unix.RT_SCOPE_HOST
		} else {
			right = right && have.Flags&unix.IFA_F_DEPRECATED != 0 && have.Flags&unix.IFA_F_PERMANENT != 0
		}
		if right {
			state.right = true
		} else {
			state.wrong = append(state.wrong, have)
		}
	}
	return state, nil
}

// ensureAddress adds the address to lo. One that stands there with the wrong scope cannot be changed, only replaced;
// what is sent to it meanwhile is refused by the guard, not sent elsewhere.
func (r *Redirect) ensureAddress(addr netip.Addr) (changed bool, err error) {
	state, err := r.addressState(addr)
	if err != nil {
		return false, err
	}
	for _, wrong := range state.wrong {
		if err := r.handle.AddrDel(nil, &wrong); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return changed, fmt.Errorf("delete %v of the wrong kind: %w", wrong.IPNet, err)
		}
		changed = true
	}
	if state.right {
		routeChanged, err := r.ensureLocalRoute(addr)
		return changed || routeChanged, err
	}
	if err := r.handle.AddrAdd(nil, agentAddress(addr)); err != nil && !errors.Is(err, unix.EEXIST) {
		return changed, ipv6Remedy(addr, err)
	}
	r.cfg.Logger.Info("agent address added to lo", "address", addr)
	return true, nil
}

// localRoute is the route that the kernel adds with the address, by which it knows packets for it as its own.
func localRoute(addr netip.Addr) *netlink.Route {
	route := &netlink.Route{
		LinkIndex: loIndex,
		Dst:       hostNet(addr),
		Table:     unix.RT_TABLE_LOCAL,
		Type:      unix.RTN_LOCAL,
		Protocol:  unix.RTPROT_KERNEL,
	}
	if addr.Is4() {
		route.Scope, route.Src = unix.RT_SCOPE_HOST, addr.AsSlice()
	}
	return route
}

// ensureLocalRoute adds the route where somebody has deleted it and left the address.
func (r *Redirect) ensureLocalRoute(addr netip.Addr) (changed bool, err error) {
	routes, err := r.handle.RouteGet(addr.AsSlice())
	if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
		return false, nil
	}
	switch err := r.handle.RouteAdd(localRoute(addr)); {
	case errors.Is(err, unix.EEXIST): // it is there, and the node's policy leads elsewhere
		return false, nil
	case err != nil:
		return false, fmt.Errorf("add its local route: %w", err)
	}
	r.cfg.Logger.Info("local route of the agent address added", "address", addr)
	return true, nil
}

func (r *Redirect) removeAddress(addr netip.Addr) (changed bool, err error) {
	state, err := r.addressState(addr)
	if _, foreign := errors.AsType[*AddressInUseError](err); foreign {
		return false, nil // never ours, so not ours to remove
	}
	if err != nil {
		return false, err
	}
	wanted := state.wrong
	if state.right {
		wanted = append(wanted, *agentAddress(addr))
	}
	for _, a := range wanted {
		if err := r.handle.AddrDel(nil, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return changed, err
		}
		changed = true
	}
	// It goes with the address, but for one of IPv6 that was added by ensureLocalRoute.
	if err := r.handle.RouteDel(localRoute(addr)); err != nil && !errors.Is(err, unix.ESRCH) {
		return changed, fmt.Errorf("delete its local route: %w", err)
	}
	return changed, nil
}

func (r *Redirect) linkName(index int) string {
	link, err := r.handle.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("number %d", index)
	}
	return link.Attrs().Name
}
