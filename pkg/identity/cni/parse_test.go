package cni_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podrole/podrole/pkg/identity/cni"
)

// fixtures returns the files of a folder in testdata, by name.
func fixtures(tb testing.TB, folder string) map[string][]byte {
	tb.Helper()
	files := map[string][]byte{}
	paths, err := filepath.Glob(filepath.Join("testdata", folder, "*-*"))
	if err != nil || len(paths) == 0 {
		tb.Fatalf("no fixtures in %q: %v", folder, err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			tb.Fatal(err)
		}
		files[filepath.Base(path)] = data
	}
	return files
}

// fixture returns the file of an interface.
func fixture(tb testing.TB, folder, ifName string) (string, []byte) {
	tb.Helper()
	for name, data := range fixtures(tb, folder) {
		if strings.HasSuffix(name, "-"+ifName) {
			return name, data
		}
	}
	tb.Fatalf("no result of %s in %s", ifName, folder)
	return "", nil
}

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

func mac(text string) net.HardwareAddr {
	m, err := net.ParseMAC(text)
	if err != nil {
		panic(err)
	}
	return m
}

var compareAddrs = cmpopts.EquateComparable(netip.Addr{})

func TestWhatPluginsWrite(t *testing.T) {
	tests := []struct {
		folder string
		want   cni.Sandbox
	}{
		{"ptp-portmap", cni.Sandbox{
			Network: "containerd-net", Addresses: addrs("198.18.10.2", "fd00:10::2"),
			HostInterface: "veth81087061", MAC: mac("5a:45:43:bf:54:66"),
		}},
		{"containerd-1.6", cni.Sandbox{
			Network: "podnet", Addresses: addrs("10.244.1.59"), HostInterface: "veth82e7033e", MAC: mac("c2:ba:e0:95:76:74"),
			NetNS: "/var/run/netns/cni-dd6e8f77-fe3b-08b4-f3cf-1aecaa7cc49e", // in the result alone
		}},
		{"bridge-portmap", cni.Sandbox{
			Network: "containerd-net-bridge", Addresses: addrs("198.18.11.2", "fd00:11::2"),
			HostInterface: "veth646be11a", MAC: mac("ba:f7:f6:ef:a7:37"),
		}},
		{"macvlan", cni.Sandbox{
			Network: "macvlan-net", Addresses: addrs("198.18.12.2"), MAC: mac("7a:39:b8:a1:00:3d"),
		}},
		{"two-networks", cni.Sandbox{
			Network: "podnet", Addresses: addrs("198.18.13.2"), HostInterface: "veth1097da25", MAC: mac("16:0f:cd:a2:98:04"),
		}},
		{"ptp-0.3.1", cni.Sandbox{
			Network: "ptp031", Addresses: addrs("198.18.15.2", "fd00:15::2"), HostInterface: "veth40f6f3c1", MAC: mac("fa:c0:24:d9:1c:6f"),
		}},
		{"bridge-tuning-0.4.0", cni.Sandbox{
			Network: "bridge040", Addresses: addrs("198.18.16.2"), HostInterface: "veth89b190aa", MAC: mac("0a:58:c6:12:10:63"),
		}},
		{"bridge-0.2.0", cni.Sandbox{Network: "bridge020", Addresses: addrs("198.18.17.2", "fd00:17::2")}},
		{"flannel", cni.Sandbox{
			Network: "cbr0", Addresses: addrs("198.19.1.2"), HostInterface: "veth7b172779", MAC: mac("4e:2f:61:67:0e:d9"),
		}},
		{"vpc-cni", cni.Sandbox{
			Network: "aws-cni", Addresses: addrs("10.0.37.12"), HostInterface: "enid37ace848d3",
		}},
		{"vpc-cni-security-groups", cni.Sandbox{
			Network: "aws-cni", Addresses: addrs("10.0.52.7"), HostInterface: "vlan39a868e34da",
		}},
		{"vpc-cni-multi-nic", cni.Sandbox{
			Network: "aws-cni", Addresses: addrs("10.0.37.61"), HostInterface: "eni60cb66603d3", OtherInterfaces: []string{"eni24444cc36b8"},
		}},
		{"vpc-cni-ipv6-egress-ipv4", cni.Sandbox{
			Network: "aws-cni", Addresses: addrs("2600:1f14:abc:d00:5f1e::2"), HostInterface: "enib5376c86b83",
			OtherInterfaces: []string{"veth6f0c2b1d"},
		}},
		{"vpc-cni-ipv4-egress-ipv6", cni.Sandbox{
			Network: "aws-cni", Addresses: addrs("10.0.37.40"), HostInterface: "eni7e1bc8f36eb",
			OtherInterfaces: []string{"veth17d9ae30"},
		}},
		{"calico", cni.Sandbox{
			Network: "k8s-pod-network", Addresses: addrs("192.168.88.12", "fd5f:1801::1c"), HostInterface: "calidda32c8dbd7",
			MAC: mac("2e:7f:50:91:c3:08"),
		}},
		{"calico-3.30", cni.Sandbox{
			Network: "k8s-pod-network", Addresses: addrs("192.168.88.31", "fd5f:1801::21"), HostInterface: "calid23f09f6196",
		}},
		{"cilium", cni.Sandbox{
			Network: "cilium", Addresses: addrs("10.244.0.157", "fd00:10:244::9c1e"), HostInterface: "lxc7d20c5e3a1f4",
			MAC: mac("12:8f:0c:f4:6a:d3"),
		}},
		{"multus", cni.Sandbox{
			Network: "multus-cni-network", Addresses: addrs("10.244.3.19"), HostInterface: "vethc1e0a25d",
			MAC: mac("9e:61:d8:14:3c:70"),
		}},
	}
	for _, tt := range tests {
		t.Run(tt.folder, func(t *testing.T) {
			name, data := fixture(t, tt.folder, "eth0")
			got, err := cni.Parse(name, data)
			if err != nil {
				t.Fatal(err)
			}
			var file struct {
				ContainerID string      `json:"containerId"`
				NetNS       string      `json:"netns"`
				Args        [][2]string `json:"cniArgs"`
			}
			if err := json.Unmarshal(data, &file); err != nil {
				t.Fatal(err)
			}
			want := tt.want
			want.ID = file.ContainerID
			if want.NetNS == "" {
				want.NetNS = file.NetNS
			}
			want.Namespace, want.Name, want.PodUID = file.Args[1][1], file.Args[2][1], file.Args[4][1]
			if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
				t.Errorf("sandbox (-want +got):\n%s", diff)
			}
		})
	}
}

// result returns a file as libcni writes it, of what replaces the parts of a plain one, and its name.
func result(t *testing.T, replace map[string]any) (string, []byte) {
	t.Helper()
	file := map[string]any{
		"kind":        "cniCacheV1",
		"containerId": "box",
		"ifName":      "eth0",
		"networkName": "net",
		"netns":       "/run/netns/box",
		"cniArgs":     [][2]string{{"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "a"}, {"K8S_POD_UID", "1"}},
		"result": map[string]any{
			"interfaces": []any{
				map[string]any{"name": "veth1"},
				map[string]any{"name": "eth0", "mac": "0a:00:00:00:00:01", "sandbox": "/run/netns/box"},
			},
			"ips": []any{map[string]any{"address": "10.0.0.1/24", "interface": 1}},
		},
	}
	for key, value := range replace {
		if value == nil {
			delete(file, key)
		} else {
			file[key] = value
		}
	}
	data, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	name, _ := file["networkName"].(string)
	id, _ := file["containerId"].(string)
	ifName, _ := file["ifName"].(string)
	return name + "-" + id + "-" + ifName, data
}

func TestWhatTellsOfNoSandbox(t *testing.T) {
	from := func(folder, ifName string) func(*testing.T) (string, []byte) {
		return func(t *testing.T) (string, []byte) { return fixture(t, folder, ifName) }
	}
	with := func(key string, value any) func(*testing.T) (string, []byte) {
		return func(t *testing.T) (string, []byte) { return result(t, map[string]any{key: value}) }
	}
	tests := []struct {
		name string
		file func(*testing.T) (string, []byte)
		want cni.Verdict
	}{
		{"loopback", from("ptp-portmap", "lo"), cni.Loopback},
		{"second_network", from("two-networks", "eth1"), cni.Secondary},
		{"multus_second_delegate", from("multus-delegates", "net1"), cni.Secondary},
		{"runtime_without_uid", from("no-pod-uid", "eth0"), cni.NoPodUID},
		{"libcni_0.7", from("before-libcni-0.8", "eth0"), cni.UnknownFormat},
		{"half_a_file", func(t *testing.T) (string, []byte) {
			name, data := fixture(t, "vpc-cni", "eth0")
			return name, data[:len(data)/2]
		}, cni.Corrupt},
		{"empty_file", func(*testing.T) (string, []byte) { return "net-box-eth0", nil }, cni.Corrupt},
		{"list", func(*testing.T) (string, []byte) { return "net-box-eth0", []byte("[]") }, cni.UnknownFormat},
		{"later_kind", with("kind", "cniCacheV2"), cni.UnknownFormat},
		{"copied_file", func(t *testing.T) (string, []byte) {
			name, data := fixture(t, "vpc-cni", "eth0")
			return name + ".bak", data
		}, cni.UnknownFormat},
		{"no_arguments", with("cniArgs", nil), cni.NoPodUID},
		{"empty_uid", with("cniArgs", [][2]string{{"K8S_POD_UID", ""}}), cni.NoPodUID},
		{"two_uids", with("cniArgs", [][2]string{{"K8S_POD_UID", "1"}, {"K8S_POD_UID", "2"}}), cni.Corrupt},
		{"no_container_id", with("containerId", ""), cni.Corrupt},
		{"no_netns", func(t *testing.T) (string, []byte) { // neither beside the result nor in it
			return result(t, map[string]any{"netns": nil, "result": map[string]any{}})
		}, cni.NoNetNS},
		{"netns_of_a_process", with("netns", "/proc/4711/ns/net"), cni.NoNetNS},
		{"netns_of_a_process_in_disguise", with("netns", "/run/../proc/4711/ns/net"), cni.NoNetNS},
		{"relative_netns", with("netns", "netns/box"), cni.NoNetNS},
		{"result_of_another_type", with("result", "text"), cni.Corrupt},
		{"no_address", with("result", map[string]any{"ips": []any{map[string]any{"address": "10.0.0.1"}}}), cni.Corrupt},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name, data := tt.file(t)
			s, err := cni.Parse(name, data)
			e, ok := errors.AsType[*cni.ParseError](err)
			if !ok || e.Verdict != tt.want || e.File != name {
				t.Errorf("got %+v, %v; want a ParseError of %s: %s", s, err, name, tt.want)
			}
		})
	}
}

func TestWhichInterfacesCount(t *testing.T) {
	const sandbox = "/run/netns/box"
	type entry = map[string]any
	tests := []struct {
		name       string
		interfaces []any
		ips        []any
		host       string
		others     []string
		mac        net.HardwareAddr
		addresses  []netip.Addr
	}{
		{
			name: "pair",
			interfaces: []any{
				entry{"name": "veth1"}, entry{"name": "eth0", "mac": "0a:00:00:00:00:01", "sandbox": sandbox},
			},
			ips:  []any{entry{"address": "10.0.0.1/24", "interface": 1}},
			host: "veth1", mac: mac("0a:00:00:00:00:01"), addresses: addrs("10.0.0.1"),
		},
		{
			name:       "zero_mac_is_none",
			interfaces: []any{entry{"name": "veth1"}, entry{"name": "eth0", "mac": "00:00:00:00:00:00", "sandbox": sandbox}},
			host:       "veth1",
		},
		{
			name: "addresses_of_the_nodes_side_are_not_the_pods",
			interfaces: []any{
				entry{"name": "veth1"}, entry{"name": "eth0", "sandbox": sandbox},
			},
			ips: []any{
				entry{"address": "10.0.0.254/24", "interface": 0}, entry{"address": "10.0.0.1/24", "interface": 1},
				entry{"address": "10.0.0.7/24", "interface": 7}, entry{"address": "10.0.0.8/24", "interface": -1},
			},
			host: "veth1", addresses: addrs("10.0.0.1"),
		},
		{
			name:       "only_global_unicast",
			interfaces: []any{entry{"name": "veth1"}, entry{"name": "eth0", "sandbox": sandbox}},
			ips: []any{
				entry{"address": "127.0.0.1/8"}, entry{"address": "::1/128"}, entry{"address": "fe80::1/64"},
				entry{"address": "169.254.172.3/22"}, entry{"address": "0.0.0.0/0"}, entry{"address": "224.0.0.1/4"},
				entry{"address": "fd00::2/64"}, entry{"address": "10.0.0.1/24"}, entry{"address": "10.0.0.1/32"},
			},
			host: "veth1", addresses: addrs("10.0.0.1", "fd00::2"),
		},
		{
			name: "entry_of_no_link_is_no_container",
			interfaces: []any{
				entry{"name": "eni1"}, entry{"name": "eth0", "sandbox": sandbox},
				entry{"name": "dummy1", "mac": "0"}, entry{"name": "dummy2", "mac": "0", "sandbox": "2"},
			},
			ips:  []any{entry{"address": "10.0.0.1/32", "interface": 1}},
			host: "eni1", addresses: addrs("10.0.0.1"),
		},
		{
			name: "interface_of_another_sandbox",
			interfaces: []any{
				entry{"name": "veth1"}, entry{"name": "eth0", "sandbox": sandbox},
				entry{"name": "veth2"}, entry{"name": "eth0", "sandbox": "/run/netns/other"},
			},
			ips:  []any{entry{"address": "10.0.0.1/24", "interface": 1}},
			host: "veth1", addresses: addrs("10.0.0.1"),
		},
		{
			name: "egress_without_addresses",
			interfaces: []any{
				entry{"name": "veth9"}, entry{"name": "v4if0", "mac": "0a:00:00:00:00:09", "sandbox": sandbox},
				entry{"name": "eni1"}, entry{"name": "eth0", "mac": "254", "sandbox": sandbox},
			},
			host: "eni1", others: []string{"veth9"},
		},
		{
			name: "address_of_what_is_no_link",
			interfaces: []any{
				entry{"name": "dummy1", "sandbox": "2"}, entry{"name": "veth1"}, entry{"name": "eth0", "sandbox": sandbox},
			},
			ips:  []any{entry{"address": "10.9.9.9/32", "interface": 0}, entry{"address": "10.0.0.1/32", "interface": 2}},
			host: "veth1", addresses: addrs("10.0.0.1"),
		},
		{
			name: "interfaces_of_the_sandbox_are_not_the_nodes",
			interfaces: []any{
				entry{"name": "eth0", "sandbox": sandbox}, entry{"name": "net1", "sandbox": sandbox},
			},
			ips:       []any{entry{"address": "10.0.0.1/24", "interface": 0}},
			addresses: addrs("10.0.0.1"),
		},
		{name: "nothing"},
		{name: "no_interfaces", ips: []any{entry{"address": "10.0.0.1/24"}}, addresses: addrs("10.0.0.1")},
		{name: "nameless_neighbour", interfaces: []any{entry{"mac": "0a:00:00:00:00:02"}, entry{"name": "eth0", "sandbox": sandbox}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name, data := result(t, map[string]any{"result": entry{"interfaces": tt.interfaces, "ips": tt.ips}})
			got, err := cni.Parse(name, data)
			if err != nil {
				t.Fatal(err)
			}
			want := cni.Sandbox{
				ID: "box", PodUID: "1", Namespace: "shop", Name: "a", NetNS: sandbox, Network: "net",
				Addresses: tt.addresses, HostInterface: tt.host, OtherInterfaces: tt.others, MAC: tt.mac,
			}
			if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
				t.Errorf("sandbox (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for name, data := range fixtures(f, "*") {
		f.Add(name, data)
		f.Add(name, data[:len(data)/2])
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		s, err := cni.Parse(name, data)
		if err != nil {
			if e, ok := errors.AsType[*cni.ParseError](err); !ok || e.Verdict == "" {
				t.Fatalf("error without a verdict: %v", err)
			}
			return
		}
		if s.ID == "" || s.PodUID == "" || !filepath.IsAbs(s.NetNS) || strings.HasPrefix(s.NetNS, "/proc/") {
			t.Fatalf("sandbox without identity: %+v", s)
		}
		if name != s.Network+"-"+s.ID+"-eth0" {
			t.Fatalf("%q tells of network %q, sandbox %q", name, s.Network, s.ID)
		}
		for i, a := range s.Addresses {
			if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" || (i > 0 && !s.Addresses[i-1].Less(a)) {
				t.Fatalf("addresses %v", s.Addresses)
			}
		}
		if s.MAC != nil && len(s.MAC) < 6 {
			t.Fatalf("MAC %v", s.MAC)
		}
	})
}
