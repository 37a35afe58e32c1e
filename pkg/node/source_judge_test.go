package node_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/node"
)

func TestJudge(t *testing.T) {
	t.Parallel()
	var (
		ip      = netip.MustParseAddr("10.0.0.7")
		ip6     = netip.MustParseAddr("2001:db8::7")
		egress  = netip.MustParseAddr("169.254.172.7")
		mac     = net.HardwareAddr{2, 0, 0, 0, 0, 7}
		other   = net.HardwareAddr{2, 0, 0, 0, 0, 8}
		sandbox = node.Sandbox{HostInterface: "veth7", MAC: mac, Addresses: []netip.Addr{ip, ip6}}
		own     = node.Place{Interface: "veth7", Index: 7}
		bridge  = node.Place{Interface: "cni0", Index: 3, Bridge: true, MAC: mac, Port: "veth7"}
		shared  = node.Place{Interface: "cilium_host", Index: 4, Gateway: true}
	)
	with := func(p node.Place, change func(*node.Place)) node.Place {
		change(&p)
		return p
	}
	bare := func(change func(*node.Sandbox)) node.Sandbox {
		s := sandbox
		change(&s)
		return s
	}
	for name, c := range map[string]struct {
		place   node.Place
		source  netip.Addr
		sandbox node.Sandbox
		want    node.Mismatch // empty: a match
	}{
		"own":             {own, ip, sandbox, ""},
		"own-ipv6":        {own, ip6, sandbox, ""},
		"own-mapped":      {own, netip.AddrFrom16(ip.As16()), sandbox, ""},
		"own-egress":      {own, egress, sandbox, ""},
		"own-without-mac": {own, ip, bare(func(s *node.Sandbox) { s.MAC = nil }), ""},
		"own-of-another": {with(own, func(p *node.Place) { p.Interface = "veth8" }),
			ip, sandbox, node.MismatchInterface},
		"own-gateway": {with(own, func(p *node.Place) { p.Gateway = true }),
			ip, sandbox, node.MismatchGateway},
		"own-unknown": {own,
			ip, bare(func(s *node.Sandbox) { s.HostInterface = "" }), node.MismatchUnattached},
		"nowhere":         {node.Place{}, ip, sandbox, node.MismatchNowhere},
		"nowhere-unknown": {node.Place{}, ip, node.Sandbox{}, node.MismatchNowhere},
		"node": {node.Place{Interface: "lo", Index: 1, Local: true},
			ip, sandbox, node.MismatchLocal},
		"node-of-pod-interface": {with(own, func(p *node.Place) { p.Local = true }),
			ip, sandbox, node.MismatchLocal},
		"uplink": {node.Place{Interface: "eth0", Index: 2}, ip, sandbox, node.MismatchInterface},

		"bridge":             {bridge, ip, sandbox, ""},
		"bridge-ipv6":        {bridge, ip6, sandbox, ""},
		"bridge-mapped":      {bridge, netip.AddrFrom16(ip.As16()), sandbox, ""},
		"bridge-without-mac": {bridge, ip, bare(func(s *node.Sandbox) { s.MAC = nil }), ""},
		"bridge-unlisted":    {bridge, egress, sandbox, node.MismatchAddress},
		"bridge-other-mac": {with(bridge, func(p *node.Place) { p.MAC = other }),
			ip, sandbox, node.MismatchMAC},
		"bridge-other-port": {with(bridge, func(p *node.Place) { p.Port = "veth8" }),
			ip, sandbox, node.MismatchPort},
		"bridge-other-port-without-mac": {with(bridge, func(p *node.Place) { p.MAC, p.Port = other, "veth8" }), ip,
			bare(func(s *node.Sandbox) { s.MAC = nil }), node.MismatchPort},
		"bridge-no-neighbour": {with(bridge, func(p *node.Place) { p.MAC, p.Port = nil, "" }), ip, sandbox,
			node.MismatchNoNeighbour},
		"bridge-no-port": {with(bridge, func(p *node.Place) { p.Port = "" }), ip, sandbox, node.MismatchNoPort},
		"bridge-unknown": {with(bridge, func(p *node.Place) { p.Port = "" }), ip,
			bare(func(s *node.Sandbox) { s.HostInterface = "" }), node.MismatchUnattached},
		"bridge-gateway": {with(bridge, func(p *node.Place) { p.Gateway = true }),
			ip, sandbox, node.MismatchGateway},
		// Were the bridge itself taken for the pod's, every pod on it would be.
		"bridge-as-host-interface": {bridge,
			ip, bare(func(s *node.Sandbox) { s.HostInterface = "cni0" }), node.MismatchPort},

		"shared":            {shared, ip, sandbox, ""},
		"shared-unlisted":   {shared, egress, sandbox, node.MismatchAddress},
		"shared-no-sandbox": {shared, ip, node.Sandbox{Addresses: []netip.Addr{ip}}, ""},
		"shared-local": {with(shared, func(p *node.Place) { p.Local = true }),
			ip, sandbox, node.MismatchLocal},
		"shared-bridge": {with(bridge, func(p *node.Place) { p.Interface, p.Port = "cilium_host", "veth8" }),
			ip, sandbox, node.MismatchPort},
		"shared-not-named": {node.Place{Interface: "antrea-gw0", Index: 5},
			ip, sandbox, node.MismatchInterface},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.place.Judge(c.source, c.sandbox, []string{"cilium_host"})
			mismatch, ok := errors.AsType[*node.MismatchError](err)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("Judge = %v, want a match", err)
			case c.want != "" && (!ok || mismatch.Mismatch != c.want):
				t.Errorf("Judge = %v, want %s", err, c.want)
			case ok && !strings.HasPrefix(err.Error(), "source "+c.source.Unmap().String()+": "):
				t.Errorf("Judge = %q, which does not say of what", err)
			}
		})
	}
}
