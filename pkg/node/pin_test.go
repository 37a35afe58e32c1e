package node_test

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/pkg/node"
)

// newPinner returns a Redirect of the node in box, for its PinMAC.
func newPinner(t *testing.T, box *nodebox.Box) *node.Redirect {
	t.Helper()
	var r *node.Redirect
	inNamespace(t, box.Node, func() (err error) {
		r, err = node.NewRedirect(node.Config{
			Targets: []node.Target{{Metadata: box.MetadataIP, Agent: netip.MustParseAddr("169.254.77.1")}},
			Logger:  slog.New(slog.DiscardHandler),
		})
		return err
	})
	t.Cleanup(r.Close)
	return r
}

// A MAC address that is pinned to its pod's port gives nobody else a connection that passes for the pod's, however the
// other pod forges its frames.
func TestPinnedMACStandsAgainstSpoofing(t *testing.T) {
	t.Parallel()
	for name, takeMAC := range map[string]bool{"ip": false, "ip-and-mac": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Bridge})
			server := newSourceServer(t, box, newLocator(t, box))
			victim, attacker := addPod(t, box, "victim"), addPod(t, box, "attacker")
			pinner := newPinner(t, box)
			for _, pod := range []*nodebox.Pod{victim, attacker} {
				if pinned, err := pinner.PinMAC(pod.HostInterface, pod.MAC); err != nil || !pinned {
					t.Fatalf("PinMAC = %t, %v", pinned, err)
				}
			}
			for _, addr := range podAddresses(victim) {
				server.connect(t, victim, addr, "victim")
			}
			attack(t, server, attacker, victim, takeMAC, false, 8)
			for _, v := range server.visits() {
				if v.who != "victim" && (v.first == nil || v.second == nil) {
					t.Errorf("visit = %+v, want it refused both times", v)
				}
			}
		})
	}
}

// Where there is no bridge there is nothing to pin.
func TestPinMACWithoutABridge(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{})
	pod := addPod(t, box, "web")
	pinner := newPinner(t, box)
	for device, mac := range map[string]net.HardwareAddr{pod.HostInterface: pod.MAC, "gone0": pod.MAC} {
		if pinned, err := pinner.PinMAC(device, mac); pinned || err != nil {
			t.Errorf("PinMAC(%s) = %t, %v, want nothing done", device, pinned, err)
		}
	}
}
