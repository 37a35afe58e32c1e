package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
)

// Leftover is a rule of another tool that leads a metadata address somewhere else. While ours stands before it, it
// takes nothing; without ours, pods are led there.
type Leftover struct {
	// Tool is who writes such rules: "kube2iam or kiam", "kiam", "another tool".
	Tool string
	// Where is the program, table and chain that show the rule.
	Where string
	// Rule is the rule as far as it is known.
	Rule string
	// Remedy is the command that deletes the rule, or that shows it where it cannot be deleted by one.
	Remedy string
}

// String describes the rule and what to do about it, in one line.
func (l Leftover) String() string {
	return fmt.Sprintf("%s redirects the metadata address, too (%s: %s): remove that tool from this node, then run: %s",
		l.Tool, l.Where, l.Rule, l.Remedy)
}

// Leftovers returns the rules of other tools that translate one of the metadata addresses, such as those that
// kube2iam and kiam leave behind, of both backends, as the programs show them. It changes nothing. A backend whose
// programs are not installed has none; an error may come with what was found otherwise.
func Leftovers(ctx context.Context, r Runner, metadata []netip.Addr) ([]Leftover, error) {
	var found []Leftover
	var errs []error
	for _, b := range []Backend{NFT, Legacy} {
		for _, f := range []family{ipv4, ipv6} {
			if !slices.ContainsFunc(metadata, func(addr netip.Addr) bool { return familyOf(addr) == f }) {
				continue
			}
			saved, err := save(ctx, r, b, f)
			if errors.Is(err, exec.ErrNotFound) {
				continue
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("look for rules of other tools: %w", err))
				continue
			}
			found = append(found, leftoversIn(saved, b, f, metadata)...)
		}
	}
	return found, errors.Join(errs...)
}

func leftoversIn(saved ruleset, b Backend, f family, metadata []netip.Addr) []Leftover {
	var found []Leftover
	for _, c := range saved.table("nat").all() {
		if isOurs(c.name) {
			continue
		}
		for _, rule := range c.rules {
			tool := redirectingTool(options(rule), metadata)
			if tool == "" {
				continue
			}
			command := string(f) + "-" + string(b)
			found = append(found, Leftover{
				Tool:   tool,
				Where:  fmt.Sprintf("%s, table nat, chain %s", command, c.name),
				Rule:   rule,
				Remedy: fmt.Sprintf("%s -t nat -D %s %s", command, c.name, rule),
			})
		}
	}
	return found
}

// redirectingTool names the tool that writes rules like this one, or "" for a rule that leaves the metadata addresses
// alone. kube2iam (iptables.AddRule) and kiam (rules.ruleSpec in cmd/kiam) write the same one,
//
//	-p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination HOST:PORT [!] -i INTERFACE
//
// but only kiam negates the interface, and has 3100 as the preset of its port. 8181 is kube2iam's, and that of
// kiam's chart.
func redirectingTool(opts []option, metadata []netip.Addr) string {
	var destination netip.Prefix
	var target, to string
	var inInterface, notInterface bool
	for _, o := range opts {
		switch o.name {
		case "-d":
			if prefix, err := netip.ParsePrefix(o.value()); err == nil && !o.not {
				destination = prefix
			}
		case "-j", "-g":
			target = o.value()
		case "--to-destination":
			to = o.value()
		case "-i":
			inInterface, notInterface = true, o.not
		}
	}
	switch {
	case !destination.IsSingleIP() || !slices.Contains(metadata, destination.Addr()):
		return ""
	case target != "DNAT" && target != "REDIRECT":
		return ""
	case target == "DNAT" && inInterface && (notInterface || strings.HasSuffix(to, ":3100")):
		return "kiam"
	case target == "DNAT" && inInterface:
		return "kube2iam or kiam"
	default:
		return "another tool"
	}
}
