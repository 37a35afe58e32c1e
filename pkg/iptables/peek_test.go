package iptables

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// healScenarios are what other programs do to the rules, for IPv4: whether read in part or as a whole, the rules must
// be the same after their repair.
var healScenarios = map[string]string{
	"nothing":         "",
	"chain-emptied":   "*nat\n-F PODROLE-PREROUTING\nCOMMIT\n",
	"chains-emptied":  "*nat\n-F PODROLE-PREROUTING\nCOMMIT\n*filter\n-F PODROLE-INPUT\n-F PODROLE-FORWARD\nCOMMIT\n",
	"jumps-deleted":   "*nat\n-F PREROUTING\nCOMMIT\n*filter\n-F INPUT\n-F FORWARD\nCOMMIT\n",
	"chain-deleted":   "*nat\n-F PREROUTING\n-F PODROLE-PREROUTING\n-X PODROLE-PREROUTING\nCOMMIT\n",
	"calico":          calico,
	"others":          kubeProxy + vpcCNI,
	"taken-before":    "*nat\n-I PREROUTING 1 -p tcp -j ACCEPT\nCOMMIT\n*filter\n-I FORWARD 1 -i eni+ -j ACCEPT\nCOMMIT\n",
	"taken-in-detour": "*nat\n:X - [0:0]\n-A X -p tcp -j ACCEPT\n-I PREROUTING 1 -j X\nCOMMIT\n",
	"harmless-detour": "*nat\n:X - [0:0]\n-A X -d 10.0.0.1/32 -j ACCEPT\n-I PREROUTING 1 -j X\nCOMMIT\n",
	"jump-doubled": `*nat
-A PREROUTING -d 169.254.169.254/32 -m comment --comment "podrole: metadata redirect" -j PODROLE-PREROUTING
COMMIT
`,
	"jump-changed": `*nat
-F PREROUTING
-A PREROUTING -d 169.254.0.0/16 -j PODROLE-PREROUTING
COMMIT
`,
}

func TestHealRepairsAsEnsureDoes(t *testing.T) {
	t.Parallel()
	for name, damage := range healScenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			healsAsEnsureDoes(t, damage, func() Runner { return newFakeKernel() })
		})
	}
}

func TestHealRepairsAsEnsureDoesOnKernel(t *testing.T) {
	_, runner := newNode(t)
	for name, damage := range healScenarios {
		t.Run(name, func(t *testing.T) {
			healsAsEnsureDoes(t, damage, func() Runner {
				if _, err := runner.Run(t.Context(), "", "nft", "flush", "ruleset"); err != nil {
					t.Fatal(err)
				}
				return runner
			})
		})
	}
}

func healsAsEnsureDoes(t *testing.T, damage string, newKernel func() Runner) {
	t.Helper()
	repaired := func(repair func(*Redirect, context.Context, Rules) (bool, error)) (rules string, changed bool) {
		kernel := newKernel()
		redirect := newRedirect(t, kernel, NFT)
		if _, err := redirect.Ensure(t.Context(), bothIPs); err != nil {
			t.Fatal(err)
		}
		if _, err := kernel.Run(t.Context(), damage, "iptables-nft-restore", "--noflush", "--wait=5"); err != nil {
			t.Fatal(err)
		}
		changed, err := repair(redirect, t.Context(), bothIPs)
		if err != nil {
			t.Fatal(err)
		}
		if differences, err := redirect.Check(t.Context(), bothIPs); len(differences) > 0 || err != nil {
			t.Errorf("left to be repaired: %q, %v", differences, err)
		}
		text, err := kernel.Run(t.Context(), "", "iptables-nft-save")
		if err != nil {
			t.Fatal(err)
		}
		return normalise(t, ipv4, text), changed
	}
	want, ensured := repaired((*Redirect).Ensure)
	got, healed := repaired((*Redirect).Heal)
	if diff := cmp.Diff(want, got); diff != "" || ensured != healed {
		t.Errorf("Heal changed: %t, Ensure: %t; rules after Heal (-Ensure +Heal):\n%s", healed, ensured, diff)
	}
}

// Calico's jump may stand first, also where its chain has not been read.
func TestHealReadsLittle(t *testing.T) {
	t.Parallel()
	kernel := newFakeKernel()
	recorder := &namesRunner{Runner: kernel}
	redirect := newRedirect(t, recorder, NFT)
	if _, err := redirect.Ensure(t.Context(), onlyIPv4); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []string{
		kubeProxy + calico, healScenarios["jumps-deleted"], healScenarios["chain-deleted"], healScenarios["taken-before"],
	} {
		if err := kernel.restore("iptables-nft", damage); err != nil {
			t.Fatal(err)
		}
		recorder.names = nil
		if _, err := redirect.Heal(t.Context(), onlyIPv4); err != nil {
			t.Fatal(err)
		}
		if ran := strings.Join(recorder.names, " "); strings.Contains(ran, "save") {
			t.Errorf("after %q, Heal read everything: %s", damage, ran)
		}
	}
}

// namesRunner keeps which programs were run.
type namesRunner struct {
	Runner
	names []string
}

func (r *namesRunner) Run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	r.names = append(r.names, name)
	return r.Runner.Run(ctx, stdin, name, args...)
}

// A program that answers otherwise than ours does must not pass for an answer.
func TestHealReadsAllWhereListsAreNotUnderstood(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"silence":     "",
		"prose":       "Chain PREROUTING (policy ACCEPT)\n",
		"other-chain": "-P OUTPUT ACCEPT\n",
		"headless":    "-A PREROUTING -j ACCEPT\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kernel := newFakeKernel()
			if _, err := newRedirect(t, kernel, NFT).Ensure(t.Context(), onlyIPv4); err != nil {
				t.Fatal(err)
			}
			redirect := newRedirect(t, answering{kernel, answer}, NFT)
			if changed, err := redirect.Heal(t.Context(), onlyIPv4); changed || err != nil {
				t.Errorf("Heal = %t, %v", changed, err)
			}
		})
	}
}

// answering gives the same answer to each question for chains.
type answering struct {
	*fakeKernel
	answer string
}

func (a answering) Run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	if strings.Contains(stdin, "\n-S ") {
		return []byte(a.answer), nil
	}
	return a.fakeKernel.Run(ctx, stdin, name, args...)
}

func FuzzParseList(f *testing.F) {
	f.Add("")
	f.Add("-P PREROUTING ACCEPT\n-A PREROUTING -d 169.254.169.254/32 -j PODROLE-PREROUTING\n-N PODROLE-PREROUTING\n")
	f.Add("-N \n-A  -j X")
	wanted := bothIPs.byFamily()[0].tables()
	f.Fuzz(func(t *testing.T, text string) {
		chains, err := parseList([]byte(text))
		if err != nil {
			return
		}
		set := ruleset{}
		for _, w := range wanted {
			set.open(w.name).chains, set.open(w.name).partial = chains, true
		}
		unclear(set, wanted)
		if _, err := planEnsure(set, wanted); err != nil {
			t.Error(err)
		}
	})
}
