package agent

import (
	"log/slog"
	"net"
	"sync"

	"github.com/podrole/podrole/pkg/identity/cni"
)

// pins has bridges know each pod's MAC address behind that pod's own port. It passes on what the CNI results say, and is
// safe for concurrent use.
type pins struct {
	pin    func(device string, mac net.HardwareAddr) (bool, error)
	next   func(map[string]cni.Sandbox)
	logger *slog.Logger

	read chan struct{} // closed once the CNI results have been read for the first time

	mu   sync.Mutex      // guards the following
	done map[string]bool // sandboxes by ID that need nothing more
	none bool            // it was said that there are no results
	once sync.Once       // closes read
}

// SetSandboxes pins what is new before anybody may be known by it.
func (p *pins) SetSandboxes(sandboxes map[string]cni.Sandbox) {
	p.mu.Lock()
	defer p.mu.Unlock()
	done := make(map[string]bool, len(sandboxes))
	for _, s := range sandboxes {
		if p.done[s.ID] || s.HostInterface == "" || len(s.MAC) == 0 {
			done[s.ID] = true
			continue
		}
		pinned, err := p.pin(s.HostInterface, s.MAC)
		if err != nil {
			p.logger.Error("cannot bind a pod's MAC address to its port of the bridge",
				"pod", s.Namespace+"/"+s.Name, "interface", s.HostInterface, "error", err)
			continue // tried again with the next change
		}
		if pinned {
			p.logger.Debug("pod's MAC address is bound to its port of the bridge",
				"pod", s.Namespace+"/"+s.Name, "interface", s.HostInterface, "mac", s.MAC.String())
		}
		done[s.ID] = true
	}
	p.done = done
	if none := len(sandboxes) == 0; none != p.none {
		p.none = none
		if none {
			p.logger.Info("no CNI results: either no pod has a sandbox, or the CNI keeps none; then pods are known only once the API " +
				"names their address, and answered 503 until then")
		} else {
			p.logger.Info("there are CNI results now")
		}
	}
	p.next(sandboxes)
	p.once.Do(func() { close(p.read) })
}
