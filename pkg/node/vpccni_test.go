package node_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/pkg/iptables"
)

// What Amazon VPC CNI v1.23 puts on a node, as its pkg/networkutils and cmd/routed-eni-cni-plugin/driver do
// (aws/amazon-vpc-cni-k8s). 192.0.2.0/24 stands for the VPC, and eth0 for every interface of the instance.
const vpcCNIRules = `*mangle
-A PREROUTING -i eth0 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -i vlan+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
*nat
:AWS-CONNMARK-CHAIN-0 - [0:0]
:AWS-SNAT-CHAIN-0 - [0:0]
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-CONNMARK-CHAIN-0 -d 192.0.2.0/24 -m comment --comment "AWS CONNMARK CHAIN, VPC CIDR" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
-A AWS-SNAT-CHAIN-0 -d 192.0.2.0/24 -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source 192.0.2.10 --random-fully
COMMIT
`

// runLines runs commands, one per line, in the node.
func (w *world) runLines(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if args := strings.Fields(line); len(args) > 0 {
			w.run(t, args[0], args[1:]...)
		}
	}
}

func (w *world) restore(t *testing.T, text string) {
	t.Helper()
	program := "iptables-" + string(w.backend) + "-restore"
	if _, err := (inside{w.box.Node}).Run(t.Context(), text, program, "--noflush"); err != nil {
		t.Fatal(err)
	}
}

// A pod on a secondary interface: what it sends goes by a table of that interface, what is for it by main.
func TestVPCCNI(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, false)
			w.restore(t, vpcCNIRules)
			way := strings.TrimSpace(w.run(t, "ip", "-4", "route", "show", "default"))
			w.runLines(t, fmt.Sprintf(`
sysctl -q -w net.ipv4.conf.eth0.rp_filter=2
ip rule add pref 512 to %[1]s lookup main
ip rule add pref 1024 fwmark 0x80/0x80 lookup main
ip rule add pref 1536 from %[1]s lookup 2
ip rule add pref 32765 from 192.0.2.11 lookup 2
ip route add table 2 %[2]s
`, w.pod.IP, way))
			before := w.snapshot(t)
			routes := w.run(t, "ip", "route", "get", w.pod.IP.String())
			w.install(t)
			equal(t, "route to the pod", routes, w.run(t, "ip", "route", "get", w.pod.IP.String()))
			for _, p := range w.pairs {
				expect(t, "pod", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}
			w.hunt(t, "VPC CNI", 81)
			w.flushRules(t)
			if backend == iptables.Legacy {
				w.run(t, "iptables-legacy", "-t", "mangle", "-F")
			}
			w.hunt(t, "VPC CNI, rules flushed", 80)
			w.restore(t, vpcCNIRules)
			w.heal(t)
			for _, p := range w.pairs {
				expect(t, "pod", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}
			w.uninstall(t)
			equal(t, "Remove left the node changed", before, w.snapshot(t))
		})
	}
}

func (w *world) uninstall(t *testing.T) {
	t.Helper()
	if _, err := w.rules.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := w.node.Remove(); err != nil {
		t.Error(err)
	}
}

// makeStrict is what the CNI does to a node in strict mode.
func (w *world) makeStrict(t *testing.T) {
	t.Helper()
	w.restore(t, vpcCNIRules)
	w.runLines(t, `
sysctl -q -w net.ipv4.conf.eth0.rp_filter=2
ip rule add pref 1024 fwmark 0x80/0x80 lookup main
ip rule add pref 20 lookup local
ip rule del pref 0
ip -6 rule add pref 20 lookup local
ip -6 rule del pref 0
ip -6 rule add pref 0 from fe80::1 ipproto ipv6-icmp lookup local
`)
}

// strictPod is a pod with security groups of its own.
type strictPod struct {
	*nodebox.Pod
	vlan string
}

// addStrictPod is what the CNI does for such a pod (SetupBranchENIPodNetwork). Its order is kept: routes before rules.
func (w *world) addStrictPod(t *testing.T, vlan int) strictPod {
	t.Helper()
	pod, err := w.box.AddPod(nodebox.PodConfig{
		Namespace: "shop", Name: fmt.Sprintf("strict-%d", vlan), HostInterface: fmt.Sprintf("vlan%011x", vlan),
	})
	if err != nil {
		t.Fatal(err)
	}
	p := strictPod{pod, fmt.Sprintf("vlan.eth.%d", vlan)}
	// A VLAN of the trunk interface on EC2. This one's packets are seen on the uplink, as all others.
	w.runLines(t, fmt.Sprintf("ip link add link eth0 name %[1]s type macvlan mode bridge\nip link set %[1]s up\n", p.vlan))
	for _, f := range p.families(w) {
		w.runLines(t, fmt.Sprintf(`
ip -%[1]d route del %[2]s dev %[3]s
ip -%[1]d route add %[4]s dev %[5]s scope link table %[6]d
ip -%[1]d route add default via %[4]s dev %[5]s table %[6]d
ip -%[1]d route add %[2]s dev %[3]s scope link table %[6]d
ip -%[1]d rule add pref 10 iif %[5]s lookup %[6]d
ip -%[1]d rule add pref 10 iif %[3]s lookup %[6]d
`, f.version, f.pod, p.HostInterface, f.gateway, p.vlan, 100+vlan))
	}
	return p
}

type strictFamily struct {
	version      int
	pod, gateway netip.Addr
	pair         pair
}

func (p strictPod) families(w *world) []strictFamily {
	all := []strictFamily{{4, p.IP, netip.MustParseAddr("192.0.2.1"), w.pairs[0]}}
	if w.box.HasIPv6() {
		all = append(all, strictFamily{6, p.IPv6, netip.MustParseAddr("2001:db8:0:1::1"), w.pairs[1]})
	}
	for i := range all {
		all[i].pair.pod = all[i].pod
	}
	return all
}

// removeStrictPod is what the CNI does at the end (TeardownBranchENIPodNetwork).
func (w *world) removeStrictPod(t *testing.T, p strictPod, vlan int) {
	t.Helper()
	w.run(t, "ip", "link", "del", p.vlan)
	for _, f := range p.families(w) {
		for range 2 {
			w.run(t, "ip", fmt.Sprintf("-%d", f.version), "rule", "del", "pref", "10", "lookup", fmt.Sprint(100+vlan))
		}
	}
	if err := p.Remove(); err != nil {
		t.Fatal(err)
	}
}

// Pods with security groups of their own, in strict mode, are served from the moment that they are there.
func TestVPCCNIStrict(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, false)
			w.makeStrict(t)
			if err := w.box.Watch(agent4, agent6); err != nil {
				t.Fatal(err)
			}
			before := w.snapshot(t)
			first := w.addStrictPod(t, 1)
			w.install(t)
			stop := w.keep(t)
			w.expectStrict(t, "before the agent", first)
			second := w.addStrictPod(t, 2)
			w.expectStrict(t, "after the agent", second)
			for _, p := range w.pairs {
				expect(t, "an ordinary pod", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}

			// One rule for each pod and family: gateways are none.
			w.expectReplies(t, map[string]int{"-4": 2, "-6": 2})
			w.run(t, "ip", "rule", "del", "pref", "3")
			w.expectReplies(t, map[string]int{"-4": 2})

			// What is not for us goes nowhere, also from there.
			for _, f := range first.families(w) {
				ping(t, first.Namespace, f.pair.metadata)
				// Refusals come from the node's own address, which the CNI has leave by its own interface.
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				if conn, err := first.DialContext(ctx, "tcp", netip.AddrPortFrom(f.pair.metadata, 81).String()); err == nil {
					t.Errorf("another port of %v is open", f.pair.metadata)
					conn.Close()
				}
				cancel()
			}
			w.hunt(t, "strict mode", 81)

			w.removeStrictPod(t, first, 1)
			w.removeStrictPod(t, second, 2)
			w.expectReplies(t, map[string]int{"-4": 0, "-6": 0})
			if packets := w.box.Watched(); len(packets) > 0 {
				t.Errorf("packets for the agent left the node: %v", packets)
			}
			w.expectNoLeak(t, "strict mode")
			stop()
			w.uninstall(t)
			equal(t, "Remove left the node changed", before, w.snapshot(t))
		})
	}
}

func (w *world) expectStrict(t *testing.T, what string, pod strictPod) {
	t.Helper()
	ordinary := w.pod
	w.pod = pod.Pod
	defer func() { w.pod = ordinary }()
	for _, f := range pod.families(w) {
		t.Logf("%s, IPv%d: served after %v", what, f.version, w.served(t, f.pair, netip.AddrPortFrom(f.pair.metadata, 80)))
	}
}

// expectReplies waits until there are as many rules for answers to pods with tables of their own.
func (w *world) expectReplies(t *testing.T, want map[string]int) {
	t.Helper()
	for family, n := range want {
		var got string
		for start := time.Now(); ; {
			got = w.run(t, "ip", family, "rule", "show", "pref", "3")
			if strings.Count(got, "lookup") == n {
				break
			}
			if time.Since(start) > 10*time.Second {
				t.Fatalf("ip %s: rules for answers, want %d:\n%s", family, n, got)
			}
		}
	}
}

// Without its rule, an answer to such a pod would leave the node.
func TestAnswersToStrictPods(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	w.makeStrict(t)
	pod := w.addStrictPod(t, 1)
	way := func() string {
		return w.run(t, "ip", "route", "get", pod.IP.String(), "from", agent4.String())
	}
	w.run(t, "ip", "addr", "add", agent4.String()+"/32", "dev", "lo", "scope", "host")
	if got := way(); !strings.Contains(got, "dev eth0") {
		t.Errorf("before: %s: this test proves nothing", got)
	}
	if _, err := w.node.Ensure(); err != nil {
		t.Fatal(err)
	}
	if got := way(); !strings.Contains(got, "dev "+pod.HostInterface) {
		t.Errorf("after: %s", got)
	}
	if differences, err := w.node.Check(); len(differences) > 0 || err != nil {
		t.Errorf("Check = %q, %v", differences, err)
	}
	// Only the agent's answers: what the node sends of its own accord goes as before.
	if got := w.run(t, "ip", "route", "get", pod.IP.String()); !strings.Contains(got, "dev eth0") {
		t.Errorf("the node's own packets: %s", got)
	}
}
