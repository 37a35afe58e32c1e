package node_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/internal/nodebox"
)

const (
	// spoofTrials is how often each attack is tried.
	spoofTrials = 25
	// spoofWait bounds the wait for a handshake or an answer that may go to the victim.
	spoofWait = 250 * time.Millisecond
)

// A pod on a bridge takes another's address, or that and the MAC address; the other still has them, or is silent.
// Where it gets as far as a connection, it must be refused: on accept, and again once its request was read. (A pod that
// makes the entries look right again before either is beyond what a Place can tell; see there.)
func TestSpoofingOnBridge(t *testing.T) {
	t.Parallel()
	for _, takeMAC := range []bool{false, true} {
		for _, silent := range []bool{false, true} {
			name := map[bool]string{false: "ip", true: "ip-and-mac"}[takeMAC] +
				map[bool]string{false: "-victim-alive", true: "-victim-silent"}[silent]
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Bridge})
				server := newSourceServer(t, box, newLocator(t, box))
				victim, attacker := addPod(t, box, "victim"), addPod(t, box, "attacker")
				for _, addr := range podAddresses(victim) {
					server.connect(t, victim, addr, "victim")
				}
				usurp(t, attacker, victim, takeMAC)
				if silent {
					silence(t, victim)
				}
				attackerFrames, victimFrames := newFrames(t, attacker), newFrames(t, victim)
				attackerMAC := attacker.MAC
				if takeMAC {
					attackerMAC = victim.MAC
				}
				for range spoofTrials {
					for _, addr := range podAddresses(victim) {
						if !silent {
							victimFrames.claim(t, victim.MAC, addr, victim.MAC)
						}
						attackerFrames.claim(t, attackerMAC, addr, attackerMAC)
						_ = server.try(attacker, addr, "attacker", spoofWait) // fails if the victim resets it
					}
				}
				tally(t, server, spoofTrials*len(podAddresses(victim)))
			})
		}
	}
}

// With an interface of its own per pod, the answer to a handshake goes to the owner of the address, whoever began it.
func TestSpoofingOnOwnInterface(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Routed})
	server := newSourceServer(t, box, newLocator(t, box))
	victim, attacker := addPod(t, box, "victim"), addPod(t, box, "attacker")
	for _, addr := range podAddresses(victim) {
		server.connect(t, victim, addr, "victim")
	}
	usurp(t, attacker, victim, true)
	for _, addr := range podAddresses(victim) {
		if err := server.try(attacker, addr, "attacker", spoofWait); err == nil {
			t.Errorf("a connection as %v from another pod's interface is answered", addr)
		}
	}
	for _, v := range server.visits() {
		if v.who != "victim" || v.first != nil || v.second != nil {
			t.Errorf("visit = %+v, want the victim's alone, and none of them refused", v)
		}
	}
}

// tally wants every connection of the attacker to be refused, both times, and enough of them for that to mean something.
func tally(t *testing.T, server *sourceServer, trials int) {
	t.Helper()
	var connected, missedFirst, missedSecond, missedBoth int
	for _, v := range server.visits() {
		if v.who == "victim" {
			continue
		}
		connected++
		if v.first == nil {
			missedFirst++
		}
		if v.second == nil {
			missedSecond++
		}
		if v.first == nil && v.second == nil {
			missedBoth++
		}
	}
	t.Logf("%d trials, %d connected; missed on accept %d, after the request %d, both times %d",
		trials, connected, missedFirst, missedSecond, missedBoth)
	if connected < trials/4 {
		t.Errorf("the attacker connected %d times in %d trials: the attack does not work, so the test proves nothing",
			connected, trials)
	}
	if missedFirst+missedSecond > 0 {
		t.Errorf("of %d connections of the attacker, %d are taken for the victim's on accept, %d after the request",
			connected, missedFirst, missedSecond)
	}
}

// usurp gives the attacker's eth0 the victim's addresses, and its MAC address too.
func usurp(t *testing.T, attacker, victim *nodebox.Pod, takeMAC bool) {
	t.Helper()
	inNamespace(t, attacker.Namespace, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if takeMAC {
			if err := netlink.LinkSetHardwareAddr(link, victim.MAC); err != nil {
				return err
			}
		}
		for _, addr := range podAddresses(victim) {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}}
			if addr.Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(link, a); err != nil {
				return err
			}
		}
		return nil
	})
}

// silence makes a pod answer nothing: it no longer has its addresses, nor speaks ARP.
func silence(t *testing.T, pod *nodebox.Pod) {
	t.Helper()
	inNamespace(t, pod.Namespace, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		errs := []error{netlink.LinkSetARPOff(link)}
		for _, a := range addrs {
			errs = append(errs, netlink.AddrDel(link, &a))
		}
		return errors.Join(errs...)
	})
}

// frames sends Ethernet frames of any content from a pod's eth0, which takes no more than CAP_NET_RAW.
type frames struct {
	fd int
	to *unix.SockaddrLinklayer
}

func newFrames(t *testing.T, pod *nodebox.Pod) *frames {
	t.Helper()
	f := &frames{}
	inNamespace(t, pod.Namespace, func() (err error) {
		link, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		f.to = &unix.SockaddrLinklayer{Ifindex: link.Index}
		f.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(f.fd) })
	return f
}

// claim says to all that addr is at mac, in a frame from sender: a gratuitous ARP request (RFC 5227) or an unsolicited
// neighbour advertisement (RFC 4861 section 7.2.6).
func (f *frames) claim(t *testing.T, sender net.HardwareAddr, addr netip.Addr, mac net.HardwareAddr) {
	t.Helper()
	if err := unix.Sendto(f.fd, claimFrame(sender, addr, mac), 0, f.to); err != nil {
		t.Error(err)
	}
}

func claimFrame(sender net.HardwareAddr, addr netip.Addr, mac net.HardwareAddr) []byte {
	if addr.Is4() {
		frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, sender...)
		frame = append(frame, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
		frame = append(append(frame, mac...), addr.AsSlice()...)
		return append(append(frame, 0, 0, 0, 0, 0, 0), addr.AsSlice()...)
	}
	all := netip.MustParseAddr("ff02::1")
	body := append([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, addr.AsSlice()...) // override
	body = append(append(body, 2, 1), mac...)                              // target link-layer address
	sum := checksum(append(append(append(addr.AsSlice(), all.AsSlice()...), 0, 0, 0, byte(len(body)), 0, 0, 0, 58), body...))
	binary.BigEndian.PutUint16(body[2:], sum)
	frame := append([]byte{0x33, 0x33, 0, 0, 0, 1}, sender...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, byte(len(body)), 58, 255)
	frame = append(append(frame, addr.AsSlice()...), all.AsSlice()...)
	return append(frame, body...)
}

// checksum is the Internet checksum (RFC 1071) of an even number of bytes.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
