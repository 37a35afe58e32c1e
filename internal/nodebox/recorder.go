package nodebox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// snapLength is how much of a packet is kept: the largest IP header and ports.
	snapLength = 64
	// recordLimit bounds the packets kept in memory, receiveBuffer those that wait in the kernel (bytes, of which a
	// small packet takes several hundred).
	recordLimit   = 4096
	receiveBuffer = 4 << 20
	// destinationLimit keeps the filter within the kernel's BPF_MAXINSNS.
	destinationLimit = 64
)

// recorder keeps the packets that arrive on an interface for some destinations. The kernel filters and queues them
// as they arrive; they are read when asked for, so whatever arrived before the question is in the answer.
type recorder struct {
	ifindex int
	exempt  []netip.Addr // sources that may

	mu           sync.Mutex // guards what follows
	fd           int
	bound        bool
	destinations []netip.Addr
	recorded     []Packet
	err          error
}

// newRecorder returns a recorder on a link inside the namespace. It records nothing before watch.
func newRecorder(n *Namespace, link string, exempt []netip.Addr) (*recorder, error) {
	r := &recorder{exempt: exempt}
	err := n.Do(func() (err error) {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return fmt.Errorf("find link %s: %w", link, err)
		}
		r.ifindex = i.Index
		// Protocol 0 receives nothing until the socket is bound, which happens with the filter in place. SOCK_DGRAM
		// leaves the link-level header out.
		r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return wrapf(err, "open packet socket")
	})
	if err != nil {
		return nil, wrapf(err, "create recorder")
	}
	err = errors.Join(
		unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
		unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1),
	)
	if err != nil {
		return nil, wrapf(errors.Join(err, r.close()), "create recorder")
	}
	return r, nil
}

// watch records packets for these destinations, too.
func (r *recorder) watch(destinations ...netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd < 0 {
		return errClosed
	}
	all := slices.Clone(r.destinations)
	for _, d := range destinations {
		if !d.IsValid() {
			return errors.New("watch packets: a destination is the zero address")
		}
		if d = d.Unmap().WithZone(""); !slices.Contains(all, d) {
			all = append(all, d)
		}
	}
	if len(all) > destinationLimit {
		return fmt.Errorf("watch packets: %d destinations are more than %d", len(all), destinationLimit)
	}
	program := packetFilter(all, r.exempt)
	filter := &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, filter); err != nil {
		return fmt.Errorf("attach packet filter: %w", err)
	}
	if !r.bound {
		// Network byte order.
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if err := unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: r.ifindex}); err != nil {
			return fmt.Errorf("bind packet socket: %w", err)
		}
		r.bound = true
	}
	r.destinations = all
	return nil
}

// packets returns all that was recorded so far.
func (r *recorder) packets() []Packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drain()
	return slices.Clone(r.recorded)
}

// close stops recording; what was recorded stays. Its error includes any of reading before: a recorder that went
// deaf must not pass for one that heard nothing.
func (r *recorder) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fd < 0 {
		return nil
	}
	r.drain()
	err := wrapf(unix.Close(r.fd), "close packet socket")
	r.fd = -1
	return errors.Join(r.err, err)
}

// drain reads what the kernel has queued. Called with mu held.
func (r *recorder) drain() {
	data := make([]byte, snapLength)
	control := make([]byte, unix.CmsgSpace(16))
	for r.fd >= 0 {
		size, controlSize, _, _, err := unix.Recvmsg(r.fd, data, control, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN): // the latter says that the link went down
			continue
		case err != nil:
			r.err = fmt.Errorf("record packets: %w", err)
			return
		}
		p, ok := parsePacket(data[:size])
		if !ok || len(r.recorded) >= recordLimit {
			continue
		}
		p.Time = packetTime(control[:controlSize])
		r.recorded = append(r.recorded, p)
	}
}

// packetTime reads the kernel's time stamp: seconds and nanoseconds, 64 bits each (SO_TIMESTAMPNS_NEW).
func packetTime(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS_NEW && len(m.Data) >= 16 {
			seconds, nanoseconds := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
			return time.Unix(int64(seconds), int64(nanoseconds))
		}
	}
	return time.Time{}
}

// packetFilter returns a classic BPF program that accepts received packets for one of the destinations, unless they
// come from an exempt source. Offsets count from the IP header. A load beyond the end of a packet rejects it, so
// IPv4 and IPv6 are told apart first.
func packetFilter(destinations, exempt []netip.Addr) []unix.SockFilter {
	const (
		ipv4Source, ipv4Destination = 12, 16
		ipv6Source, ipv6Destination = 8, 24
		// Offsets at which the kernel shows what is not in the packet: SKF_AD_OFF, SKF_AD_PROTOCOL and SKF_AD_PKTTYPE of
		// linux/filter.h.
		ancillary, packetProtocol, packetType = 0xfffff000, 0, 4
	)
	match := func(is4 bool, sourceOffset, destinationOffset uint32) program {
		var p program
		for _, d := range destinations {
			if d.Is4() != is4 {
				continue
			}
			var accepted program
			for _, e := range exempt {
				if e.Is4() == is4 {
					accepted = append(accepted, ifAddress(sourceOffset, e, program{reject()})...)
				}
			}
			p = append(p, ifAddress(destinationOffset, d, append(accepted, accept()))...)
		}
		return append(p, reject())
	}
	ipv4 := match(true, ipv4Source, ipv4Destination)
	ipv6 := match(false, ipv6Source, ipv6Destination)
	p := program{
		load(ancillary + packetType),
		ifEqual(unix.PACKET_OUTGOING, 0, 1),
		reject(),
		load(ancillary + packetProtocol),
		ifEqual(unix.ETH_P_IP, 3, 0),
		ifEqual(unix.ETH_P_IPV6, 1, 0),
		reject(),
		{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(ipv4))},
	}
	return slices.Concat(p, ipv4, ipv6)
}

// program is a piece of classic BPF.
type program []unix.SockFilter

func accept() unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: snapLength}
}

func reject() unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K} }

// load reads the 32-bit word at offset.
func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_ABS | unix.BPF_W, K: offset}
}

// ifEqual jumps over as many instructions as it is told, depending on whether the word that was read is value.
func ifEqual(value uint32, equal, different int) unix.SockFilter {
	return unix.SockFilter{
		Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K,
		K:    value,
		Jt:   uint8(equal),
		Jf:   uint8(different),
	}
}

// ifAddress runs then if the packet has the address at offset, and continues behind it otherwise.
func ifAddress(offset uint32, address netip.Addr, then program) program {
	raw := address.AsSlice()
	words := len(raw) / 4
	var p program
	for i := range words {
		behind := 2*(words-i-1) + len(then) // instructions between this jump and what follows then
		p = append(p,
			load(offset+uint32(4*i)),
			ifEqual(binary.BigEndian.Uint32(raw[4*i:]), 0, behind),
		)
	}
	return append(p, then...)
}
