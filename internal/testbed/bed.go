// Package testbed puts the pieces of a stage together: a node in a box, AWS outside of it, a folder of Kubernetes objects,
// and the agent as a process of its own inside the node. Tests, demo and benchmarks all play on it.
package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
)

// What every bed has.
const (
	Region  = "eu-west-1"
	Account = "111122223333"
	// NodeRole is the role of the node itself. No pod may ever hold its credentials.
	NodeRole = "arn:aws:iam::" + Account + ":role/node"
	// NodeName is the node's name in spec.nodeName.
	NodeName = "box"
	// awsPort is the port of the AWS endpoints outside.
	awsPort = 8000
)

// Config is what New needs.
type Config struct {
	// Agent is the path of the agent's binary. Required to start one.
	Agent string
	// Pods is how pods are attached; default routed.
	Pods nodebox.PodNetwork
	// Under is a command, with its arguments, that the agent runs under, such as taskset. It must exec. Optional.
	Under []string
	// Flags are given to every agent, behind those that the bed needs.
	Flags []string
	// SessionTokenSize is the length of session tokens in characters. Optional: awstest's default.
	SessionTokenSize int
	// Log takes the agents' logs as they are written. Optional.
	Log io.Writer
	// Logger takes debug messages about the box. Optional.
	Logger *slog.Logger
}

// Bed is a stage. Its methods may be called concurrently.
type Bed struct {
	Box      *nodebox.Box
	AWS      *awstest.AWS
	Metadata *awstest.Metadata // the node's own
	Issuer   *awstest.Issuer   // of ServiceAccount tokens
	Objects  string            // the folder of Kubernetes objects

	cfg      Config
	provider string // ARN of the OIDC provider
	servers  []*http.Server
}

// New builds a stage without pods and without an agent.
func New(ctx context.Context, cfg Config) (_ *Bed, err error) {
	b := &Bed{cfg: cfg}
	if b.Box, err = nodebox.New(ctx, nodebox.Config{Pods: cfg.Pods, Logger: cfg.Logger}); err != nil {
		return nil, err
	}
	if err := b.build(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *Bed) build(ctx context.Context) (err error) {
	b.Objects = filepath.Join(b.Box.Dir, "objects")
	if err := os.Mkdir(b.Objects, 0o700); err != nil {
		return fmt.Errorf("create folder of objects: %w", err)
	}
	if b.AWS, err = awstest.New(awstest.Config{SessionTokenSize: b.cfg.SessionTokenSize}); err != nil {
		return err
	}
	err = b.AWS.PutRole(awstest.Role{
		ARN:         NodeRole,
		Trust:       awstest.TrustService("ec2.amazonaws.com"),
		Permissions: awstest.Permit("sts:AssumeRole", "s3:ListAllMyBuckets"),
	})
	if err != nil {
		return err
	}
	b.Metadata, err = b.AWS.NewMetadata(awstest.NodeConfig{
		RoleARN: NodeRole, Region: Region, LocalIPv4: b.Box.NodeIP,
		Allowed: func(source netip.Addr) bool { return source == b.Box.NodeIP || source == b.Box.NodeIPv6 },
	})
	if err != nil {
		return err
	}
	if b.Issuer, err = awstest.NewIssuer(awstest.IssuerConfig{URL: "https://oidc.box.example/id/box"}); err != nil {
		return err
	}
	b.provider, err = b.AWS.PutProvider(awstest.Provider{
		Account: Account, Issuer: b.Issuer.URL(), ClientIDs: []string{"sts.amazonaws.com"}, Keys: b.Issuer.Keys,
	})
	if err != nil {
		return err
	}
	if err := b.serve(ctx, netip.AddrPortFrom(b.Box.OutsideIP, awsPort), b.AWS.Endpoint(Region), nil); err != nil {
		return err
	}
	for _, a := range []netip.Addr{b.Box.MetadataIP, b.Box.MetadataIPv6} {
		if !a.IsValid() {
			continue
		}
		if err := b.serve(ctx, netip.AddrPortFrom(a, 80), b.Metadata, b.Metadata.ConnState); err != nil {
			return err
		}
	}
	return nil
}

// serve answers on an address outside of the node until Close.
func (b *Bed) serve(ctx context.Context, address netip.AddrPort, handler http.Handler, follow func(net.Conn, http.ConnState)) error {
	l, err := b.Box.Outside.Listen(ctx, "tcp", address.String())
	if err != nil {
		return fmt.Errorf("listen outside of the node: %w", err)
	}
	server := &http.Server{Handler: handler, ConnState: follow, ReadHeaderTimeout: time.Minute}
	b.servers = append(b.servers, server)
	go func() { _ = server.Serve(l) }() // ends with Close
	return nil
}

// STS is the URL of the AWS endpoints, as reached from the node and from its pods.
func (b *Bed) STS() string { return "http://" + netip.AddrPortFrom(b.Box.OutsideIP, awsPort).String() }

// ProviderARN returns the ARN of the OIDC provider behind Issuer: what the trust policies of roles name.
func (b *Bed) ProviderARN() string { return b.provider }

// AddRole makes an IAM role that the node may assume, as with kube2iam, and that the ServiceAccount may assume by its
// token, as with IRSA. It may list buckets. The role's ARN is returned.
func (b *Bed) AddRole(name, namespace, serviceAccount string) (string, error) {
	arn := "arn:aws:iam::" + Account + ":role/" + name
	trust, err := anyOf(
		awstest.TrustPrincipals(NodeRole),
		awstest.TrustServiceAccount(b.provider, namespace, serviceAccount))
	if err != nil {
		return "", err
	}
	return arn, b.AWS.PutRole(awstest.Role{ARN: arn, Trust: trust, Permissions: awstest.Permit("s3:ListAllMyBuckets")})
}

// anyOf returns the policy that allows what one of the policies allows.
func anyOf(policies ...string) (string, error) {
	type policy struct {
		Version   string
		Statement []json.RawMessage
	}
	var union policy
	for _, text := range policies {
		var p policy
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			return "", fmt.Errorf("read policy: %w", err)
		}
		union.Version = p.Version
		union.Statement = append(union.Statement, p.Statement...)
	}
	text, err := json.Marshal(union)
	if err != nil {
		return "", fmt.Errorf("write policy: %w", err)
	}
	return string(text), nil
}

// Put writes a Kubernetes object into the folder, or replaces it.
func (b *Bed) Put(kind, namespace, name string, metadata, rest map[string]any) error {
	object := map[string]any{
		"apiVersion": "v1",
		"kind":       kind,
		"metadata":   map[string]any{"name": name},
	}
	if namespace != "" {
		object["metadata"].(map[string]any)["namespace"] = namespace
	}
	maps.Copy(object["metadata"].(map[string]any), metadata)
	maps.Copy(object, rest)
	text, err := yaml.Marshal(object)
	if err != nil {
		return fmt.Errorf("write object: %w", err)
	}
	// Renamed into place, so that the agent never reads half of it.
	file, err := os.CreateTemp(b.Objects, "*.new")
	if err != nil {
		return fmt.Errorf("write object: %w", err)
	}
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("write object: %w", err)
	}
	if err := os.Rename(file.Name(), b.file(kind, namespace, name)); err != nil {
		return fmt.Errorf("write object: %w", err)
	}
	return nil
}

// Delete removes an object from the folder.
func (b *Bed) Delete(kind, namespace, name string) error {
	if err := os.Remove(b.file(kind, namespace, name)); err != nil {
		return fmt.Errorf("delete object: %w", err)
	}
	return nil
}

func (b *Bed) file(kind, namespace, name string) string {
	return filepath.Join(b.Objects, strings.ToLower(kind)+"-"+namespace+"-"+name+".yaml")
}

// AddServiceAccount writes a Namespace that permits every role of the account, and a ServiceAccount in it that names
// role, or none if role is empty.
func (b *Bed) AddServiceAccount(namespace, name, role string) error {
	permit := map[string]any{"iam.amazonaws.com/allowed-roles": `["arn:aws:iam::` + Account + `:role/*"]`}
	if err := b.Put("Namespace", "", namespace, map[string]any{"annotations": permit}, nil); err != nil {
		return err
	}
	annotations := map[string]any{}
	if role != "" {
		annotations["podrole.io/role-arn"] = role
	}
	return b.Put("ServiceAccount", namespace, name, map[string]any{"annotations": annotations}, nil)
}

// Schedule writes a pod that is bound to the node and has no address yet.
func (b *Bed) Schedule(namespace, name, uid, serviceAccount string) error {
	return b.putPod(namespace, name, uid, serviceAccount, map[string]any{"phase": "Pending"})
}

// AddPod attaches a pod to the node and writes it as a running one.
func (b *Bed) AddPod(namespace, name, serviceAccount string) (*nodebox.Pod, error) {
	pod, err := b.Box.AddPod(nodebox.PodConfig{Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return pod, b.Run(pod, serviceAccount)
}

// Run writes a pod that is attached to the node as a running one, with its addresses.
func (b *Bed) Run(pod *nodebox.Pod, serviceAccount string) error {
	ips := []map[string]any{{"ip": pod.IP.String()}}
	if pod.IPv6.IsValid() {
		ips = append(ips, map[string]any{"ip": pod.IPv6.String()})
	}
	status := map[string]any{"phase": "Running", "podIP": pod.IP.String(), "podIPs": ips}
	return b.putPod(pod.Config.Namespace, pod.Config.Name, pod.Config.UID, serviceAccount, status)
}

func (b *Bed) putPod(namespace, name, uid, serviceAccount string, status map[string]any) error {
	return b.Put("Pod", namespace, name, map[string]any{"uid": uid}, map[string]any{
		"spec": map[string]any{
			"nodeName":           NodeName,
			"serviceAccountName": serviceAccount,
			"containers":         []map[string]any{{"name": "main", "image": "none"}},
		},
		"status": status,
	})
}

// NodeRoleLeaks counts what no redirect may let happen: packets for the metadata service that left the node under another
// address than its own. What the metadata service itself saw is the cross-check.
func (b *Bed) NodeRoleLeaks() int { return max(len(b.Box.Leaks()), b.Metadata.LeakCount()) }

// Close ends everything and removes it. Agents that still run are killed.
func (b *Bed) Close() error {
	var errs []error
	for _, s := range b.servers {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, b.Box.Close())...)
}

// WebIdentityToken writes a token of a ServiceAccount, as the IRSA webhook mounts it into pods, and returns its file.
func (b *Bed) WebIdentityToken(pod *nodebox.Pod, serviceAccount string) (string, error) {
	token, err := b.Issuer.Token(awstest.TokenRequest{
		Namespace: pod.Config.Namespace, ServiceAccount: serviceAccount,
		Pod: pod.Config.Name, PodUID: pod.Config.UID,
		Audiences: []string{"sts.amazonaws.com"}, Lifetime: 24 * time.Hour,
	})
	if err != nil {
		return "", err
	}
	file := filepath.Join(b.Box.Dir, "token-"+pod.Config.UID)
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return "", fmt.Errorf("write web identity token: %w", err)
	}
	return file, nil
}
