package node_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/pkg/node"
)

func TestLocateOwnInterface(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Routed})
	locator := newLocator(t, box)
	for i := range 3 {
		pod := addPod(t, box, fmt.Sprintf("web-%d", i))
		want := node.Place{Interface: pod.HostInterface}
		for _, addr := range podAddresses(pod) {
			expectPlace(t, locator, addr, want)
			expectPlace(t, locator, netip.AddrFrom16(addr.As16()), want)
		}
		// Asked again, when the interface is known not to be a bridge.
		expectPlace(t, locator, pod.IP, want)
	}
}

func TestLocateBridge(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Bridge})
	locator := newLocator(t, box)
	server := newSourceServer(t, box, locator)
	for i := range 3 {
		pod := addPod(t, box, fmt.Sprintf("web-%d", i))
		want := node.Place{Interface: "cni0", Bridge: true, MAC: pod.MAC, Port: pod.HostInterface}
		for _, addr := range podAddresses(pod) {
			unheard := node.Place{Interface: "cni0", Bridge: true}
			expectPlace(t, locator, addr, unheard)
			server.connect(t, pod, addr, pod.Config.Name)
			expectPlace(t, locator, addr, want)
		}
	}
	for _, v := range server.visits() {
		if v.first != nil || v.second != nil {
			t.Errorf("%s from %v, who has it, is refused: %v, %v", v.who, v.source, v.first, v.second)
		}
	}
}

// A neighbour whose port is forgotten could be anywhere.
func TestLocateBridgeWithoutForwardingEntry(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Bridge})
	locator := newLocator(t, box)
	inNamespace(t, box.Node, func() error {
		link, err := netlink.LinkByName("cni0")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: net.IP{198, 18, 9, 9}, HardwareAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}})
	})
	expectPlace(t, locator, netip.MustParseAddr("198.18.9.9"),
		node.Place{Interface: "cni0", Bridge: true, MAC: net.HardwareAddr{2, 9, 9, 9, 9, 9}})
}

func TestLocateOthers(t *testing.T) {
	t.Parallel()
	for name, network := range map[string]nodebox.PodNetwork{"routed": nodebox.Routed, "bridge": nodebox.Bridge} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box := nodebox.ForTest(t, nodebox.Config{Pods: network})
			locator := newLocator(t, box)
			inNamespace(t, box.Node, func() error {
				_, dst, _ := net.ParseCIDR("192.0.2.200/32")
				return netlink.RouteAdd(&netlink.Route{Dst: dst, Type: 8}) // RTN_PROHIBIT
			})
			places := map[string]node.Place{
				"127.0.0.1":       {Interface: "lo", Local: true},
				"192.0.2.10":      {Interface: "lo", Local: true},
				"192.0.2.1":       {Interface: "eth0"},
				"203.0.113.10":    {Interface: "eth0", Gateway: true},
				"8.8.8.8":         {Interface: "eth0", Gateway: true},
				"192.0.2.200":     {},
				"192.0.2.255":     {}, // broadcast
				"255.255.255.255": {},
				"224.0.0.1":       {},
			}
			if box.HasIPv6() {
				maps.Copy(places, map[string]node.Place{
					"::1":              {Interface: "lo", Local: true},
					"2001:db8:0:1::10": {Interface: "lo", Local: true},
					"2001:db8:0:2::10": {Interface: "eth0", Gateway: true},
					"fe80::1":          {},
					"fe80::1%eth0":     {},
					"ff02::1":          {},
				})
			}
			for addr, place := range places {
				expectPlace(t, locator, netip.MustParseAddr(addr), place)
			}
			expectPlace(t, locator, netip.Addr{}, node.Place{})
		})
	}
}

// Amazon VPC CNI keeps the route to a pod with security groups of its own, in strict mode, in a table that the
// interface's own rule leads to, and the agent's answers are led there by a rule from its address.
func TestLocateByPolicy(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{})
	locator := newLocator(t, box)
	pod := addPod(t, box, "web")
	const table = 101
	inNamespace(t, box.Node, func() error {
		link, err := netlink.LinkByName(pod.HostInterface)
		if err != nil {
			return err
		}
		dst := &net.IPNet{IP: pod.IP.AsSlice(), Mask: net.CIDRMask(32, 32)}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteDel(&route); err != nil {
			return err
		}
		route.Table = table
		if err := netlink.RouteAdd(&route); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		agent := &net.IPNet{IP: agent4.AsSlice(), Mask: net.CIDRMask(32, 32)}
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: agent, Scope: int(netlink.SCOPE_HOST)}); err != nil {
			return err
		}
		bySource, byInterface := netlink.NewRule(), netlink.NewRule()
		bySource.Priority, bySource.Src, bySource.Dst, bySource.IifName, bySource.Table = 3, agent, dst, "lo", table
		byInterface.Priority, byInterface.IifName, byInterface.Table = 10, pod.HostInterface, table
		return errors.Join(netlink.RuleAdd(bySource), netlink.RuleAdd(byInterface))
	})
	expectPlace(t, locator, pod.IP, node.Place{Interface: "eth0", Gateway: true})
	got, err := locator.Locate(t.Context(), pod.IP, agent4)
	if err != nil || got.Interface != pod.HostInterface || got.Gateway {
		t.Errorf("Locate of an answer from %v = %+v, %v, want %s", agent4, got, err, pod.HostInterface)
	}
	// An answer from an address that the node does not have goes nowhere.
	got, err = locator.Locate(t.Context(), pod.IP, netip.MustParseAddr("192.0.2.77"))
	if err != nil || got.Interface != "" {
		t.Errorf("Locate of an answer from a foreign address = %+v, %v, want nowhere", got, err)
	}
	if _, err := locator.Locate(t.Context(), pod.IP, agent6); err == nil {
		t.Error("Locate across address families succeeds")
	}
}

// Interface indices come back, with other names and of other kinds.
func TestLocateAfterIndexReuse(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{})
	locator := newLocator(t, box)
	const index = 4711
	addr := netip.MustParseAddr("198.18.200.1")
	for _, link := range []netlink.Link{
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "first", Index: index}, PeerName: "peer"},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "second", Index: index}, PeerName: "peer"},
		&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "third", Index: index}},
		&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "third", Index: index}, PeerName: "peer"},
	} {
		inNamespace(t, box.Node, func() error {
			if err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link)); err != nil {
				return err
			}
			dst := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: index, Dst: dst, Scope: netlink.SCOPE_LINK})
		})
		want := node.Place{Interface: link.Attrs().Name, Bridge: link.Type() == "bridge"}
		expectPlace(t, locator, addr, want)
		if got := expectPlace(t, locator, addr, want); got.Index != index {
			t.Errorf("Index = %d, want %d", got.Index, index)
		}
		// Renamed, as udev does.
		renamed := link.Attrs().Name + "x"
		inNamespace(t, box.Node, func() error { return netlink.LinkSetName(link, renamed) })
		want.Interface = renamed
		expectPlace(t, locator, addr, want)
		inNamespace(t, box.Node, func() error { return netlink.LinkDel(link) })
		expectPlace(t, locator, addr, node.Place{Interface: "eth0", Gateway: true})
	}
}

func TestLocateEndsWithContext(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{})
	locator := newLocator(t, box)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	// Which of a free socket and the end of the context is seen first is left to chance; an answer must be right.
	for range 100 {
		place, err := locator.Locate(gone, box.NodeIP, netip.Addr{})
		if err != nil && !errors.Is(err, context.Canceled) || err == nil && !place.Local {
			t.Fatalf("Locate = %+v, %v", place, err)
		}
	}
	expectPlace(t, locator, box.NodeIP, node.Place{Interface: "lo", Local: true})
}

func TestLocateConcurrently(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{})
	locator := newLocator(t, box)
	var wg sync.WaitGroup
	for i := range 4 {
		pod := addPod(t, box, fmt.Sprintf("web-%d", i))
		for _, addr := range podAddresses(pod) {
			for range 4 {
				wg.Go(func() {
					for range 50 {
						got, err := locator.Locate(t.Context(), addr, netip.Addr{})
						if err != nil || got.Interface != pod.HostInterface {
							t.Errorf("Locate(%v) = %+v, %v, want %s", addr, got, err, pod.HostInterface)
							return
						}
					}
				})
			}
		}
	}
	wg.Wait()
}

func expectPlace(t *testing.T, locator *node.Locator, addr netip.Addr, want node.Place) node.Place {
	t.Helper()
	got, err := locator.Locate(t.Context(), addr, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(node.Place{}, "Index")); diff != "" {
		t.Errorf("Locate(%v) (-want +got):\n%s", addr, diff)
	}
	return got
}

func newLocator(t testing.TB, box *nodebox.Box) *node.Locator {
	t.Helper()
	var locator *node.Locator
	inNamespace(t, box.Node, func() (err error) {
		locator, err = node.NewLocator()
		return err
	})
	t.Cleanup(locator.Close)
	return locator
}

func addPod(t testing.TB, box *nodebox.Box, name string) *nodebox.Pod {
	t.Helper()
	pod, err := box.AddPod(nodebox.PodConfig{Namespace: "shop", Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func podAddresses(pod *nodebox.Pod) []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{pod.IP, pod.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
}

func inNamespace(t testing.TB, n *nodebox.Namespace, fn func() error) {
	t.Helper()
	if err := n.Do(fn); err != nil {
		t.Fatal(err)
	}
}

// visit is a connection as the agent would see it: who it really was, and what was judged of its source.
type visit struct {
	who           string // what the client calls itself
	source        netip.Addr
	first, second error // on accept, and when the request has been read
}

// sourceServer is in the place of the agent: it judges each connection, as soon as it is accepted and when its request
// has been read, by the sandbox that its source address belongs to.
type sourceServer struct {
	box       *nodebox.Box
	locator   *node.Locator
	listener  net.Listener
	sandboxes sync.Map // netip.Addr to node.Sandbox

	handlers sync.WaitGroup
	mu       sync.Mutex // guards seen
	seen     []visit
}

func newSourceServer(t testing.TB, box *nodebox.Box, locator *node.Locator) *sourceServer {
	t.Helper()
	listener, err := box.Node.Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &sourceServer{box: box, locator: locator, listener: listener}
	s.handlers.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.handlers.Go(func() { s.handle(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		s.handlers.Wait()
	})
	return s
}

// own says whose an address rightly is.
func (s *sourceServer) own(pod *nodebox.Pod) {
	for _, addr := range podAddresses(pod) {
		s.sandboxes.Store(addr,
			node.Sandbox{HostInterface: pod.HostInterface, MAC: pod.MAC, Addresses: podAddresses(pod)})
	}
}

// requestWait bounds the wait for a request that may never come.
const requestWait = 2 * time.Second

func (s *sourceServer) handle(conn net.Conn) {
	defer conn.Close()
	source := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	sandbox, _ := s.sandboxes.Load(source)
	judge := func() error {
		place, err := s.locator.Locate(context.Background(), source, local)
		if err != nil {
			return err
		}
		known, _ := sandbox.(node.Sandbox)
		return place.Judge(source, known, nil)
	}
	v := visit{source: source, first: judge()}
	_ = conn.SetDeadline(time.Now().Add(requestWait))
	v.who, _ = bufio.NewReader(conn).ReadString('\n')
	v.who = strings.TrimSpace(v.who)
	v.second = judge()
	_, _ = conn.Write([]byte("answer\n"))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, v)
}

// visits ends the server and returns all it saw.
func (s *sourceServer) visits() []visit {
	s.listener.Close()
	s.handlers.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

// connect connects from a pod by one of its addresses and wants to be answered.
func (s *sourceServer) connect(t testing.TB, pod *nodebox.Pod, source netip.Addr, who string) {
	t.Helper()
	s.own(pod)
	if err := s.try(pod, source, who, deadline); err != nil {
		t.Fatal(err)
	}
}

// try connects from inside a pod as source, asks, and waits for the answer.
func (s *sourceServer) try(from *nodebox.Pod, source netip.Addr, who string, wait time.Duration) error {
	to := s.box.NodeIP
	if source.Is6() {
		to = s.box.NodeIPv6
	}
	port := s.listener.Addr().(*net.TCPAddr).Port
	var conn net.Conn
	err := from.Do(func() (err error) {
		dialer := net.Dialer{Timeout: wait, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
		conn, err = dialer.Dial("tcp", netip.AddrPortFrom(to, uint16(port)).String())
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, who); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}
