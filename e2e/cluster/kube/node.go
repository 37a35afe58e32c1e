package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// Node is a node of a cluster. Its methods are for one goroutine.
type Node struct {
	Name    string
	Address netip.Addr
	// Machine is what the node runs on; another one after each Start.
	Machine *sandbox.Machine
	// BeforeKubelet is a program, with its arguments, that Start runs before the kubelet, as a unit of the host that is
	// ordered before it would be. Optional.
	BeforeKubelet []string
	// Taint, KEY=VALUE:EFFECT or KEY:EFFECT, is what the node registers with if the cluster does not know it. Optional.
	Taint string

	cluster *Cluster
	number  int
	images  []string    // that were imported, for Start to bring back
	tags    [][2]string // that were given to them
}

// Start starts the node's machine with all programs on it, and the images that were imported before. It does not wait for
// it to be Ready.
func (n *Node) Start(ctx context.Context) (err error) {
	if n.Machine, err = sandbox.NewMachine(n.Name); err != nil {
		return err
	}
	if err := attach(n.Machine, n.number); err != nil {
		return fmt.Errorf("attach %s: %w", n.Name, err)
	}
	if err := n.writeFiles(); err != nil {
		return fmt.Errorf("write configuration of %s: %w", n.Name, err)
	}
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	if len(n.images) == 0 {
		n.images = []string{n.cluster.cfg.Pause}
	}
	if err := n.load(ctx, n.images...); err != nil {
		return err
	}
	for _, tag := range n.tags {
		if err := n.tag(ctx, tag); err != nil {
			return err
		}
	}
	if len(n.BeforeKubelet) > 0 {
		if err := n.run(ctx, n.BeforeKubelet...); err != nil {
			return err
		}
	}
	if err := n.startKubelet(); err != nil {
		return err
	}
	_, err = n.Machine.Start(n.log("kube-proxy"), n.cluster.Binary("kube-proxy"), "--config="+nodeDir+"/kube-proxy.yaml")
	return err
}

// nodeDir holds a node's configuration and keys.
const nodeDir = "/run/node"

func (n *Node) log(name string) string {
	return filepath.Join(n.cluster.cfg.Logs, n.Name+"-"+name+".log")
}

func (n *Node) writeFiles() error {
	kubelet, err := n.cluster.authority.kubeconfig("system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	proxy, err := n.cluster.authority.kubeconfig("system:kube-proxy")
	if err != nil {
		return err
	}
	for file, text := range map[string]string{
		"ca.crt":                string(n.cluster.authority.pem),
		"kubelet.kubeconfig":    string(kubelet),
		"kubelet.yaml":          kubeletConfig(),
		"kube-proxy.kubeconfig": string(proxy),
		"kube-proxy.yaml":       proxyConfig(n.Name),
		"containerd.toml":       containerdConfig(n.cluster.cfg.PauseName),
		"cni/podnet.conflist":   podNetwork(nodePods(n.number)),
		// Pods have no resolver: the cluster has no DNS.
		"resolv.conf": "nameserver 127.0.0.1\n",
	} {
		path := n.Machine.File(filepath.Join(nodeDir, file))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) startContainerd(ctx context.Context) error {
	if _, err := n.Machine.Start(n.log("containerd"), "containerd", "--config="+nodeDir+"/containerd.toml"); err != nil {
		return err
	}
	return n.cluster.await(ctx, "containerd on "+n.Name, 30*time.Second, func(ctx context.Context) error {
		return n.run(ctx, "ctr", "version")
	})
}

func (n *Node) startKubelet() error {
	args := []string{
		n.cluster.Binary("kubelet"), "--config=" + nodeDir + "/kubelet.yaml", "--kubeconfig=" + nodeDir + "/kubelet.kubeconfig",
		"--node-ip=" + n.Address.String(), "--hostname-override=" + n.Name,
	}
	if n.Taint != "" {
		args = append(args, "--register-with-taints="+n.Taint)
	}
	_, err := n.Machine.Start(n.log("kubelet"), args...)
	return err
}

// Import brings images into the node's container runtime. Each archive is a file that `buildah push` to docker-archive
// wrote; it must stay until the node is not started again.
func (n *Node) Import(ctx context.Context, archives ...string) error {
	if err := n.load(ctx, archives...); err != nil {
		return err
	}
	n.images = append(n.images, archives...)
	return nil
}

func (n *Node) load(ctx context.Context, archives ...string) error {
	for _, archive := range archives {
		// The machine's /run is its own: the archive comes by standard input.
		file, err := os.Open(archive)
		if err != nil {
			return fmt.Errorf("open image: %w", err)
		}
		cmd := n.Machine.Command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "-")
		cmd.Stdin = file
		out, err := cmd.CombinedOutput()
		if err = errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("import %s on %s: %w: %s", archive, n.Name, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// Tag gives an image of the node another name.
func (n *Node) Tag(ctx context.Context, from, to string) error {
	tag := [2]string{from, to}
	if err := n.tag(ctx, tag); err != nil {
		return err
	}
	n.tags = append(n.tags, tag)
	return nil
}

func (n *Node) tag(ctx context.Context, tag [2]string) error {
	return n.run(ctx, "ctr", "--namespace=k8s.io", "images", "tag", "--force", tag[0], tag[1])
}

func (n *Node) run(ctx context.Context, args ...string) error {
	out, err := n.Machine.Command(ctx, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s on %s: %w: %s", strings.Join(args, " "), n.Name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// waitReady waits until the node says that it is Ready, by a report made since the call.
func (n *Node) waitReady(ctx context.Context) error {
	return n.cluster.await(ctx, "node "+n.Name, 2*time.Minute, func(ctx context.Context) error {
		node, err := n.cluster.Admin.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return errors.New("not Ready")
	})
}
