package nodebox

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dialTimeout bounds connections that are expected to work at once.
const dialTimeout = 5 * time.Second

func networks() map[string]PodNetwork {
	return map[string]PodNetwork{"routed": Routed, "bridge": Bridge}
}

// serve answers every connection with the address that it came from.
func serve(t *testing.T, n *Namespace, address string) {
	t.Helper()
	listener, err := n.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.RemoteAddr)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

// sourceSeen connects from the namespace and returns the address that the server saw.
func sourceSeen(t *testing.T, n *Namespace, address string) netip.Addr {
	t.Helper()
	client := &http.Client{
		Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true},
		Timeout:   dialTimeout,
	}
	response, err := client.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	source, err := netip.ParseAddrPort(string(body))
	if err != nil {
		t.Fatal(err)
	}
	return source.Addr()
}

func addPod(t *testing.T, b *Box, c PodConfig) *Pod {
	t.Helper()
	p, err := b.AddPod(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestEveryoneReachesEveryone(t *testing.T) {
	for name, network := range networks() {
		t.Run(name, func(t *testing.T) {
			b := ForTest(t, Config{Pods: network})
			p := addPod(t, b, PodConfig{Namespace: "team", Name: "app"})
			other := addPod(t, b, PodConfig{Namespace: "team", Name: "other"})
			type host struct {
				*Namespace
				ip, ipv6 netip.Addr
			}
			hosts := []host{
				{p.Namespace, p.IP, p.IPv6},
				{other.Namespace, other.IP, other.IPv6},
				{b.Node, b.NodeIP, b.NodeIPv6},
				{b.Outside, b.OutsideIP, b.OutsideIPv6},
			}
			for _, h := range hosts {
				serve(t, h.Namespace, ":80")
			}
			for _, from := range hosts {
				for _, to := range hosts {
					if from == to {
						continue
					}
					for _, pair := range [][2]netip.Addr{{from.ip, to.ip}, {from.ipv6, to.ipv6}} {
						if !pair[1].IsValid() {
							continue
						}
						got := sourceSeen(t, from.Namespace, netip.AddrPortFrom(pair[1], 80).String())
						want := pair[0]
						if from.Namespace == b.Outside { // speaks from its end of the uplink
							want = map[bool]netip.Addr{true: gatewayIP(), false: gatewayIPv6()}[want.Is4()]
						}
						if from.Namespace == b.Node && network == Bridge && podRange().Contains(pair[1]) {
							want = bridgeIP()
						}
						if from.Namespace == b.Node && network == Bridge && podRangeIPv6().Contains(pair[1]) {
							want = pairedIPv6(bridgeIP())
						}
						if got != want {
							t.Errorf("%s saw %s, want %s", pair[1], got, want)
						}
					}
				}
			}
		})
	}
}

// Without a redirect a pod gets through to the node's metadata service: this is what the recorder is for.
func TestLeak(t *testing.T) {
	for name, network := range networks() {
		t.Run(name, func(t *testing.T) {
			b := ForTest(t, Config{Pods: network})
			p := addPod(t, b, PodConfig{Namespace: "team", Name: "app"})
			for _, metadata := range validAddresses(b.MetadataIP, b.MetadataIPv6) {
				serve(t, b.Outside, netip.AddrPortFrom(metadata, 80).String())
			}
			for _, c := range []struct{ metadata, node, pod netip.Addr }{
				{b.MetadataIP, b.NodeIP, p.IP},
				{b.MetadataIPv6, b.NodeIPv6, p.IPv6},
			} {
				if !c.metadata.IsValid() {
					continue
				}
				// Packets that end the connection before may still come in.
				leaksTo := func() []Packet {
					return slices.DeleteFunc(b.Leaks(), func(p Packet) bool { return p.Destination.Addr() != c.metadata })
				}
				address := netip.AddrPortFrom(c.metadata, 80)
				if got := sourceSeen(t, b.Node, address.String()); got != c.node {
					t.Errorf("metadata service saw the node as %s, want %s", got, c.node)
				}
				if leaks := leaksTo(); len(leaks) != 0 {
					t.Errorf("the node's own connection is a leak: %v", leaks)
				}
				start := time.Now()
				if got := sourceSeen(t, p.Namespace, address.String()); got != c.pod {
					t.Errorf("metadata service saw the pod as %s, want %s", got, c.pod)
				}
				leaks := leaksTo()
				if len(leaks) == 0 {
					t.Fatal("the pod's connection is no leak")
				}
				first := leaks[0]
				if first.Source.Addr() != c.pod || first.Source.Port() == 0 || first.Destination != address ||
					first.Protocol != unix.IPPROTO_TCP {
					t.Errorf("leak = %v", first)
				}
				if first.Time.Before(start) || time.Since(first.Time) > time.Minute {
					t.Errorf("leak is of %s, want after %s", first.Time, start)
				}
			}
		})
	}
}

// Whatever the protocol or port, and also when nobody listens.
func TestLeakOfAnyProtocol(t *testing.T) {
	b := ForTest(t, Config{})
	p := addPod(t, b, PodConfig{Namespace: "team", Name: "app"})
	send := map[int]func() error{
		unix.IPPROTO_TCP: func() error {
			_, err := p.DialContext(t.Context(), "tcp", "169.254.169.254:81")
			if !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("connect to a closed port: %w", err)
			}
			return nil
		},
		unix.IPPROTO_UDP: func() error {
			conn, err := p.DialContext(t.Context(), "udp", "169.254.169.254:53")
			if err != nil {
				return err
			}
			_, err = conn.Write([]byte("query"))
			return errors.Join(err, conn.Close())
		},
		unix.IPPROTO_ICMP: func() error {
			return p.Do(func() error {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				echo := []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
				return unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: metadataIP().As4()})
			})
		},
	}
	for _, protocol := range slices.Sorted(maps.Keys(send)) {
		if err := send[protocol](); err != nil {
			t.Fatal(err)
		}
		recorded := func() bool {
			return slices.ContainsFunc(b.Leaks(), func(leak Packet) bool {
				return leak.Protocol == protocol && leak.Source.Addr() == p.IP
			})
		}
		if !eventually(recorded) {
			t.Errorf("protocol %d is not recorded: %v", protocol, b.Leaks())
		}
	}
}

// eventually waits for what sends no answer that one could wait for.
func eventually(condition func() bool) bool {
	deadline := time.After(dialTimeout)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
	return true
}

func TestWatch(t *testing.T) {
	b := ForTest(t, Config{})
	agent, agentIPv6 := netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd00:77::1")
	if err := b.Watch(agent); err != nil {
		t.Fatal(err)
	}
	if err := b.Watch(agentIPv6); err != nil {
		t.Fatal(err)
	}
	serve(t, b.Outside, ":80")
	sourceSeen(t, b.Node, netip.AddrPortFrom(b.OutsideIP, 80).String())
	if got := b.Watched(); len(got) != 0 {
		t.Fatalf("recorded packets for other destinations: %v", got)
	}
	for _, destination := range []netip.Addr{agent, agentIPv6} {
		if destination.Is6() && !b.HasIPv6() {
			continue
		}
		// Nobody holds the address, so there is no answer.
		conn, err := b.Node.DialContext(t.Context(), "udp", netip.AddrPortFrom(destination, 8181).String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
		recorded := func() bool {
			return slices.ContainsFunc(b.Watched(), func(packet Packet) bool {
				return packet.Destination == netip.AddrPortFrom(destination, 8181)
			})
		}
		if !eventually(recorded) {
			t.Errorf("a packet of the node for %s is not recorded: %v", destination, b.Watched())
		}
	}
	if leaks := b.Leaks(); len(leaks) != 0 {
		t.Errorf("watched packets are leaks: %v", leaks)
	}
	if err := b.Watch(netip.Addr{}); err == nil {
		t.Error("watched the zero address")
	}
	many := make([]netip.Addr, 0, destinationLimit)
	for a := firstPodIP(); len(many) < cap(many); a = a.Next() {
		many = append(many, a)
	}
	if err := b.Watch(many...); err == nil {
		t.Error("watched more than the limit")
	}
	if err := b.Watch(many[2:]...); err != nil {
		t.Errorf("watch as many as the limit: %v", err)
	}
}

func TestNodeHoldsNoMetadataAddress(t *testing.T) {
	b := ForTest(t, Config{})
	err := b.Node.Do(func() error {
		addresses, err := net.InterfaceAddrs()
		for _, a := range addresses {
			if strings.HasPrefix(a.String(), "169.254.169.254/") || strings.HasPrefix(a.String(), "fd00:ec2::254/") {
				t.Errorf("the node has %s", a)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestIptablesStayInTheNode(t *testing.T) {
	b := ForTest(t, Config{})
	p := addPod(t, b, PodConfig{Namespace: "team", Name: "app"})
	rule := strings.Fields("-t nat -A PREROUTING -d 169.254.169.254 -p tcp -j DNAT --to 192.0.2.10:8181")
	for _, iptables := range []string{"iptables-nft", "iptables-legacy"} {
		if output, err := b.Node.Command(t.Context(), iptables, rule...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", iptables, err, output)
		}
		for _, n := range []*Namespace{p.Namespace, b.Outside} {
			output, err := n.Command(t.Context(), iptables, "-t", "nat", "-S").Output()
			if err != nil || strings.Contains(string(output), "169.254.169.254") {
				t.Errorf("%s in %s: %v: %s", iptables, n.Path(), err, output)
			}
		}
	}
	serve(t, b.Node, "192.0.2.10:8181")
	if got := sourceSeen(t, p.Namespace, "169.254.169.254:80"); got != p.IP {
		t.Errorf("the redirected pod is seen as %s, want %s", got, p.IP)
	}
	if leaks := b.Leaks(); len(leaks) != 0 {
		t.Errorf("a redirected request leaked: %v", leaks)
	}
}

func TestAddresses(t *testing.T) {
	b := ForTest(t, Config{})
	first := addPod(t, b, PodConfig{Namespace: "team", Name: "first"})
	if first.IP != firstPodIP() {
		t.Errorf("first address = %s, want %s", first.IP, firstPodIP())
	}
	for name, ip := range map[string]netip.Addr{
		"used":    first.IP,
		"foreign": netip.MustParseAddr("10.0.0.1"),
		"bridge":  bridgeIP(),
		"ipv6":    netip.MustParseAddr("2001:db8:0:3::7"),
	} {
		if p, err := b.AddPod(PodConfig{Namespace: "team", Name: name, IP: ip}); err == nil {
			t.Errorf("%s: pod got %s", name, p.IP)
		}
	}
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := first.Remove(); err != nil {
		t.Errorf("removed again: %v", err)
	}
	second := addPod(t, b, PodConfig{Namespace: "team", Name: "second"})
	if second.IP == first.IP {
		t.Errorf("a freed address came back at once: %s", second.IP)
	}
	heir := addPod(t, b, PodConfig{Namespace: "team", Name: "heir", IP: first.IP})
	serve(t, heir.Namespace, ":80")
	if got := sourceSeen(t, second.Namespace, netip.AddrPortFrom(first.IP, 80).String()); got != second.IP {
		t.Errorf("the heir saw %s, want %s", got, second.IP)
	}
	if heir.Path() == first.Path() {
		t.Errorf("two sandboxes share %s", heir.Path())
	}
	for _, c := range []PodConfig{{Namespace: "team"}, {Name: "app"}} {
		if _, err := b.AddPod(c); err == nil {
			t.Errorf("added a pod from %+v", c)
		}
	}
}

func TestHostInterfaceNames(t *testing.T) {
	b := ForTest(t, Config{})
	first := addPod(t, b, PodConfig{Namespace: "team", Name: "db-0"})
	if _, err := b.AddPod(PodConfig{Namespace: "team", Name: "db-0"}); err == nil {
		t.Error("two pods share a host interface")
	}
	if err := first.Remove(); err != nil {
		t.Fatal(err)
	}
	second := addPod(t, b, PodConfig{Namespace: "team", Name: "db-0"})
	if second.HostInterface != first.HostInterface || !strings.HasPrefix(second.HostInterface, "eni") {
		t.Errorf("host interface = %s, before %s", second.HostInterface, first.HostInterface)
	}
	vlan := addPod(t, b, PodConfig{Namespace: "team", Name: "secure", HostInterface: "vlan.eth.1"})
	err := b.Node.Do(func() error {
		link, err := netlink.LinkByName("vlan.eth.1")
		if err == nil && link.Attrs().HardwareAddr.String() != vlan.HostMAC.String() {
			t.Errorf("MAC = %s, want %s", vlan.HostMAC, link.Attrs().HardwareAddr)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A box leaves the machine as it was.
func TestCloseLeavesNothing(t *testing.T) {
	before := machine(t)
	cniDir := t.TempDir()
	var paths []string
	for name, network := range networks() {
		b, err := New(t.Context(), Config{Pods: network, CNIDir: filepath.Join(cniDir, name)})
		if err != nil {
			t.Fatal(err)
		}
		p := addPod(t, b, PodConfig{Namespace: "team", Name: "app"})
		stale := addPod(t, b, PodConfig{Namespace: "team", Name: "stale"})
		if err := stale.Kill(); err != nil {
			t.Fatal(err)
		}
		if during := machine(t); !cmp.Equal(before.links, during.links) {
			t.Errorf("links of the machine changed: %s", cmp.Diff(before.links, during.links))
		}
		process := exec.Command("sleep", "3600")
		if err := p.Start(process); err != nil {
			t.Fatal(err)
		}
		listener, err := b.Outside.Listen(t.Context(), "tcp", ":80")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		paths = append(paths, b.CNIResults)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if err := process.Wait(); err == nil {
			t.Error("the process was not killed")
		}
		if err := b.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
		if err := p.Remove(); err != nil {
			t.Errorf("remove a pod of a closed box: %v", err)
		}
		if _, err := b.AddPod(PodConfig{Namespace: "team", Name: "late"}); !errors.Is(err, errClosed) {
			t.Errorf("add pod to a closed box: %v", err)
		}
		if err := b.Node.Start(exec.Command("true")); !errors.Is(err, errClosed) {
			t.Errorf("start in a closed box: %v", err)
		}
		if err := b.Node.Do(func() error { return nil }); !errors.Is(err, errClosed) {
			t.Errorf("enter a closed box: %v", err)
		}
	}
	for _, path := range paths {
		if entries, err := os.ReadDir(path); err != nil || len(entries) != 0 {
			t.Errorf("%s: %v, %v", path, entries, err)
		}
	}
	if diff := cmp.Diff(before, machine(t), cmp.AllowUnexported(state{})); diff != "" {
		t.Error(diff)
	}
}

// state is what a box might leave on the machine. Boxes of other processes come and go meanwhile.
type state struct{ links, namespaces, mounts, folders []string }

func machine(t *testing.T) state {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root, for example with sudo make test")
	}
	var s state
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		s.links = append(s.links, link.Attrs().Name)
	}
	own := fmt.Sprintf("podrole-%d-", os.Getpid())
	s.namespaces = matching(t, filepath.Join(netnsDir, own+"*"))
	s.folders = matching(t, filepath.Join(os.TempDir(), own+"*"))
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, own) {
			s.mounts = append(s.mounts, line)
		}
	}
	return s
}

func matching(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// What a killed owner leaves, Sweep takes; what a living one has stays.
func TestSweep(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root: run the tests as root, for example with sudo make test")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.CommandContext(t.Context(), self)
	owner.Env = append(os.Environ(), ownerEnv+"=1")
	owner.Stderr = os.Stderr
	output, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var name string
	var started, orphan int
	if _, err := fmt.Sscan(line, &name, &started, &orphan); err != nil {
		t.Fatalf("owner says %q: %v", line, err)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if left := matching(t, filepath.Join(netnsDir, name+"-*")); len(left) != 3 {
		t.Fatalf("namespaces of a living owner = %v, want node, outside and pod1", left)
	}
	if gone(started) || gone(orphan) {
		t.Fatal("processes of a living owner ended")
	}
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = owner.Wait()
	if !eventually(func() bool { return gone(started) }) {
		t.Error("a started process outlived its owner")
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if !gone(orphan) {
		t.Error("Sweep left a process")
	}
	for _, dir := range []string{netnsDir, os.TempDir()} {
		if left := matching(t, filepath.Join(dir, name+"*")); len(left) != 0 {
			t.Errorf("Sweep left %v", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), name) {
		t.Errorf("Sweep left mounts: %v\n%s", err, mounts)
	}
}

// gone reports whether a process has ended, reaped or not.
func gone(pid int) bool {
	p, err := readProcess(pid)
	return err != nil || p.dead
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(t.Context(), Config{Pods: 7}); err == nil {
		t.Error("built a box with an unknown pod network")
	}
	before := machine(t)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := New(cancelled, Config{}); !errors.Is(err, context.Canceled) {
		t.Errorf("New = %v, want %v", err, context.Canceled)
	}
	if diff := cmp.Diff(before, machine(t), cmp.AllowUnexported(state{})); diff != "" {
		t.Error(diff)
	}
}
