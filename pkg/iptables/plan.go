package iptables

import (
	"fmt"
	"slices"
	"strings"
)

// plan is what takes a family's tables from how they stand to how they should be.
type plan struct {
	// reasons says, one line each, what differs.
	reasons []string
	// restore is the input of iptables-restore --noflush: one transaction per table that differs, and nothing about
	// the others. Empty when nothing differs.
	restore string
}

// planEnsure compares the wanted tables with the saved ones.
func planEnsure(saved ruleset, wanted []table) (plan, error) {
	var p plan
	for _, w := range wanted {
		have := saved.table(w.name)
		if have.foreign {
			return plan{}, foreignError(w.name)
		}
		reasons, edits := compare(have, w)
		if len(reasons) == 0 {
			continue
		}
		p.reasons = append(p.reasons, reasons...)
		p.restore += transaction(w.name, edits)
	}
	return p, nil
}

// planRemove takes everything of ours out, the redirect before its guard.
func planRemove(saved ruleset) (plan, error) {
	var p plan
	for _, name := range []string{"nat", "filter"} {
		have := saved.table(name)
		if have.foreign {
			return plan{}, foreignError(name)
		}
		var unlink, empty, drop []string
		for _, c := range have.all() {
			if isOurs(c.name) {
				p.reasons = append(p.reasons, fmt.Sprintf("%s: chain %s stands", name, c.name))
				empty = append(empty, "-F "+c.name)
				drop = append(drop, "-X "+c.name)
				continue
			}
			for _, rule := range c.rules {
				if jumpsToUs(rule) {
					p.reasons = append(p.reasons, fmt.Sprintf("%s: %s jumps to our chains", name, c.name))
					unlink = append(unlink, "-D "+c.name+" "+rule)
				}
			}
		}
		if edits := slices.Concat(unlink, empty, drop); len(edits) > 0 {
			p.restore += transaction(name, edits)
		}
	}
	return p, nil
}

// compare returns what differs in one table, and the restore commands that settle it. Chains are written whole: a
// chain that is declared again is emptied first, within the same transaction.
func compare(have *savedTable, want table) (reasons, edits []string) {
	differ := func(format string, args ...any) {
		reasons = append(reasons, want.name+": "+fmt.Sprintf(format, args...))
	}
	var declare, remove, fill, insert, empty, drop []string

	for _, w := range want.chains {
		declare = append(declare, ":"+w.name+" - [0:0]")
		for _, rule := range w.rules {
			fill = append(fill, "-A "+w.name+" "+rule)
		}
		if h, ok := have.chains[w.name]; !ok && have.partial {
			differ("chain %s may be missing", w.name)
		} else if !ok {
			differ("chain %s is missing", w.name)
		} else if !slices.EqualFunc(h.rules, w.rules, sameRule) {
			differ("chain %s has other rules", w.name)
		}
	}
	for _, c := range have.all() {
		if isOurs(c.name) {
			if !slices.ContainsFunc(want.chains, func(w chain) bool { return w.name == c.name }) {
				differ("chain %s is of another version", c.name)
				empty = append(empty, "-F "+c.name)
				drop = append(drop, "-X "+c.name)
			}
			continue
		}
		for _, rule := range c.rules {
			if !jumpsToUs(rule) {
				continue
			}
			wanted := slices.ContainsFunc(want.jumps, func(j jump) bool {
				return j.from == c.name && sameRule(j.rule, rule)
			})
			if !wanted {
				differ("%s jumps to our chains by a rule that is not ours now", c.name)
				remove = append(remove, "-D "+c.name+" "+rule)
			}
		}
	}
	for _, j := range want.jumps {
		c := have.chain(j.from)
		var at []int
		for i, rule := range c.rules {
			if sameRule(rule, j.rule) {
				at = append(at, i)
			}
		}
		switch {
		case len(at) == 0:
			differ("the jump from %s to %s is missing", j.from, chainOf(j))
		case len(at) > 1:
			differ("the jump from %s to %s stands %d times", j.from, chainOf(j), len(at))
		default:
			taker := have.taker(want.name, j.from, at[0], j.sees)
			if taker == "" {
				continue
			}
			differ("in %s a rule before the jump to %s may take its packets: %s", j.from, chainOf(j), taker)
		}
		for _, i := range at {
			remove = append(remove, "-D "+c.name+" "+c.rules[i])
		}
		insert = append(insert, "-I "+j.from+" 1 "+j.rule)
	}
	if len(reasons) == 0 {
		return nil, nil
	}
	return reasons, slices.Concat(declare, remove, fill, insert, empty, drop)
}

func transaction(table string, edits []string) string {
	return "*" + table + "\n" + strings.Join(edits, "\n") + "\nCOMMIT\n"
}

func sameRule(a, b string) bool { return a == b || canonical(a) == canonical(b) }

func isOurs(chain string) bool { return strings.HasPrefix(chain, ownPrefix) }

func jumpsToUs(rule string) bool {
	if !strings.Contains(rule, ownPrefix) {
		return false // the cheap answer, for nearly every rule of a node
	}
	name, _ := target(rule)
	return isOurs(name)
}

func chainOf(j jump) string {
	name, _ := target(j.rule)
	return name
}

// foreignError is returned where iptables can neither show nor edit a table.
func foreignError(table string) error {
	return fmt.Errorf("table %s holds rules that only nft understands, so iptables cannot edit it: "+
		"find who wrote them with \"nft list table ip %[1]s\", or choose the other iptables backend", table)
}
