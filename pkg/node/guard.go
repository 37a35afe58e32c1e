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
	priorityReply         = 3
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
	from     netip.Prefix
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
	if p.from.IsValid() {
		fmt.Fprintf(&b, " from %v", p.from)
	}
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

// guardRules returns the guard of a family, in the order in which it goes in: first what lets the node's own packets
// pass, then what prohibits, so that the node never loses its metadata.
func guardRules(f family, exceptDNS bool) []policyRule {
	agent := hostPrefix(f.agent)
	rules := []policyRule{
		{family: f.number, priority: priorityPast, action: nl.FR_ACT_NOP},
		{family: f.number, priority: priorityAgentLocal, action: nl.FR_ACT_TO_TBL, table: unix.RT_TABLE_LOCAL, to: agent},
		{family: f.number, priority: priorityAgentProhibit, action: nl.FR_ACT_PROHIBIT, to: agent},
	}
	for _, metadata := range f.metadata {
		to := hostPrefix(metadata)
		past := policyRule{family: f.number, action: nl.FR_ACT_GOTO, target: priorityPast, to: to}
		if exceptDNS {
			for _, proto := range []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
				dns := past
				dns.priority, dns.ipProto, dns.dport = priorityMetadataDNS, proto, dnsPort
				rules = append(rules, dns)
			}
		}
		node := past
		node.priority, node.iif = priorityMetadataNode, "lo"
		rules = append(rules, node,
			policyRule{family: f.number, priority: priorityMetadataElse, action: nl.FR_ACT_PROHIBIT, to: to})
	}
	return rules
}

func hostPrefix(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// listedRule is a rule as the kernel has it.
type listedRule struct {
	policyRule
	protocol uint8
	msg      []byte // the whole of it, by which alone the kernel deletes exactly this one
}

// settleAttempts bounds how often the guard of a family is changed and read back in one call.
const settleAttempts = 3

// ensureGuard adds the rules that are missing, of every family, and then deletes those of ours that it does not want.
func (r *Redirect) ensureGuard() (changed bool, err error) {
	var errs []error
	for _, f := range r.families {
		familyChanged, err := r.settleGuard(f)
		changed = changed || familyChanged
		if err != nil {
			errs = append(errs, fmt.Errorf("ensure %s guard: %w", f, ipv6Remedy(f.agent, err)))
		}
	}
	return changed, errors.Join(errs...)
}

// settleGuard changes the guard of a family until what it reads needs no change.
func (r *Redirect) settleGuard(f family) (changed bool, err error) {
	for attempt := 0; ; attempt++ {
		diff, err := r.guardDiff(f)
		switch {
		case err != nil:
			return changed, err
		case len(diff.missing)+len(diff.stale) == 0:
			return changed, diff.blind
		case attempt == settleAttempts:
			return changed, fmt.Errorf("policy rules do not stay as written (%v missing, %v too many): "+
				"find what else writes them with \"ip monitor rule\"", diff.missing, diff.stale)
		}
		for _, rule := range diff.missing {
			if err := r.handle.RuleAdd(rule.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
				return changed, fmt.Errorf("add policy rule %q: %w", rule, err)
			}
			changed = true
		}
		for _, rule := range diff.stale {
			if err := r.deleteRule(rule); err != nil {
				return changed, err
			}
			changed = true
		}
		r.cfg.Logger.Info("guard changed", "family", f.String(),
			"added", fmt.Sprint(diff.missing), "deleted", fmt.Sprint(diff.stale))
	}
}

// guardDiff is in what the guard of a family differs from what it should be.
type guardDiff struct {
	missing []policyRule // in the order in which they are to go in
	stale   []listedRule // in the order in which they are to leave
	// blind is why it is not known which pods have tables of their own. The rules for answers to them then count as
	// right as they are.
	blind error
}

// guardDiff compares the guard of a family with what the kernel has.
func (r *Redirect) guardDiff(f family) (diff guardDiff, err error) {
	all, err := r.allRules(f.number)
	if err != nil {
		return guardDiff{}, fmt.Errorf("list policy rules: %w", err)
	}
	have := ours(all)
	want := guardRules(f, r.cfg.GuardExceptDNS)
	replies, err := r.replyRules(f, all)
	if err != nil {
		diff.blind = fmt.Errorf("find pods with routing tables of their own: %w", err)
		for _, rule := range have {
			if rule.priority == priorityReply {
				replies = append(replies, rule.policyRule)
			}
		}
	}
	want = append(want, replies...)
	seen := map[policyRule]bool{}
	for _, rule := range have {
		if !slices.Contains(want, rule.policyRule) || seen[rule.policyRule] {
			diff.stale = append(diff.stale, rule)
		}
		seen[rule.policyRule] = true
	}
	for _, rule := range want {
		if !seen[rule] {
			diff.missing = append(diff.missing, rule)
		}
	}
	slices.SortStableFunc(diff.stale, byRemoval)
	return diff, nil
}

// removeGuard deletes all our rules of a family.
func (r *Redirect) removeGuard(f family) (changed bool, err error) {
	all, err := r.allRules(f.number)
	if err != nil {
		return false, fmt.Errorf("list policy rules: %w", err)
	}
	have := ours(all)
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
	if p.from.IsValid() {
		rule.Src = ipNet(p.from)
	}
	if p.to.IsValid() {
		rule.Dst = ipNet(p.to)
	}
	rule.IifName, rule.IPProto = p.iif, p.ipProto
	if p.dport != 0 {
		rule.Dport = netlink.NewRulePortRange(p.dport, p.dport)
	}
	return rule
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// dumpRetries is how often a listing that was interrupted by a change is begun anew.
const dumpRetries = 3

// ours returns the rules that are ours.
func ours(all []listedRule) []listedRule {
	var have []listedRule
	for _, rule := range all {
		if isOurs(rule.policyRule, rule.protocol) {
			have = append(have, rule)
		}
	}
	return have
}

// allRules lists the rules of a family, in the kernel's order.
func (r *Redirect) allRules(family int) ([]listedRule, error) {
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
		var all []listedRule
		for _, msg := range msgs {
			rule, protocol, err := parseRule(msg)
			if err != nil {
				return nil, err
			}
			if rule.family == family {
				all = append(all, listedRule{policyRule: rule, protocol: protocol, msg: msg})
			}
		}
		return all, nil
	}
}
