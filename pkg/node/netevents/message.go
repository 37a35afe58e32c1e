package netevents

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Message is a notification of the kernel.
type Message struct {
	// Kind is the type of the message, such as unix.RTM_NEWRULE.
	Kind uint16
	// Payload is what follows the netlink header. It is valid until the function that was given it returns.
	Payload []byte
}

// messages yields the messages of a datagram (netlink(7)), and a last one of kind unix.NLMSG_OVERRUN where it is cut
// short: what was lost may have been anything.
func messages(datagram []byte) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for rest := datagram; len(rest) > 0; {
			if len(rest) < unix.SizeofNlMsghdr {
				yield(Message{Kind: unix.NLMSG_OVERRUN})
				return
			}
			length := int(binary.NativeEndian.Uint32(rest))
			if length < unix.SizeofNlMsghdr || length > len(rest) {
				yield(Message{Kind: unix.NLMSG_OVERRUN})
				return
			}
			if !yield(Message{binary.NativeEndian.Uint16(rest[4:]), rest[unix.SizeofNlMsghdr:length]}) {
				return
			}
			rest = rest[min(align(length), len(rest)):]
		}
	}
}

// Attributes yields the attributes of a message behind a header of the given length, without the bits that say how they
// are coded. What does not fit ends them.
func (m Message) Attributes(header int) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for rest := m.Payload[min(header, len(m.Payload)):]; len(rest) >= unix.SizeofNlAttr; {
			length := int(binary.NativeEndian.Uint16(rest))
			if length < unix.SizeofNlAttr || length > len(rest) {
				return
			}
			kind := binary.NativeEndian.Uint16(rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(kind, rest[unix.SizeofNlAttr:length]) {
				return
			}
			rest = rest[min(align(length), len(rest)):]
		}
	}
}

func align(length int) int { return (length + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
