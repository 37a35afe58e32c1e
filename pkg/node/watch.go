package node

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/node/netevents"
)

// Watch calls changed whenever something was done to what Ensure and CheckNode look at: our policy rules and those that
// lead from interfaces to tables of their own, the addresses and routes of targets, and lo. It does so until ctx ends,
// which is no error, in the network namespace of the calling thread, which should be that of r. changed is called by
// one goroutine, once at the start, and must not block. Our own changes are told of as well: an Ensure that finds
// nothing to do ends it.
func (r *Redirect) Watch(ctx context.Context, changed func()) error {
	groups := []int{unix.RTNLGRP_LINK}
	for _, f := range r.families {
		if f.number == unix.AF_INET {
			groups = append(groups, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE)
		} else {
			groups = append(groups, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE)
		}
	}
	err := netevents.Watch(ctx, netevents.Config{
		Protocol: unix.NETLINK_ROUTE,
		Groups:   groups,
		Matters:  interestOf(r.families).in,
		Changed:  changed,
	})
	if err != nil {
		return fmt.Errorf("watch the node's network: %w", err)
	}
	return nil
}

// interest is the addresses of the targets.
type interest []netip.Addr

func interestOf(families []family) interest {
	var all interest
	for _, f := range families {
		all = append(append(all, f.agent), f.metadata...)
	}
	return all
}

// in reports whether a notification matters. A node with many pods has a steady trickle of those that do not.
func (i interest) in(m netevents.Message) bool {
	switch m.Kind {
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		rule, protocol, err := parseRule(m.Payload)
		return err == nil && (isOurs(rule, protocol) || rule.ofInterface())
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return i.hasAttribute(m, unix.SizeofIfAddrmsg, unix.IFA_ADDRESS, unix.IFA_LOCAL)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return isPodRoute(m) || i.hasAttribute(m, unix.SizeofRtMsg, unix.RTA_DST)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return len(m.Payload) >= unix.SizeofIfInfomsg && binary.NativeEndian.Uint32(m.Payload[4:]) == loIndex
	}
	return false
}

// hasAttribute reports whether one of the attributes, behind a header of the given length, is an address of interest.
func (i interest) hasAttribute(m netevents.Message, header int, kinds ...uint16) bool {
	for kind, value := range m.Attributes(header) {
		if addr, ok := netip.AddrFromSlice(value); ok && slices.Contains(kinds, kind) && slices.Contains(i, addr) {
			return true
		}
	}
	return false
}

// isPodRoute reports whether a notification may be about the route to a pod in a table of its own.
func isPodRoute(m netevents.Message) bool {
	if len(m.Payload) < unix.SizeofRtMsg {
		return false
	}
	family, dstLen, table := m.Payload[0], m.Payload[1], uint32(m.Payload[4])
	for kind, value := range m.Attributes(unix.SizeofRtMsg) {
		if kind == unix.RTA_TABLE && len(value) >= 4 {
			table = binary.NativeEndian.Uint32(value)
		}
	}
	host := family == unix.AF_INET && dstLen == 32 || family == unix.AF_INET6 && dstLen == 128
	return host && !isCommonTable(int(table))
}

// isCommonTable reports whether a routing table is one of those that every node has.
func isCommonTable(table int) bool {
	return table == unix.RT_TABLE_UNSPEC || table >= unix.RT_TABLE_DEFAULT && table <= unix.RT_TABLE_LOCAL
}

// isOurs reports whether a policy rule is ours, of this version or another.
func isOurs(rule policyRule, protocol uint8) bool {
	return protocol == unix.RTPROT_KERNEL && rule.priority >= 1 && rule.priority <= priorityLast
}

// ofInterface reports whether a rule leads all that comes in by one interface to a table of its own, as Amazon VPC CNI
// does for pods with security groups of their own in strict mode.
func (p policyRule) ofInterface() bool {
	plain := !p.from.IsValid() && !p.to.IsValid() && p.ipProto == 0 && p.dport == 0 && p.rest == ""
	return plain && p.action == nl.FR_ACT_TO_TBL && p.iif != "" && p.iif != "lo" && !isCommonTable(p.table)
}
