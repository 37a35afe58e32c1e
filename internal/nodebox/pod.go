package nodebox

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// PodConfig describes a pod.
type PodConfig struct {
	// Namespace and Name are the pod's in Kubernetes; required.
	Namespace, Name string
	// UID is the pod's; default: a random one.
	UID string
	// IP is the pod's IPv4 address out of 198.18.1.1 to 198.18.255.254; it must be free. The IPv6 address follows from
	// it. Default: the next one that was not used yet.
	IP netip.Addr
	// HostInterface is the name of the interface on the node, at most 15 characters. Default with Routed: derived from
	// Namespace and Name as Amazon VPC CNI does, so that a new pod of the same name gets the same; with Bridge: random.
	HostInterface string
	// OmitResults leaves out the CNI result files, for runtimes that have none or are late with them.
	OmitResults bool
}

// Pod is a pod's network namespace, attached to the node.
type Pod struct {
	*Namespace
	// Config is the configuration that the pod was made from, with its defaults filled in.
	Config PodConfig
	// IP and IPv6 are the addresses of the pod's eth0.
	IP, IPv6 netip.Addr
	// MAC is the address of the pod's eth0, HostMAC that of the node's end.
	MAC, HostMAC net.HardwareAddr
	// ContainerID is the sandbox's.
	ContainerID string
	// HostInterface is the interface in the node's namespace that leads to the pod.
	HostInterface string

	box *Box
}

// AddPod attaches a pod to the node and writes its CNI results, as the CNI ADD of a container runtime does.
func (b *Box) AddPod(c PodConfig) (*Pod, error) {
	if c.Namespace == "" || c.Name == "" {
		return nil, errors.New("add pod: Namespace and Name are required")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	p, err := b.addPod(c)
	if err != nil {
		return nil, fmt.Errorf("add pod %s/%s: %w", c.Namespace, c.Name, err)
	}
	b.logger.Debug("pod is added", "pod", c.Namespace+"/"+c.Name, "ip", p.IP, "host_interface", p.HostInterface)
	return p, nil
}

func (b *Box) addPod(c PodConfig) (_ *Pod, err error) {
	if b.closed {
		return nil, errClosed
	}
	if c.UID == "" {
		c.UID = randomUID()
	}
	if c.HostInterface == "" {
		c.HostInterface = hostInterfaceName(b.pods, c)
	}
	if c.IP, err = b.addresses.take(c.IP); err != nil {
		return nil, err
	}
	p := &Pod{
		Config:        c,
		IP:            c.IP,
		ContainerID:   randomHex(32),
		HostInterface: c.HostInterface,
		box:           b,
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.remove(true))
		}
	}()
	if b.HasIPv6() {
		p.IPv6 = pairedIPv6(p.IP)
	}
	b.podCount++
	if p.Namespace, err = b.namespace(fmt.Sprintf("pod%d", b.podCount), false); err != nil {
		return nil, err
	}
	b.live[p] = true
	if b.pods == Bridge {
		err = b.attachToBridge(p)
	} else {
		err = b.attachRouted(p)
	}
	if err != nil || c.OmitResults {
		return p, err
	}
	return p, p.writeResults()
}

// WriteResults writes the pod's CNI result files, again or for a pod that was added without.
func (p *Pod) WriteResults() error {
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	if !p.box.live[p] {
		return errors.New("write CNI results: the pod is removed")
	}
	return p.writeResults()
}

// Remove ends the pod's processes, detaches it and removes its CNI results, as a runtime that stops a sandbox does.
// Its address is free afterwards. Calling it again does nothing.
func (p *Pod) Remove() error {
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	return p.remove(true)
}

// Kill is Remove without the CNI DEL: sandbox and links are gone, the result files stay, as after a crash of the
// runtime. Remove does nothing afterwards; the files go with the box.
func (p *Pod) Kill() error {
	p.box.mu.Lock()
	defer p.box.mu.Unlock()
	return p.remove(false)
}

func (p *Pod) remove(results bool) error {
	b := p.box
	if b.closed || (p.Namespace != nil && !b.live[p]) {
		return nil
	}
	var errs []error
	if p.Namespace != nil {
		delete(b.live, p)
		errs = append(errs, endProcesses(map[namespaceID]bool{p.id: true}), p.removeLinks())
	}
	if results {
		errs = append(errs, p.removeResults())
	}
	if p.Namespace != nil {
		errs = append(errs, p.close())
	}
	b.addresses.release(p.IP)
	return wrapf(errors.Join(errs...), "remove pod %s/%s", p.Config.Namespace, p.Config.Name)
}

// hostInterfaceName names a pod's interface on the node as the CNIs do: Amazon VPC CNI takes a hash of namespace and
// name (https://github.com/aws/amazon-vpc-cni-k8s), the bridge plugin random bytes.
func hostInterfaceName(network PodNetwork, c PodConfig) string {
	if network == Bridge {
		return "veth" + randomHex(4)
	}
	sum := sha1.Sum([]byte(c.Namespace + "." + c.Name))
	return "eni" + hex.EncodeToString(sum[:])[:11]
}

// randomUID returns a version 4 UUID (RFC 9562).
func randomUID() string {
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	s := hex.EncodeToString(u[:])
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

func randomHex(size int) string {
	data := make([]byte, size)
	_, _ = rand.Read(data) // never fails
	return hex.EncodeToString(data)
}
