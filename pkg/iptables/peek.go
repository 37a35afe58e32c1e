package iptables

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
)

// peek reads the chains that the wanted tables are about, by their names, and no others. Where that does not tell
// whether packets reach our jumps, it reads all there is.
func (d *Redirect) peek(ctx context.Context, f familyRules) (ruleset, error) {
	wanted := f.tables()
	set, err := d.list(ctx, f.family, wanted, true)
	if err != nil && ctx.Err() == nil {
		// A chain of ours that is missing fails them all. Taken for missing, all are written anew.
		set, err = d.list(ctx, f.family, wanted, false)
	}
	if err != nil || unclear(set, wanted) {
		return save(ctx, d.cfg.Runner, d.cfg.Backend, f.family)
	}
	return set, nil
}

// takes are the targets that end a packet's way through a table (iptables(8), iptables-extensions(8)). What else a rule
// leads to may be a chain.
var takes = [...]string{
	"ACCEPT", "DNAT", "DROP", "NETMAP", "NFQUEUE", "QUEUE", "REDIRECT", "REJECT", "RETURN", "TPROXY",
}

// unclear reports whether a rule before one of our jumps leads to where its packets may be taken, in a chain which was
// not read.
func unclear(set ruleset, wanted []table) bool {
	for _, w := range wanted {
		have := set.table(w.name)
		for _, j := range w.jumps {
			for i, rule := range have.chain(j.from).rules {
				if sameRule(rule, j.rule) {
					taker := have.taker(w.name, j.from, i, j.sees)
					if to, _ := target(taker); taker != "" && !slices.Contains(takes[:], to) {
						return true
					}
					break
				}
			}
		}
	}
	return false
}

// list reads the chains that hold our jumps and, if asked to, our own. iptables-restore takes -S as it takes any other
// command, so that one process does for all of them; no table or chain is created by it. No two of the chains have the
// same name.
func (d *Redirect) list(ctx context.Context, f family, wanted []table, own bool) (ruleset, error) {
	query, chains := "", make([][]string, len(wanted))
	for i, w := range wanted {
		chains[i] = w.hooks()
		for _, c := range w.chains {
			if own {
				chains[i] = append(chains[i], c.name)
			}
		}
		query += transaction(w.name, prefixed("-S ", chains[i]))
	}
	program := program(f, d.cfg.Backend, "restore")
	out, err := d.cfg.Runner.Run(ctx, query, program, "--noflush", restoreWait())
	if err != nil {
		return nil, err
	}
	listed, err := parseList(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	set := ruleset{}
	for i, w := range wanted {
		t := set.open(w.name)
		t.partial = true
		for _, name := range chains[i] {
			if t.chains[name] = listed[name]; listed[name] == nil {
				return nil, fmt.Errorf("%s: chain %s was not listed", program, name)
			}
		}
	}
	return set, nil
}

func prefixed(prefix string, names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = prefix + name
	}
	return out
}

// parseList reads what "iptables -S CHAIN" prints, of one or more chains.
func parseList(out []byte) (map[string]*savedChain, error) {
	chains := map[string]*savedChain{}
	n := 0
	for line := range bytes.Lines(out) {
		n++
		text := strings.TrimRight(string(line), "\r\n")
		command, rest, _ := strings.Cut(text, " ")
		name, rule, _ := strings.Cut(rest, " ")
		c := chains[name]
		switch {
		case text == "":
		case name != "" && c == nil && (command == "-P" || command == "-N"):
			chains[name] = &savedChain{name: name, builtin: command == "-P"}
		case c != nil && command == "-A":
			c.rules = append(c.rules, rule)
		default:
			return nil, fmt.Errorf("read listed rules: line %d is not understood: %q", n, text)
		}
	}
	return chains, nil
}
