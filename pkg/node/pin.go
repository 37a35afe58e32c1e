package node

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PinMAC has the bridge that an interface is a port of know mac behind that port, for as long as the port is there, whatever
// frames come in elsewhere (a static, sticky forwarding entry; bridge(8)). A pod that takes another's address along with its
// MAC address then gets none of the answers, and so no connection. Where the interface is no port of a bridge, there
// is nothing to do. It reports whether there was.
//
// The entry goes with the port, so nothing is left behind by an agent that dies.
func (r *Redirect) PinMAC(device string, mac net.HardwareAddr) (pinned bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	link, err := r.handle.LinkByName(device)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("pin %s to %s: %w", mac, device, err)
	}
	if link.Attrs().MasterIndex == 0 {
		return false, nil
	}
	err = r.handle.NeighSet(&netlink.Neigh{
		LinkIndex:    link.Attrs().Index,
		Family:       unix.AF_BRIDGE,
		State:        unix.NUD_NOARP,
		Flags:        netlink.NTF_MASTER | netlink.NTF_STICKY,
		HardwareAddr: mac,
	})
	switch {
	case errors.Is(err, unix.ENODEV):
		return false, nil
	case errors.Is(err, unix.EOPNOTSUPP): // the master is no bridge, such as a VRF
		return false, nil
	case err != nil:
		return false, fmt.Errorf("pin %s to port %s: %w", mac, device, err)
	}
	return true, nil
}
