package iptables

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// textRunner answers each program with fixed text; programs it does not know print nothing.
type textRunner map[string]string

func (r textRunner) Run(_ context.Context, _, name string, _ ...string) ([]byte, error) {
	if text, ok := r[name]; ok && text == "" {
		return nil, &CommandError{Command: name, Err: exec.ErrNotFound}
	}
	return []byte(r[name]), nil
}

func TestDetect(t *testing.T) {
	t.Parallel()
	const (
		hint   = "*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
		canary = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"
		// A hint counts in table mangle only.
		elsewhere = "*nat\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"
		two       = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\n-A INPUT -j DROP\nCOMMIT\n"
		one       = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n"
		ours      = "*nat\n:PREROUTING ACCEPT [0:0]\n:PODROLE-PREROUTING - [0:0]\n" +
			"-A PREROUTING -j PODROLE-PREROUTING\n-A PODROLE-PREROUTING -j DNAT\n-A PODROLE-PREROUTING -j DNAT\nCOMMIT\n"
	)
	for name, c := range map[string]struct {
		runner textRunner
		want   Backend
		found  Detection
		fails  bool
	}{
		"empty": {want: Auto, found: Detection{NFT, "neither backend says more (0 rules each)", ""}},
		"hint-nft": {
			runner: textRunner{"iptables-nft-save": hint, "iptables-legacy-save": two},
			want:   Auto, found: Detection{NFT, "the kubelet's chain KUBE-IPTABLES-HINT is in nft", ""},
		},
		"canary-legacy": {
			runner: textRunner{"iptables-legacy-save": canary, "iptables-nft-save": two},
			want:   Auto, found: Detection{Legacy, "the kubelet's chain KUBE-KUBELET-CANARY is in legacy", ""},
		},
		"hint-ipv6": {
			runner: textRunner{"ip6tables-legacy-save": hint, "iptables-nft-save": two},
			want:   Auto, found: Detection{Legacy, "the kubelet's chain KUBE-IPTABLES-HINT is in legacy", ""},
		},
		"hint-in-both": {
			runner: textRunner{"iptables-nft-save": canary, "iptables-legacy-save": hint},
			want:   Auto, found: Detection{NFT, "the kubelet's chain KUBE-KUBELET-CANARY is in nft", ""},
		},
		"hint-elsewhere": {
			runner: textRunner{"iptables-nft-save": elsewhere, "iptables-legacy-save": one},
			want:   Auto, found: Detection{Legacy, "legacy holds more rules (1, nft 0)", ""},
		},
		"more-legacy": {
			runner: textRunner{"iptables-nft-save": one, "iptables-legacy-save": two},
			want:   Auto, found: Detection{Legacy, "legacy holds more rules (2, nft 1)", ""},
		},
		"more-nft": {
			runner: textRunner{"iptables-nft-save": two, "iptables-legacy-save": one},
			want:   Auto, found: Detection{NFT, "nft holds more rules (2, legacy 1)", ""},
		},
		"both-families": {
			runner: textRunner{"iptables-legacy-save": one, "ip6tables-legacy-save": one, "iptables-nft-save": one},
			want:   Auto, found: Detection{Legacy, "legacy holds more rules (2, nft 1)", ""},
		},
		"ours-in-nft": {
			runner: textRunner{"iptables-nft-save": ours, "iptables-legacy-save": one},
			want:   Auto, found: Detection{Legacy, "legacy holds more rules (1, nft 0)", NFT},
		},
		"ours-in-legacy": {
			runner: textRunner{"iptables-legacy-save": ours},
			want:   Auto, found: Detection{NFT, "neither backend says more (0 rules each)", Legacy},
		},
		"only-nft": {
			runner: textRunner{"iptables-legacy-save": ""},
			want:   Auto, found: Detection{NFT, "legacy cannot be read", ""},
		},
		"only-legacy": {
			runner: textRunner{"iptables-nft-save": ""},
			want:   Auto, found: Detection{Legacy, "nft cannot be read", ""},
		},
		"without-ipv6": {
			runner: textRunner{"ip6tables-nft-save": "", "ip6tables-legacy-save": "", "iptables-legacy-save": one},
			want:   Auto, found: Detection{Legacy, "legacy holds more rules (1, nft 0)", ""},
		},
		"neither": {runner: textRunner{"iptables-nft-save": "", "iptables-legacy-save": ""}, want: Auto, fails: true},
		"configured": {
			runner: textRunner{"iptables-nft-save": two + ours},
			want:   Legacy, found: Detection{Legacy, "set by configuration", NFT},
		},
		"not-there": {runner: textRunner{"iptables-legacy-save": ""}, want: Legacy, fails: true},
		"unknown":   {want: "pf", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Detect(t.Context(), c.runner, c.want)
			if (err != nil) != c.fails {
				t.Fatalf("Detect = %v", err)
			}
			if diff := cmp.Diff(c.found, got); diff != "" {
				t.Errorf("Detect (-want +got):\n%s", diff)
			}
		})
	}
}

// Looking must not make the legacy backend create its tables: they would stay until the node reboots.
func TestDetectLeavesNothingBehind(t *testing.T) {
	_, runner := newNode(t)
	if got, err := Detect(t.Context(), runner, Auto); err != nil || got.Backend != NFT {
		t.Errorf("Detect = %+v, %v", got, err)
	}
	for _, backend := range []Backend{NFT, Legacy} {
		for _, f := range []family{ipv4, ipv6} {
			name := program(f, backend, "save")
			if out, err := runner.Run(t.Context(), "", name); strings.TrimSpace(string(out)) != "" || err != nil {
				t.Errorf("%s after Detect = %q, %v", name, out, err)
			}
		}
	}
}

func TestDetectOnKernel(t *testing.T) {
	_, runner := newNode(t)
	restore := func(backend Backend, text string) {
		t.Helper()
		if _, err := runner.Run(t.Context(), text, program(ipv4, backend, "restore"), "--noflush"); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want Backend, stale Backend) {
		t.Helper()
		got, err := Detect(t.Context(), runner, Auto)
		if err != nil || got.Backend != want || got.Stale != stale {
			t.Errorf("Detect = %+v, %v, want %s, stale %q", got, err, want, stale)
		}
	}
	if _, err := newRedirect(t, runner, NFT).Ensure(t.Context(), bothIPs); err != nil {
		t.Fatal(err)
	}
	expect(NFT, "")
	restore(Legacy, "*filter\n-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT\n")
	expect(Legacy, NFT)
	restore(NFT, "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n")
	expect(NFT, "")
}
