package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sys/unix"
)

// Place is where an address lives: where the kernel sends what is for it, at the moment of the question. The zero Place
// is nowhere: no route leads to the address, or one that refuses.
//
// What a Place proves. A TCP handshake is complete only if the client got the kernel's SYN-ACK, so whoever holds a
// connection was where the SYN-ACK went. With an interface of its own per pod that is final: routes are the node's,
// and no pod can change them.
//
// On a bridge it is not. Neighbour and forwarding entries are learned from frames, any pod with CAP_NET_RAW may forge
// those, and a Place shows the entries of the moment. It exposes a pod that uses another's address, also along with
// its MAC address, for as long as the entries are those that got it the SYN-ACK. It does not if they are right again
// by the time of the question: because the owner sends so much that it is learned anew all the time, or because the
// pod sets them right, and then wrong once more for the answer. That needs no luck where the owner does not reset
// connections it knows nothing of, and asking again when the request has been read does not help. Only what keeps
// entries from being learned wrongly does: pods without CAP_NET_RAW, or entries that are fixed (a permanent
// neighbour entry, and a forwarding entry that is static and sticky).
type Place struct {
	// Interface and Index are the outgoing interface of the route to the address.
	Interface string
	Index     int
	// Local says that the address is the node's own.
	Local bool
	// Gateway says that the route leads through a router, so to no pod that is attached to Interface itself.
	Gateway bool
	// Bridge says that Interface is a Linux bridge. Only then there may be a MAC, and only with a MAC a Port. (Open
	// vSwitch has its forwarding entries to itself, and is none.)
	Bridge bool
	// MAC is the address of the neighbour entry, nil if there is none or none that is resolved.
	MAC net.HardwareAddr
	// Port is the interface behind which the bridge has learned MAC; empty if it has not, or tells VLANs apart (the
	// same MAC may then be behind several ports).
	Port string
}

const (
	// locatorSockets bounds how many questions are with the kernel at once, and so the threads that wait there while
	// something else holds its configuration lock.
	locatorSockets = 8
	// plainInterfaces bounds how many interfaces are remembered not to be bridges.
	plainInterfaces = 1024
)

// Locator asks the kernel where addresses live. It belongs to the network namespace of the thread that made it. Its
// methods are safe for concurrent use.
type Locator struct {
	idle chan *kernelSocket

	// plain remembers interfaces that are no bridges: name by index, for a kind never changes, and asking for it takes
	// the kernel's configuration lock, which is busy exactly when pods start. Names are read anew each time: an index
	// comes back soon, since an interface that a CNI moves here keeps the one it had elsewhere, if that is free. Should
	// both name and index come back as a bridge, its pods are refused until it is forgotten here, for none of them owns
	// the bridge.
	plain *lru.Cache[int, string]
}

// NewLocator opens the sockets, in the network namespace of the calling thread. Close closes them.
func NewLocator() (*Locator, error) {
	plain, err := lru.New[int, string](plainInterfaces)
	if err != nil {
		return nil, fmt.Errorf("make locator: %w", err)
	}
	l := &Locator{idle: make(chan *kernelSocket, locatorSockets), plain: plain}
	for range locatorSockets {
		s, err := newKernelSocket()
		if err != nil {
			l.closeIdle(len(l.idle))
			return nil, fmt.Errorf("open netlink socket: %w", err)
		}
		l.idle <- s
	}
	return l, nil
}

// Close closes the sockets, once the questions under way are answered. Nothing may be asked afterwards.
func (l *Locator) Close() { l.closeIdle(locatorSockets) }

func (l *Locator) closeIdle(count int) {
	for range count {
		(<-l.idle).close()
	}
}

// Locate says where the source of a connection lives. Local is the connection's address at this end: the route is the
// one that the kernel takes for its answers, with every policy rule that applies to them. (Amazon VPC CNI keeps the
// routes to pods with security groups of their own, in strict mode, in tables that only a rule from that address leads
// to.) The zero Addr for local leaves it to the kernel to choose one, which comes to the same unless there are such
// rules. Firewall marks are not considered.
//
// It takes microseconds; on a bridge, and once for each new interface, it also waits for the kernel's configuration
// lock. It returns when ctx is done at the latest. An error means that the kernel did not answer, or not in time;
// where nothing is found, the Place says so and the error is nil.
func (l *Locator) Locate(ctx context.Context, source, local netip.Addr) (Place, error) {
	source, local = source.Unmap(), local.Unmap()
	// A route to a link-local IPv6 address exists on every link, and so says nothing.
	if !source.IsValid() || source.Zone() != "" || source.Is6() && source.IsLinkLocalUnicast() {
		return Place{}, nil
	}
	if local.IsValid() && local.Is4() != source.Is4() {
		return Place{}, fmt.Errorf("locate %v: local address %v is of the other family", source, local)
	}
	var s *kernelSocket
	select {
	case s = <-l.idle:
	default: // a request's context starts its timer when it is first asked for Done
		select {
		case s = <-l.idle:
		case <-ctx.Done():
			return Place{}, fmt.Errorf("locate %v: wait for the kernel: %w", source, context.Cause(ctx))
		}
	}
	place, known, err := l.route(s, source, local)
	if known || err != nil {
		l.idle <- s
		return place, locateError(source, err)
	}
	// What follows may block in the kernel, where no deadline reaches it.
	type answer struct {
		place Place
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		place, err := l.link(s, source, place)
		l.idle <- s
		answered <- answer{place, err}
	}()
	select {
	case a := <-answered:
		return a.place, locateError(source, a.err)
	case <-ctx.Done():
		return Place{}, fmt.Errorf("locate %v: wait for the kernel: %w", source, context.Cause(ctx))
	}
}

func locateError(source netip.Addr, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("locate %v: %w: on a bridge, Linux 5.0 or later is needed", source, err)
	default:
		return fmt.Errorf("locate %v: %w", source, err)
	}
}

// route asks for the route, which takes no lock of the kernel. It reports whether that is all there is to know.
func (l *Locator) route(s *kernelSocket, source, local netip.Addr) (place Place, known bool, err error) {
	r, err := s.route(source, local)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EINVAL): // no route, or one of type unreachable, prohibit, blackhole
		return Place{}, true, nil
	case err != nil:
		return Place{}, false, fmt.Errorf("look up route: %w", err)
	case r.kind != unix.RTN_UNICAST && r.kind != unix.RTN_LOCAL || r.index == 0:
		return Place{}, true, nil
	}
	name, err := s.interfaceName(r.index)
	switch {
	case errors.Is(err, unix.ENODEV): // deleted since
		return Place{}, true, nil
	case err != nil:
		return Place{}, false, fmt.Errorf("read name of interface %d: %w", r.index, err)
	}
	place = Place{Interface: name, Index: r.index, Local: r.kind == unix.RTN_LOCAL, Gateway: r.gateway}
	if place.Local || place.Gateway {
		return place, true, nil
	}
	plain, ok := l.plain.Get(r.index)
	return place, ok && plain == name, nil
}

// link completes a Place with what is known of its interface.
func (l *Locator) link(s *kernelSocket, source netip.Addr, place Place) (Place, error) {
	kind, err := s.linkKind(place.Index)
	switch {
	case errors.Is(err, unix.ENODEV), err == nil && kind.name != place.Interface: // deleted or renamed since
		return Place{}, nil
	case err != nil:
		return Place{}, fmt.Errorf("read kind of interface %s: %w", place.Interface, err)
	case !kind.bridge:
		l.plain.Add(place.Index, place.Interface)
		return place, nil
	}
	place.Bridge = true
	place.MAC, err = s.neighbour(place.Index, source)
	switch {
	case errors.Is(err, unix.ENOENT), err == nil && place.MAC == nil:
		return place, nil
	case err != nil:
		return Place{}, fmt.Errorf("look up neighbour on %s: %w", place.Interface, err)
	case kind.vlans:
		return place, nil
	}
	port, err := s.bridgePort(place.Index, place.MAC)
	switch {
	case errors.Is(err, unix.ENOENT):
		return place, nil
	case err != nil:
		return Place{}, fmt.Errorf("look up forwarding entry of %s on %s: %w", place.MAC, place.Interface, err)
	}
	place.Port, err = s.interfaceName(port)
	switch {
	case errors.Is(err, unix.ENODEV): // deleted since
		return place, nil
	case err != nil:
		return Place{}, fmt.Errorf("read name of interface %d: %w", port, err)
	}
	return place, nil
}
