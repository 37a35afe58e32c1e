package testbed

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/kubetest"
	"github.com/podrole/podrole/internal/nodebox"
)

// The agent as a pod, as manifests/base has it.
const (
	// AgentNamespace is the namespace of the agent: what it asks for on its own behalf is asked for there.
	AgentNamespace = "podrole"

	agentAccount = "podrole"
	agentPod     = "podrole-" + NodeName
)

const (
	// apiPort is the port of the API server outside.
	apiPort = 6443
)

// ClusterConfig is what NewCluster needs.
type ClusterConfig struct {
	// Authority is what the agent may do. Required.
	Authority Authority
	// NoStreamingLists has clients list before they watch, as with API servers whose feature gate WatchList is off.
	NoStreamingLists bool
}

// Authority is the manifests that say what the agent may do, as files.
type Authority struct {
	RBAC     []string // required
	Policies []string // ValidatingAdmissionPolicies with their bindings; optional
}

// NoTokens is the authority of manifests/base alone, for agents with credential source assume-role. manifests is that folder
// as seen from the working directory.
func NoTokens(manifests string) Authority {
	return Authority{RBAC: []string{filepath.Join(manifests, "base", "rbac.yaml")}}
}

// DirectTokens is the authority of manifests/policies/direct-tokens, the default. manifests is as for NoTokens.
func DirectTokens(manifests string) Authority {
	direct := filepath.Join(manifests, "policies", "direct-tokens")
	return Authority{
		RBAC:     append(NoTokens(manifests).RBAC, filepath.Join(direct, "rbac.yaml")),
		Policies: []string{filepath.Join(direct, "policies.yaml")},
	}
}

// Cluster is an API server outside of the node, in place of the Bed's folder of objects. Its methods are for one
// goroutine; those of API for many.
type Cluster struct {
	API *kubetest.API
	// BearerToken is the agent's own.
	BearerToken string

	bed         *Bed
	address     netip.AddrPort
	certificate tls.Certificate
	server      *http.Server
}

// NewCluster starts an API server. Agents started from then on use it, with credential source web-identity. To it they are
// the agent's pod on the node, which is there, and the Node, which has neither labels nor taints.
func (b *Bed) NewCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	rbac, err := kubetest.ReadRBAC(cfg.Authority.RBAC...)
	if err != nil {
		return nil, err
	}
	var policies *kubetest.Policies
	if files := cfg.Authority.Policies; len(files) > 0 {
		if policies, err = kubetest.ReadPolicies(files...); err != nil {
			return nil, err
		}
	}
	agent := b.agentObject()
	c := &Cluster{bed: b, address: netip.AddrPortFrom(b.Box.OutsideIP, apiPort), BearerToken: rand.Text()}
	c.API, err = kubetest.New(kubetest.Config{
		User: "system:serviceaccount:" + AgentNamespace + ":" + agentAccount, BearerToken: c.BearerToken,
		Node: NodeName, Pod: agent.Name, PodUID: string(agent.UID),
		RBAC: rbac, Policies: policies, Signer: b.Issuer, NoStreamingLists: cfg.NoStreamingLists,
	})
	if err != nil {
		return nil, err
	}
	if err := c.addAgent(agent); err != nil {
		return nil, err
	}
	var authority []byte
	if c.certificate, authority, err = kubetest.NewCertificate(b.Box.OutsideIP); err != nil {
		return nil, err
	}
	text, err := c.API.Kubeconfig("https://"+c.address.String(), authority)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.Box.Dir, "kubeconfig")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, fmt.Errorf("write kubeconfig: %w", err)
	}
	// The last of two flags counts: these are behind the Bed's own.
	b.cfg.Flags = append(b.cfg.Flags, "--kube-objects=", "--kubeconfig="+file)
	return c, c.Start(ctx)
}

// agentObject returns the agent's pod.
func (b *Bed) agentObject() *corev1.Pod {
	address := b.Box.NodeIP.String()
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: AgentNamespace, Name: agentPod, UID: uuid.NewUUID()},
		Spec: corev1.PodSpec{
			NodeName:           NodeName,
			ServiceAccountName: agentAccount,
			HostNetwork:        true,
			Containers:         []corev1.Container{{Name: "podrole", Image: "none"}},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: address, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
		},
	}
}

// addAgent creates what is there of the agent before it starts.
func (c *Cluster) addAgent(pod *corev1.Pod) error {
	account := func(name string) error {
		return c.API.Put(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: AgentNamespace, Name: name}})
	}
	return errors.Join(
		c.API.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: NodeName}}),
		c.AddNamespace(AgentNamespace),
		account("default"),
		account(agentAccount),
		c.API.Put(pod))
}

// Start brings a stopped API server back, with the objects and the history that it had.
func (c *Cluster) Start(ctx context.Context) error {
	l, err := c.bed.Box.Outside.Listen(ctx, "tcp", c.address.String())
	if err != nil {
		return fmt.Errorf("listen outside of the node: %w", err)
	}
	c.server = &http.Server{
		Handler:           c.API,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{c.certificate}},
		ReadHeaderTimeout: time.Minute,
	}
	c.bed.servers = append(c.bed.servers, c.server)
	go func(s *http.Server) { _ = s.ServeTLS(l, "", "") }(c.server) // ends with Stop or Bed.Close
	return nil
}

// Stop ends the API server as a crash does: connections break, and new ones are refused.
func (c *Cluster) Stop() error {
	if err := c.server.Close(); err != nil {
		return fmt.Errorf("stop API server: %w", err)
	}
	return nil
}

// AddRole makes an IAM role whose trust policy is the one that IRSA documents, for that ServiceAccount and nobody else.
// It may list buckets. The role's ARN is returned.
func (c *Cluster) AddRole(name, namespace, serviceAccount string) (string, error) {
	arn := "arn:aws:iam::" + Account + ":role/" + name
	return arn, c.bed.AWS.PutRole(awstest.Role{
		ARN:         arn,
		Trust:       awstest.TrustServiceAccount(c.bed.provider, namespace, serviceAccount),
		Permissions: awstest.Permit("s3:ListAllMyBuckets"),
	})
}

// AddNamespace creates a Namespace without annotations: with web identity none is needed.
func (c *Cluster) AddNamespace(name string) error {
	return c.API.Put(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
}

// AddServiceAccount creates a ServiceAccount that names role, or none if role is empty; or changes it.
func (c *Cluster) AddServiceAccount(namespace, name, role string) error {
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if role != "" {
		account.Annotations = map[string]string{"podrole.io/role-arn": role}
	}
	return c.API.Put(account)
}

// Schedule creates a pod that is bound to the node and has no address yet.
func (c *Cluster) Schedule(namespace, name, uid, serviceAccount string) error {
	return c.putPod(namespace, name, uid, serviceAccount, corev1.PodStatus{Phase: corev1.PodPending})
}

// AddPod attaches a pod to the node and creates it as a running one.
func (c *Cluster) AddPod(namespace, name, serviceAccount string) (*nodebox.Pod, error) {
	pod, err := c.bed.Box.AddPod(nodebox.PodConfig{Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return pod, c.Run(pod, serviceAccount)
}

// Run has the API say of a pod that is attached to the node that it runs, with its addresses.
func (c *Cluster) Run(pod *nodebox.Pod, serviceAccount string) error {
	status := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: pod.IP.String(), PodIPs: []corev1.PodIP{{IP: pod.IP.String()}}}
	if pod.IPv6.IsValid() {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: pod.IPv6.String()})
	}
	return c.putPod(pod.Config.Namespace, pod.Config.Name, pod.Config.UID, serviceAccount, status)
}

func (c *Cluster) putPod(namespace, name, uid, serviceAccount string, status corev1.PodStatus) error {
	return c.API.Put(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec: corev1.PodSpec{
			NodeName:           NodeName,
			ServiceAccountName: serviceAccount,
			Containers:         []corev1.Container{{Name: "main", Image: "none"}},
		},
		Status: status,
	})
}
