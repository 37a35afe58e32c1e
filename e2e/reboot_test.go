package e2e_test

import (
	"net/http"
	"testing"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestReboot: a node that has just started has neither rules nor guard, and its pods may start before any agent. What the
// host's unit does then is all it takes; without it, they reach the node's role.
func TestReboot(t *testing.T) {
	for _, guarded := range []bool{true, false} {
		t.Run(map[bool]string{true: "guarded", false: "not_guarded"}[guarded], func(t *testing.T) {
			bed := newBed(t, testbed.Config{}) // a new one has a node of its own, as after a reboot
			if guarded {
				binary, err := nodebox.BuildAgent(t.Context(), true)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 { // once more changes nothing
					if out, err := bed.Box.Node.Command(t.Context(), binary, "guard").CombinedOutput(); err != nil {
						t.Fatalf("guard: %v: %s", err, out)
					}
				}
			}
			pod := addPod(t, bed, "orders", "orders")
			answered := probe(t, bed, pod)
			if guarded && len(answered) > 0 {
				t.Errorf("before the first agent, a pod was answered %q", answered)
			}
			if got := ask(t.Context(), bed.Box.Node, http.MethodGet, metadataIPv4+credentials); got.body != "node" {
				t.Errorf("the node's own request to its metadata service: got %s", got)
			}
			if leaks := bed.NodeRoleLeaks(); guarded {
				noLeaks(t, bed)
			} else {
				t.Logf("without the unit: %d connections of a pod at the node's metadata service before the first agent", leaks)
				if leaks == 0 {
					t.Error("no leak is seen without the guard: this test sees none at all")
				}
			}
			startAgent(t, bed)
			if got := get(t, pod, credentials); got.body != "orders" {
				t.Errorf("once the agent runs: got %s", got)
			}
		})
	}
}
