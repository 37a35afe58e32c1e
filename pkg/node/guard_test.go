package node

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var (
	target4 = Target{netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("169.254.77.1")}
	target6 = Target{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("fd7a:706f:6472::1")}

	credentials4 = Target{netip.MustParseAddr("169.254.170.2"), target4.Agent}
)

func TestGuardRules(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		targets   []Target
		exceptDNS bool
		want      []string // in the order in which they go in
	}{
		"ipv4": {[]Target{target4}, false, []string{
			"8: nop",
			"1: to 169.254.77.1/32 lookup 255",
			"2: to 169.254.77.1/32 prohibit",
			"5: to 169.254.169.254/32 iif lo goto 8",
			"6: to 169.254.169.254/32 prohibit",
		}},
		"ipv6-except-dns": {[]Target{target6}, true, []string{
			"8: nop",
			"1: to fd7a:706f:6472::1/128 lookup 255",
			"2: to fd7a:706f:6472::1/128 prohibit",
			"4: to fd00:ec2::254/128 ipproto 17 dport 53 goto 8",
			"4: to fd00:ec2::254/128 ipproto 6 dport 53 goto 8",
			"5: to fd00:ec2::254/128 iif lo goto 8",
			"6: to fd00:ec2::254/128 prohibit",
		}},
		"container-credentials": {[]Target{target4, credentials4}, false, []string{
			"8: nop",
			"1: to 169.254.77.1/32 lookup 255",
			"2: to 169.254.77.1/32 prohibit",
			"5: to 169.254.169.254/32 iif lo goto 8",
			"6: to 169.254.169.254/32 prohibit",
			"5: to 169.254.170.2/32 iif lo goto 8",
			"6: to 169.254.170.2/32 prohibit",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, rule := range guardRules(byFamily(c.targets)[0], c.exceptDNS) {
				got = append(got, rule.String())
				if rule.priority < 1 || rule.priority > priorityLast {
					t.Errorf("%s is not among the priorities that are ours", rule)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("guard (-want +got):\n%s", diff)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	address := netip.MustParseAddr
	for name, targets := range map[string][]Target{
		"none":       nil,
		"no-address": {{Metadata: target4.Metadata}},
		"mixed":      {{target4.Metadata, target6.Agent}},
		"itself":     {{target4.Metadata, target4.Metadata}},
		"mapped":     {{target6.Metadata, address("::ffff:169.254.77.1")}},
		"zone":       {{target6.Metadata, address("fe80::1%eth0")}},
		"link-local": {{target6.Metadata, address("fe80::1")}},
		"two-agents": {target4, {credentials4.Metadata, address("169.254.77.2")}},
		"twice":      {target4, target6, target4},
	} {
		if err := validate(targets); err == nil {
			t.Errorf("%s: validate(%v) = nil", name, targets)
		}
	}
	if err := validate([]Target{target4, credentials4, target6}); err != nil {
		t.Errorf("validate of good targets = %v", err)
	}
}

func TestNameservers(t *testing.T) {
	t.Parallel()
	content := "# nameserver 1.1.1.1\nnameserver 169.254.169.254\n\tnameserver  fe80::1%eth0 # comment\n" +
		"nameserver\nnameserver dns.example\nsearch nameserver 9.9.9.9\nnameserver ::ffff:10.0.0.2"
	var got []string
	for addr := range nameservers(content) {
		got = append(got, addr.String())
	}
	if want := []string{"169.254.169.254", "fe80::1", "10.0.0.2"}; !slices.Equal(got, want) {
		t.Errorf("nameservers = %q, want %q", got, want)
	}
}

// ruleMessage builds the message by which the kernel describes a rule.
func ruleMessage(family, dstLen, action byte, attrs ...*nl.RtAttr) []byte {
	msg := make([]byte, hdrLen)
	msg[hdrFamily], msg[hdrDstLen], msg[hdrAction] = family, dstLen, action
	for _, a := range attrs {
		msg = append(msg, a.Serialize()...)
	}
	return msg
}

func u32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func TestParseRule(t *testing.T) {
	t.Parallel()
	priority := nl.NewRtAttr(nl.FRA_PRIORITY, u32(5))
	dst := nl.NewRtAttr(nl.FRA_DST, []byte{169, 254, 169, 254})
	proto := nl.NewRtAttr(nl.FRA_PROTOCOL, []byte{unix.RTPROT_KERNEL})
	for name, c := range map[string]struct {
		msg  []byte
		want string
	}{
		"node": {ruleMessage(unix.AF_INET, 32, nl.FR_ACT_GOTO, priority, dst, proto,
			nl.NewRtAttr(nl.FRA_IIFNAME, []byte("lo\x00")), nl.NewRtAttr(nl.FRA_GOTO, u32(8)),
			nl.NewRtAttr(nl.FRA_SUPPRESS_PREFIXLEN, u32(0xffffffff))),
			"5: to 169.254.169.254/32 iif lo goto 8"},
		"dport-range": {ruleMessage(unix.AF_INET, 32, nl.FR_ACT_PROHIBIT, priority, dst, proto,
			nl.NewRtAttr(nl.FRA_DPORT_RANGE, []byte{53, 0, 54, 0})),
			"5: to 169.254.169.254/32 attribute 24 35003600  prohibit"},
		"source": {ruleMessage(unix.AF_INET, 32, nl.FR_ACT_PROHIBIT, priority, dst, proto,
			nl.NewRtAttr(nl.FRA_SRC, []byte{10, 0, 0, 1})),
			"5: from 10.0.0.1/0 to 169.254.169.254/32 prohibit"},
	} {
		rule, protocol, err := parseRule(c.msg)
		if err != nil || protocol != unix.RTPROT_KERNEL || rule.String() != c.want {
			t.Errorf("%s: parseRule = %q, protocol %d, %v, want %q", name, rule, protocol, err, c.want)
		}
	}
	if _, _, err := parseRule([]byte{unix.AF_INET}); err == nil {
		t.Error("parseRule took a message of one byte")
	}
}

func FuzzParseRule(f *testing.F) {
	for _, family := range byFamily([]Target{target4, target6}) {
		for _, rule := range guardRules(family, true) {
			f.Add(ruleMessage(byte(rule.family), byte(rule.to.Bits()), rule.action,
				nl.NewRtAttr(nl.FRA_PRIORITY, u32(uint32(rule.priority))), nl.NewRtAttr(nl.FRA_DST, rule.to.Addr().AsSlice()),
				nl.NewRtAttr(nl.FRA_DPORT_RANGE, []byte{53, 0, 53, 0}), nl.NewRtAttr(nl.FRA_IP_PROTO, []byte{17})))
		}
	}
	f.Add([]byte{})
	f.Add([]byte("000000000000\x05\x00000")) // the last attribute lacks its padding
	f.Fuzz(func(_ *testing.T, msg []byte) {
		rule, _, err := parseRule(msg)
		if err == nil {
			_ = fmt.Sprint(rule)
		}
	})
}
