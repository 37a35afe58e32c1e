package identity_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/pkg/identity"
	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/node"
)

// mac is the MAC address whose last byte is given.
func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x0a, 0x58, 0, 0, 0, last} }

// sandbox is one with an own interface called veth-ID.
func sandbox(id string, ips ...string) cni.Sandbox {
	s := cni.Sandbox{ID: id, HostInterface: "veth-" + id, MAC: mac(id[0])}
	for _, ip := range ips {
		s.Addresses = append(s.Addresses, netip.MustParseAddr(ip))
	}
	return s
}

// at is a place behind an interface.
func at(device string) node.Place { return node.Place{Interface: device, Index: 1} }

// onBridge is a place on a bridge, with what the kernel has learned there.
func onBridge(learned net.HardwareAddr, port string) node.Place {
	return node.Place{Interface: "cni0", Index: 1, Bridge: true, MAC: learned, Port: port}
}

func mirrorOf(hash string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: hash} }
}

func hostNetwork(p *corev1.Pod) { p.Spec.HostNetwork = true }

func deleting(p *corev1.Pod) { p.DeletionTimestamp = new(metav1.Now()) }

// TestWhoIsAtAPlace has a row for each rule of how CNI results, the API and the kernel together name a pod. The kernel is
// asked once, at the end.
func TestWhoIsAtAPlace(t *testing.T) {
	type results = map[string]cni.Sandbox
	running := func(ips ...string) []*corev1.Pod { return []*corev1.Pod{newPod("shop", "a", "1", withIPs(ips...))} }
	tests := []struct {
		name    string
		pods    []*corev1.Pod
		before  results // an earlier snapshot
		results results
		source  string
		place   node.Place
		want    string // UID; empty: unknown
	}{
		// One interface for each pod.
		{"before_the_api_knows_the_address", []*corev1.Pod{newPod("shop", "a", "1")}, nil,
			results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", at("veth-s"), "1"},
		{"before_the_pod_is_known", nil, nil,
			results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", at("veth-s"), ""},
		{"behind_another_interface", running("10.0.0.1"), nil,
			results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", at("veth-x"), ""},
		{"behind_another_pods_interface", []*corev1.Pod{newPod("shop", "a", "1"), newPod("shop", "b", "2")}, nil,
			results{"1": sandbox("s", "10.0.0.1"), "2": sandbox("r", "10.0.0.2")}, "10.0.0.1", at("veth-r"), ""},
		{"egress_address_in_no_list", running("fd00::1"), nil,
			results{"1": sandbox("s", "fd00::1")}, "169.254.172.7", at("veth-s"), "1"},
		{"egress_interface_of_its_own", running("fd00::1"), nil,
			results{"1": {ID: "s", HostInterface: "veth-s", OtherInterfaces: []string{"egress"}}}, "169.254.172.7", at("egress"), "1"},
		{"dual_stack", running("10.0.0.1", "fd00::1"), nil,
			results{"1": sandbox("s", "10.0.0.1", "fd00::1")}, "fd00::1", at("veth-s"), "1"},
		{"interface_of_two_sandboxes", []*corev1.Pod{newPod("shop", "a", "1"), newPod("shop", "b", "2")}, nil,
			results{"1": sandbox("s", "10.0.0.1"), "2": {ID: "r", HostInterface: "veth-s"}}, "10.0.0.1", at("veth-s"), ""},
		{"no_route", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", node.Place{}, ""},
		{"the_nodes_own_address", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1",
			node.Place{Interface: "lo", Local: true}, ""},
		{"behind_a_gateway", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1",
			node.Place{Interface: "eth0", Gateway: true}, ""},

		// A bridge.
		{"bridge", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", onBridge(mac('s'), "veth-s"), "1"},
		{"bridge_other_mac", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", onBridge(mac('x'), "veth-s"), ""},
		{"bridge_other_port", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", onBridge(mac('s'), "veth-x"), ""},
		{"bridge_without_entries", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", onBridge(nil, ""), ""},
		{"bridge_address_of_nobody", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.9", onBridge(mac('s'), "veth-s"), ""},

		// One interface for all pods.
		{"shared", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1",
			node.Place{Interface: "cilium_host", Gateway: true}, "1"},
		{"shared_address_of_nobody", running("10.0.0.1"), nil, results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.9",
			node.Place{Interface: "cilium_host", Gateway: true}, ""},

		// What the API says, and what it says too late.
		{"no_results", running("10.0.0.1"), nil, nil, "10.0.0.1", at("docker0"), "1"},
		{"no_results_behind_a_gateway", running("10.0.0.1"), nil, nil, "10.0.0.1", node.Place{Interface: "eth0", Gateway: true}, ""},
		{"address_used_again", []*corev1.Pod{newPod("shop", "old", "1", withIPs("10.0.0.1"), deleting), newPod("shop", "new", "2")}, nil,
			results{"2": sandbox("r", "10.0.0.1")}, "10.0.0.1", at("veth-r"), "2"},
		{"address_of_a_sandbox_that_is_gone", running("10.0.0.1"), results{"1": sandbox("s", "10.0.0.1"), "9": sandbox("z")},
			results{"9": sandbox("z")}, "10.0.0.1", at("veth-x"), ""},
		{"sandbox_made_anew", running("10.0.0.1"), results{"1": sandbox("s", "10.0.0.1")},
			results{"1": sandbox("t", "10.0.0.5")}, "10.0.0.5", at("veth-t"), "1"},
		{"sandbox_made_anew_old_address", running("10.0.0.1"), results{"1": sandbox("s", "10.0.0.1")},
			results{"1": sandbox("t", "10.0.0.5")}, "10.0.0.1", at("eth9"), ""},
		{"results_are_lost_altogether", running("10.0.0.1"), results{"1": sandbox("s", "10.0.0.1")}, results{}, "10.0.0.1", at("veth-s"), "1"},
		{"finished_jobs_address_used_again",
			[]*corev1.Pod{newPod("shop", "job", "1", withIPs("10.0.0.1"), phase(corev1.PodSucceeded)), newPod("shop", "new", "2")}, nil,
			results{"1": sandbox("s", "10.0.0.1"), "2": sandbox("r", "10.0.0.1")}, "10.0.0.1", at("veth-r"), "2"},

		// Kinds of pods.
		{"static_pod", []*corev1.Pod{newPod("shop", "a", "1", mirrorOf("hash"))}, nil,
			results{"hash": sandbox("s", "10.0.0.1")}, "10.0.0.1", at("veth-s"), "1"},
		{"static_pods_uid_is_not_the_cnis", []*corev1.Pod{newPod("shop", "a", "1", mirrorOf("hash"))}, nil,
			results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", at("veth-s"), ""},
		{"host_network", []*corev1.Pod{newPod("shop", "a", "1", withIPs("10.0.0.1"), hostNetwork)}, nil,
			results{"1": sandbox("s", "10.0.0.1")}, "10.0.0.1", at("veth-s"), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				c := start(t, func(cfg *identity.Config) {
					cfg.SharedInterfaces = []string{"cilium_host"}
					cfg.Locate = func(context.Context, netip.Addr) (node.Place, error) { return tt.place, nil }
				})
				for _, p := range tt.pods {
					c.pods.Add(p)
				}
				synctest.Wait()
				if tt.before != nil {
					c.directory.SetSandboxes(tt.before)
					synctest.Wait()
				}
				c.directory.SetSandboxes(tt.results)
				synctest.Wait()
				c.expectAt(t, tt.source, tt.want)
			})
		})
	}
}

// TestLookupBesideAnothersSandbox: an address that only the API still says is one pod's, and where the sandbox of another is
// that is not known yet, is nobody's: a token that was bound to the former would be refused once the latter is known.
func TestLookupBesideAnothersSandbox(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.pods.Add(newPod("shop", "old", "1", withIPs("10.0.0.1")))
		c.expect(t, map[string]string{"10.0.0.1": "1"})
		c.directory.SetSandboxes(map[string]cni.Sandbox{"2": sandbox("r", "10.0.0.1")})
		c.expect(t, map[string]string{"10.0.0.1": ""})
		c.pods.Add(newPod("shop", "new", "2"))
		c.expect(t, map[string]string{"10.0.0.1": "2"})
	})
}

// expectAt asks who is at source, without waiting.
func (c *cluster) expectAt(t *testing.T, source, want string) {
	t.Helper()
	now, cancel := context.WithCancel(t.Context())
	cancel()
	w, err := c.directory.Await(now, netip.MustParseAddr(source))
	if _, unknown := errors.AsType[*identity.UnknownError](err); w.UID != want || unknown != (want == "") {
		t.Errorf("%s is %q, %v; want %q", source, w.UID, err, want)
	}
}

// TestStatefulPodComesBack: under the same name, with the same interface's name, as another pod.
func TestStatefulPodComesBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t, func(cfg *identity.Config) {
			cfg.Locate = func(context.Context, netip.Addr) (node.Place, error) { return at("eni0"), nil }
		})
		first := cni.Sandbox{ID: "s", HostInterface: "eni0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}
		second := cni.Sandbox{ID: "r", HostInterface: "eni0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}
		c.pods.Add(newPod("shop", "db-0", "1"))
		c.directory.SetSandboxes(map[string]cni.Sandbox{"1": first})
		synctest.Wait()
		c.expectAt(t, "10.0.0.1", "1")

		c.pods.Delete(newPod("shop", "db-0", "1"))
		c.pods.Add(newPod("shop", "db-0", "2"))
		synctest.Wait()
		c.expectAt(t, "10.0.0.2", "")
		c.directory.SetSandboxes(map[string]cni.Sandbox{"2": second})
		synctest.Wait()
		c.expectAt(t, "10.0.0.2", "2")
	})
}

// TestDeletionThatNobodySaw: a pod that went while the watch was down is gone after the list that follows
// (DeletedFinalStateUnknown).
func TestDeletionThatNobodySaw(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c := start(t)
		c.pods.Add(newPod("shop", "a", "1", withIPs("10.0.0.1")))
		c.expect(t, map[string]string{"10.0.0.1": "1"})
		c.pods.DeleteDropWatch(newPod("shop", "a", "1"))
		c.pods.ResetWatch()
		// The informer lists again after its back-off, in the bubble's time.
		c.expectSoon(t, "10.0.0.1", "")
		c.pods.Add(newPod("bank", "b", "2", withIPs("10.0.0.1")))
		c.expectSoon(t, "10.0.0.1", "2")
	})
}
