package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// Config is what New needs.
type Config struct {
	// Binaries is the folder with the binaries of Kubernetes and etcd. Required.
	Binaries string
	// Logs is the folder for the logs of all programs. Required.
	Logs string
	// Nodes are the nodes' names; 1 to 9. Required.
	Nodes []string
	// Pause is the image, an archive that Import takes, of the container that holds a pod's namespaces, and PauseName
	// its name. Required.
	Pause, PauseName string
}

// Cluster is a cluster. Its methods may be called concurrently, but for those that start and stop its parts.
type Cluster struct {
	// Nodes are the nodes, in order.
	Nodes []*Node
	// Admin may do everything.
	Admin kubernetes.Interface

	cfg       Config
	dir       string // of keys and configuration
	authority *authority
	admin     *rest.Config
	running   map[string]*exec.Cmd  // of the control plane, by program
	exited    map[string]chan error // the same
}

// New builds a cluster in the sandbox that the caller is in, and returns when its nodes are Ready. There is no Close: the
// cluster ends with the sandbox.
func New(ctx context.Context, cfg Config) (*Cluster, error) {
	c := &Cluster{cfg: cfg, dir: filepath.Join(sandbox.Dir, "kube"), running: map[string]*exec.Cmd{}, exited: map[string]chan error{}}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		return nil, fmt.Errorf("create folder: %w", err)
	}
	if err := layFabric(); err != nil {
		return nil, err
	}
	if err := c.writeKeys(); err != nil {
		return nil, err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return nil, err
	}
	for i, name := range cfg.Nodes {
		n := &Node{Name: name, Address: nodeAddress(i + 1), cluster: c, number: i + 1}
		c.Nodes = append(c.Nodes, n)
		if err := n.Start(ctx); err != nil {
			return nil, err
		}
	}
	for _, n := range c.Nodes {
		if err := n.waitReady(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// writeKeys writes certificates, keys and kubeconfigs.
func (c *Cluster) writeKeys() (err error) {
	if c.authority, err = newAuthority(); err != nil {
		return err
	}
	issuer, err := issuerKey()
	if err != nil {
		return err
	}
	server, err := c.authority.sign("kube-apiserver", nil,
		[]netip.Addr{Outside(), apiService()}, "kubernetes", "kubernetes.default", "kubernetes.default.svc")
	if err != nil {
		return err
	}
	// To the kubelets, for logs and exec.
	client, err := c.authority.sign("kube-apiserver-kubelet-client", []string{"system:masters"}, nil)
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"ca.crt": c.authority.pem, "issuer.key": issuer,
		"apiserver.crt": server.certificate, "apiserver.key": server.key,
		"kubelet-client.crt": client.certificate, "kubelet-client.key": client.key,
	}
	for file, identity := range map[string][]string{
		"admin":              {"admin", "system:masters"},
		"controller-manager": {"system:kube-controller-manager"},
		"scheduler":          {"system:kube-scheduler"},
	} {
		if files[file+".kubeconfig"], err = c.authority.kubeconfig(identity[0], identity[1:]...); err != nil {
			return err
		}
	}
	for file, text := range files {
		if err := os.WriteFile(c.file(file), text, 0o600); err != nil {
			return fmt.Errorf("write keys: %w", err)
		}
	}
	if c.admin, err = clientcmd.BuildConfigFromFlags("", c.file("admin.kubeconfig")); err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	c.admin.QPS, c.admin.Burst = 200, 400
	if c.Admin, err = kubernetes.NewForConfig(c.admin); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	return nil
}

func (c *Cluster) file(name string) string { return filepath.Join(c.dir, name) }

// As returns a configuration of clients that authenticate by a bearer token.
func (c *Cluster) As(token string) *rest.Config {
	cfg := rest.AnonymousClientConfig(c.admin)
	cfg.BearerToken = token
	return cfg
}

// IssuerClient returns what the issuer's discovery documents can be fetched with, by anybody.
func (c *Cluster) IssuerClient() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(c.authority.certificate)
	return &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true},
		Timeout:   10 * time.Second,
	}
}

// Certificate returns a certificate of a server at address, and the authority that signed it, in PEM.
func (c *Cluster) Certificate(address netip.Addr) (certificate tls.Certificate, authority []byte, err error) {
	p, err := c.authority.sign("server", nil, []netip.Addr{address})
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	certificate, err = tls.X509KeyPair(p.certificate, p.key)
	return certificate, c.authority.pem, err
}

// Kubeconfig returns the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.file("admin.kubeconfig") }

// Binary returns the path of a program of Kubernetes.
func (c *Cluster) Binary(name string) string { return filepath.Join(c.cfg.Binaries, name) }

// Kubectl runs kubectl as the administrator, and returns what it says.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Binary("kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "HOME="+sandbox.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), err
}

// start starts a program of the control plane. With the sandbox it ends too.
func (c *Cluster) start(name string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(c.cfg.Logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("create log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(c.Binary(name), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = sandbox.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C is for the caller alone
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	exited := make(chan error, 1)
	c.running[name], c.exited[name] = cmd, exited
	go func() { exited <- cmd.Wait() }()
	return nil
}

// stop kills a program of the control plane and returns when it is gone.
func (c *Cluster) stop(name string) error {
	if err := c.running[name].Process.Kill(); err != nil {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	<-c.exited[name]
	return nil
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	const etcd = "http://127.0.0.1:2379"
	err := c.start("etcd", "--data-dir="+c.file("etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	if err := c.StartAPI(ctx); err != nil {
		return err
	}
	// Whoever is to trust the issuer, as AWS does, must be able to read its keys without being somebody.
	_, err = c.Kubectl(ctx, "create", "clusterrolebinding", "issuer-discovery",
		"--clusterrole=system:service-account-issuer-discovery", "--group=system:unauthenticated")
	return err
}

// startControllers starts what makes the cluster do what the API says.
func (c *Cluster) startControllers() error {
	err := c.start("kube-controller-manager", "--kubeconfig="+c.file("controller-manager.kubeconfig"),
		"--use-service-account-credentials", "--leader-elect=false", "--cluster-cidr="+allPods().String(),
		"--root-ca-file="+c.file("ca.crt"), "--service-account-private-key-file="+c.file("issuer.key"),
		// Pods stay where they are while a node or the API server is away for a test.
		"--node-monitor-grace-period=10m", "--bind-address=127.0.0.1")
	if err != nil {
		return err
	}
	return c.start("kube-scheduler", "--kubeconfig="+c.file("scheduler.kubeconfig"),
		"--leader-elect=false", "--bind-address=127.0.0.1")
}

// StartAPI starts the API server, returns when it is ready, and starts controllers and scheduler.
func (c *Cluster) StartAPI(ctx context.Context) error {
	err := c.start("kube-apiserver",
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address="+Outside().String(), "--advertise-address="+Outside().String(), fmt.Sprintf("--secure-port=%d", apiPort),
		"--tls-cert-file="+c.file("apiserver.crt"), "--tls-private-key-file="+c.file("apiserver.key"),
		"--client-ca-file="+c.file("ca.crt"),
		"--kubelet-client-certificate="+c.file("kubelet-client.crt"), "--kubelet-client-key="+c.file("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP", // there is no DNS
		"--service-account-issuer="+Server(), "--api-audiences="+Server(),
		"--service-account-key-file="+c.file("issuer.key"), "--service-account-signing-key-file="+c.file("issuer.key"),
		"--service-cluster-ip-range="+services().String(),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true")
	if err != nil {
		return err
	}
	err = c.await(ctx, "kube-apiserver", time.Minute, func(ctx context.Context) error {
		_, err := c.Admin.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return c.startControllers()
}

// StopAPI kills the API server, and controllers and scheduler with it: where there are several, they end by themselves
// when they cannot hold their lease.
func (c *Cluster) StopAPI() error {
	return errors.Join(c.stop("kube-apiserver"), c.stop("kube-controller-manager"), c.stop("kube-scheduler"))
}

// await tries until it succeeds, the program ends or the time is up.
func (c *Cluster) await(ctx context.Context, program string, within time.Duration, try func(context.Context) error) error {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case ended := <-c.exited[program]:
			return fmt.Errorf("%s ended: %w; see %s", program, ended, c.cfg.Logs)
		case <-deadline.C:
			return fmt.Errorf("%s is not ready after %s: %w; see %s", program, within, err, c.cfg.Logs)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-again.C:
		}
	}
}
