package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/internal/nodebox"
)

// Letters of what clients ask for: those of [client.asks].
const (
	letterToken     = 'T' // PUT of a token
	letterList      = 'L' // the list of roles
	letterRole      = 'C' // the credentials of a role
	letterRegion    = 'R' // anything that tells the region
	letterContainer = 'E' // the container credentials endpoint
	letterOther     = '?'
)

// exchange is a request to the metadata service and its answer.
type exchange struct {
	method, path string // empty on a connection without a request
	status       int    // 0 without an answer
}

func (e exchange) String() string {
	if e.method == "" {
		return "a connection without a request"
	}
	answer := "no answer"
	if e.status != 0 {
		answer = strconv.Itoa(e.status)
	}
	return e.method + " " + e.path + " " + answer
}

// letter says what was asked for.
func (e exchange) letter() rune {
	const roles = "/meta-data/iam/security-credentials"
	switch _, role, listed := strings.Cut(e.path, roles); {
	case e.method == "PUT":
		return letterToken
	case strings.HasPrefix(e.path, "/v1/credentials") || strings.HasPrefix(e.path, "/v2/credentials"):
		return letterContainer
	case listed && strings.Trim(role, "/") == "":
		return letterList
	case listed:
		return letterRole
	case strings.Contains(e.path, "/placement/") || strings.Contains(e.path, "/instance-identity/"):
		return letterRegion
	default:
		return letterOther
	}
}

// letters writes a sequence of exchanges in short.
func letters(exchanges []exchange) string {
	var s strings.Builder
	for _, e := range exchanges {
		s.WriteRune(e.letter())
	}
	return s.String()
}

// describe writes a sequence of exchanges at length.
func describe(exchanges []exchange) string {
	const most = 12
	var lines []string
	for _, e := range exchanges[:min(len(exchanges), most)] {
		lines = append(lines, e.String())
	}
	if more := len(exchanges) - most; more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	if len(lines) == 0 {
		return "nothing"
	}
	return strings.Join(lines, ", ")
}

// wire listens to a pod's conversation with the metadata service, by whichever of its addresses, from the pod's own end of the cable. The kernel queues
// the packets; they are read when asked for, so what was sent before the question is in the answer.
type wire struct {
	mu        sync.Mutex // guards what follows
	fd        int
	exchanges []*exchange
	current   map[uint16]*exchange // by the client's port
}

// metadataAddress is where clients look, and nothing else can be told to all of them.
func metadataAddress() netip.AddrPort { return netip.MustParseAddrPort("169.254.169.254:80") }

// listenedTo reports whether a is an address of the metadata service or of the container credentials endpoint.
func listenedTo(a netip.AddrPort) bool {
	switch a {
	case metadataAddress(), netip.MustParseAddrPort("169.254.170.2:80"), netip.MustParseAddrPort("169.254.170.23:80"):
		return true
	}
	return false
}

const (
	// snapLength is what is read of a packet: the heads, and a request's or an answer's first line.
	snapLength = 512
	// queueLength is how many bytes wait in the kernel, of which a small packet takes some hundred. A client in a hot
	// loop may overflow it, and is found out all the same.
	queueLength = 8 << 20
)

// listen starts listening in a pod.
func listen(pod *nodebox.Pod) (*wire, error) {
	w := &wire{current: map[uint16]*exchange{}}
	err := pod.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		// In network byte order. ETH_P_IP alone would not show what the pod sends.
		protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
		// SOCK_DGRAM leaves the link-level header out.
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueLength),
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}))
	})
	if err != nil {
		return nil, fmt.Errorf("listen in pod: %w", err)
	}
	return w, nil
}

func (w *wire) close() error { return unix.Close(w.fd) }

// heard returns the exchanges so far, in order of their connections.
func (w *wire) heard() []exchange {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drain()
	list := make([]exchange, len(w.exchanges))
	for i, e := range w.exchanges {
		list[i] = *e
	}
	return list
}

// first returns when something was sent to the metadata service, or with ctx.
func (w *wire) first(ctx context.Context) error {
	for ctx.Err() == nil {
		if len(w.heard()) > 0 {
			return nil
		}
		const nap = 50 * time.Millisecond // between looks at ctx
		poll := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, int(nap.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for a packet: %w", err)
		}
	}
	return ctx.Err()
}

// drain reads what is queued. Called with mu held.
func (w *wire) drain() {
	packet := make([]byte, snapLength)
	for {
		n, _, err := unix.Recvfrom(w.fd, packet, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
		case err != nil:
			return // nothing is left
		default:
			if s, ok := parseSegment(packet[:n]); ok {
				w.add(s)
			}
		}
	}
}

// add takes one segment into account.
func (w *wire) add(s segment) {
	e := w.current[s.client]
	if s.opens {
		if e == nil || e.method != "" { // else it is sent again
			w.current[s.client] = new(exchange)
			w.exchanges = append(w.exchanges, w.current[s.client])
		}
		return
	}
	if e == nil {
		return
	}
	line, _, _ := bytes.Cut(s.payload, []byte("\r\n"))
	fields := strings.Fields(string(line))
	switch {
	case s.fromClient && e.method == "" && len(fields) == 3 && strings.HasPrefix(fields[2], "HTTP/1."):
		e.method, e.path = fields[0], fields[1]
	case !s.fromClient && e.status == 0 && len(fields) >= 2 && strings.HasPrefix(fields[0], "HTTP/1."):
		e.status, _ = strconv.Atoi(fields[1])
	}
}

// segment is a TCP segment between a client and the metadata service.
type segment struct {
	client     uint16 // the client's port
	fromClient bool
	opens      bool // the first of a connection, from the client
	payload    []byte
}

// parseSegment reads an IPv4 packet (RFC 791, RFC 9293). Others than those of the metadata service are not ok.
func parseSegment(packet []byte) (s segment, ok bool) {
	const leastIP, leastTCP = 20, 20
	if len(packet) < leastIP || packet[0]>>4 != 4 || packet[9] != unix.IPPROTO_TCP {
		return segment{}, false
	}
	head, total := int(packet[0]&0xf)*4, int(binary.BigEndian.Uint16(packet[2:]))
	if head < leastIP || len(packet) < head+leastTCP {
		return segment{}, false
	}
	tcp := packet[head:min(len(packet), max(total, head+leastTCP))]
	source := netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[12:16])), binary.BigEndian.Uint16(tcp))
	destination := netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[16:20])), binary.BigEndian.Uint16(tcp[2:]))
	switch {
	case listenedTo(destination):
		s.client, s.fromClient = source.Port(), true
	case listenedTo(source):
		s.client = destination.Port()
	default:
		return segment{}, false
	}
	const syn, ack = 0x02, 0x10
	s.opens = s.fromClient && tcp[13]&(syn|ack) == syn
	if offset := int(tcp[12]>>4) * 4; offset >= leastTCP && offset <= len(tcp) {
		s.payload = slices.Clone(tcp[offset:])
	}
	return s, true
}
