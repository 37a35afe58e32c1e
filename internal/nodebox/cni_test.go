package nodebox

import (
	"encoding/json"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readResult(t *testing.T, file string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var result map[string]any
	if err := json.Unmarshal(data, &result); err != nil {
		t.Fatal(err)
	}
	return result
}

// linkMAC returns the address that a link really has.
func linkMAC(t *testing.T, n *Namespace, name string) string {
	t.Helper()
	var mac string
	err := n.Do(func() error {
		link, err := net.InterfaceByName(name)
		if err == nil {
			mac = link.HardwareAddr.String()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

func TestCNIResults(t *testing.T) {
	for name, network := range networks() {
		t.Run(name, func(t *testing.T) {
			b := ForTest(t, Config{Pods: network})
			if _, err := os.Stat(b.CNIResults); !os.IsNotExist(err) {
				t.Errorf("results exist before the first pod: %v", err)
			}
			p := addPod(t, b, PodConfig{Namespace: "team", Name: "app", UID: "0c5a4a0e-4b0e-4f53-9e4c-0d1c5a1a3f10"})
			got := readResult(t, p.ResultFile())

			var interfaces []any
			ips := []any{"198.18.1.1/32", "2001:db8:0:3::101/128"}
			if network == Bridge {
				interfaces = append(interfaces, map[string]any{"name": "cni0", "mac": linkMAC(t, b.Node, "cni0")})
				ips = []any{"198.18.1.1/16", "2001:db8:0:3::101/64"}
			}
			interfaces = append(interfaces,
				map[string]any{"name": p.HostInterface, "mac": linkMAC(t, b.Node, p.HostInterface)},
				map[string]any{"name": "eth0", "mac": linkMAC(t, p.Namespace, "eth0"), "sandbox": p.Path()})
			if !b.HasIPv6() {
				ips = ips[:1]
			}
			result := got["result"].(map[string]any)
			if diff := cmp.Diff(interfaces, result["interfaces"]); diff != "" {
				t.Error(diff)
			}
			var gotIPs []any
			for _, ip := range result["ips"].([]any) {
				ip := ip.(map[string]any)
				gotIPs = append(gotIPs, ip["address"])
				if ip["interface"] != float64(len(interfaces)-1) {
					t.Errorf("%v is of interface %v, want that of the sandbox", ip["address"], ip["interface"])
				}
			}
			if diff := cmp.Diff(ips, gotIPs); diff != "" {
				t.Error(diff)
			}

			args := []any{
				[]any{"IgnoreUnknown", "1"},
				[]any{"K8S_POD_NAMESPACE", "team"},
				[]any{"K8S_POD_NAME", "app"},
				[]any{"K8S_POD_INFRA_CONTAINER_ID", p.ContainerID},
				[]any{"K8S_POD_UID", "0c5a4a0e-4b0e-4f53-9e4c-0d1c5a1a3f10"},
			}
			loopback := readResult(t, filepath.Join(b.CNIResults, "cni-loopback-"+p.ContainerID+"-lo"))
			for _, file := range []map[string]any{got, loopback} {
				if file["kind"] != "cniCacheV1" || file["containerId"] != p.ContainerID {
					t.Errorf("kind %v of container %v", file["kind"], file["containerId"])
				}
				if diff := cmp.Diff(args, file["cniArgs"]); diff != "" {
					t.Error(diff)
				}
			}
			if filepath.Base(p.ResultFile()) != got["networkName"].(string)+"-"+p.ContainerID+"-"+got["ifName"].(string) {
				t.Errorf("file name %s of network %v", p.ResultFile(), got["networkName"])
			}
			for path, want := range map[string]fs.FileMode{b.CNIResults: 0o700, p.ResultFile(): 0o600} {
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
					t.Errorf("%s: mode %v, want %v; %v", path, info.Mode(), want, err)
				}
			}
		})
	}
}

func TestCNIResultsComeAndGo(t *testing.T) {
	b := ForTest(t, Config{})
	count := func() int {
		t.Helper()
		entries, err := os.ReadDir(b.CNIResults)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return len(entries)
	}
	late := addPod(t, b, PodConfig{Namespace: "team", Name: "late", OmitResults: true})
	if got := count(); got != 0 {
		t.Errorf("%d results of a pod without", got)
	}
	if err := late.WriteResults(); err != nil {
		t.Fatal(err)
	}
	killed := addPod(t, b, PodConfig{Namespace: "team", Name: "killed"})
	if got := count(); got != 4 {
		t.Errorf("%d results of two pods, want 4", got)
	}
	if err := killed.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed.ResultFile()); err != nil {
		t.Errorf("a killed pod's result is gone: %v", err)
	}
	if _, err := os.Stat(killed.Path()); !os.IsNotExist(err) {
		t.Errorf("a killed pod's namespace is there: %v", err)
	}
	if err := late.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != 2 {
		t.Errorf("%d results after one of two was removed, want 2", got)
	}
	if err := late.WriteResults(); err == nil {
		t.Error("a removed pod wrote results")
	}
}
