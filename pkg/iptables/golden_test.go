package iptables

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew, from the fake")

var (
	target4 = Target{
		Metadata: netip.MustParseAddr("169.254.169.254"),
		Agent:    netip.MustParseAddrPort("169.254.77.1:41001"),
	}
	target6 = Target{
		Metadata: netip.MustParseAddr("fd00:ec2::254"),
		Agent:    netip.MustParseAddrPort("[fd7a:706f:6472::1]:41001"),
	}
	onlyIPv4 = Rules{Targets: []Target{target4}}
	bothIPs  = Rules{Targets: []Target{target4, target6}}

	// The addresses at which SDKs look for container credentials lead to the same agent.
	containerCredentials = Rules{Targets: []Target{
		target4,
		{netip.MustParseAddr("169.254.170.2"), target4.Agent},
		{netip.MustParseAddr("169.254.170.23"), target4.Agent},
		target6,
		{netip.MustParseAddr("fd00:ec2::23"), target6.Agent},
	}}
)

// step is one thing that happens to a node's rules; exactly one of its fields but the name is set.
type step struct {
	name   string
	ensure *Rules
	remove bool
	// other is what another program hands to iptables-restore --noflush, for IPv4.
	other string
	// settled says that Ensure after this step must find nothing to do.
	settled *Rules
}

// scenarios are played on the fake and in network namespaces with both backends; what stands after each step
// must be what the golden file says. Rules of others are written as iptables-save prints them.
var scenarios = map[string][]step{
	"ipv4": {
		{name: "remove from nothing", remove: true},
		{name: "ensure", ensure: &onlyIPv4},
		{name: "remove", remove: true},
	},
	"ipv4-ipv6": {
		{name: "ensure", ensure: &bothIPs},
		{name: "remove", remove: true},
	},
	"except-dns": {
		{name: "ensure", ensure: &Rules{Targets: bothIPs.Targets, GuardExceptDNS: true}},
		{name: "ensure without", ensure: &bothIPs},
	},
	"port-swap": {
		{name: "ensure", ensure: &bothIPs},
		{name: "another port", ensure: &Rules{Targets: []Target{
			{target4.Metadata, netip.AddrPortFrom(target4.Agent.Addr(), 41002)},
			{target6.Metadata, netip.AddrPortFrom(target6.Agent.Addr(), 41002)},
		}}},
		{name: "another address", ensure: &Rules{Targets: []Target{
			{target4.Metadata, netip.MustParseAddrPort("169.254.77.9:41002")},
		}}},
	},
	"among-others": {
		{name: "kube-proxy and amazon-vpc-cni", other: kubeProxy + vpcCNI},
		{name: "ensure", ensure: &onlyIPv4},
		{name: "remove", remove: true},
	},
	"calico-puts-itself-first": {
		{name: "ensure", ensure: &onlyIPv4},
		{name: "felix", other: calico},
		{name: "no fight", settled: &onlyIPv4},
		{name: "felix before agent, remove", remove: true},
		{name: "ensure again", ensure: &onlyIPv4},
	},
	"taken-before-ours": {
		{name: "ensure", ensure: &onlyIPv4},
		{name: "kube2iam, firewall", other: `*nat
-I PREROUTING 1 -d 169.254.169.254/32 -i eni+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:8181
COMMIT
*filter
-I INPUT 1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 1 -i eni+ -j ACCEPT
COMMIT
`},
		{name: "ensure again", ensure: &onlyIPv4},
	},
	"container-credentials": {
		{name: "ensure", ensure: &containerCredentials},
		{name: "without", ensure: &bothIPs},
		{name: "with name resolution", ensure: &Rules{Targets: containerCredentials.Targets[:2], GuardExceptDNS: true}},
		{name: "remove", remove: true},
	},
	"damage": {
		{name: "ensure", ensure: &onlyIPv4},
		{name: "chains emptied", other: "*nat\n-F PODROLE-PREROUTING\nCOMMIT\n*filter\n-F PODROLE-INPUT\nCOMMIT\n"},
		{name: "ensure after emptying", ensure: &onlyIPv4},
		{name: "jumps deleted", other: "*nat\n-F PREROUTING\nCOMMIT\n*filter\n-F INPUT\n-F FORWARD\nCOMMIT\n"},
		{name: "ensure after deleting", ensure: &onlyIPv4},
		{name: "everything gone", other: "*nat\n-F PREROUTING\n-F PODROLE-PREROUTING\n-X PODROLE-PREROUTING\nCOMMIT\n"},
		{name: "ensure after all", ensure: &onlyIPv4},
		{name: "jump doubled, rule added", other: `*nat
-A PREROUTING -d 169.254.169.254/32 -m comment --comment "podrole: metadata redirect" -j PODROLE-PREROUTING
-A PODROLE-PREROUTING -p udp -j RETURN
COMMIT
`},
		{name: "ensure after doubling", ensure: &onlyIPv4},
	},
	"another-version": {
		{name: "its rules", other: `*nat
:PODROLE-OLD - [0:0]
:PODROLE-PREROUTING - [0:0]
-A PODROLE-OLD -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:80
-A PODROLE-PREROUTING -j PODROLE-OLD
-A PREROUTING -i eth0 -j PODROLE-PREROUTING
-A OUTPUT -j PODROLE-OLD
COMMIT
`},
		{name: "ensure", ensure: &onlyIPv4},
		{name: "its rules again", other: "*nat\n:PODROLE-OLD - [0:0]\n-A OUTPUT -j PODROLE-OLD\nCOMMIT\n"},
		{name: "remove", remove: true},
	},
}

const kubeProxy = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 172.20.0.10/32 -p tcp -m comment --comment "say \"hello\" -j ACCEPT" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j KUBE-SVC-A
-A KUBE-SVC-A -p tcp -m tcp -j DNAT --to-destination 10.0.0.5:8080
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
`

const vpcCNI = `*nat
:AWS-CONNMARK-CHAIN-0 - [0:0]
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A AWS-CONNMARK-CHAIN-0 ! -d 10.0.0.0/16 -m comment --comment "AWS CONNMARK CHAIN, VPC CIDR" -j CONNMARK --set-xmark 0x80/0x80
COMMIT
`

const calico = `*nat
:cali-PREROUTING - [0:0]
:cali-fip-dnat - [0:0]
-A cali-PREROUTING -m comment --comment "cali:r6XmIziWUJsdOK6Z" -j cali-fip-dnat
-A cali-fip-dnat -d 10.9.9.9/32 -j DNAT --to-destination 10.0.0.7
-I PREROUTING 1 -m comment --comment "cali:6gwbT8clXdHdC1b1" -j cali-PREROUTING
COMMIT
*filter
:cali-INPUT - [0:0]
:cali-FORWARD - [0:0]
-A cali-INPUT -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT
-I INPUT 1 -m comment --comment "cali:Cz_u1IQiXIMmKD4c" -j cali-INPUT
-I FORWARD 1 -m comment --comment "cali:wUHhoiAYhphO9Mso" -j cali-FORWARD
COMMIT
`

func TestScenariosOnFake(t *testing.T) {
	t.Parallel()
	for name, steps := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := play(t, newFakeKernel(), NFT, steps)
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			compareGolden(t, file, got)
		})
	}
}

func compareGolden(t *testing.T, file, got string) {
	t.Helper()
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("rules differ from %s (-want +got); if that is meant, run go test with -update:\n%s", file, diff)
	}
}

// play runs the steps and returns what stood after each, and the transactions that led there. It checks on the way
// that an Ensure after an Ensure finds nothing to do and writes nothing.
func play(t *testing.T, runner Runner, backend Backend, steps []step) string {
	t.Helper()
	recorder := &recordingRunner{Runner: runner}
	redirect := newRedirect(t, recorder, backend)
	var out strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&out, "==== %s\n", s.name)
		recorder.restores = nil
		switch {
		case s.ensure != nil:
			if _, err := redirect.Ensure(t.Context(), *s.ensure); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			out.WriteString(recorder.transactions(backend))
			mustBeSettled(t, s.name, redirect, recorder, *s.ensure)
		case s.settled != nil:
			mustBeSettled(t, s.name, redirect, recorder, *s.settled)
		case s.remove:
			if _, err := redirect.Remove(t.Context()); err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			out.WriteString(recorder.transactions(backend))
			recorder.restores = nil
			if changed, err := redirect.Remove(t.Context()); changed || err != nil || len(recorder.restores) > 0 {
				t.Errorf("%s: second Remove = %t, %v, wrote %q", s.name, changed, err, recorder.restores)
			}
		default:
			_, err := runner.Run(t.Context(), s.other, program(ipv4, backend, "restore"), "--noflush", "--wait=5")
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
		}
		for _, f := range []family{ipv4, ipv6} {
			text, err := runner.Run(t.Context(), "", program(f, backend, "save"))
			if err != nil {
				t.Fatalf("%s: %v", s.name, err)
			}
			out.WriteString(normalise(t, f, text))
		}
	}
	return out.String()
}

func mustBeSettled(t *testing.T, name string, redirect *Redirect, recorder *recordingRunner, rules Rules) {
	t.Helper()
	recorder.restores = nil
	if changed, err := redirect.Ensure(t.Context(), rules); changed || err != nil || len(recorder.restores) > 0 {
		t.Errorf("%s: Ensure once more = %t, %v, wrote %q", name, changed, err, recorder.restores)
	}
	if changed, err := redirect.Heal(t.Context(), rules); changed || err != nil || len(recorder.restores) > 0 {
		t.Errorf("%s: Heal = %t, %v, wrote %q", name, changed, err, recorder.restores)
	}
	if differences, err := redirect.Check(t.Context(), rules); len(differences) > 0 || err != nil {
		t.Errorf("%s: Check = %q, %v", name, differences, err)
	}
}

func newRedirect(t *testing.T, runner Runner, backend Backend) *Redirect {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	redirect, err := NewRedirect(Config{Backend: backend, Runner: runner, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	return redirect
}

// recordingRunner keeps what is handed to iptables-restore to be written.
type recordingRunner struct {
	Runner
	restores []string
}

func (r *recordingRunner) Run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	if strings.HasSuffix(name, "-restore") && !strings.Contains(stdin, "\n-S ") {
		r.restores = append(r.restores, name+"\n"+stdin)
	}
	return r.Runner.Run(ctx, stdin, name, args...)
}

// transactions returns the inputs of iptables-restore, indented, without the backend's name.
func (r *recordingRunner) transactions(backend Backend) string {
	var out strings.Builder
	for _, text := range r.restores {
		text = strings.Replace(text, "-"+string(backend)+"-", "-", 1)
		for line := range strings.Lines(text) {
			out.WriteString("  | " + line)
		}
	}
	return out.String()
}

// normalise renders saved rules without comments, counters, policies, empty built-in chains and empty tables, and with
// tables and chains in one order, so that backends and the fake can be compared.
func normalise(t *testing.T, f family, text []byte) string {
	t.Helper()
	saved, err := parseSave(text)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(saved)) {
		table := saved[name]
		var lines []string
		for _, c := range slices.Sorted(maps.Keys(table.chains)) {
			if chain := table.chains[c]; !chain.builtin || len(chain.rules) > 0 {
				lines = append(lines, ":"+c)
				for _, rule := range chain.rules {
					lines = append(lines, "-A "+c+" "+rule)
				}
			}
		}
		if len(lines) > 0 {
			fmt.Fprintf(&out, "%s *%s\n%s\n", f, name, strings.Join(lines, "\n"))
		}
	}
	return out.String()
}
