package agent

import (
	"errors"
	"log/slog"
	"net"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/identity/cni"
)

func TestPinsComeBeforeIdentity(t *testing.T) {
	var done []string
	failing := true
	p := &pins{
		pin: func(device string, _ net.HardwareAddr) (bool, error) {
			if device == "veth-b" && failing {
				return false, errors.New("no")
			}
			done = append(done, "pin "+device)
			return true, nil
		},
		next:   func(s map[string]cni.Sandbox) { done = append(done, "known") },
		logger: slog.New(slog.DiscardHandler),
		read:   make(chan struct{}),
	}
	select {
	case <-p.read:
		t.Error("read before anything was read")
	default:
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	all := map[string]cni.Sandbox{
		"1": {ID: "a", HostInterface: "veth-a", MAC: mac},
		"2": {ID: "b", HostInterface: "veth-b", MAC: mac},
		"3": {ID: "c", HostInterface: "veth-c"}, // no MAC to pin
	}
	p.SetSandboxes(all)
	<-p.read
	failing = false
	p.SetSandboxes(all) // what failed is tried again, what is done is not
	want := []string{"pin veth-a", "known", "pin veth-b", "known"}
	if diff := cmp.Diff(want, done); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
}
