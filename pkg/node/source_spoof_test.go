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
	// spoofTrials is how often each attack is tried, for each address.
	spoofTrials = 20
	// spoofWait bounds the wait for a handshake or an answer that may go to the victim.
	spoofWait = 250 * time.Millisecond
)

// A pod on a bridge takes another's address, or that and the MAC address; the other still has them, or is silent.
// Where it gets as far as a connection, it is to be refused: on accept, and again once its request was read. (A pod
// that makes the entries look right again before either is beyond what a Place can tell; see there.)
func TestSpoofingOnBridge(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		takeMAC, silent bool
		// tolerated is how many in a hundred may be missed: a victim that is alive resets what it hears of the
		// attacker's connections, and so teaches the bridge its own port anew, now and then before the question.
		tolerated int
	}{
		"ip-victim-alive":          {false, false, 0},
		"ip-victim-silent":         {false, true, 0},
		"ip-and-mac-victim-alive":  {true, false, 25},
		"ip-and-mac-victim-silent": {true, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Bridge})
			server := newSourceServer(t, box, newLocator(t, box))
			victim, attacker := addPod(t, box, "victim"), addPod(t, box, "attacker")
			for _, addr := range podAddresses(victim) {
				server.connect(t, victim, addr, "victim")
			}
			attack(t, server, attacker, victim, c.takeMAC, c.silent, spoofTrials)

			trials := spoofTrials * len(podAddresses(victim))
			var connected, missed int
			for _, v := range server.visits() {
				if v.who == "victim" {
					continue
				}
				connected++
				if v.first == nil || v.second == nil {
					missed++
				}
			}
			t.Logf("%d trials, %d connected, %d taken for the victim", trials, connected, missed)
			if connected < trials/4 {
				t.Errorf("the attacker connected %d times in %d trials: too few to prove anything", connected, trials)
			}
			if missed*100 > connected*c.tolerated {
				t.Errorf("of %d connections of the attacker, %d are taken for the victim's", connected, missed)
			}
		})
	}
}

// Entries that are not learned from frames keep others from a connection at all.
func TestSpoofingOnBridgeWithFixedEntries(t *testing.T) {
	t.Parallel()
	for name, takeMAC := range map[string]bool{"ip": false, "ip-and-mac": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			box := nodebox.ForTest(t, nodebox.Config{Pods: nodebox.Bridge})
			server := newSourceServer(t, box, newLocator(t, box))
			victim, attacker := addPod(t, box, "victim"), addPod(t, box, "attacker")
			fixEntries(t, box, victim)
			for _, addr := range podAddresses(victim) {
				server.connect(t, victim, addr, "victim")
			}
			attack(t, server, attacker, victim, takeMAC, false, 4) // each of them takes all of spoofWait
			for _, addr := range podAddresses(victim) {
				server.connect(t, victim, addr, "victim")
			}
			for _, v := range server.visits() {
				if v.who != "victim" || v.first != nil || v.second != nil {
					t.Errorf("visit = %+v, want the victim's alone, and none of them refused", v)
				}
			}
		})
	}
}

// attack tries to connect as the victim, after both have said where its addresses are.
func attack(t *testing.T, server *sourceServer, attacker, victim *nodebox.Pod, takeMAC, silent bool, trials int) {
	t.Helper()
	usurp(t, attacker, victim, takeMAC)
	if silent {
		silence(t, victim)
	}
	attackerFrames, victimFrames := newFrames(t, attacker), newFrames(t, victim)
	mac := attacker.MAC
	if takeMAC {
		mac = victim.MAC
	}
	for range trials {
		for _, addr := range podAddresses(victim) {
			if !silent {
				victimFrames.claim(t, victim.MAC, addr, victim.MAC)
			}
			attackerFrames.claim(t, mac, addr, mac)
			_ = server.try(attacker, addr, "attacker", spoofWait) // fails if the victim resets it
		}
	}
}

// fixEntries sets the entries of a pod so that frames do not change them.
func fixEntries(t *testing.T, box *nodebox.Box, pod *nodebox.Pod) {
	t.Helper()
	const sticky = 0x40 // NTF_STICKY of linux/neighbour.h
	inNamespace(t, box.Node, func() error {
		bridge, err := netlink.LinkByName("cni0")
		if err != nil {
			return err
		}
		port, err := netlink.LinkByName(pod.HostInterface)
		if err != nil {
			return err
		}
		errs := []error{netlink.NeighSet(&netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: port.Attrs().Index,
			Flags: netlink.NTF_MASTER | sticky, State: netlink.NUD_NOARP, HardwareAddr: pod.MAC})}
		for _, addr := range podAddresses(pod) {
			errs = append(errs, netlink.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index,
				State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: pod.MAC}))
		}
		return errors.Join(errs...)
	})
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

// silence makes a pod send nothing at all any more, not even what its kernel sends of its own accord.
func silence(t *testing.T, pod *nodebox.Pod) {
	t.Helper()
	inNamespace(t, pod.Namespace, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.QdiscReplace(&netlink.GenericQdisc{QdiscType: "blackhole",
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT}})
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
	pseudo := append(append(addr.AsSlice(), all.AsSlice()...), 0, 0, 0, byte(len(body)), 0, 0, 0, 58)
	sum := checksum(append(pseudo, body...))
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
