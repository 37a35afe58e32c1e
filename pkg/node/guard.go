package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Priorities of the guard. See the package comment for the whole list.
const (
	priorityAgentLocal    = 1
	priorityAgentProhibit = 2
	priorityMetadataDNS   = 4
	priorityMetadataNode  = 5
	priorityMetadataElse  = 6
	priorityPast          = 8
	priorityLast          = 9 // of those that are ours
)

const dnsPort = 53

// policyRule is a routing-policy rule of ours, comparable. The library's own type does not read back what a rule
// does, so that it cannot tell a prohibit from a nop.
type policyRule struct {
	family   int
	priority int
	action   uint8 // nl.FR_ACT_*
	table    int   // of FR_ACT_TO_TBL
	target   int   // of FR_ACT_GOTO
	to       netip.Prefix
	iif      string
	ipProto  int
	dport    uint16
	rest     string // what else the rule matches on, for those of ours that somebody changed
}

// String returns the rule in the words of ip-rule(8).
func (p policyRule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", p.priority)
	if p.to.IsValid() {
		fmt.Fprintf(&b, " to %v", p.to)
	}
	if p.iif != "" {
		fmt.Fprintf(&b, " iif %s", p.iif)
	}
	if p.ipProto != 0 {
		fmt.Fprintf(&b, " ipproto %d", p.ipProto)
	}
	if p.dport != 0 {
		fmt.Fprintf(&b, " dport %d", p.dport)
	}
	if p.rest != "" {
		fmt.Fprintf(&b, " %s", p.rest)
	}
	switch p.action {
	case nl.FR_ACT_TO_TBL:
		fmt.Fprintf(&b, " lookup %d", p.table)
	case nl.FR_ACT_GOTO:
		fmt.Fprintf(&b, " goto %d", p.target)
	case nl.FR_ACT_NOP:
		b.WriteString(" nop")
	case nl.FR_ACT_PROHIBIT:
		b.WriteString(" prohibit")
	default:
		fmt.Fprintf(&b, " action %d", p.action)
	}
	return b.String()
}

// guardRules returns the guard of a target, in the order in which it goes in: first what lets the node's own packets
// pass, then what prohibits, so that the node never loses its metadata.
func guardRules(t Target, exceptDNS bool) []policyRule {
	family := familyOf(t.Metadata)
	metadata := netip.PrefixFrom(t.Metadata, t.Metadata.BitLen())
	agent := netip.PrefixFrom(t.Agent, t.Agent.BitLen())
	past := policyRule{family: family, action: nl.FR_ACT_GOTO, target: priorityPast, to: metadata}

	rules := []policyRule{
		{family: family, priority: priorityPast, action: nl.FR_ACT_NOP},
		{family: family, priority: priorityAgentLocal, action: nl.FR_ACT_TO_TBL, table: unix.RT_TABLE_LOCAL, to: agent},
		{family: family, priority: priorityAgentProhibit, action: nl.FR_ACT_PROHIBIT, to: agent},
	}
	if exceptDNS {
		for _, proto := range []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			dns := past
			dns.priority, dns.ipProto, dns.dport = priorityMetadataDNS, proto, dnsPort
			rules = append(rules, dns)
		}
	}
	node := past
	node.priority, node.iif = priorityMetadataNode, "lo"
	return append(rules, node,
		policyRule{family: family, priority: priorityMetadataElse, action: nl.FR_ACT_PROHIBIT, to: metadata})
}

// listedRule is a rule of ours as the kernel has it.
type listedRule struct {
	policyRule
	msg []byte // the whole of it, by which alone the kernel deletes exactly this one
}

// settleAttempts bounds how often the guard of a target is changed and read back in one call.
const settleAttempts = 3

// ensureGuard adds the rules that are missing, of every target, and then deletes those of ours that it does not want.
func (r *Redirect) ensureGuard() (changed bool, err error) {
	var errs []error
	for _, t := range r.cfg.Targets {
		targetChanged, err := r.settleGuard(t)
		changed = changed || targetChanged
		if err != nil {
			errs = append(errs, fmt.Errorf("ensure guard of %v: %w", t.Metadata, ipv6Remedy(t.Metadata, err)))
		}
	}
	return changed, errors.Join(errs...)
}

// settleGuard changes the guard of t until what it reads needs no change.
func (r *Redirect) settleGuard(t Target) (changed bool, err error) {
	for attempt := 0; ; attempt++ {
		missing, stale, err := r.guardDiff(t)
		switch {
		case err != nil:
			return changed, err
		case len(missing)+len(stale) == 0:
			return changed, nil
		case attempt == settleAttempts:
			return changed, fmt.Errorf("policy rules do not stay as written (%v missing, %v too many): "+
				"find what else writes them with \"ip monitor rule\"", missing, stale)
		}
		for _, rule := range missing {
			if err := r.handle.RuleAdd(rule.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
				return changed, fmt.Errorf("add policy rule %q: %w", rule, err)
			}
			changed = true
		}
		for _, rule := range stale {
			if err := r.deleteRule(rule); err != nil {
				return changed, err
			}
			changed = true
		}
		r.cfg.Logger.Info("guard changed", "address", t.Metadata,
			"added", fmt.Sprint(missing), "deleted", fmt.Sprint(stale))
	}
}

// guardDiff compares the guard of t with what the kernel has: missing in the order in which it is to go in, stale in
// the order in which it is to leave.
func (r *Redirect) guardDiff(t Target) (missing []policyRule, stale []listedRule, err error) {
	have, err := r.ourRules(familyOf(t.Metadata))
	if err != nil {
		return nil, nil, fmt.Errorf("list policy rules: %w", err)
	}
	want := guardRules(t, r.cfg.GuardExceptDNS)
	seen := map[policyRule]bool{}
	for _, rule := range have {
		if !slices.Contains(want, rule.policyRule) || seen[rule.policyRule] {
			stale = append(stale, rule)
		}
		seen[rule.policyRule] = true
	}
	for _, rule := range want {
		if !seen[rule] {
			missing = append(missing, rule)
		}
	}
	slices.SortStableFunc(stale, byRemoval)
	return missing, stale, nil
}

// removeGuard deletes all our rules of t's family.
func (r *Redirect) removeGuard(t Target) (changed bool, err error) {
	have, err := r.ourRules(familyOf(t.Metadata))
	if err != nil {
		return false, fmt.Errorf("list policy rules: %w", err)
	}
	slices.SortStableFunc(have, byRemoval)
	for _, rule := range have {
		if err := r.deleteRule(rule); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// byRemoval orders rules for their deletion: what prohibits first, so that the node's own packets pass to the end,
// and last the nop, to which the others lead.
func byRemoval(a, b listedRule) int {
	rank := func(p listedRule) int {
		switch p.action {
		case nl.FR_ACT_PROHIBIT:
			return 0
		case nl.FR_ACT_NOP:
			return 2
		default:
			return 1
		}
	}
	return rank(a) - rank(b)
}

// deleteRule deletes a rule by the message that described it. Given less than that, the kernel would delete
// the first rule that has what is given.
func (r *Redirect) deleteRule(rule listedRule) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELRULE, unix.NLM_F_ACK)
	req.Sockets = r.sockets
	req.AddRawData(rule.msg)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete policy rule %q: %w", rule, err)
	}
	return nil
}

// netlink returns the rule as the library sends it. Its Type is sent as the action, which is what the kernel reads.
func (p policyRule) netlink() *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Protocol = p.family, p.priority, unix.RTPROT_KERNEL
	rule.Type, rule.Table = p.action, p.table
	if p.action == nl.FR_ACT_GOTO {
		rule.Goto = p.target
	}
	if p.to.IsValid() {
		rule.Dst = &net.IPNet{IP: p.to.Addr().AsSlice(), Mask: net.CIDRMask(p.to.Bits(), p.to.Addr().BitLen())}
	}
	rule.IifName, rule.IPProto = p.iif, p.ipProto
	if p.dport != 0 {
		rule.Dport = netlink.NewRulePortRange(p.dport, p.dport)
	}
	return rule
}

// dumpRetries is how often a listing that was interrupted by a change is begun anew.
const dumpRetries = 3

// ourRules lists the rules with protocol kernel and priorities 1 to 9, in the kernel's order.
func (r *Redirect) ourRules(family int) ([]listedRule, error) {
	for attempt := 0; ; attempt++ {
		req := nl.NewNetlinkRequest(unix.RTM_GETRULE, unix.NLM_F_DUMP)
		req.Sockets = r.sockets
		header := nl.NewRtMsg()
		header.Family = uint8(family)
		req.AddData(header)
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWRULE)
		if err != nil && (attempt == dumpRetries || !errors.Is(err, netlink.ErrDumpInterrupted)) {
			return nil, err
		}
		if err != nil {
			continue
		}
		var ours []listedRule
		for _, msg := range msgs {
			rule, protocol, err := parseRule(msg)
			if err != nil {
				return nil, err
			}
			if rule.family == family && protocol == unix.RTPROT_KERNEL &&
				rule.priority >= 1 && rule.priority <= priorityLast {
				ours = append(ours, listedRule{policyRule: rule, msg: msg})
			}
		}
		return ours, nil
	}
}
