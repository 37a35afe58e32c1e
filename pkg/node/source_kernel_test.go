package node

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// message builds a netlink message, its attributes with the same code as requests.
func message(kind uint16, header []byte, attributes func(*kernelSocket)) []byte {
	s := &kernelSocket{sequence: 6}
	s.begin(kind, header...)
	if attributes != nil {
		attributes(s)
	}
	binary.NativeEndian.PutUint32(s.request, uint32(len(s.request)))
	return s.request
}

func TestParseAnswer(t *testing.T) {
	t.Parallel()
	refusal := func(code int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(code)) }
	whole := message(unix.RTM_NEWNEIGH, make([]byte, sizeofNdMsg), nil)
	for name, c := range map[string]struct {
		msg  []byte
		want error
	}{
		"answer":            {whole, nil},
		"empty":             {nil, errNoAnswer},
		"header-cut-off":    {whole[:unix.SizeofNlMsghdr-1], errNoAnswer},
		"payload-cut-off":   {whole[:len(whole)-1], errNoAnswer},
		"of-another-kind":   {message(unix.RTM_NEWROUTE, make([]byte, unix.SizeofRtMsg), nil), errNoAnswer},
		"refusal":           {message(unix.NLMSG_ERROR, refusal(-int32(unix.ENOENT)), nil), unix.ENOENT},
		"acknowledgement":   {message(unix.NLMSG_ERROR, refusal(0), nil), errNoAnswer},
		"refusal-positive":  {message(unix.NLMSG_ERROR, refusal(1), nil), errNoAnswer},
		"refusal-cut-short": {message(unix.NLMSG_ERROR, []byte{1, 2}, nil), errNoAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sequence, payload, err := parseAnswer(c.msg, unix.RTM_NEWNEIGH)
			if !errors.Is(err, c.want) {
				t.Errorf("parseAnswer error = %v, want %v", err, c.want)
			}
			if err == nil && (sequence != 7 || len(payload) != sizeofNdMsg) {
				t.Errorf("parseAnswer = %d, %d bytes", sequence, len(payload))
			}
		})
	}
}

func TestParseNeighbourStates(t *testing.T) {
	t.Parallel()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	for state, want := range map[uint16]net.HardwareAddr{
		unix.NUD_NONE: nil, unix.NUD_INCOMPLETE: nil, unix.NUD_FAILED: nil,
		unix.NUD_REACHABLE: mac, unix.NUD_STALE: mac, unix.NUD_DELAY: mac, unix.NUD_PROBE: mac,
		unix.NUD_PERMANENT: mac, unix.NUD_NOARP: mac,
	} {
		header := make([]byte, sizeofNdMsg)
		binary.NativeEndian.PutUint16(header[8:], state)
		msg := message(unix.RTM_NEWNEIGH, header, func(s *kernelSocket) { s.attribute(unix.NDA_LLADDR, mac...) })
		got, err := parseNeighbour(msg[unix.SizeofNlMsghdr:])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("state %#x (-want +got):\n%s", state, diff)
		}
	}
}

func TestParseLinkKind(t *testing.T) {
	t.Parallel()
	build := func(kind string, filtering ...byte) []byte {
		inner, data := &kernelSocket{}, &kernelSocket{}
		data.attribute(unix.IFLA_BR_VLAN_FILTERING, filtering...)
		inner.attribute(unix.IFLA_INFO_KIND, append([]byte(kind), 0)...)
		inner.attribute(unix.IFLA_INFO_DATA, data.request...)
		return message(unix.RTM_NEWLINK, make([]byte, unix.SizeofIfInfomsg), func(s *kernelSocket) {
			s.attribute(unix.IFLA_IFNAME, append([]byte("cni0"), 0)...)
			s.attribute(unix.IFLA_LINKINFO, inner.request...)
		})[unix.SizeofNlMsghdr:]
	}
	for name, c := range map[string]struct {
		msg  []byte
		want linkKind
	}{
		"bridge":           {build("bridge", 0), linkKind{name: "cni0", bridge: true}},
		"bridge-of-vlans":  {build("bridge", 1), linkKind{name: "cni0", bridge: true, vlans: true}},
		"bridge-before-it": {build("bridge"), linkKind{name: "cni0", bridge: true}},
		"bridge-port":      {build("bridge_slave", 1), linkKind{name: "cni0"}},
		"open-vswitch":     {build("openvswitch"), linkKind{name: "cni0"}},
		"physical":         {make([]byte, unix.SizeofIfInfomsg), linkKind{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseLinkKind(c.msg)
			if err != nil || got != c.want {
				t.Errorf("parseLinkKind = %+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

func FuzzParseSource(f *testing.F) {
	f.Add(message(unix.RTM_NEWROUTE, make([]byte, unix.SizeofRtMsg), func(s *kernelSocket) {
		s.attribute(unix.RTA_OIF, 1, 0, 0, 0)
		s.attribute(unix.RTA_GATEWAY, 10, 0, 0, 1)
	}))
	f.Add(message(unix.RTM_NEWNEIGH, make([]byte, sizeofNdMsg), func(s *kernelSocket) {
		s.attribute(unix.NDA_LLADDR, 2, 0, 0, 0, 0, 7)
	}))
	f.Add(message(unix.RTM_NEWLINK, make([]byte, unix.SizeofIfInfomsg), func(s *kernelSocket) {
		s.attribute(unix.IFLA_LINKINFO, 11, 0, 1, 0, 'b', 'r', 'i', 'd', 'g', 'e', 0, 0)
	}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, kind := range []uint16{unix.RTM_NEWROUTE, unix.RTM_NEWLINK, unix.RTM_NEWNEIGH} {
			_, payload, err := parseAnswer(msg, kind)
			if err == nil && payload == nil {
				t.Error("neither payload nor error")
			}
		}
		// What follows is to reject what is too short for its header, and nothing else.
		if _, err := parseSourceRoute(msg); (err != nil) != (len(msg) < unix.SizeofRtMsg) {
			t.Errorf("parseSourceRoute: %v", err)
		}
		if _, err := parseLinkKind(msg); (err != nil) != (len(msg) < unix.SizeofIfInfomsg) {
			t.Errorf("parseLinkKind: %v", err)
		}
		if _, err := parseNeighbour(msg); (err != nil) != (len(msg) < sizeofNdMsg) {
			t.Errorf("parseNeighbour: %v", err)
		}
		if _, err := parseBridgePort(msg); (err != nil) != (len(msg) < sizeofNdMsg) {
			t.Errorf("parseBridgePort: %v", err)
		}
	})
}

// With all sockets held by questions that the kernel does not answer, callers wait no longer than they want to.
func TestLocateWaitsNoLongerThanContext(t *testing.T) {
	t.Parallel()
	busy := &Locator{idle: make(chan *kernelSocket)}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := busy.Locate(ctx, netip.MustParseAddr("192.0.2.1"), netip.Addr{}); !errors.Is(err, cause) {
		t.Errorf("Locate = %v, want %v", err, cause)
	}
}
