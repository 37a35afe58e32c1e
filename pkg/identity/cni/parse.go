package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
)

const (
	// cacheKind is the format of cached results since libcni 0.8.
	cacheKind = "cniCacheV1"
	// defaultInterface is the pod's interface to its default network, in containerd and CRI-O alike.
	defaultInterface = "eth0"
	loopback         = "lo"
)

// cached is what libcni keeps of an attachment (github.com/containernetworking/cni, libcni, cachedInfo).
type cached struct {
	ContainerID string      `json:"containerId"`
	IfName      string      `json:"ifName"`
	NetworkName string      `json:"networkName"`
	NetNS       string      `json:"netns"`
	Args        [][2]string `json:"cniArgs"`
	Result      result      `json:"result"`
}

// result is a plugin's, in any version of the specification: https://www.cni.dev/docs/spec/#add-success.
type result struct {
	Interfaces []link      `json:"interfaces"` // since 0.3.0
	IPs        []address   `json:"ips"`        // since 0.3.0
	IP4        *oldAddress `json:"ip4"`        // until 0.2.0
	IP6        *oldAddress `json:"ip6"`        // until 0.2.0
}

type link struct {
	Name    string `json:"name"`
	MAC     string `json:"mac"`
	Sandbox string `json:"sandbox"`
}

// inSandbox tells whether the link is, or claims to be, in a sandbox. Amazon VPC CNI keeps a device number in the
// sandbox of the entry that is no link.
func (l link) inSandbox() bool { return path.IsAbs(l.Sandbox) }

type address struct {
	Address   string `json:"address"`
	Interface *int   `json:"interface"`
}

type oldAddress struct {
	IP string `json:"ip"`
}

// Parse reads a file of the folder results, of that name. Every error is a *ParseError.
func Parse(name string, data []byte) (Sandbox, error) {
	refuse := func(v Verdict, err error) (Sandbox, error) {
		return Sandbox{}, &ParseError{File: name, Verdict: v, Err: err}
	}
	// An unfinished file must not pass for a file of another format.
	if !json.Valid(data) {
		return refuse(Corrupt, errors.New("no complete JSON document"))
	}
	var format struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(data, &format); err != nil || format.Kind != cacheKind {
		return refuse(UnknownFormat, err)
	}
	var c cached
	if err := json.Unmarshal(data, &c); err != nil {
		return refuse(Corrupt, err)
	}
	switch {
	case name != c.NetworkName+"-"+c.ContainerID+"-"+c.IfName:
		return refuse(UnknownFormat, fmt.Errorf("file is not named after what it holds, %s-%s-%s",
			c.NetworkName, c.ContainerID, c.IfName))
	case c.IfName == loopback:
		return refuse(Loopback, nil)
	case c.IfName != defaultInterface:
		return refuse(Secondary, fmt.Errorf("interface %q", c.IfName))
	}
	s := Sandbox{ID: c.ContainerID, NetNS: c.NetNS, Network: c.NetworkName}
	for arg, field := range map[string]*string{
		"K8S_POD_UID":       &s.PodUID,
		"K8S_POD_NAMESPACE": &s.Namespace,
		"K8S_POD_NAME":      &s.Name,
	} {
		var err error
		if *field, err = c.arg(arg); err != nil {
			return refuse(Corrupt, err)
		}
	}
	own := c.ownInterface()
	if s.NetNS == "" && own >= 0 { // libcni before 1.2.0, and with it containerd before 2.0, names it in the result alone
		s.NetNS = c.Result.Interfaces[own].Sandbox
	}
	switch {
	case s.ID == "":
		return refuse(Corrupt, errors.New("no container ID"))
	case s.PodUID == "":
		return refuse(NoPodUID, nil)
	case !namesNamespace(s.NetNS):
		return refuse(NoNetNS, fmt.Errorf("network namespace %q", s.NetNS))
	}
	if own >= 0 {
		s.MAC = parseMAC(c.Result.Interfaces[own].MAC)
	}
	s.HostInterface, s.OtherInterfaces = c.hostInterfaces(own)
	var err error
	if s.Addresses, err = c.Result.addresses(own); err != nil {
		return refuse(Corrupt, err)
	}
	return s, nil
}

// arg returns the value of an argument, empty if there is none.
func (c *cached) arg(key string) (string, error) {
	var value string
	for _, a := range c.Args {
		switch {
		case a[0] != key || a[1] == value:
		case value != "":
			return "", fmt.Errorf("%s is both %q and %q", key, value, a[1])
		default:
			value = a[1]
		}
	}
	return value, nil
}

// namesNamespace tells whether a path exists exactly as long as one network namespace. The namespaces of processes do
// not: process IDs are used again.
func namesNamespace(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && !strings.HasPrefix(p, "/proc/")
}

// ownInterface returns the index of the container's interface: the one that an address refers to, or the one of the
// attachment's name, or the only one there is; -1 without any.
func (c *cached) ownInterface() int {
	links := c.Result.Interfaces
	for _, a := range c.Result.IPs {
		if a.Interface != nil && *a.Interface >= 0 && *a.Interface < len(links) && links[*a.Interface].inSandbox() {
			return *a.Interface
		}
	}
	return slices.IndexFunc(links, func(l link) bool {
		return l.inSandbox() && (l.Name == c.IfName || len(links) == 1)
	})
}

// hostInterfaces returns the interface on the node that is paired with the container's, and those that are paired with
// further ones in its sandbox.
func (c *cached) hostInterfaces(own int) (host string, others []string) {
	links := c.Result.Interfaces
	if len(links) == 1 && links[0].Sandbox == "" && links[0].Name != c.IfName {
		return links[0].Name, nil // Calico before 3.31 has no entry for the container's
	}
	for i := 1; i < len(links); i++ {
		before := links[i-1]
		switch {
		case own < 0 || !links[i].inSandbox() || before.Sandbox != "" || before.Name == "":
		case i == own:
			host = before.Name
		case links[i].Sandbox == links[own].Sandbox:
			others = append(others, before.Name)
		}
	}
	slices.Sort(others)
	return host, slices.Compact(others)
}

// addresses returns those of the container's interface. Before 0.3.0, and in Calico before 3.31, they refer to none.
func (r *result) addresses(own int) ([]netip.Addr, error) {
	var texts []string
	for _, a := range r.IPs {
		if a.Interface == nil || *a.Interface == own {
			texts = append(texts, a.Address)
		}
	}
	for _, a := range []*oldAddress{r.IP4, r.IP6} {
		if a != nil {
			texts = append(texts, a.IP)
		}
	}
	var addresses []netip.Addr
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("read address: %w", err)
		}
		if a := prefix.Addr().Unmap(); a.IsGlobalUnicast() {
			addresses = append(addresses, a)
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	return slices.Compact(addresses), nil
}

// parseMAC returns nil for what is not the address of an interface.
func parseMAC(text string) net.HardwareAddr {
	mac, err := net.ParseMAC(text)
	if err != nil || !slices.ContainsFunc(mac, func(b byte) bool { return b != 0 }) {
		return nil
	}
	return mac
}
