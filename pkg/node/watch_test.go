package node

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/node/netevents"
)

// attributed returns a message with a header of the given bytes and attributes behind it.
func attributed(kind uint16, header []byte, attrs ...*nl.RtAttr) netevents.Message {
	payload := append([]byte(nil), header...)
	for _, a := range attrs {
		payload = append(payload, a.Serialize()...)
	}
	return netevents.Message{Kind: kind, Payload: payload}
}

func TestInterest(t *testing.T) {
	t.Parallel()
	address := func(s string) []byte { return netip.MustParseAddr(s).AsSlice() }
	rule := func(priority, table uint32, protocol byte, attrs ...*nl.RtAttr) netevents.Message {
		attrs = append(attrs, nl.NewRtAttr(nl.FRA_PRIORITY, u32(priority)), nl.NewRtAttr(nl.FRA_TABLE, u32(table)),
			nl.NewRtAttr(nl.FRA_PROTOCOL, []byte{protocol}))
		return netevents.Message{
			Kind:    unix.RTM_DELRULE,
			Payload: ruleMessage(unix.AF_INET, 0, nl.FR_ACT_TO_TBL, attrs...),
		}
	}
	iif := func(name string) *nl.RtAttr { return nl.NewRtAttr(nl.FRA_IIFNAME, []byte(name+"\x00")) }
	route := func(family, dstLen byte, table uint32, dst string) netevents.Message {
		header := make([]byte, unix.SizeofRtMsg)
		header[0], header[1] = family, dstLen
		return attributed(unix.RTM_NEWROUTE, header,
			nl.NewRtAttr(unix.RTA_TABLE, u32(table)), nl.NewRtAttr(unix.RTA_DST, address(dst)))
	}
	addr := func(kind uint16, s string) netevents.Message {
		return attributed(kind, make([]byte, unix.SizeofIfAddrmsg), nl.NewRtAttr(unix.IFA_ADDRESS, address(s)))
	}
	link := func(index byte) netevents.Message {
		header := make([]byte, unix.SizeofIfInfomsg)
		copy(header[4:], u32(uint32(index)))
		return attributed(unix.RTM_NEWLINK, header)
	}
	in := interestOf(byFamily([]Target{target4, credentials4, target6}))
	for name, c := range map[string]struct {
		message netevents.Message
		matters bool
	}{
		"our-rule":                {rule(6, 0, unix.RTPROT_KERNEL), true},
		"rule-of-others":          {rule(6, 0, unix.RTPROT_STATIC), false},
		"rule-local":              {rule(0, unix.RT_TABLE_LOCAL, unix.RTPROT_KERNEL), false},
		"rule-of-pod":             {rule(512, 2, unix.RTPROT_BOOT, nl.NewRtAttr(nl.FRA_SRC, address("10.0.0.9"))), false},
		"rule-of-interface":       {rule(10, 101, unix.RTPROT_BOOT, iif("vlan1")), true},
		"rule-of-interface-main":  {rule(10, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, iif("vlan1")), false},
		"rule-of-lo":              {rule(10, 101, unix.RTPROT_BOOT, iif("lo")), false},
		"agent-address":           {addr(unix.RTM_DELADDR, "169.254.77.1"), true},
		"agent-address-ipv6":      {addr(unix.RTM_DELADDR, "fd7a:706f:6472::1"), true},
		"metadata-becomes-local":  {addr(unix.RTM_NEWADDR, "169.254.169.254"), true},
		"credentials-local":       {addr(unix.RTM_NEWADDR, "169.254.170.2"), true},
		"other-address":           {addr(unix.RTM_NEWADDR, "10.0.0.9"), false},
		"agent-route":             {route(unix.AF_INET, 32, unix.RT_TABLE_LOCAL, "169.254.77.1"), true},
		"metadata-route":          {route(unix.AF_INET6, 128, unix.RT_TABLE_MAIN, "fd00:ec2::254"), true},
		"pod-route":               {route(unix.AF_INET, 32, unix.RT_TABLE_MAIN, "10.0.0.9"), false},
		"pod-route-in-own-table":  {route(unix.AF_INET, 32, 101, "10.0.0.9"), true},
		"pod-route-in-own-table6": {route(unix.AF_INET6, 128, 1001, "2001:db8::9"), true},
		"network-in-own-table":    {route(unix.AF_INET, 24, 101, "10.0.0.0"), false},
		"lo":                      {link(loIndex), true},
		"other-link":              {link(7), false},
		"neighbour":               {netevents.Message{Kind: unix.RTM_NEWNEIGH, Payload: make([]byte, sizeofNdMsg)}, false},
		"empty":                   {netevents.Message{Kind: unix.RTM_NEWRULE}, false},
	} {
		if got := in.in(c.message); got != c.matters {
			t.Errorf("%s matters: %t", name, got)
		}
	}
}

func FuzzInterest(f *testing.F) {
	f.Add(uint16(unix.RTM_NEWRULE), ruleMessage(unix.AF_INET, 32, nl.FR_ACT_TO_TBL, nl.NewRtAttr(nl.FRA_PRIORITY, u32(6))))
	agent := nl.NewRtAttr(unix.IFA_LOCAL, []byte{169, 254, 77, 1})
	f.Add(uint16(unix.RTM_DELADDR), attributed(0, make([]byte, unix.SizeofIfAddrmsg), agent).Payload)
	f.Add(uint16(unix.RTM_NEWROUTE), make([]byte, unix.SizeofRtMsg))
	f.Add(uint16(unix.RTM_NEWLINK), []byte{1})
	in := interestOf(byFamily([]Target{target4, target6}))
	f.Fuzz(func(_ *testing.T, kind uint16, payload []byte) {
		in.in(netevents.Message{Kind: kind, Payload: payload})
	})
}
