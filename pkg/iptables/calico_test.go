package iptables

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// felix does what Calico's agent does in its default insert mode: wherever its jump does not stand first, it puts it
// there (https://docs.tigera.io/calico/latest/reference/felix/configuration, ChainInsertMode).
func felix(ctx context.Context, t *testing.T, runner Runner, backend Backend) (wrote bool) {
	t.Helper()
	for _, at := range []struct{ table, chain, jump string }{
		{"nat", "PREROUTING", `-m comment --comment cali:6gwbT8clXdHdC1b1 -j cali-PREROUTING`},
		{"filter", "INPUT", `-m comment --comment cali:Cz_u1IQiXIMmKD4c -j cali-INPUT`},
		{"filter", "FORWARD", `-m comment --comment cali:wUHhoiAYhphO9Mso -j cali-FORWARD`},
	} {
		saved, err := save(ctx, runner, backend, ipv4)
		if err != nil {
			t.Fatal(err)
		}
		table := saved.table(at.table)
		rules := table.chain(at.chain).rules
		if len(rules) > 0 && strings.Contains(rules[0], "-j cali-") {
			continue
		}
		wrote = true
		var edits []string
		if table.chains["cali-"+at.chain] == nil {
			edits = append(edits, ":cali-"+at.chain+" - [0:0]",
				"-A cali-"+at.chain+" -m mark --mark 0x10000/0x10000 -j ACCEPT")
		}
		for _, rule := range rules {
			if strings.Contains(rule, "-j cali-") {
				edits = append(edits, "-D "+at.chain+" "+rule)
			}
		}
		text := transaction(at.table, append(edits, "-I "+at.chain+" 1 "+at.jump))
		if _, err := runner.Run(ctx, text, program(ipv4, backend, "restore"), "--noflush", "--wait=5"); err != nil {
			t.Fatal(err)
		}
	}
	return wrote
}

// Two tools that repair come to rest, whoever comes first and whatever is broken.
func TestComesToRestBesideCalico(t *testing.T) {
	for _, backend := range []Backend{NFT, Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			_, runner := newNode(t)
			redirect := newRedirect(t, runner, backend)
			for name, damage := range map[string]string{
				"start":        "",
				"ours-gone":    "*nat\n-F PREROUTING\n-F PODROLE-PREROUTING\n-X PODROLE-PREROUTING\nCOMMIT\n",
				"hooks-gone":   "*nat\n-F PREROUTING\nCOMMIT\n*filter\n-F INPUT\n-F FORWARD\nCOMMIT\n",
				"calico-gone":  "*nat\n-F PREROUTING\n-F cali-PREROUTING\n-X cali-PREROUTING\nCOMMIT\n",
				"others-first": "*nat\n-I PREROUTING 1 -p tcp -j ACCEPT\nCOMMIT\n",
			} {
				t.Run(name, func(t *testing.T) {
					for _, weAreFirst := range []bool{true, false} {
						rests(t, runner, backend, redirect, weAreFirst)
						_, err := runner.Run(t.Context(), damage, program(ipv4, backend, "restore"), "--noflush", "--wait=5")
						if err != nil {
							t.Fatal(err)
						}
						rests(t, runner, backend, redirect, weAreFirst)
					}
				})
			}
		})
	}
}

// rests lets both repair in turn until neither finds anything to do: that takes no tool more than two repairs.
func rests(t *testing.T, runner Runner, backend Backend, redirect *Redirect, weAreFirst bool) {
	t.Helper()
	turns := []func() bool{
		func() bool {
			changed, err := redirect.Heal(t.Context(), onlyIPv4)
			if err != nil {
				t.Fatal(err)
			}
			return changed
		},
		func() bool { return felix(t.Context(), t, runner, backend) },
	}
	if !weAreFirst {
		slices.Reverse(turns)
	}
	var repairs [2]int
	for idle := 0; idle < len(turns); {
		for i, repair := range turns {
			if idle++; repair() {
				idle = 0
				repairs[i]++
			}
		}
		if repairs[0] > 2 || repairs[1] > 2 {
			t.Fatalf("a fight: %v repairs", repairs)
		}
	}
	if differences, err := redirect.Check(t.Context(), onlyIPv4); len(differences) > 0 || err != nil {
		t.Errorf("at rest, but %q, %v", differences, err)
	}
}
