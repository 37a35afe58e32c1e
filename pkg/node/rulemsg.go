package node

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Offsets in struct fib_rule_hdr (linux/fib_rules.h).
const (
	hdrFamily = 0
	hdrDstLen = 1
	hdrSrcLen = 2
	hdrTOS    = 3
	hdrTable  = 4
	hdrAction = 7
	hdrFlags  = 8
	hdrLen    = 12
)

// parseRule reads an RTM_NEWRULE message and the protocol that the rule bears. What our rules never match on is
// gathered in rest, so that a rule that has any of it is not taken for one of those wanted.
func parseRule(msg []byte) (rule policyRule, protocol uint8, err error) {
	if len(msg) < hdrLen {
		return policyRule{}, 0, fmt.Errorf("read policy rule: message of %d bytes is too short", len(msg))
	}
	rule = policyRule{family: int(msg[hdrFamily]), action: msg[hdrAction]}
	table := uint32(msg[hdrTable])
	if msg[hdrTOS] != 0 {
		rule.rest += fmt.Sprintf("tos %d ", msg[hdrTOS])
	}
	if flags := binary.NativeEndian.Uint32(msg[hdrFlags:]); flags&unix.FIB_RULE_INVERT != 0 {
		rule.rest += "not "
	}
	// The library takes the padding of the last attribute for granted.
	padded := append(slices.Clip(msg), make([]byte, -len(msg)&(unix.RTA_ALIGNTO-1))...)
	attrs, err := nl.ParseRouteAttr(padded[hdrLen:])
	if err != nil {
		return policyRule{}, 0, fmt.Errorf("read policy rule: %w", err)
	}
	for _, a := range attrs {
		v := a.Value
		// Each attribute with the length that is read of it.
		switch {
		case a.Attr.Type == nl.FRA_PRIORITY && len(v) >= 4:
			rule.priority = int(binary.NativeEndian.Uint32(v))
		case a.Attr.Type == nl.FRA_TABLE && len(v) >= 4:
			table = binary.NativeEndian.Uint32(v)
		case a.Attr.Type == nl.FRA_GOTO && len(v) >= 4:
			rule.target = int(binary.NativeEndian.Uint32(v))
		case a.Attr.Type == nl.FRA_PROTOCOL && len(v) >= 1:
			protocol = v[0]
		case a.Attr.Type == nl.FRA_DST:
			addr, _ := netip.AddrFromSlice(v)
			rule.to = netip.PrefixFrom(addr, int(msg[hdrDstLen]))
		case a.Attr.Type == nl.FRA_IIFNAME:
			rule.iif = unix.ByteSliceToString(v)
		case a.Attr.Type == nl.FRA_IP_PROTO && len(v) >= 1:
			rule.ipProto = int(v[0])
		case a.Attr.Type == nl.FRA_DPORT_RANGE && len(v) >= 4 &&
			binary.NativeEndian.Uint16(v) == binary.NativeEndian.Uint16(v[2:]):
			rule.dport = binary.NativeEndian.Uint16(v)
		case a.Attr.Type == nl.FRA_SRC:
			addr, _ := netip.AddrFromSlice(v)
			rule.from = netip.PrefixFrom(addr, int(msg[hdrSrcLen]))
		case a.Attr.Type == nl.FRA_FWMARK, a.Attr.Type == nl.FRA_TUN_ID, a.Attr.Type == nl.FRA_OIFNAME,
			a.Attr.Type == nl.FRA_L3MDEV, a.Attr.Type == nl.FRA_UID_RANGE, a.Attr.Type == nl.FRA_SPORT_RANGE,
			a.Attr.Type == nl.FRA_DPORT_RANGE:
			rule.rest += fmt.Sprintf("attribute %d %x ", a.Attr.Type, v)
		}
	}
	if rule.action == nl.FR_ACT_TO_TBL {
		rule.table = int(table)
	}
	return rule, protocol, nil
}
