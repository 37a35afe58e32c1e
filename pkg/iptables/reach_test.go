package iptables

import (
	"net/netip"
	"testing"
)

func TestTaker(t *testing.T) {
	t.Parallel()
	metadata := netip.MustParseAddr("169.254.169.254")
	redirected := packet{dst: metadata, proto: "tcp", dport: 80}
	anything := packet{dst: metadata}

	// Each case is what stands before our jump in a built-in chain, and in other chains.
	for name, c := range map[string]struct {
		table  string
		packet packet
		before []string
		chains map[string][]string
		takes  bool
	}{
		"nothing":    {table: "nat", packet: redirected},
		"accept-all": {table: "nat", packet: redirected, before: []string{"-j ACCEPT"}, takes: true},
		"other-destination": {
			table: "nat", packet: redirected,
			before: []string{"-d 10.0.0.1/32 -j DNAT --to-destination 1.1.1.1"},
		},
		"same-network": {
			table: "nat", packet: redirected,
			before: []string{"-d 169.254.0.0/16 -j ACCEPT"},
			takes:  true,
		},
		"not-same-network": {table: "nat", packet: redirected, before: []string{"! -d 169.254.0.0/16 -j ACCEPT"}},
		"not-other-network": {
			table: "nat", packet: redirected,
			before: []string{"! -d 10.0.0.0/8 -j ACCEPT"},
			takes:  true,
		},
		"odd-destination": {
			table: "nat", packet: redirected,
			before: []string{"-d 10.0.0.0/255.0.255.0 -j ACCEPT"},
			takes:  true,
		},
		"udp":             {table: "nat", packet: redirected, before: []string{"-p udp -j ACCEPT"}},
		"not-udp":         {table: "nat", packet: redirected, before: []string{"! -p udp -j ACCEPT"}, takes: true},
		"protocol-number": {table: "nat", packet: redirected, before: []string{"-p 6 -j ACCEPT"}, takes: true},
		"other-port": {
			table: "nat", packet: redirected,
			before: []string{"-p tcp -m tcp --dport 443 -j ACCEPT"},
		},
		"port-range": {
			table: "nat", packet: redirected,
			before: []string{"-p tcp -m tcp --dport 1:1024 -j ACCEPT"},
			takes:  true,
		},
		"port-list": {
			table: "nat", packet: redirected,
			before: []string{"-p tcp -m multiport --dports 443,80 -j ACCEPT"},
			takes:  true,
		},
		"port-list-without": {
			table: "nat", packet: redirected,
			before: []string{"-p tcp -m multiport --dports 443,8000:8100 -j ACCEPT"},
		},
		"port-name": {
			table: "nat", packet: redirected,
			before: []string{"-p tcp -m tcp --dport http -j ACCEPT"},
			takes:  true,
		},
		"other-source": {
			table: "nat", packet: redirected,
			before: []string{"-s 10.9.9.9/32 -j ACCEPT"},
			takes:  true,
		},
		"goes-on": {
			table: "nat", packet: redirected,
			before: []string{"-j MARK --set-xmark 0x1/0x1", "-j LOG", "-m comment --comment x"},
		},
		"unknown-extension": {table: "nat", packet: redirected, before: []string{"-j SOMETHING"}, takes: true},
		"return":            {table: "nat", packet: redirected, before: []string{"-j RETURN"}, takes: true},
		"drop":              {table: "nat", packet: redirected, before: []string{"-j DROP"}, takes: true},
		"filter-accept": {
			table: "filter", packet: anything,
			before: []string{"-m conntrack --ctstate ESTABLISHED -j ACCEPT"},
			takes:  true,
		},
		"filter-drop": {
			table: "filter", packet: anything,
			before: []string{"-j DROP", "-j REJECT --reject-with tcp-reset"},
		},
		"filter-any-port": {
			table: "filter", packet: anything,
			before: []string{"-p tcp -m tcp --dport 443 -j ACCEPT"},
			takes:  true,
		},
		"filter-not-a-port": {
			table: "filter", packet: anything,
			before: []string{"-p tcp -m tcp ! --dport 443 -j ACCEPT"},
			takes:  true,
		},
		"jump-that-returns": {
			table: "nat", packet: redirected,
			before: []string{"-j X"},
			chains: map[string][]string{"X": {"-j RETURN"}},
		},
		"jump-that-takes": {
			table: "nat", packet: redirected,
			before: []string{"-j X"},
			chains: map[string][]string{"X": {"-j Y"}, "Y": {"-p udp -j ACCEPT", "-j DNAT"}},
			takes:  true,
		},
		"jump-not-ours": {
			table: "nat", packet: redirected,
			before: []string{"-d 10.0.0.1/32 -j X"},
			chains: map[string][]string{"X": {"-j ACCEPT"}},
		},
		"jump-in-circles": {
			table: "nat", packet: redirected,
			before: []string{"-j X"},
			chains: map[string][]string{"X": {"-j Y"}, "Y": {"-j X"}},
		},
		"goto": {
			table: "nat", packet: redirected,
			before: []string{"-g X"},
			chains: map[string][]string{"X": {"-p udp -j ACCEPT"}},
			takes:  true,
		},
		"goto-deeper": {
			table: "nat", packet: redirected,
			before: []string{"-j X"},
			chains: map[string][]string{"X": {"-g Y"}, "Y": {"-p udp -j ACCEPT"}},
		},
		"calico": {
			table: "filter", packet: anything,
			before: []string{"-j cali-FORWARD"},
			chains: map[string][]string{"cali-FORWARD": {"-j ACCEPT"}},
		},
		"kube-router": {
			table: "filter", packet: anything,
			before: []string{"-j KUBE-ROUTER-FORWARD"},
			chains: map[string][]string{"KUBE-ROUTER-FORWARD": {"-j ACCEPT"}},
		},
		"called-like-calico": { // no such chain
			table: "nat", packet: redirected,
			before: []string{"-j cali-PREROUTING"},
			takes:  true,
		},
		"ours": {
			table: "filter", packet: anything,
			before: []string{"-j PODROLE-FORWARD"},
			chains: map[string][]string{"PODROLE-FORWARD": {"-j RETURN"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			saved := &savedTable{chains: map[string]*savedChain{
				"BUILTIN": {name: "BUILTIN", builtin: true, rules: append(c.before, "-j PODROLE-X")},
			}}
			for name, rules := range c.chains {
				saved.chains[name] = &savedChain{name: name, rules: rules}
			}
			got := saved.taker(c.table, "BUILTIN", len(c.before), c.packet)
			if (got != "") != c.takes {
				t.Errorf("taker = %q, want one: %t", got, c.takes)
			}
		})
	}
}
