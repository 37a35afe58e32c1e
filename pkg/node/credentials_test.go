package node_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/iptables"
	"github.com/podrole/podrole/pkg/node"
)

var (
	ecs          = netip.MustParseAddr("169.254.170.2")
	podIdentity4 = netip.MustParseAddr("169.254.170.23")
	podIdentity6 = netip.MustParseAddr("fd00:ec2::23")
)

// alsoFor has the Redirect, not installed yet, lead these addresses to the agent as well.
func (w *world) alsoFor(t *testing.T, addrs ...netip.Addr) {
	t.Helper()
	for _, addr := range addrs {
		for _, p := range w.pairs {
			if p.metadata.Is4() == addr.Is4() {
				w.config.Targets = append(w.config.Targets, node.Target{Metadata: addr, Agent: p.agent.Addr()})
				w.want.Targets = append(w.want.Targets, iptables.Target{Metadata: addr, Agent: p.agent})
			}
		}
	}
	w.node = w.newRedirect(t, w.config)
}

// The addresses at which SDKs look for container credentials are guarded as the metadata address is.
func TestContainerCredentials(t *testing.T) {
	t.Parallel()
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, false)
			addrs := []netip.Addr{ecs, podIdentity4}
			if w.box.HasIPv6() {
				addrs = append(addrs, podIdentity6)
			}
			if err := w.box.Watch(addrs...); err != nil {
				t.Fatal(err)
			}
			ping(t, w.pod.Namespace, ecs)
			before, control := w.snapshot(t), len(w.box.Watched())
			if control == 0 {
				t.Error("what pods send there without us is not seen: this test proves nothing")
			}
			w.alsoFor(t, addrs...)
			if err := w.node.CheckNode(); err != nil {
				t.Errorf("CheckNode = %v", err)
			}
			w.install(t)
			for _, metadata := range append(addrs, w.box.MetadataIP) {
				p := w.pairs[0]
				if metadata.Is6() {
					p = w.pairs[1]
				}
				expect(t, "pod", w.pod.Namespace, netip.AddrPortFrom(metadata, 80), "agent to "+p.pod.String())
				expectRefused(t, "other port", w.newPod(t).Namespace, "tcp", netip.AddrPortFrom(metadata, 81))
			}
			if changed, err := w.node.Ensure(); changed || err != nil {
				t.Errorf("second Ensure = %t, %v", changed, err)
			}
			w.flushRules(t)
			for _, metadata := range addrs {
				expectRefused(t, "rules flushed", w.newPod(t).Namespace, "tcp", netip.AddrPortFrom(metadata, 80))
			}
			w.heal(t)
			for _, priority := range []string{"5", "6"} {
				for range 3 { // of IPv4, one for each address
					w.run(t, "ip", "-4", "rule", "del", "pref", priority)
				}
			}
			for _, metadata := range addrs {
				expectRefused(t, "guard gone", w.newPod(t).Namespace, "tcp", netip.AddrPortFrom(metadata, 81))
			}
			if packets := w.box.Watched(); len(packets) != control {
				t.Errorf("packets of pods left the node: %v", packets[control:])
			}
			w.heal(t)

			// One address less is a change of configuration: its rules go.
			less := w.config
			less.Targets = less.Targets[:len(w.pairs)]
			if changed, err := w.newRedirect(t, less).Ensure(); !changed || err != nil {
				t.Errorf("Ensure of less = %t, %v", changed, err)
			}
			if rules := w.run(t, "ip", "rule"); strings.Contains(rules, ecs.String()) {
				t.Errorf("left over:\n%s", rules)
			}
			w.uninstall(t)
			equal(t, "Remove left the node changed", before, w.snapshot(t))
		})
	}
}

func TestPodIdentityAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, iptables.NFT, false)
	inNode := func() (err error) {
		inNamespace(t, w.box.Node, func() error {
			err = node.CheckPodIdentityAgent()
			return nil
		})
		return err
	}
	plain := w.node
	w.alsoFor(t, ecs)
	withECS := w.node
	w.alsoFor(t, podIdentity4)
	check := func(what string, want *node.PodIdentityAgentError) {
		t.Helper()
		for name, err := range map[string]error{"function": inNode(), "CheckNode": w.node.CheckNode()} {
			got, found := errors.AsType[*node.PodIdentityAgentError](err)
			if want == nil && err != nil || want != nil && (!found || *got != *want) {
				t.Errorf("%s, %s = %v, want %v", what, name, err, want)
			}
			if _, local := errors.AsType[*node.LocalMetadataError](err); local {
				t.Errorf("%s, %s blames others: %v", what, name, err)
			}
			if found && !strings.Contains(got.Error(), "eks-pod-identity-agent") {
				t.Errorf("%v names no remedy", got)
			}
		}
		for name, redirect := range map[string]*node.Redirect{"plain": plain, "ECS": withECS} {
			if err := redirect.CheckNode(); err != nil {
				t.Errorf("%s, %s, whose addresses are others: %v", what, name, err)
			}
		}
	}
	check("not there", nil)
	w.run(t, "ip", "link", "add", "pod-id-link0", "type", "veth")
	check("interface", &node.PodIdentityAgentError{Interface: "pod-id-link0"})
	w.run(t, "ip", "addr", "add", podIdentity4.String()+"/32", "dev", "pod-id-link0")
	check("interface and address", &node.PodIdentityAgentError{Interface: "pod-id-link0", Address: podIdentity4})
	w.run(t, "ip", "link", "del", "pod-id-link0")
	w.run(t, "ip", "addr", "add", podIdentity4.String()+"/32", "dev", "lo")
	check("address", &node.PodIdentityAgentError{Interface: "lo", Address: podIdentity4})
}
