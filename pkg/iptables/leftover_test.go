package iptables

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/node/netevents"
)

var metadataAddresses = []netip.Addr{target4.Metadata, target6.Metadata}

func TestRedirectingTool(t *testing.T) {
	t.Parallel()
	for rule, want := range map[string]string{
		"-d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:8181":  "kube2iam or kiam",
		"-d 169.254.169.254/32 -i eni+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:3100":   "kiam",
		"-d 169.254.169.254/32 ! -i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:8181": "kiam",
		"-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:988":            "another tool",
		"-d fd00:ec2::254/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::1]:80":              "another tool",
		"-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8181":                       "another tool",
		"-d 169.254.169.254/32 -j MARK --set-xmark 0x1/0x1":                                                "",
		"-d 169.254.169.254/32 -j PODROLE-PREROUTING":                                                      "",
		"! -d 169.254.169.254/32 -p tcp -j DNAT --to-destination 10.0.0.10:8181":                           "",
		"-d 169.254.170.2/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:8181":    "",
		"-d 169.254.0.0/16 -p tcp -j DNAT --to-destination 10.0.0.10:8181":                                 "",
		"-m comment --comment \"-d 169.254.169.254/32 -j DNAT\" -j DNAT --to-destination 10.0.0.10:8181":   "",
		"-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080":                   "",
		"-d 169.254.169.254/32 -d broken":                                                                  "",
	} {
		if got := redirectingTool(options(rule), metadataAddresses); got != want {
			t.Errorf("%s: %q, want %q", rule, got, want)
		}
	}
}

const kube2iamRule = "-d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.10:8181"

func TestLeftovers(t *testing.T) {
	_, runner := newNode(t)
	if found, err := Leftovers(t.Context(), runner, metadataAddresses); len(found) > 0 || err != nil {
		t.Errorf("Leftovers of nothing = %v, %v", found, err)
	}
	if _, err := newRedirect(t, runner, NFT).Ensure(t.Context(), bothIPs); err != nil {
		t.Fatal(err)
	}
	if found, err := Leftovers(t.Context(), runner, metadataAddresses); len(found) > 0 || err != nil {
		t.Errorf("Leftovers of our own rules = %v, %v", found, err)
	}
	for _, b := range []Backend{NFT, Legacy} {
		args := strings.Fields("-t nat -A PREROUTING " + kube2iamRule)
		if _, err := runner.Run(t.Context(), "", "iptables-"+string(b), args...); err != nil {
			t.Fatal(err)
		}
	}
	found, err := Leftovers(t.Context(), runner, metadataAddresses)
	if err != nil {
		t.Error(err)
	}
	want := []Leftover{
		{"kube2iam or kiam", "iptables-nft, table nat, chain PREROUTING", kube2iamRule,
			"iptables-nft -t nat -D PREROUTING " + kube2iamRule},
		{"kube2iam or kiam", "iptables-legacy, table nat, chain PREROUTING", kube2iamRule,
			"iptables-legacy -t nat -D PREROUTING " + kube2iamRule},
	}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("Leftovers (-want +got):\n%s", diff)
	}
	for _, l := range found { // the remedy is one
		args := strings.Fields(l.Remedy)
		if _, err := runner.Run(t.Context(), "", args[0], args[1:]...); err != nil {
			t.Error(err)
		}
	}
	if found, err := Leftovers(t.Context(), runner, metadataAddresses); len(found) > 0 || err != nil {
		t.Errorf("Leftovers after the remedy = %v, %v", found, err)
	}
}

func TestLeftoversWhereABackendCannotBeRead(t *testing.T) {
	t.Parallel()
	const saved = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING " + kube2iamRule + "\nCOMMIT\n"
	runner := textRunner{"iptables-nft-save": saved, "iptables-legacy-save": "", "ip6tables-nft-save": "prose\n"}
	found, err := Leftovers(t.Context(), runner, metadataAddresses)
	if len(found) != 1 || err == nil || !strings.Contains(err.Error(), "ip6tables-nft-save") {
		t.Errorf("Leftovers = %v, %v, want one and what failed", found, err)
	}
}

// A tool of its own tables and an earlier priority takes packets that never reach iptables' rules.
func TestNativeLeftovers(t *testing.T) {
	box, runner := newNode(t)
	look := func() (found []Leftover) {
		t.Helper()
		err := box.Node.Do(func() (err error) {
			found, err = NativeLeftovers(metadataAddresses)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := look(); len(found) > 0 {
		t.Errorf("of nothing: %v", found)
	}
	if _, err := newRedirect(t, runner, NFT).Ensure(t.Context(), bothIPs); err != nil {
		t.Fatal(err)
	}
	_, err := runner.Run(t.Context(), `
table inet early {
	chain translate { ip daddr 169.254.169.254 tcp dport 80 dnat ip to 10.0.0.10:8181; }
	chain pre { type nat hook prerouting priority -110; jump translate; }
}
table ip6 early6 {
	chain pre { type nat hook prerouting priority dstnat; ip6 daddr fd00:ec2::254 counter redirect; }
}
table ip late {
	chain pre { type nat hook prerouting priority 0; ip daddr 169.254.169.254 dnat to 10.0.0.10; }
}
table ip others {
	chain pre { type nat hook prerouting priority -110; ip daddr 10.0.0.1 dnat to 10.0.0.10; ip daddr 169.254.169.254 counter; }
	chain out { type nat hook output priority -110; ip daddr 169.254.169.254 dnat to 10.0.0.10; }
}
table ip elsewhere {
	chain out { type nat hook output priority -110; ip daddr 169.254.169.254 dnat to 10.0.0.10; }
}
`, "nft", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range look() {
		got = append(got, l.Where)
		if _, err := runner.Run(t.Context(), "", "nft", strings.Fields(l.Remedy)[1:]...); err != nil {
			t.Error(err)
		}
	}
	// A table that has such a chain is looked at as a whole: which chains lead to which is not followed.
	want := []string{"nft, table inet early", "nft, table ip6 early6", "nft, table ip others"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("NativeLeftovers (-want +got):\n%s", diff)
	}
}

func FuzzLeftovers(f *testing.F) {
	f.Add("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING " + kube2iamRule + "\nCOMMIT\n")
	f.Add("*nat\n:A - [0:0]\n-A A ! -d 169.254.169.254/32 -i \"x -j DNAT\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		saved, err := parseSave([]byte(text))
		if err != nil {
			return
		}
		for _, l := range leftoversIn(saved, NFT, ipv4, metadataAddresses) {
			if l.Tool == "" || strings.Contains(l.String(), "\n") {
				t.Errorf("%q", l)
			}
		}
	})
}

func FuzzNativeLeftovers(f *testing.F) {
	f.Add([]byte{unix.NFPROTO_IPV4, 0, 0, 0, 8, 0, 1, 0, 'n', 'a', 't', 0})
	f.Fuzz(func(_ *testing.T, payload []byte) {
		parseNATChain(netevents.Message{Payload: payload})
		translates(netevents.Message{Payload: payload}, metadataAddresses)
	})
}
