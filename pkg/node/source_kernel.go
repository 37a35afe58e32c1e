package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// kernelSocket asks the kernel one thing at a time, each as a netlink message about a single object. (The library
// used elsewhere lists all neighbours or all forwarding entries to find one.) It is not safe for concurrent use.
type kernelSocket struct {
	fd       int
	sequence uint32
	request  []byte
	reply    [replySize]byte
	ifreq    unix.Ifreq
}

// replySize holds any answer: the longest is about a bridge, of less than 2 KiB.
const replySize = 16 << 10

var errNoAnswer = errors.New("the kernel gave no answer that fits the question")

func newKernelSocket() (*kernelSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	// A connected netlink socket takes messages from its peer alone: the kernel.
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return &kernelSocket{fd: fd}, nil
}

func (s *kernelSocket) close() { _ = unix.Close(s.fd) } // nothing was written that could be lost

// begin starts a request with the header of its type; attribute appends to it; ask sends it.
func (s *kernelSocket) begin(kind uint16, header ...byte) {
	s.sequence++
	b := s.request[:0]
	b = binary.NativeEndian.AppendUint32(b, 0) // the length, once it is known
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, s.sequence)
	b = binary.NativeEndian.AppendUint32(b, 0) // our port: the kernel knows it
	s.request = append(b, header...)
}

func (s *kernelSocket) attribute(kind uint16, value ...byte) {
	b := s.request
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.RTA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	s.request = b
}

// ask returns the payload of the answer, valid until the next question; the kernel's refusal is a unix.Errno. The
// kernel has answered by the time that write(2) returns, so that reading never waits.
func (s *kernelSocket) ask(answer uint16) ([]byte, error) {
	binary.NativeEndian.PutUint32(s.request, uint32(len(s.request)))
	for {
		if _, err := unix.Write(s.fd, s.request); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
	for {
		n, err := unix.Read(s.fd, s.reply[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return nil, errNoAnswer
		case err != nil:
			return nil, err
		}
		sequence, payload, err := parseAnswer(s.reply[:n], answer)
		if sequence == s.sequence {
			return payload, err
		}
	}
}

// parseAnswer reads a netlink message that is an answer of the given type, or a refusal, and which question it is for.
func parseAnswer(msg []byte, answer uint16) (sequence uint32, payload []byte, err error) {
	if len(msg) < unix.SizeofNlMsghdr {
		return 0, nil, errNoAnswer
	}
	length := binary.NativeEndian.Uint32(msg)
	kind := binary.NativeEndian.Uint16(msg[4:])
	sequence = binary.NativeEndian.Uint32(msg[8:])
	if length < unix.SizeofNlMsghdr || uint64(length) > uint64(len(msg)) {
		return 0, nil, errNoAnswer // cut off
	}
	payload = msg[unix.SizeofNlMsghdr:length]
	switch {
	case kind == unix.NLMSG_ERROR && len(payload) >= 4:
		if code := -int32(binary.NativeEndian.Uint32(payload)); code > 0 {
			return sequence, nil, unix.Errno(code)
		}
		return sequence, nil, errNoAnswer
	case kind == answer:
		return sequence, payload, nil
	}
	return sequence, nil, errNoAnswer
}

// attributes yields the attributes of a message behind a header of the given length. What does not fit ends it.
func attributes(msg []byte, header int) func(yield func(kind uint16, value []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for rest := msg[min(header, len(msg)):]; len(rest) >= unix.SizeofRtAttr; {
			length := int(binary.NativeEndian.Uint16(rest))
			kind := binary.NativeEndian.Uint16(rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if length < unix.SizeofRtAttr || length > len(rest) {
				return
			}
			if !yield(kind, rest[unix.SizeofRtAttr:length]) {
				return
			}
			rest = rest[min((length+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(rest)):]
		}
	}
}

// sourceRoute is what an RTM_NEWROUTE message says (rtnetlink(7)).
type sourceRoute struct {
	kind    uint8 // unix.RTN_*
	index   int
	gateway bool
}

// route asks for the route to an address; as from, if that is valid.
func (s *kernelSocket) route(to, from netip.Addr) (sourceRoute, error) {
	var header [unix.SizeofRtMsg]byte
	header[0] = byte(familyOf(to))
	header[1] = byte(to.BitLen())
	if from.IsValid() {
		header[2] = byte(from.BitLen())
	}
	s.begin(unix.RTM_GETROUTE, header[:]...)
	s.address(unix.RTA_DST, to)
	if from.IsValid() {
		s.address(unix.RTA_SRC, from)
	}
	msg, err := s.ask(unix.RTM_NEWROUTE)
	if err != nil {
		return sourceRoute{}, err
	}
	return parseSourceRoute(msg)
}

func (s *kernelSocket) address(kind uint16, addr netip.Addr) {
	if addr.Is4() {
		b := addr.As4()
		s.attribute(kind, b[:]...)
		return
	}
	b := addr.As16()
	s.attribute(kind, b[:]...)
}

func parseSourceRoute(msg []byte) (sourceRoute, error) {
	if len(msg) < unix.SizeofRtMsg {
		return sourceRoute{}, errNoAnswer
	}
	r := sourceRoute{kind: msg[7]}
	for kind, value := range attributes(msg, unix.SizeofRtMsg) {
		switch {
		case kind == unix.RTA_OIF && len(value) >= 4:
			r.index = int(binary.NativeEndian.Uint32(value))
		case kind == unix.RTA_GATEWAY, kind == unix.RTA_VIA:
			r.gateway = true
		}
	}
	return r, nil
}

// interfaceName takes no lock of the kernel (netdevice(7), SIOCGIFNAME).
func (s *kernelSocket) interfaceName(index int) (string, error) {
	s.ifreq.SetUint32(uint32(index))
	for {
		if err := unix.IoctlIfreq(s.fd, unix.SIOCGIFNAME, &s.ifreq); err == nil {
			return s.ifreq.Name(), nil
		} else if !errors.Is(err, unix.EINTR) {
			return "", err
		}
	}
}

// linkKind is what an RTM_NEWLINK message says.
type linkKind struct {
	name   string
	bridge bool
	vlans  bool // of a bridge: it tells VLANs apart
}

// skipStatistics is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStatistics = 1 << 3

func (s *kernelSocket) linkKind(index int) (linkKind, error) {
	var header [unix.SizeofIfInfomsg]byte
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	s.begin(unix.RTM_GETLINK, header[:]...)
	s.attribute(unix.IFLA_EXT_MASK, binary.NativeEndian.AppendUint32(nil, skipStatistics)...)
	msg, err := s.ask(unix.RTM_NEWLINK)
	if err != nil {
		return linkKind{}, err
	}
	return parseLinkKind(msg)
}

func parseLinkKind(msg []byte) (linkKind, error) {
	if len(msg) < unix.SizeofIfInfomsg {
		return linkKind{}, errNoAnswer
	}
	var link linkKind
	var data []byte
	for kind, value := range attributes(msg, unix.SizeofIfInfomsg) {
		switch kind {
		case unix.IFLA_IFNAME:
			link.name = unix.ByteSliceToString(value)
		case unix.IFLA_LINKINFO:
			for kind, value := range attributes(value, 0) {
				switch kind {
				case unix.IFLA_INFO_KIND:
					link.bridge = unix.ByteSliceToString(value) == "bridge"
				case unix.IFLA_INFO_DATA:
					data = value
				}
			}
		}
	}
	if link.bridge {
		for kind, value := range attributes(data, 0) {
			if kind == unix.IFLA_BR_VLAN_FILTERING && len(value) >= 1 {
				link.vlans = value[0] != 0
			}
		}
	}
	return link, nil
}

// resolved are the states in which a neighbour entry has an address that packets are sent to (NUD_VALID in the kernel).
const resolved = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE |
	unix.NUD_DELAY

// sizeofNdMsg is the length of struct ndmsg (linux/neighbour.h).
const sizeofNdMsg = 12

// neighbour returns the address of an entry, nil if it has none. Without an entry, the error is ENOENT.
func (s *kernelSocket) neighbour(index int, addr netip.Addr) (net.HardwareAddr, error) {
	var header [sizeofNdMsg]byte
	header[0] = byte(familyOf(addr))
	binary.NativeEndian.PutUint32(header[4:], uint32(index))
	s.begin(unix.RTM_GETNEIGH, header[:]...)
	s.address(unix.NDA_DST, addr)
	msg, err := s.ask(unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, err
	}
	return parseNeighbour(msg)
}

func parseNeighbour(msg []byte) (net.HardwareAddr, error) {
	if len(msg) < sizeofNdMsg {
		return nil, errNoAnswer
	}
	if state := binary.NativeEndian.Uint16(msg[8:]); state&resolved == 0 {
		return nil, nil
	}
	for kind, value := range attributes(msg, sizeofNdMsg) {
		if kind == unix.NDA_LLADDR && len(value) > 0 {
			return slices.Clone(value), nil
		}
	}
	return nil, nil
}

// bridgePort returns the index of the port behind which a bridge that tells no VLANs apart has an address. Without an
// entry, the error is ENOENT.
func (s *kernelSocket) bridgePort(bridge int, mac net.HardwareAddr) (int, error) {
	var header [sizeofNdMsg]byte
	header[0] = unix.AF_BRIDGE
	s.begin(unix.RTM_GETNEIGH, header[:]...)
	s.attribute(unix.NDA_LLADDR, mac...)
	s.attribute(unix.NDA_MASTER, binary.NativeEndian.AppendUint32(nil, uint32(bridge))...)
	msg, err := s.ask(unix.RTM_NEWNEIGH)
	if err != nil {
		return 0, err
	}
	return parseBridgePort(msg)
}

func parseBridgePort(msg []byte) (int, error) {
	if len(msg) < sizeofNdMsg {
		return 0, fmt.Errorf("read forwarding entry: %w", errNoAnswer)
	}
	return int(binary.NativeEndian.Uint32(msg[4:])), nil
}
