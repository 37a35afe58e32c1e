package iptables

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// ownPrefix marks the chains that belong to podrole, of this version or another.
const ownPrefix = "PODROLE-"

const (
	chainPrerouting = ownPrefix + "PREROUTING"
	chainInput      = ownPrefix + "INPUT"
	chainForward    = ownPrefix + "FORWARD"
)

// metadataPort is the only port of the metadata address that is served, by EC2 as by us.
const metadataPort = 80

// Rules is what the Redirect should be. The rules of an address family without a Target are left as they are.
type Rules struct {
	// Targets holds at least one entry. Those of one address family differ in their metadata address alone.
	Targets []Target
	// GuardExceptDNS lets port 53 of the metadata addresses through (udp and tcp): on Google Compute Engine the
	// metadata address is also the node's resolver.
	GuardExceptDNS bool
}

// Target is where a metadata address leads.
type Target struct {
	// Metadata is the address that pods ask: 169.254.169.254 or fd00:ec2::254, or one at which SDKs look for container
	// credentials (169.254.170.2, 169.254.170.23, fd00:ec2::23). Required.
	Metadata netip.Addr
	// Agent is where the agent listens: its address on lo, of the same family, and its port. Required.
	Agent netip.AddrPort
}

// Validate reports everything that is wrong with r.
func (r Rules) Validate() error {
	if len(r.Targets) == 0 {
		return errors.New("rules name no target: give at least one metadata and agent address")
	}
	var errs []error
	agents := map[family]netip.AddrPort{}
	seen := map[netip.Addr]bool{}
	for _, t := range r.Targets {
		metadata, agent := t.Metadata, t.Agent.Addr()
		switch {
		case !metadata.IsValid() || !agent.IsValid():
			errs = append(errs, fmt.Errorf("target %v to %v lacks an address", metadata, t.Agent))
			continue
		case metadata.Is4In6() || agent.Is4In6() || metadata.Zone() != "" || agent.Zone() != "":
			errs = append(errs, fmt.Errorf("target %v to %v must be plain addresses: no zone, not IPv4 in IPv6",
				metadata, t.Agent))
		case metadata.Is4() != agent.Is4():
			errs = append(errs, fmt.Errorf("target %v to %v mixes address families", metadata, t.Agent))
		case metadata == agent:
			errs = append(errs, fmt.Errorf("target %v leads to itself: give the agent an address of its own", metadata))
		case t.Agent.Port() == 0:
			errs = append(errs, fmt.Errorf("target %v to %v lacks a port", metadata, agent))
		}
		if seen[metadata] {
			errs = append(errs, fmt.Errorf("target %v is named twice", metadata))
		}
		seen[metadata] = true
		f := familyOf(metadata)
		if first, ok := agents[f]; ok && first != t.Agent {
			errs = append(errs, fmt.Errorf("targets of %s lead to %v and to %v: give them one agent", f, first, t.Agent))
		}
		agents[f] = t.Agent
	}
	return errors.Join(errs...)
}

// familyRules is what Rules wants of one family.
type familyRules struct {
	family    family
	metadata  []netip.Addr
	agent     netip.AddrPort
	exceptDNS bool
}

// byFamily returns the families in the order in which the targets name them. r must be valid.
func (r Rules) byFamily() []familyRules {
	var all []familyRules
	for _, t := range r.Targets {
		f := familyOf(t.Metadata)
		i := slices.IndexFunc(all, func(have familyRules) bool { return have.family == f })
		if i < 0 {
			i = len(all)
			all = append(all, familyRules{family: f, agent: t.Agent, exceptDNS: r.GuardExceptDNS})
		}
		all[i].metadata = append(all[i].metadata, t.Metadata)
	}
	return all
}

// family is an address family, by the name of its programs.
type family string

const (
	ipv4 family = "iptables"
	ipv6 family = "ip6tables"
)

func familyOf(addr netip.Addr) family {
	if addr.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string {
	if f == ipv4 {
		return "IPv4"
	}
	return "IPv6"
}

// table is the wanted state of one table of one family.
type table struct {
	name   string
	chains []chain
	jumps  []jump
}

// hooks returns the built-in chains that hold our jumps.
func (t table) hooks() []string {
	var names []string
	for _, j := range t.jumps {
		if !slices.Contains(names, j.from) {
			names = append(names, j.from)
		}
	}
	return names
}

// chain is a chain of ours with its rules, each as iptables-save prints it after "-A NAME".
type chain struct {
	name  string
	rules []string
}

// jump is a rule in a built-in chain that leads to one of ours.
type jump struct {
	from string
	rule string
	// sees is the packet that must reach this jump before any rule can take it elsewhere.
	sees packet
}

// tables returns the wanted tables, in the order in which they go in: the guard before the redirect.
func (r familyRules) tables() []table {
	agent := r.agent.Addr()
	toAgent := "-d " + hostPrefix(agent)
	unreachable := "icmp-port-unreachable"
	if agent.Is6() {
		unreachable = "icmp6-port-unreachable"
	}
	// A reset where there is something to reset: a client sees "connection refused" at once, not a time-out.
	reject := func(why string) []string {
		return []string{
			"-p tcp" + comment(why) + " -j REJECT --reject-with tcp-reset",
			comment(why)[1:] + " -j REJECT --reject-with " + unreachable,
		}
	}
	filter := table{name: "filter", jumps: []jump{
		{"INPUT", toAgent + comment("to the agent") + " -j " + chainInput, packet{dst: agent}},
	}}
	nat := table{name: "nat"}
	var redirected, dns []string
	for _, metadata := range r.metadata {
		toMetadata := "-d " + hostPrefix(metadata)
		// The original destination closes the way for other tools' DNAT, such as that of a Service.
		redirected = append(redirected,
			fmt.Sprintf("-m conntrack --ctstate DNAT --ctorigdst %s", metadata)+comment("redirected")+" -j RETURN")
		if r.exceptDNS {
			for _, proto := range []string{"udp", "tcp"} {
				dns = append(dns, fmt.Sprintf("%s -p %s -m %[2]s --dport 53%s -j RETURN",
					toMetadata, proto, comment("name resolution")))
			}
		}
		filter.jumps = append(filter.jumps,
			jump{"FORWARD", toMetadata + comment("metadata guard") + " -j " + chainForward, packet{dst: metadata}})
		nat.jumps = append(nat.jumps,
			jump{"PREROUTING", toMetadata + comment("metadata redirect") + " -j " + chainPrerouting,
				packet{dst: metadata, proto: "tcp", dport: metadataPort}})
	}
	filter.jumps = append(filter.jumps,
		jump{"FORWARD", toAgent + comment("agent guard") + " -j " + chainForward, packet{dst: agent}})
	filter.chains = []chain{
		{chainInput, slices.Concat(redirected, []string{
			// The node's own connections to the address come from it too, and so the refusals below go to it.
			"-m conntrack --ctstate RELATED" + comment("errors and refusals") + " -j RETURN",
		}, reject("not redirected"))},
		{chainForward, append(dns, reject("not for the network")...)},
	}
	nat.chains = []chain{{chainPrerouting, []string{
		fmt.Sprintf("-p tcp -m tcp --dport %d%s -j DNAT --to-destination %s",
			metadataPort, comment("to the agent"), r.agent),
	}}}
	return []table{filter, nat}
}

// comment names the owner in every rule, for whoever reads the table at night.
func comment(what string) string { return ` -m comment --comment "podrole: ` + what + `"` }

func hostPrefix(addr netip.Addr) string { return netip.PrefixFrom(addr, addr.BitLen()).String() }
