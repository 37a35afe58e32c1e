package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// packet is what is known of a packet that must reach one of our jumps. Zero fields are unknown: any value may match.
type packet struct {
	dst   netip.Addr
	proto string
	dport uint16
}

// settledFirst are the tools that insist on the first position for their jumps and put it back whenever it is not
// theirs (Calico's Felix in its default insert mode, kube-router on every sync). Their jumps may precede ours: their
// nat chains translate only the addresses that they own, and what their filter chains accept of ours has passed the
// routing-policy guard, which no table can overrule.
var settledFirst = [...]string{"cali-", "KUBE-ROUTER-"}

// passes are the targets after which evaluation goes on with the next rule (iptables-extensions(8)).
var passes = [...]string{
	"", "AUDIT", "CHECKSUM", "CLASSIFY", "CONNMARK", "CONNSECMARK", "CT", "DSCP", "ECN", "LED", "LOG", "MARK", "NFLOG",
	"NOTRACK", "SECMARK", "SET", "TCPMSS", "TCPOPTSTRIP", "TOS", "TRACE", "TTL", "HL",
}

// taker returns the first of the chain's first n rules that could keep p from what follows, or "". A rule that cannot
// be judged counts as one that could. What a guard has to fear is acceptance; a drop by somebody else's policy is
// that policy's right.
func (t *savedTable) taker(tableName, chainName string, n int, p packet) string {
	refusals := tableName == "filter"
	return t.takerIn(t.chain(chainName), n, p, refusals, map[string]bool{})
}

func (t *savedTable) takerIn(c *savedChain, n int, p packet, refusals bool, visited map[string]bool) string {
	for _, rule := range c.rules[:n] {
		opts := options(rule)
		if !p.mayMatch(opts) {
			continue
		}
		name, isGoto := target(rule)
		next := t.chains[name]
		switch {
		case slices.Contains(passes[:], name):
		case name == "RETURN" && !c.builtin: // goes on behind the jump that led here
		case refusals && (name == "DROP" || name == "REJECT"):
		case strings.HasPrefix(name, ownPrefix):
		case isGoto && c.builtin:
			return rule
		case hasAnyPrefix(name, settledFirst[:]) && (next != nil || t.partial):
		case next == nil:
			return rule
		case visited[name]:
		default:
			visited[name] = true
			if t.takerIn(next, len(next.rules), p, refusals, visited) != "" {
				return rule
			}
		}
	}
	return ""
}

func hasAnyPrefix(s string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// mayMatch is false only where the rule certainly does not match p.
func (p packet) mayMatch(opts []option) bool {
	return !slices.ContainsFunc(opts, func(o option) bool {
		matches, known := p.matches(o)
		return known && matches == o.not
	})
}

func (p packet) matches(o option) (matches, known bool) {
	switch o.name {
	case "-d":
		prefix, err := netip.ParsePrefix(o.value())
		return err == nil && prefix.Contains(p.dst), err == nil
	case "-p":
		proto := protocolName(o.value())
		return proto == "all" || proto == p.proto, p.proto != ""
	case "--dport", "--dports":
		for ports := range strings.SplitSeq(o.value(), ",") {
			in, ok := inPorts(ports, p.dport)
			if !ok || in {
				return in, ok && p.dport != 0
			}
		}
		return false, p.dport != 0
	}
	return false, false
}

// inPorts reports whether port is within "80" or "8000:8080"; ok is false for anything else.
func inPorts(ports string, port uint16) (in, ok bool) {
	first, last, isRange := strings.Cut(ports, ":")
	if !isRange {
		last = first
	}
	lo, err1 := strconv.ParseUint(first, 10, 16)
	hi, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil {
		return false, false
	}
	return lo <= uint64(port) && uint64(port) <= hi, true
}
