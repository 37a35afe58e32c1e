package e2e_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// spoofRounds is how often an attack is tried; each time with spoofVolley connections per address at once.
const (
	spoofRounds = 4
	spoofVolley = 8
)

// TestSpoofing: a pod that takes another's address, or that and its MAC address, and tells the node so by all means that
// ARP and neighbour discovery have, is never given the other one's credentials, whether that one is alive or silent. And
// the other one is served as before when it is over.
func TestSpoofing(t *testing.T) {
	const (
		alive  = iota
		silent // it receives nothing, as a machine that hangs
		down   // its interface is down
	)
	tests := []struct {
		name      string
		network   nodebox.PodNetwork
		takeMAC   bool
		victim    int
		noResults bool // nothing but the API tells where the victim is
	}{
		{"bridge_ip_alive", nodebox.Bridge, false, alive, false},
		{"bridge_ip_silent", nodebox.Bridge, false, silent, false},
		{"bridge_ip_and_mac_alive", nodebox.Bridge, true, alive, false},
		{"bridge_ip_and_mac_silent", nodebox.Bridge, true, silent, false},
		{"bridge_ip_and_mac_down", nodebox.Bridge, true, down, false},
		{"bridge_ip_and_mac_silent_no_results", nodebox.Bridge, true, silent, true},
		{"routed_ip_alive", nodebox.Routed, false, alive, false},
		{"routed_ip_silent", nodebox.Routed, false, silent, false},
		{"routed_ip_and_mac_alive", nodebox.Routed, true, alive, false},
		{"routed_ip_and_mac_silent", nodebox.Routed, true, silent, false},
		{"routed_ip_and_mac_down", nodebox.Routed, true, down, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			bed := newBed(t, testbed.Config{Pods: tt.network})
			attacker := addPod(t, bed, "attacker", "attacker")
			victim := addPod(t, bed, "victim", "victim")
			if tt.noResults {
				victim = replace(t, bed, victim, nodebox.PodConfig{Namespace: "shop", Name: "victim-1", OmitResults: true}, "victim")
			}
			a := &attack{network: tt.network, attacker: attacker, victim: victim, mac: attacker.MAC, alive: tt.victim == alive}
			if tt.takeMAC {
				a.mac = victim.MAC
			}
			a.begin(t)
			if works := a.works(t, bed); works != (tt.network == nodebox.Bridge) {
				t.Fatalf("without podrole, the node answers the attacker as the victim: %v", works)
			}
			a.end(t)

			startAgent(t, bed)
			served := func(pod *nodebox.Pod, role string) {
				t.Helper()
				eventually(t, role+" is served as itself", func() string {
					a.announce(t, pod)
					if got := get(t, pod, credentials); got.body != role {
						return got.String()
					}
					return ""
				})
			}
			served(victim, "victim")
			served(attacker, "attacker")

			a.begin(t)
			switch tt.victim {
			case silent:
				run(t, victim, "nft", "add", "table", "netdev", "silent")
				run(t, victim, "nft", "add", "chain", "netdev", "silent", "in",
					"{ type filter hook ingress device eth0 priority 0; policy drop; }")
			case down:
				run(t, victim, "ip", "link", "set", "eth0", "down")
			}
			a.run(t)
			t.Logf("%d connections: %d answered (%v), %d without an answer", a.tried, a.answered, a.statuses, a.tried-a.answered)
			if tt.noResults && a.answered == 0 {
				t.Error("no attempt got as far as podrole, though nothing but podrole is in the way")
			}

			a.end(t)
			if tt.victim == silent {
				run(t, victim, "nft", "delete", "table", "netdev", "silent")
			}
			if tt.victim != down {
				served(victim, "victim")
			}
			served(attacker, "attacker")
			noLeaks(t, bed)
		})
	}
}

// replace removes a pod and runs another one in its place.
func replace(t *testing.T, bed *testbed.Bed, old *nodebox.Pod, c nodebox.PodConfig, account string) *nodebox.Pod {
	t.Helper()
	if err := old.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := bed.Delete("Pod", old.Config.Namespace, old.Config.Name); err != nil {
		t.Fatal(err)
	}
	pod, err := bed.Box.AddPod(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := bed.Run(pod, account); err != nil {
		t.Fatal(err)
	}
	return pod
}

// notServedAs returns what a pod is served instead of the name of its role; nothing if it is that.
func notServedAs(t *testing.T, pod *nodebox.Pod, role string) string {
	t.Helper()
	if got := get(t, pod, credentials); got.body != role {
		return got.String()
	}
	return ""
}

// attack is one pod's attempt to be taken for another.
type attack struct {
	network          nodebox.PodNetwork
	attacker, victim *nodebox.Pod
	mac              net.HardwareAddr // that the attacker claims the addresses with
	alive            bool             // the victim answers, and claims its addresses as well

	mu              sync.Mutex // guards the following
	tried, answered int
	statuses        map[int]int
}

// begin gives the attacker the victim's addresses.
func (a *attack) begin(t *testing.T) {
	t.Helper()
	a.setMAC(t, a.mac)
	for _, address := range addressesOf(a.victim) {
		run(t, a.attacker, "ip", "address", "add", netip.PrefixFrom(address, address.BitLen()).String(), "dev", "eth0", "nodad")
	}
}

func (a *attack) end(t *testing.T) {
	t.Helper()
	for _, address := range addressesOf(a.victim) {
		run(t, a.attacker, "ip", "address", "del", netip.PrefixFrom(address, address.BitLen()).String(), "dev", "eth0")
	}
	a.setMAC(t, a.attacker.MAC)
}

// setMAC gives the attacker another MAC address, if it has none of its own already, and back what the kernel forgets
// with the old one: the fixed neighbours of a routed pod.
func (a *attack) setMAC(t *testing.T, mac net.HardwareAddr) {
	t.Helper()
	if bytes.Equal(a.mac, a.attacker.MAC) {
		return
	}
	run(t, a.attacker, "ip", "link", "set", "eth0", "address", mac.String())
	if a.network == nodebox.Routed {
		for _, gateway := range []string{"169.254.1.1", "fe80::1"} {
			run(t, a.attacker, "ip", "neighbour", "replace", gateway, "lladdr", a.attacker.HostMAC.String(),
				"dev", "eth0", "nud", "permanent")
		}
	}
}

// works reports whether the node answers the attacker as the victim where nothing checks: whether a connection to
// elsewhere comes about.
func (a *attack) works(t *testing.T, bed *testbed.Bed) bool {
	t.Helper()
	offence := newClaims(t, a.attacker)
	for range spoofRounds {
		offence.send(t, a.victim.IP, a.mac)
		if askAs(t.Context(), a.attacker, a.victim.IP, bed.STS()).err == nil {
			return true
		}
	}
	return false
}

// announce has a pod claim its own addresses. Without, it takes the node's kernel up to a minute to find that another
// pod no longer has them.
func (a *attack) announce(t *testing.T, pod *nodebox.Pod) {
	t.Helper()
	if a.network == nodebox.Routed {
		return
	}
	c := newClaims(t, pod)
	for _, address := range addressesOf(pod) {
		c.send(t, address, pod.MAC)
	}
}

func (a *attack) run(t *testing.T) {
	t.Helper()
	a.statuses = map[int]int{}
	offence := newClaims(t, a.attacker)
	var defence *claims
	if a.alive {
		defence = newClaims(t, a.victim)
	}
	for range spoofRounds {
		var volley sync.WaitGroup
		for _, address := range addressesOf(a.victim) {
			if a.alive {
				defence.send(t, address, a.victim.MAC)
			}
			offence.send(t, address, a.mac)
			for i := range spoofVolley {
				path := credentials
				if i%2 == 1 {
					path += "victim"
				}
				volley.Go(func() { a.try(t, address, path) })
			}
		}
		if a.alive { // nobody is ever taken for the attacker either
			volley.Go(func() {
				if got := get(t, a.victim, credentials); got.err == nil && strings.Contains(got.body, "attacker") {
					t.Errorf("the victim is served as the attacker: %s", got)
				}
			})
		}
		volley.Wait()
	}
}

// try makes one request as address, and wants anything but the victim's role.
func (a *attack) try(t *testing.T, address netip.Addr, path string) {
	host := metadataIPv4
	if address.Is6() {
		host = metadataIPv6
	}
	got := askAs(t.Context(), a.attacker, address, host+path)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tried++
	if got.err != nil {
		return
	}
	a.answered++
	a.statuses[got.status]++
	if got.status == http.StatusOK && got.body != "attacker" {
		t.Errorf("as %v, GET %s: %s", address, path, got)
	}
	var session struct {
		AccessKeyID string `json:"AccessKeyId"`
	}
	if json.Unmarshal([]byte(got.body), &session) == nil && session.AccessKeyID != "" {
		t.Errorf("the attacker, as %v, holds credentials: %s", address, session.AccessKeyID)
	}
}

// askAs is ask with a source address of its own.
func askAs(ctx context.Context, pod *nodebox.Pod, source netip.Addr, url string) answer {
	ctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
	defer cancel()
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		dialer := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
		doErr := pod.Do(func() error {
			conn, err = dialer.DialContext(ctx, network, address)
			return err
		})
		return conn, doErr
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{err: err}
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(body), err}
}

func addressesOf(pod *nodebox.Pod) []netip.Addr {
	if !pod.IPv6.IsValid() {
		return []netip.Addr{pod.IP}
	}
	return []netip.Addr{pod.IP, pod.IPv6}
}

func run(t *testing.T, pod *nodebox.Pod, program string, args ...string) {
	t.Helper()
	if out, err := pod.Command(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s in %s: %v: %s", program, strings.Join(args, " "), pod.Config.Name, err, out)
	}
}

// claims sends what tells others which MAC address an address has. It takes no more than CAP_NET_RAW.
type claims struct {
	fd int
	to *unix.SockaddrLinklayer
}

func newClaims(t *testing.T, pod *nodebox.Pod) *claims {
	t.Helper()
	c := &claims{}
	err := pod.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		c.to = &unix.SockaddrLinklayer{Ifindex: link.Index}
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(c.fd) })
	return c
}

// send claims address for mac, from mac, to all.
func (c *claims) send(t *testing.T, address netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	frame := gratuitousARP(address, mac)
	if address.Is6() {
		frame = unsolicitedAdvertisement(address, mac)
	}
	if err := unix.Sendto(c.fd, frame, 0, c.to); err != nil {
		t.Errorf("claim %v: %v", address, err)
	}
}

// gratuitousARP is an Ethernet frame with an ARP announcement (RFC 5227, section 3).
func gratuitousARP(address netip.Addr, mac net.HardwareAddr) []byte {
	var f []byte
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac...)
	f = append(f, 0x08, 0x06)                           // ARP
	f = append(f, 0, 1, 0x08, 0x00, 6, 4)               // of Ethernet and IPv4
	f = append(f, 0, 1)                                 // a request
	f = append(append(f, mac...), address.AsSlice()...) // sender
	f = append(append(f, 0, 0, 0, 0, 0, 0), address.AsSlice()...)
	return f
}

// unsolicitedAdvertisement is an Ethernet frame with a neighbour advertisement that overrides what is known (RFC 4861,
// section 7.2.6).
func unsolicitedAdvertisement(address netip.Addr, mac net.HardwareAddr) []byte {
	everybody := netip.IPv6LinkLocalAllNodes()
	const override = 0x20
	message := []byte{136, 0, 0, 0, override, 0, 0, 0}
	message = append(message, address.AsSlice()...)
	message = append(append(message, 2, 1), mac...) // option: target link-layer address
	pseudo := append(address.AsSlice(), everybody.AsSlice()...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(message)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(message[2:], internetChecksum(append(pseudo, message...)))

	f := append([]byte{0x33, 0x33, 0, 0, 0, 1}, mac...)
	f = append(f, 0x86, 0xdd)
	f = append(f, 0x60, 0, 0, 0, 0, byte(len(message)), unix.IPPROTO_ICMPV6, 255)
	f = append(append(f, address.AsSlice()...), everybody.AsSlice()...)
	return append(f, message...)
}

// internetChecksum is that of RFC 1071, over an even number of bytes.
func internetChecksum(data []byte) uint16 {
	sum := uint32(0)
	for ; len(data) > 1; data = data[2:] {
		sum += uint32(binary.BigEndian.Uint16(data))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// TestAddressReuseBeforeTheAPISaysSo: the order of events in which others serve the old pod's credentials. The old
// sandbox is gone while its Pod object still says Running, with its address; a new pod has the address, and its object
// has none yet.
func TestAddressReuseBeforeTheAPISaysSo(t *testing.T) {
	for name, network := range map[string]nodebox.PodNetwork{"routed": nodebox.Routed, "bridge": nodebox.Bridge} {
		for kind, late := range map[string]bool{"result_in_time": false, "result_never": true} {
			t.Run(name+"_"+kind, func(t *testing.T) {
				bed := newBed(t, testbed.Config{Pods: network})
				addPod(t, bed, "reports", "reports")
				old := addPod(t, bed, "orders", "orders")
				startAgent(t, bed)
				eventually(t, "the old pod is served", func() string { return notServedAs(t, old, "orders") })

				if err := old.Remove(); err != nil {
					t.Fatal(err)
				}
				const uid = "00000000-0000-4000-8000-000000000001"
				if err := bed.Schedule("shop", "reports-1", uid, "reports"); err != nil {
					t.Fatal(err)
				}
				next, err := bed.Box.AddPod(nodebox.PodConfig{
					Namespace: "shop", Name: "reports-1", UID: uid, IP: old.IP, OmitResults: late,
				})
				if err != nil {
					t.Fatal(err)
				}
				if late {
					for range spoofRounds {
						if got := get(t, next, credentials); got.err == nil && got.status != http.StatusServiceUnavailable {
							t.Errorf("before anybody can know it: got %s", got)
						}
					}
					if err := bed.Run(next, "reports"); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, "served as itself", func() string {
					got := get(t, next, credentials)
					if got.err == nil && strings.Contains(got.body, "orders") {
						t.Fatalf("served as the pod that had the address before: %s", got)
					}
					if got.body != "reports" {
						return got.String()
					}
					return ""
				})
				noLeaks(t, bed)
			})
		}
	}
}

// TestAddressReuseWithoutCNIResults: where the runtime keeps no results, the API alone says whose an address is, and it is
// late. Until it names the new pod's address, or the old pod's end, the new one may be taken for the old one: that is
// why docs ask for CNI results. From then on it is not.
func TestAddressReuseWithoutCNIResults(t *testing.T) {
	bed := newBed(t, testbed.Config{})
	for _, account := range []string{"orders", "reports"} {
		arn, err := bed.AddRole(account, "shop", account)
		if err != nil {
			t.Fatal(err)
		}
		if err := bed.AddServiceAccount("shop", account, arn); err != nil {
			t.Fatal(err)
		}
	}
	attach := func(name, account string, address netip.Addr) *nodebox.Pod {
		t.Helper()
		pod, err := bed.Box.AddPod(nodebox.PodConfig{Namespace: "shop", Name: name, IP: address, OmitResults: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := bed.Schedule("shop", name, pod.Config.UID, account); err != nil {
			t.Fatal(err)
		}
		return pod
	}
	old := attach("orders-0", "orders", netip.Addr{})
	if err := bed.Run(old, "orders"); err != nil {
		t.Fatal(err)
	}
	startAgent(t, bed)
	eventually(t, "the old pod is served", func() string { return notServedAs(t, old, "orders") })
	if err := old.Remove(); err != nil {
		t.Fatal(err)
	}
	next := attach("reports-1", "reports", old.IP)
	t.Logf("in the window: %s", get(t, next, credentials))

	if err := bed.Run(next, "reports"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two claimants are nobody", func() string {
		if got := get(t, next, credentials); got.status != http.StatusServiceUnavailable {
			return got.String()
		}
		return ""
	})
	if err := bed.Delete("Pod", "shop", "orders-0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "served as itself", func() string { return notServedAs(t, next, "reports") })
}
