package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Amazon VPC CNI keeps all traffic of a pod with security groups of its own, in strict mode, in a routing table of the
// pod's (POD_SECURITY_GROUP_ENFORCING_MODE, cmd/routed-eni-cni-plugin/driver of aws/amazon-vpc-cni-k8s):
//
//	10  iif vlan.eth.1 lookup 101      what comes from the network
//	10  iif vlanb6c4d31f2ae lookup 101 what comes from the pod
//	20  lookup local                   moved there from 0
//
//	table 101:  POD dev vlanb6c4d31f2ae scope link
//	            GATEWAY dev vlan.eth.1 scope link
//	            default via GATEWAY dev vlan.eth.1
//
// The way to such a pod is in no other table, so that an answer of the agent's would leave by the node's own interface.
// What follows finds these pods by that shape, and leads answers to them through the table by which their requests
// came.

// replyRules returns the rules by which the agent's answers reach pods that have tables of their own; all are the
// rules of the family as they stand.
func (r *Redirect) replyRules(f family, all []listedRule) ([]policyRule, error) {
	var rules []policyRule
	var routes []netlink.Route
	for _, from := range all {
		if !from.ofInterface() {
			continue
		}
		if routes == nil {
			var err error
			if routes, err = r.allRoutes(f.number); err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
		}
		link, err := r.handle.LinkByName(from.iif)
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look up interface %s: %w", from.iif, err)
		}
		for _, pod := range podsBehind(routes, from.table, link.Attrs().Index) {
			rule := policyRule{
				family: f.number, priority: priorityReply, action: nl.FR_ACT_TO_TBL, table: from.table,
				from: hostPrefix(f.agent), to: hostPrefix(pod), iif: "lo",
			}
			if !slices.Contains(rules, rule) {
				rules = append(rules, rule)
			}
		}
	}
	return rules, nil
}

// podsBehind returns the addresses that a table has directly behind an interface, the gateways of its routes excepted.
func podsBehind(routes []netlink.Route, table, link int) []netip.Addr {
	var pods []netip.Addr
	gateways := map[netip.Addr]bool{}
	for _, route := range routes {
		if route.Table != table || route.LinkIndex != link {
			continue
		}
		if gateway, ok := netip.AddrFromSlice(route.Gw); ok {
			gateways[gateway.Unmap()] = true
			continue
		}
		if route.Dst == nil || route.Type != unix.RTN_UNICAST || route.Via != nil {
			continue
		}
		if ones, bits := route.Dst.Mask.Size(); ones != bits || bits == 0 {
			continue
		}
		if pod, ok := netip.AddrFromSlice(route.Dst.IP); ok {
			pods = append(pods, pod.Unmap())
		}
	}
	return slices.DeleteFunc(pods, func(pod netip.Addr) bool { return gateways[pod] })
}

// allRoutes lists the routes of all tables.
func (r *Redirect) allRoutes(family int) (routes []netlink.Route, err error) {
	for range dumpRetries {
		all := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
		routes, err = r.handle.RouteListFiltered(family, all, netlink.RT_FILTER_TABLE)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return routes, err
}
