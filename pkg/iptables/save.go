package iptables

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ruleset is what iptables-save printed for one family: tables by name.
type ruleset map[string]*savedTable

// savedTable is a table as it stands in the kernel.
type savedTable struct {
	chains map[string]*savedChain
	// foreign is set where the table holds nft expressions that iptables cannot show: its text is then unknown.
	foreign bool
	// partial is set where chains that the table may have were not read.
	partial bool
}

// savedChain is a chain with its rules, each as printed after "-A NAME". Rules are split into words only when
// something asks for them: a node with thousands of Services has tens of thousands.
type savedChain struct {
	name    string
	builtin bool
	rules   []string
}

// table returns the named table, empty if the kernel has none: a table comes into being with its first rule.
func (s ruleset) table(name string) *savedTable {
	if t := s[name]; t != nil {
		return t
	}
	return &savedTable{}
}

// chain returns the named chain, empty if the table has none.
func (t *savedTable) chain(name string) *savedChain {
	if c := t.chains[name]; c != nil {
		return c
	}
	return &savedChain{name: name}
}

// all returns the chains by name: backends print them in different orders, transactions are to be the same.
func (t *savedTable) all() []*savedChain {
	return slices.SortedFunc(maps.Values(t.chains), func(a, b *savedChain) int { return cmp.Compare(a.name, b.name) })
}

// parseSave reads the output of iptables-save or ip6tables-save (see iptables-save(8); counters off). Output that
// was cut short, and lines of no known form, are errors: acting on half a table would break the other half.
func parseSave(out []byte) (ruleset, error) {
	set := ruleset{}
	var current *savedTable
	n := 0
	for line := range bytes.Lines(out) {
		n++
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" {
			continue
		}
		switch text[0] {
		case '#':
			if name, ok := foreignTable(text); ok {
				set.open(name).foreign = true
			}
		case '*':
			if current != nil {
				return nil, fmt.Errorf("read saved rules: line %d opens %q inside another table", n, text)
			}
			current = set.open(text[1:])
		case ':':
			name, policy, ok := strings.Cut(text[1:], " ")
			if current == nil || !ok || name == "" {
				return nil, fmt.Errorf("read saved rules: line %d is no chain of a table: %q", n, text)
			}
			if current.chains[name] != nil {
				return nil, fmt.Errorf("read saved rules: line %d declares chain %s twice", n, name)
			}
			current.chains[name] = &savedChain{name: name, builtin: !strings.HasPrefix(policy, "-")}
		case '-':
			spec, isAppend := strings.CutPrefix(text, "-A ")
			name, rule, _ := strings.Cut(spec, " ")
			if current == nil || !isAppend || current.chains[name] == nil {
				return nil, fmt.Errorf("read saved rules: line %d is no rule of a declared chain: %q", n, text)
			}
			c := current.chains[name]
			c.rules = append(c.rules, rule)
		default:
			if text != "COMMIT" || current == nil {
				return nil, fmt.Errorf("read saved rules: line %d is not understood: %q", n, text)
			}
			current = nil
		}
	}
	if current != nil {
		return nil, fmt.Errorf("read saved rules: output ends inside a table after line %d", n)
	}
	return set, nil
}

func (s ruleset) open(name string) *savedTable {
	if s[name] == nil {
		s[name] = &savedTable{chains: map[string]*savedChain{}}
	}
	return s[name]
}

// foreignTable recognises what iptables-nft-save prints in place of a table it cannot translate:
//
//	# Table `nat' is incompatible, use 'nft' tool.
func foreignTable(line string) (string, bool) {
	rest, ok := strings.CutPrefix(line, "# Table `")
	if !ok {
		return "", false
	}
	name, rest, ok := strings.Cut(rest, "'")
	return name, ok && strings.Contains(rest, "incompatible")
}

// words splits a rule as iptables-save quotes it: double quotes around what holds spaces, a backslash before quotes
// and backslashes. It takes any text; a quote that is never closed ends with the text.
func words(rule string) []string {
	var out []string
	var word strings.Builder
	inWord, inQuotes := false, false
	for i := 0; i < len(rule); i++ {
		switch c := rule[i]; {
		case c == '\\' && inQuotes && i+1 < len(rule):
			i++
			word.WriteByte(rule[i])
		case c == '"':
			inWord, inQuotes = true, !inQuotes
		case c == ' ' && !inQuotes:
			if inWord {
				out = append(out, word.String())
				word.Reset()
			}
			inWord = false
		default:
			inWord = true
			word.WriteByte(c)
		}
	}
	if inWord {
		out = append(out, word.String())
	}
	return out
}

// option is one option of a rule with its values: "! -d 10.0.0.0/8", "--dports 80,443", "-j ACCEPT".
type option struct {
	name   string
	not    bool
	values []string
}

// options groups the words of a rule. The value of --comment is whatever follows it, also if it looks like an option.
func options(rule string) []option {
	var out []option
	not := false
	ws := words(rule)
	for i := 0; i < len(ws); i++ {
		w := ws[i]
		switch {
		case w == "!":
			not = true
		case len(w) > 1 && w[0] == '-':
			out = append(out, option{name: w, not: not})
			not = false
			if w == "--comment" && i+1 < len(ws) {
				i++
				out[len(out)-1].values = []string{ws[i]}
			}
		case len(out) > 0:
			last := &out[len(out)-1]
			last.values = append(last.values, w)
		}
	}
	return out
}

// value returns the option's first value, or "".
func (o option) value() string {
	if len(o.values) == 0 {
		return ""
	}
	return o.values[0]
}

// canonical returns a form in which two rules are equal exactly when they mean the same, however the version of
// iptables at hand orders and spells them: matches are all ANDed, so their order is free, and -m only loads code.
func canonical(rule string) string {
	var parts []string
	for _, o := range options(rule) {
		if o.name == "-m" {
			continue
		}
		values := slices.Clone(o.values)
		switch o.name {
		case "-s", "-d":
			for i, v := range values {
				values[i] = strings.TrimSuffix(strings.TrimSuffix(v, "/32"), "/128")
			}
		case "-p":
			for i, v := range values {
				values[i] = protocolName(v)
			}
		}
		// Quoted, so that no value can pass for an option.
		parts = append(parts, fmt.Sprintf("%s %t %q", o.name, o.not, values))
	}
	slices.Sort(parts)
	return strings.Join(parts, "\n")
}

func protocolName(p string) string {
	switch p {
	case "6":
		return "tcp"
	case "17":
		return "udp"
	default:
		return p
	}
}

// target returns the chain or extension a rule leads to and whether it is a goto; "" for a rule that only counts.
func target(rule string) (name string, isGoto bool) {
	for _, o := range options(rule) {
		if o.name == "-j" || o.name == "-g" {
			return o.value(), o.name == "-g"
		}
	}
	return "", false
}
