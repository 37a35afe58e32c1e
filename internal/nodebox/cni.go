package nodebox

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

const (
	networkName  = "pod-network"
	loopbackName = "cni-loopback"
)

// cachedResult is the file that libcni keeps per attachment (github.com/containernetworking/cni, libcni, cachedInfo).
// It is named NETWORK-CONTAINERID-IFNAME, in a folder of mode 0700.
type cachedResult struct {
	Kind           string         `json:"kind"`
	ContainerID    string         `json:"containerId"`
	Config         []byte         `json:"config"`
	IfName         string         `json:"ifName"`
	NetworkName    string         `json:"networkName"`
	NetNS          string         `json:"netns,omitempty"`
	CNIArgs        [][2]string    `json:"cniArgs,omitempty"`
	CapabilityArgs map[string]any `json:"capabilityArgs,omitempty"`
	Result         cniResult      `json:"result"`
}

// cniResult is a plugin's result: https://www.cni.dev/docs/spec/#add-success.
type cniResult struct {
	CNIVersion string         `json:"cniVersion"`
	DNS        struct{}       `json:"dns"`
	Interfaces []cniInterface `json:"interfaces"`
	IPs        []cniIP        `json:"ips"`
	Routes     []cniRoute     `json:"routes,omitempty"`
}

type cniInterface struct {
	MAC     string `json:"mac"`
	Name    string `json:"name"`
	Sandbox string `json:"sandbox,omitempty"` // absent on the host's side
}

type cniIP struct {
	Address   string      `json:"address"`
	Gateway   *netip.Addr `json:"gateway,omitempty"`
	Interface int         `json:"interface"`         // index into interfaces
	Version   string      `json:"version,omitempty"` // "4" or "6", before CNI 1.0
}

type cniRoute struct {
	Destination string     `json:"dst"`
	Gateway     netip.Addr `json:"gw"`
}

// writeResults writes what a runtime leaves behind for a pod: the result of its network, and that of the loopback
// plugin, which carries the same pod UID.
func (p *Pod) writeResults() error {
	return errors.Join(p.writeResult(p.networkResult()), p.writeResult(p.loopbackResult()))
}

func (p *Pod) networkResult() cachedResult {
	plugin, bits, bits6 := "ptp", 32, 128
	gateway, gateway6 := podGatewayIP(), podGatewayIPv6()
	var interfaces []cniInterface
	if p.box.pods == Bridge {
		plugin, bits, bits6 = "bridge", podRange().Bits(), podRangeIPv6().Bits()
		gateway, gateway6 = bridgeIP(), pairedIPv6(bridgeIP())
		interfaces = append(interfaces, cniInterface{Name: bridgeName, MAC: p.box.bridgeMAC.String()})
	}
	interfaces = append(interfaces,
		cniInterface{Name: p.HostInterface, MAC: p.HostMAC.String()},
		cniInterface{Name: podName, MAC: p.MAC.String(), Sandbox: p.Path()},
	)
	own := len(interfaces) - 1
	result := cniResult{
		CNIVersion: "1.0.0",
		Interfaces: interfaces,
		IPs:        []cniIP{{Address: netip.PrefixFrom(p.IP, bits).String(), Gateway: &gateway, Interface: own}},
		Routes:     []cniRoute{{Destination: everywhere(false).String(), Gateway: gateway}},
	}
	if p.IPv6.IsValid() {
		result.IPs = append(result.IPs,
			cniIP{Address: netip.PrefixFrom(p.IPv6, bits6).String(), Gateway: &gateway6, Interface: own})
		result.Routes = append(result.Routes, cniRoute{Destination: everywhere(true).String(), Gateway: gateway6})
	}
	return p.cachedResult(networkName, podName, plugin, result)
}

func (p *Pod) loopbackResult() cachedResult {
	result := cniResult{
		CNIVersion: "0.3.1",
		Interfaces: []cniInterface{{Name: "lo", MAC: "00:00:00:00:00:00", Sandbox: p.Path()}},
		IPs:        []cniIP{{Address: "127.0.0.1/8", Version: "4"}},
	}
	if p.IPv6.IsValid() {
		result.IPs = append(result.IPs, cniIP{Address: "::1/128", Version: "6"})
	}
	return p.cachedResult(loopbackName, "lo", "loopback", result)
}

// cachedResult completes a result to what libcni writes under containerd.
func (p *Pod) cachedResult(network, ifName, plugin string, result cniResult) cachedResult {
	return cachedResult{
		Kind:        "cniCacheV1",
		ContainerID: p.ContainerID,
		Config: fmt.Appendf(nil, `{"cniVersion":%q,"name":%q,"plugins":[{"type":%q}]}`,
			result.CNIVersion, network, plugin),
		IfName:      ifName,
		NetworkName: network,
		NetNS:       p.Path(),
		CNIArgs: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Config.Namespace},
			{"K8S_POD_NAME", p.Config.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID},
			{"K8S_POD_UID", p.Config.UID},
		},
		CapabilityArgs: map[string]any{"portMappings": []any{}},
		Result:         result,
	}
}

// writeResult writes like libcni: the folder made when needed, the file not replaced atomically, so that a reader may
// find half of it.
func (p *Pod) writeResult(c cachedResult) error {
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode CNI result: %w", err)
	}
	if err := os.MkdirAll(p.box.CNIResults, 0o700); err != nil {
		return fmt.Errorf("write CNI result: %w", err)
	}
	file := p.resultFile(c.NetworkName, c.IfName)
	p.box.results[file] = true
	return wrapf(os.WriteFile(file, data, 0o600), "write CNI result")
}

// ResultFile is the path of the CNI result of the pod's network; it need not exist.
func (p *Pod) ResultFile() string { return p.resultFile(networkName, podName) }

func (p *Pod) resultFile(network, ifName string) string {
	return filepath.Join(p.box.CNIResults, fmt.Sprintf("%s-%s-%s", network, p.ContainerID, ifName))
}

func (p *Pod) removeResults() error {
	var errs []error
	for _, file := range []string{p.ResultFile(), p.resultFile(loopbackName, "lo")} {
		delete(p.box.results, file)
		errs = append(errs, removeResult(file))
	}
	return errors.Join(errs...)
}

func removeResult(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove CNI result: %w", err)
	}
	return nil
}
