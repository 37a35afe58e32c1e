package node

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FlushConntrack forgets the connections to the metadata address that do not lead to the agent, and returns how many
// there were: pods' connections to the instance's own service, and what other redirects have translated. It is to be
// called when the iptables rules have first gone in, for rules of table nat only ever see the first packet of a
// connection. Connections that lead to the agent are kept, so that calling it again disturbs nobody.
func (r *Redirect) FlushConntrack() (flushed int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, t := range r.cfg.Targets {
		n, err := r.handle.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(familyOf(t.Metadata)),
			elsewhere{metadata: t.Metadata.AsSlice(), agent: t.Agent.AsSlice()})
		flushed += int(n)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT):
			errs = append(errs, fmt.Errorf("flush connections to %v: %w: load the kernel module nf_conntrack_netlink",
				t.Metadata, err))
		case err != nil:
			errs = append(errs, fmt.Errorf("flush connections to %v: %w", t.Metadata, err))
		}
	}
	if flushed > 0 {
		r.cfg.Logger.Info("connections to the metadata address flushed", "count", flushed)
	}
	return flushed, errors.Join(errs...)
}

// elsewhere matches connections to the metadata address that are answered by anything but the agent.
type elsewhere struct{ metadata, agent net.IP }

var _ netlink.CustomConntrackFilter = elsewhere{}

// MatchConntrackFlow implements [netlink.CustomConntrackFilter].
func (e elsewhere) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	return flow.Forward.DstIP.Equal(e.metadata) && !flow.Reverse.SrcIP.Equal(e.agent)
}
