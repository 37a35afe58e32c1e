package node_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/pkg/iptables"
	"github.com/podrole/podrole/pkg/node"
)

var backends = []iptables.Backend{iptables.NFT, iptables.Legacy}

// The other tests mean something only if a pod that nothing stops gets through, by each of their ways.
func TestPodsReachTheInstanceWithoutUs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	for _, p := range w.pairs {
		expect(t, "nothing installed", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "instance to "+p.pod.String())
		if got, err := ask(t, w.pod.Namespace, "udp", netip.AddrPortFrom(p.metadata, 80)); err != nil {
			t.Errorf("udp = %q, %v", got, err)
		}
		ping(t, w.pod.Namespace, p.metadata)
		for _, protocol := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
			icmpOfOther := protocol == unix.IPPROTO_ICMP && p.metadata.Is6() ||
				protocol == unix.IPPROTO_ICMPV6 && p.metadata.Is4()
			var seen bool
			for _, leak := range w.box.Leaks() {
				seen = seen || leak.Destination.Addr() == p.metadata && leak.Protocol == protocol
			}
			if !seen && !icmpOfOther {
				t.Errorf("%s: protocol %d is not seen outside", p.name, protocol)
			}
		}
	}
}

func TestRedirect(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, false)
			if err := w.box.Watch(agent4, agent6); err != nil {
				t.Fatal(err)
			}
			before := w.snapshot(t)
			w.install(t)

			for _, p := range w.pairs {
				metadata := netip.AddrPortFrom(p.metadata, 80)
				expect(t, "pod", w.pod.Namespace, metadata, "agent to "+p.pod.String())
				expect(t, "the node itself", w.box.Node, metadata, "instance to "+p.nodeIP.String())
				expectRefused(t, "pod, not redirected", w.pod.Namespace, "tcp", p.agent)
				expectRefused(t, "the node itself, not redirected", w.box.Node, "tcp", p.agent)
				expectRefused(t, "pod, not redirected", w.pod.Namespace, "udp", p.agent)
				expectRefused(t, "the node itself, not redirected", w.box.Node, "udp", p.agent)
			}
			w.hunt(t, "installed", 81)

			// Nothing is left to be done.
			if changed, err := w.node.Ensure(); changed || err != nil {
				t.Errorf("second Ensure of the node's half = %t, %v", changed, err)
			}
			if changed, err := w.rules.Ensure(t.Context(), w.want); changed || err != nil {
				t.Errorf("second Ensure of the rules = %t, %v", changed, err)
			}
			if differences, err := w.node.Check(); len(differences) > 0 || err != nil {
				t.Errorf("Check = %q, %v", differences, err)
			}

			// All rules are gone: refused, and the node keeps its own.
			w.flushRules(t)
			for _, p := range w.pairs {
				metadata := netip.AddrPortFrom(p.metadata, 80)
				expect(t, "rules flushed, the node itself", w.box.Node, metadata, "instance to "+p.nodeIP.String())
			}
			w.hunt(t, "rules flushed", 80, 81)
			w.heal(t)
			for _, p := range w.pairs {
				expect(t, "healed", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}

			// The guard is gone: the rules refuse.
			for _, family := range []string{"-4", "-6"} {
				for _, priority := range []string{"1", "2", "5", "6", "8"} {
					w.run(t, "ip", family, "rule", "del", "pref", priority)
				}
			}
			w.hunt(t, "guard gone", 81)
			for _, p := range w.pairs {
				expect(t, "guard gone", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}

			// And the address: its packets must not go looking for it elsewhere.
			deleteAddresses(t, w)
			w.hunt(t, "guard and address gone", 80)
			w.heal(t)
			deleteAddresses(t, w)
			w.flushFilter(t)
			w.hunt(t, "filter and address gone", 80)
			for _, p := range w.pairs {
				expectRefused(t, "filter and address gone, the node", w.box.Node, "tcp", p.agent)
			}
			if differences, err := w.node.Check(); len(differences) != len(w.pairs) || err != nil {
				t.Errorf("Check without addresses = %q, %v", differences, err)
			}
			if packets := w.box.Watched(); len(packets) > 0 {
				t.Errorf("packets for the agent left the node: %v", packets)
			}
			w.heal(t)
			for _, p := range w.pairs {
				expect(t, "healed again", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}
			w.expectNoLeak(t, "at the end")

			if changed, err := w.rules.Remove(t.Context()); !changed || err != nil {
				t.Errorf("Remove of the rules = %t, %v", changed, err)
			}
			w.hunt(t, "rules removed", 80)
			if changed, err := w.node.Remove(); !changed || err != nil {
				t.Errorf("Remove of the node's half = %t, %v", changed, err)
			}
			equal(t, "Remove left the node changed", before, w.snapshot(t))
			if changed, err := w.node.Remove(); changed || err != nil {
				t.Errorf("second Remove = %t, %v", changed, err)
			}
		})
	}
}

func (w *world) flushRules(t *testing.T) {
	t.Helper()
	if w.backend == iptables.NFT {
		w.run(t, "nft", "flush", "ruleset")
		return
	}
	for _, program := range []string{"iptables-legacy", "ip6tables-legacy"} {
		for _, table := range []string{"nat", "filter"} {
			w.run(t, program, "-t", table, "-F")
			w.run(t, program, "-t", table, "-X")
		}
	}
}

func (w *world) flushFilter(t *testing.T) {
	t.Helper()
	for _, program := range []string{"iptables-", "ip6tables-"} {
		w.run(t, program+string(w.backend), "-F")
	}
}

func deleteAddresses(t *testing.T, w *world) {
	t.Helper()
	for _, target := range w.config.Targets {
		w.run(t, "ip", "addr", "del", netip.PrefixFrom(target.Agent, target.Agent.BitLen()).String(), "dev", "lo")
	}
}

func TestGuardAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	if changed, err := w.node.EnsureGuard(); !changed || err != nil {
		t.Fatalf("EnsureGuard = %t, %v", changed, err)
	}
	w.hunt(t, "guard alone", 80, 81)
	for _, p := range w.pairs {
		metadata := netip.AddrPortFrom(p.metadata, 80)
		expect(t, "guard alone, the node itself", w.box.Node, metadata, "instance to "+p.nodeIP.String())
	}
	if got := w.run(t, "ip", "-4", "addr", "show", "lo"); strings.Contains(got, agent4.String()) {
		t.Errorf("EnsureGuard added the address:\n%s", got)
	}
}

// The resolver of Google Compute Engine is the metadata address: port 53 passes, and nothing else.
func TestGuardExceptDNS(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, true)
			w.install(t)
			for _, p := range w.pairs {
				dns := netip.AddrPortFrom(p.metadata, 53)
				expect(t, "DNS over TCP", w.pod.Namespace, dns, "resolver to "+p.pod.String())
				if got, err := ask(t, w.pod.Namespace, "udp", dns); err != nil || got != "x" {
					t.Errorf("DNS over UDP = %q, %v", got, err)
				}
				expect(t, "pod", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}
			pod := w.newPod(t)
			for _, p := range w.pairs {
				expectRefused(t, "other port", pod.Namespace, "tcp", netip.AddrPortFrom(p.metadata, 81))
				expectRefused(t, "other port", pod.Namespace, "udp", netip.AddrPortFrom(p.metadata, 80))
			}
			for _, leak := range w.box.Leaks() {
				if leak.Destination.Port() != 53 {
					t.Errorf("another port than that of DNS leaked: %v", leak)
				}
			}
			// Without the exception, its rules are stale.
			closed := w.config
			closed.GuardExceptDNS = false
			if changed, err := w.newRedirect(t, closed).Ensure(); !changed || err != nil {
				t.Errorf("Ensure without the exception = %t, %v", changed, err)
			}
			for _, p := range w.pairs {
				expectRefused(t, "exception withdrawn", w.newPod(t).Namespace, "udp", netip.AddrPortFrom(p.metadata, 53))
			}
		})
	}
}

// An address on lo must never become the source of what the node sends: probes would come from it, and network
// policies would drop them.
func TestAddressIsNeverASource(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	handle := w.netlink(t)
	type view struct{ route, source string }
	look := func(p pair) view {
		t.Helper()
		routes, err := handle.RouteGet(p.pod.AsSlice())
		if err != nil || len(routes) != 1 {
			t.Fatalf("RouteGet(%v) = %v, %v", p.pod, routes, err)
		}
		source, err := ask(t, w.box.Node, "tcp", netip.AddrPortFrom(p.pod, 8080))
		if err != nil {
			t.Fatal(err)
		}
		return view{routes[0].String(), source}
	}
	pairs := w.pairs
	if w.box.HasIPv6() {
		// A pod network out of unique local addresses, as most are, shares a longer prefix with the agent's address.
		near := netip.MustParseAddr("fd7a:706f:6472:1::5")
		add := w.pod.Command(t.Context(), "ip", "addr", "add", near.String()+"/128", "dev", "eth0", "nodad")
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		w.run(t, "ip", "-6", "route", "add", near.String(), "dev", w.pod.HostInterface)
		pairs = append(pairs, pair{name: "ipv6-near", pod: near})
	}
	for _, p := range pairs {
		serve(t, w.pod.Namespace, netip.AddrPortFrom(p.pod, 8080), "pod")
		before := look(p)
		if _, err := w.node.Ensure(); err != nil {
			t.Fatal(err)
		}
		if after := look(p); before != after {
			t.Errorf("%s: node to pod before %+v, after %+v", p.name, before, after)
		}
		if _, err := w.node.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	// The difference that scope makes: without it, the address is taken.
	w.run(t, "ip", "addr", "add", agent4.String()+"/32", "dev", "lo")
	if got := look(w.pairs[0]); !strings.Contains(got.source, agent4.String()) {
		t.Errorf("an address of global scope was not taken as source (%+v): this test proves nothing", got)
	}
	// Which Ensure repairs.
	if changed, err := w.node.Ensure(); !changed || err != nil {
		t.Fatalf("Ensure = %t, %v", changed, err)
	}
	if got := look(w.pairs[0]); strings.Contains(got.source, agent4.String()) {
		t.Errorf("after Ensure: %+v", got)
	}
}

func (w *world) netlink(t *testing.T) *netlink.Handle {
	t.Helper()
	var handle *netlink.Handle
	err := w.box.Node.Do(func() (err error) {
		handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handle.Close)
	return handle
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	w.run(t, "ip", "link", "add", "pod-id-link0", "type", "veth")
	w.run(t, "ip", "addr", "add", agent4.String()+"/32", "dev", "pod-id-link0")
	_, err := w.node.Ensure()
	inUse, ok := errors.AsType[*node.AddressInUseError](err)
	if !ok || inUse.Address != agent4 || inUse.Interface != "pod-id-link0" {
		t.Fatalf("Ensure = %v", err)
	}
	// The guard is there all the same.
	w.hunt(t, "address in use", 80)
	if _, err := w.node.Remove(); err != nil {
		t.Errorf("Remove = %v", err)
	}
	if got := w.run(t, "ip", "addr", "show", "pod-id-link0"); !strings.Contains(got, agent4.String()) {
		t.Error("Remove took another's address")
	}
}

// The kernel knows packets for an address as its own by a route, which can be deleted without the address.
func TestLocalRouteIsWholeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	before := w.snapshot(t)
	w.install(t)
	for _, p := range w.pairs {
		w.run(t, "ip", "route", "del", "local", p.agent.Addr().String(), "dev", "lo", "table", "local")
	}
	if changed, err := w.node.Ensure(); !changed || err != nil {
		t.Errorf("Ensure = %t, %v", changed, err)
	}
	for _, p := range w.pairs {
		expect(t, "route added", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
	}
	if changed, err := w.node.Ensure(); changed || err != nil {
		t.Errorf("second Ensure = %t, %v", changed, err)
	}
	// A policy that leads elsewhere is no reason to add it again and again.
	w.run(t, "ip", "rule", "add", "pref", "0", "to", agent4.String(), "lookup", "main")
	w.run(t, "ip", "rule", "del", "pref", "0", "lookup", "local")
	w.run(t, "ip", "rule", "add", "pref", "100", "lookup", "local")
	if changed, err := w.node.Ensure(); changed || err != nil {
		t.Errorf("Ensure under a policy that leads elsewhere = %t, %v", changed, err)
	}
	w.run(t, "ip", "rule", "add", "pref", "0", "lookup", "local")
	w.run(t, "ip", "rule", "del", "pref", "0", "to", agent4.String())
	w.run(t, "ip", "rule", "del", "pref", "100")
	w.uninstall(t)
	equal(t, "Remove left the node changed", before, w.snapshot(t))
}

func TestGuardIsWholeAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	w.install(t)
	intact := w.run(t, "ip", "rule")
	for name, damage := range map[string][]string{
		"prohibit-deleted":   {"rule del pref 6"},
		"target-deleted":     {"rule del pref 8"},
		"all-deleted":        {"rule del pref 1", "rule del pref 2", "rule del pref 5", "rule del pref 6", "rule del pref 8"},
		"prohibit-made-nop":  {"rule del pref 6", "rule add pref 6 to 169.254.169.254 nop protocol kernel"},
		"prohibit-narrowed":  {"rule del pref 6", "rule add pref 6 from 10.0.0.1 to 169.254.169.254 prohibit protocol kernel"},
		"prohibit-marked":    {"rule del pref 6", "rule add pref 6 fwmark 1 to 169.254.169.254 prohibit protocol kernel"},
		"another-version":    {"rule add pref 3 to 169.254.169.254 lookup main protocol kernel"},
		"more-and-less":      {"rule add pref 6 from 10.0.0.1 to 169.254.169.254 prohibit protocol kernel"},
		"agent-rule-deleted": {"rule del pref 2"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, command := range damage {
				w.run(t, "ip", strings.Fields(command)...)
			}
			if differences, err := w.node.Check(); len(differences) == 0 || err != nil {
				t.Errorf("Check = %q, %v", differences, err)
			}
			if changed, err := w.node.Ensure(); !changed || err != nil {
				t.Errorf("Ensure = %t, %v", changed, err)
			}
			equal(t, "policy after Ensure", intact, w.run(t, "ip", "rule"))
			if changed, err := w.node.Ensure(); changed || err != nil {
				t.Errorf("second Ensure = %t, %v", changed, err)
			}
		})
	}
	t.Run("nothing-wanted-is-deleted", func(t *testing.T) {
		// To the kernel, a deletion that names less than the whole rule fits the wanted one, which stands first.
		w.run(t, "ip", strings.Fields("rule add pref 6 from 10.0.0.1 to 169.254.169.254 prohibit protocol kernel")...)
		var log bytes.Buffer
		c := w.config
		c.Logger = slog.New(slog.NewTextHandler(&log, nil))
		if changed, err := w.newRedirect(t, c).Ensure(); !changed || err != nil {
			t.Errorf("Ensure = %t, %v", changed, err)
		}
		if got := strings.Count(log.String(), "guard changed"); got != 1 {
			t.Errorf("Ensure took %d rounds, want 1:\n%s", got, &log)
		}
	})
	t.Run("rules-of-others-stay", func(t *testing.T) {
		before := w.run(t, "ip", "rule")
		w.run(t, "ip", "rule", "add", "pref", "3", "to", "10.1.2.3", "lookup", "main", "protocol", "static")
		w.run(t, "ip", "rule", "add", "pref", "10", "to", "10.1.2.3", "lookup", "main", "protocol", "kernel")
		with := w.run(t, "ip", "rule")
		if changed, err := w.node.Ensure(); changed || err != nil {
			t.Errorf("Ensure = %t, %v", changed, err)
		}
		if _, err := w.node.Remove(); err != nil {
			t.Error(err)
		}
		w.heal(t)
		equal(t, "rules of others", with, w.run(t, "ip", "rule"))
		if before == with {
			t.Error("no rules of others were there")
		}
	})
}

// Where the metadata address is not routed by table main, the node must still reach it.
func TestNodeKeepsItsOwnWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	metadata := netip.AddrPortFrom(w.box.MetadataIP, 80)
	way := strings.Fields(w.run(t, "ip", "-4", "route", "show", "default"))
	w.run(t, "ip", append([]string{"route", "add", "table", "77"}, way...)...)
	w.run(t, "ip", "rule", "add", "pref", "100", "to", metadata.Addr().String(), "lookup", "77")
	w.run(t, "ip", "route", "add", "unreachable", metadata.Addr().String())
	expect(t, "before", w.box.Node, metadata, "instance to "+w.box.NodeIP.String())
	w.install(t)
	expect(t, "after", w.box.Node, metadata, "instance to "+w.box.NodeIP.String())
	w.hunt(t, "metadata in another table", 81)
}

// CNIs move the lookup of table local behind their own rules: Amazon VPC CNI in strict mode to 20, Cilium to 100.
func TestRedirectWhereLocalIsNotFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	if err := w.box.Watch(agent4, agent6); err != nil {
		t.Fatal(err)
	}
	way := strings.Fields(w.run(t, "ip", "-4", "route", "show", "default"))
	w.run(t, "ip", append([]string{"route", "add", "table", "101"}, way...)...)
	w.run(t, "ip", "rule", "add", "pref", "20", "lookup", "local")
	w.run(t, "ip", "rule", "add", "pref", "10", "iif", w.pod.HostInterface, "lookup", "101")
	w.run(t, "ip", "rule", "del", "pref", "0")
	w.install(t)
	expect(t, "pod", w.pod.Namespace, netip.AddrPortFrom(w.box.MetadataIP, 80), "agent to "+w.pod.IP.String())
	w.hunt(t, "local is not first", 81)
	w.run(t, "ip", "addr", "del", agent4.String()+"/32", "dev", "lo")
	expectRefused(t, "address gone", w.newPod(t).Namespace, "tcp", netip.AddrPortFrom(w.box.MetadataIP, 80))
	if packets := w.box.Watched(); len(packets) > 0 {
		t.Errorf("packets for the agent left the node: %v", packets)
	}
}

// Strict reverse-path filtering (RFC 3704) drops what comes in by an interface by which the answer would not go out.
func TestStrictReversePathFilter(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	w.makeStrict(t)
	strict := w.addStrictPod(t, 1)
	for _, name := range []string{"all", "default", "lo", "eth0", w.pod.HostInterface, strict.HostInterface} {
		w.run(t, "sysctl", "-q", "-w", "net.ipv4.conf."+name+".rp_filter=1")
	}
	w.install(t)
	for name, pod := range map[string]*nodebox.Pod{"ordinary": w.pod, "of its own table": strict.Pod} {
		expect(t, name, pod.Namespace, netip.AddrPortFrom(w.box.MetadataIP, 80), "agent to "+pod.IP.String())
	}
	w.hunt(t, "strict reverse-path filter", 81)
}

// What other tools have in both backends, and in policy, routes and addresses, is the same after Remove, to the order
// of the rules: also where an earlier agent left rules in the other backend.
func TestRemoveAmongOthers(t *testing.T) {
	t.Parallel()
	const others = vpcCNIRules + `*nat
:KUBE-SERVICES - [0:0]
:PREROUTING-OF-OTHERS - [0:0]
-I PREROUTING 1 -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -d 198.18.200.10/32 -p tcp -m comment --comment "default/kubernetes:https" -m tcp --dport 443 -j DNAT --to-destination 192.0.2.20:6443
-A PREROUTING -d 169.254.169.254/32 -i eni+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.10:8181
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
`
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, false)
			other := backends[0]
			if other == backend {
				other = backends[1]
			}
			for _, b := range backends {
				for program, text := range map[string]string{
					"iptables":  others,
					"ip6tables": "*filter\n:KUBE-FIREWALL - [0:0]\n-A INPUT -j KUBE-FIREWALL\nCOMMIT\n",
				} {
					program += "-" + string(b) + "-restore"
					if _, err := (inside{w.box.Node}).Run(t.Context(), text, program, "--noflush"); err != nil {
						t.Fatal(err)
					}
				}
			}
			w.runLines(t, `
ip rule add pref 4 to 10.1.2.3 lookup main protocol static
ip rule add pref 512 to 10.1.2.3 lookup main
ip addr add 169.254.77.9/32 dev lo
`)
			before := w.snapshot(t)
			stale, err := iptables.NewRedirect(iptables.Config{
				Backend: other, Runner: inside{w.box.Node}, Logger: w.config.Logger,
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stale.Ensure(t.Context(), w.want); err != nil {
				t.Fatal(err)
			}
			w.install(t)
			for _, p := range w.pairs {
				expect(t, "among others", w.pod.Namespace, netip.AddrPortFrom(p.metadata, 80), "agent to "+p.pod.String())
			}
			if w.snapshot(t) == before {
				t.Error("nothing was installed")
			}
			if changed, err := stale.Remove(t.Context()); !changed || err != nil {
				t.Errorf("Remove of the other backend = %t, %v", changed, err)
			}
			w.uninstall(t)
			equal(t, "Remove left the node changed", before, w.snapshot(t))
		})
	}
}

func TestFlushConntrack(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, false)
			// Something must ask for connection tracking, as kube-proxy does on every node.
			tracking := strings.Fields("-A INPUT -m conntrack --ctstate INVALID -j DROP")
			w.run(t, "iptables-"+string(backend), tracking...)
			w.run(t, "ip6tables-"+string(backend), tracking...)
			dial := func(p pair) net.Conn {
				t.Helper()
				conn, err := w.pod.DialContext(t.Context(), "tcp", netip.AddrPortFrom(p.metadata, 80).String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				return conn
			}
			for _, p := range w.pairs {
				dial(p) // to the instance, and kept open
			}
			leaked := len(w.box.Leaks())
			w.install(t)
			var kept []net.Conn
			for _, p := range w.pairs {
				kept = append(kept, dial(p)) // to the agent
			}
			if flushed, err := w.node.FlushConntrack(); flushed != len(w.pairs) || err != nil {
				t.Errorf("FlushConntrack = %d, %v, want %d", flushed, err, len(w.pairs))
			}
			if flushed, err := w.node.FlushConntrack(); flushed != 0 || err != nil {
				t.Errorf("second FlushConntrack = %d, %v", flushed, err)
			}
			for i, p := range w.pairs {
				if got, err := askOn(kept[i]); err != nil || got != "agent to "+p.pod.String() {
					t.Errorf("connection to the agent after the flush: %q, %v", got, err)
				}
			}
			if leaks := w.box.Leaks(); len(leaks) != leaked {
				t.Errorf("leaks after the flush: %v", leaks[leaked:])
			}
		})
	}
}

func TestCheckNode(t *testing.T) {
	t.Parallel()
	t.Run("good", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, iptables.NFT, false)
		if err := w.node.CheckNode(); err != nil {
			t.Errorf("before: %v", err)
		}
		w.install(t)
		if err := w.node.CheckNode(); err != nil {
			t.Errorf("installed: %v", err)
		}
		w.run(t, "ip", "-4", "route", "del", "default")
		w.run(t, "ip", "-6", "route", "del", "default")
		if err := w.node.CheckNode(); err != nil {
			t.Errorf("without a route: %v", err)
		}
	})
	t.Run("local-address", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, iptables.NFT, false)
		w.run(t, "ip", "addr", "add", "169.254.169.254/32", "dev", "lo")
		local, ok := errors.AsType[*node.LocalMetadataError](w.node.CheckNode())
		if !ok || local.Interface != "lo" || local.Address != w.box.MetadataIP ||
			!strings.Contains(local.Error(), "aws-vault") {
			t.Errorf("CheckNode = %v", local)
		}
	})
	t.Run("local-route", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, iptables.NFT, false)
		w.run(t, "ip", "route", "add", "local", "169.254.169.254/32", "dev", "lo")
		local, ok := errors.AsType[*node.LocalMetadataError](w.node.CheckNode())
		if !ok || local.Interface != "" {
			t.Errorf("CheckNode = %v", local)
		}
	})
	t.Run("resolver", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, iptables.NFT, false)
		file := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(file, []byte("search internal\nnameserver 169.254.169.254\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		c := w.config
		c.ResolvConf = []string{filepath.Join(t.TempDir(), "missing"), file}
		resolver, ok := errors.AsType[*node.ResolverError](w.newRedirect(t, c).CheckNode())
		if !ok || resolver.File != file || !strings.Contains(resolver.Error(), "--guard-except-dns") {
			t.Errorf("CheckNode = %v", resolver)
		}
		c.GuardExceptDNS = true
		if err := w.newRedirect(t, c).CheckNode(); err != nil {
			t.Errorf("CheckNode with the exception = %v", err)
		}
		c.GuardExceptDNS, c.ResolvConf = false, slices.Concat(c.ResolvConf, []string{t.TempDir()})
		if err := w.newRedirect(t, c).CheckNode(); !strings.Contains(err.Error(), "read resolvers") {
			t.Errorf("CheckNode with an unreadable file = %v", err)
		}
	})
}

func TestIPv6SwitchedOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	w.run(t, "sysctl", "-q", "-w", "net.ipv6.conf.lo.disable_ipv6=1")
	_, err := w.node.Ensure()
	if err == nil || !strings.Contains(err.Error(), "disable_ipv6") {
		t.Errorf("Ensure = %v, want a remedy", err)
	}
	defer func() {
		if _, err := w.node.Remove(); err != nil {
			t.Errorf("Remove = %v", err)
		}
	}()
	expectRefused(t, "IPv4 is guarded all the same", w.newPod(t).Namespace, "tcp", netip.AddrPortFrom(w.box.MetadataIP, 80))
}
