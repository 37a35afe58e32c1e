package testbed_test

import (
	"os"
	"strings"
	"testing"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestStage plays the shortest piece there is: one pod, one role, one answer.
func TestStage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root, for example with sudo make test")
	}
	agent, err := nodebox.BuildAgent(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	bed, err := testbed.New(t.Context(), testbed.Config{Agent: agent, Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bed.Close(); err != nil {
			t.Error(err)
		}
	})
	role, err := bed.AddRole("orders", "shop", "orders")
	if err != nil {
		t.Fatal(err)
	}
	if err := bed.AddServiceAccount("shop", "orders", role); err != nil {
		t.Fatal(err)
	}
	pod, err := bed.AddPod("shop", "orders-0", "orders")
	if err != nil {
		t.Fatal(err)
	}
	a, err := bed.StartAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := pod.Command(t.Context(), "curl", "-sS", "--max-time", "3", "http://169.254.169.254/latest/meta-data/iam/security-credentials/").CombinedOutput()
	if err != nil || string(out) != "orders" {
		t.Errorf("got %q, %v", out, err)
	}
	if leaks := bed.NodeRoleLeaks(); leaks != 0 {
		t.Errorf("%d leaks: %v", leaks, bed.Box.Leaks())
	}
	if err := a.Stop(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(a.Log(), "guard and rules stay in place") {
		t.Error("the agent did not say goodbye")
	}
}
