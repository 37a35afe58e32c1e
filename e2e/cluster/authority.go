package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podrole/podrole/e2e/cluster/kube"
)

// Lives of tokens, in seconds: what the agent asks for, and more than the manifests allow.
const (
	sixHours = 6 * 60 * 60
	tooLong  = sixHours + 1
)

// second is an audience that a pod projects beside the API server's.
const second = "vault.example.com"

// stolen is what somebody could try who has taken an agent's credentials from its node.
type stolen struct {
	*stage
	own  kubernetes.Interface // as the agent itself
	node kubernetes.Interface // the same, acting as its own node
	as   func(rest.ImpersonationConfig) (kubernetes.Interface, error)

	here, there          *corev1.Pod // ordinary pods on the agent's node and on the other
	projecting, roleless *corev1.Pod // on the agent's node: with a second audience, and of a ServiceAccount without a role
	otherNode            string
}

// steal puts the pods in place, takes the token of the agent of the first node from where the kubelet put it, and
// returns what can be tried with it. undo removes the pods.
func (s *stage) steal(ctx context.Context) (t *stolen, undo func() error, err error) {
	here, there := s.kube.Nodes[0], s.kube.Nodes[1]
	t = &stolen{stage: s, otherNode: there.Name}
	var pods []*corev1.Pod
	undo = func() error { return s.remove(ctx, pods...) }
	if err := s.addTaint(ctx); err != nil {
		return nil, undo, err
	}
	for _, p := range []struct {
		pod           **corev1.Pod
		name, account string
		node          *kube.Node
		audience      string
	}{
		{&t.here, "ordinary-here", "orders", here, ""},
		{&t.there, "ordinary-there", "orders", there, ""},
		{&t.projecting, "projecting", "orders", here, second},
		{&t.roleless, "roleless", "nobody", here, ""},
	} {
		spec := podSpec(p.account, p.node.Name, "serve")
		if p.audience != "" {
			spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{
				Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: p.audience, Path: "token"},
				}}},
			}}}
			spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "token", MountPath: "/token"}}
		}
		if err := s.addPod(ctx, shop, p.name, spec, nil); err != nil {
			return nil, undo, err
		}
		if *p.pod, err = s.running(ctx, shop, p.name); err != nil {
			return nil, undo, err
		}
		pods = append(pods, *p.pod)
	}
	agents, err := s.agents(ctx)
	if err != nil {
		return nil, undo, err
	}
	token, err := mountedToken(here, agents[here.Name])
	if err != nil {
		return nil, undo, err
	}
	t.as = func(who rest.ImpersonationConfig) (kubernetes.Interface, error) {
		cfg := s.kube.As(token)
		cfg.Impersonate = who
		return kubernetes.NewForConfig(cfg)
	}
	if t.own, err = t.as(rest.ImpersonationConfig{}); err != nil {
		return nil, undo, err
	}
	t.node, err = t.as(rest.ImpersonationConfig{UserName: "system:node:" + here.Name})
	return t, undo, err
}

// mountedToken reads the token that a pod has of its ServiceAccount.
func mountedToken(n *kube.Node, pod corev1.Pod) (string, error) {
	pattern := n.Machine.File(filepath.Join(
		"/var/lib/kubelet/pods", string(pod.UID), "volumes/kubernetes.io~projected/kube-api-access/token"))
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("find token of %s: %d files like %s: %w", pod.Name, len(files), pattern, err)
	}
	token, err := os.ReadFile(files[0])
	if err != nil {
		return "", fmt.Errorf("read token of %s: %w", pod.Name, err)
	}
	return string(token), nil
}

// request asks for a token of a pod's ServiceAccount, bound to the pod.
func (t *stolen) request(
	ctx context.Context, who kubernetes.Interface, pod *corev1.Pod, change func(*authenticationv1.TokenRequestSpec),
) error {
	spec := authenticationv1.TokenRequestSpec{
		Audiences:         []string{"sts.amazonaws.com"},
		ExpirationSeconds: new(int64(sixHours)),
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}
	if change != nil {
		change(&spec)
	}
	_, err := who.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(
		ctx, pod.Spec.ServiceAccountName, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	return err
}

// attempt is something that is tried.
type attempt struct {
	name string
	try  func() error
}

// tokens are the requests for tokens that nobody but a thief makes.
func (t *stolen) tokens(ctx context.Context, who kubernetes.Interface) []attempt {
	type spec = authenticationv1.TokenRequestSpec
	changed := func(name string, pod *corev1.Pod, change func(*spec)) attempt {
		return attempt{name, func() error { return t.request(ctx, who, pod, change) }}
	}
	audiences := func(a ...string) func(*spec) { return func(s *spec) { s.Audiences = a } }
	return []attempt{
		changed("a token for the API server's audience", t.here, audiences(kube.Server())),
		changed("a token for the audience that is the default", t.here, audiences()),
		changed("a token for the pod's second audience", t.projecting, audiences(second)),
		changed("a token for two audiences", t.here, audiences("sts.amazonaws.com", kube.Server())),
		changed("a token for the pod's two audiences", t.projecting, audiences("sts.amazonaws.com", second)),
		changed("a token that is not bound", t.here, func(s *spec) { s.BoundObjectRef = nil }),
		changed("a token that lives longer than allowed", t.here, func(s *spec) { s.ExpirationSeconds = new(int64(tooLong)) }),
	}
}

// otherTaint is a taint that agents have no business with.
const otherTaint = "example.com/other"

// nodeChanges are changes of nodes that the agent has no business with.
func (t *stolen) nodeChanges(ctx context.Context, whoName string, who kubernetes.Interface) []attempt {
	var attempts []attempt
	for _, node := range []string{t.kube.Nodes[0].Name, t.otherNode} {
		patch := func(what, text string) {
			attempts = append(attempts, attempt{whoName + ": " + what + " of " + node, func() error {
				return t.patchNode(ctx, who, node, text)
			}})
		}
		attempts = append(attempts, attempt{whoName + ": removing another taint of " + node, func() error {
			return t.untaint(ctx, who, node, otherTaint)
		}})
		patch("removing a label", `{"metadata":{"labels":{"kubernetes.io/os":null}}}`)
		patch("adding a label", `{"metadata":{"labels":{"example.com/mine":"yes"}}}`)
		patch("making unschedulable", `{"spec":{"unschedulable":true}}`)
	}
	return attempts
}

// untaint removes a taint, which must be there, and leaves the others.
func (t *stolen) untaint(ctx context.Context, who kubernetes.Interface, name, key string) error {
	node, err := t.kube.Admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	isIt := func(taint corev1.Taint) bool { return taint.Key == key }
	if !slices.ContainsFunc(node.Spec.Taints, isIt) {
		return fmt.Errorf("%s has no taint %s", name, key)
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": slices.DeleteFunc(node.Spec.Taints, isIt)}})
	if err != nil {
		return err
	}
	return t.patchNode(ctx, who, name, string(patch))
}

func (t *stolen) patchNode(ctx context.Context, who kubernetes.Interface, node, patch string) error {
	_, err := who.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// refusals makes attempts, of which each must be refused by the API server, be it by RBAC, by admission or by a policy.
func (s *stage) refusals(attempts []attempt) {
	for _, a := range attempts {
		s.check("refused: "+a.name, func() (string, error) { return denied(a.try()) })
	}
}

// denied holds that an error is a refusal by right or by a policy that says why: one that cannot be evaluated refuses what
// it should grant as well.
func denied(err error) (string, error) {
	if err == nil {
		return "", errors.New("GRANTED")
	}
	byPolicy := apierrors.IsInvalid(err) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy")
	if !apierrors.IsForbidden(err) && !byPolicy || strings.Contains(err.Error(), "resulted in error") {
		return "", fmt.Errorf("neither granted nor refused: %w", err)
	}
	return shorten(err.Error()), nil
}

// shorten keeps the end of a message, which says why.
func shorten(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	const most = 110
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	return text
}

// directAuthority tries what the agent's own right to request tokens is kept from by policies/direct-tokens.
func (s *stage) directAuthority(ctx context.Context) (err error) {
	t, undo, err := s.steal(ctx)
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return err
	}
	s.check("granted: what the agent is for", func() (string, error) { return "", t.request(ctx, t.own, t.here, nil) })
	s.refusals(t.tokens(ctx, t.own))
	asOther, err := t.as(rest.ImpersonationConfig{UserName: "system:node:" + t.otherNode})
	if err != nil {
		return err
	}
	noUID := func(spec *authenticationv1.TokenRequestSpec) { spec.BoundObjectRef.UID = "" }
	s.refusals([]attempt{
		{"a token bound to a pod by its name alone", func() error { return t.request(ctx, t.own, t.here, noUID) }},
		{"a token of a ServiceAccount that names no role", func() error { return t.request(ctx, t.own, t.roleless, nil) }},
		{"a token, acting as the other node", func() error { return t.request(ctx, asOther, t.there, nil) }},
		{"a token, acting as the own node", func() error { return t.request(ctx, t.node, t.here, nil) }},
	})
	s.refusals(t.nodeChanges(ctx, "itself", t.own))
	// What this authority does not keep the agent from. An upgrade that refuses it is to be noticed, too.
	for _, a := range []attempt{
		{"a token for a pod on the other node", func() error { return t.request(ctx, t.own, t.there, nil) }},
		{"reading the other node's pods", func() error { return t.listPods(ctx, t.own, t.otherNode) }},
	} {
		s.check("not refused, by the nature of this authority: "+a.name, func() (string, error) { return "", a.try() })
	}
	return nil
}

// nodeAuthority replaces the agents' right to tokens by that to act as their nodes, serves by it, and tries what it keeps
// their credentials from.
func (s *stage) nodeAuthority(ctx context.Context) error {
	nodes := overlay("node-web-identity")
	// kubectl apply takes nothing away that is no longer in the manifests.
	const says = `token authority "node": the agent may do more than it was told to: create serviceaccounts/token;`
	s.check("an agent that still has the right to tokens of its own does not serve; the ones before do", func() (string, error) {
		said, err := s.staysOut(ctx, nodes, agentNamespace, says)
		if err != nil {
			return said, err
		}
		return said, s.serves(ctx, "meanwhile", s.kube.Nodes[0])
	})
	if err := s.drop(ctx, "podrole-tokens"); err != nil {
		return err
	}
	if !s.check("kubectl apply -k manifests/overlays/node-web-identity, once that right is gone", func() (string, error) {
		return "", s.deploy(ctx, nodes)
	}) {
		return nil
	}
	for _, n := range s.kube.Nodes {
		s.check("a pod on "+n.Name+" gets its role", func() (string, error) {
			return "", s.serves(ctx, "by-node-"+n.Name, n)
		})
	}
	if err := s.jobsWith(ctx, "by-node", 400*time.Millisecond); err != nil {
		return err
	}
	return s.stolenFromNode(ctx)
}

// stolenFromNode tries what the credentials of an agent are good for that may act as its node.
func (s *stage) stolenFromNode(ctx context.Context) (err error) {
	t, undo, err := s.steal(ctx)
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return err
	}
	s.check("granted: what the agent is for, acting as its node", func() (string, error) {
		return "", errors.Join(t.request(ctx, t.node, t.here, nil), t.listPods(ctx, t.node, s.kube.Nodes[0].Name))
	})
	s.refusals(t.tokens(ctx, t.node))
	asOther, err := t.as(rest.ImpersonationConfig{UserName: "system:node:" + t.otherNode})
	if err != nil {
		return err
	}
	asMaster, err := t.as(rest.ImpersonationConfig{
		UserName: "system:node:" + s.kube.Nodes[0].Name, Groups: []string{"system:masters"},
	})
	if err != nil {
		return err
	}
	asCertified, err := t.as(rest.ImpersonationConfig{
		UserName: "system:node:" + s.kube.Nodes[0].Name,
		Extra:    map[string][]string{"authentication.kubernetes.io/credential-id": {"X509SHA256=1"}},
	})
	if err != nil {
		return err
	}
	s.refusals([]attempt{
		{"a token for a pod on the other node", func() error { return t.request(ctx, t.node, t.there, nil) }},
		{"a token by its own right", func() error { return t.request(ctx, t.own, t.here, nil) }},
		{"a token, acting as the other node", func() error { return t.request(ctx, asOther, t.there, nil) }},
		{"a token, acting as its node with a group of its choice", func() error { return t.request(ctx, asMaster, t.here, nil) }},
		{"a token, acting as its node with a certificate's extra", func() error { return t.request(ctx, asCertified, t.here, nil) }},
		{"reading the other node's pods, acting as its own", func() error { return t.listPods(ctx, t.node, t.otherNode) }},
		{"reading the other node's pods, acting as that", func() error { return t.listPods(ctx, asOther, t.otherNode) }},
		{"reading the other node's pods by its own right", func() error { return t.listPods(ctx, t.own, t.otherNode) }},
		{"reading all pods, acting as its node", func() error { return t.listPods(ctx, t.node, "") }},
	})
	s.refusals(t.nodeChanges(ctx, "itself", t.own))
	s.refusals(t.nodeChanges(ctx, "acting as its node", t.node))
	return nil
}

func (t *stolen) listPods(ctx context.Context, who kubernetes.Interface, node string) error {
	selector := ""
	if node != "" {
		selector = "spec.nodeName=" + node
	}
	_, err := who.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: selector})
	return err
}

// addTaint puts a taint on all nodes that keeps nobody out.
func (s *stage) addTaint(ctx context.Context) error {
	_, err := s.kube.Kubectl(ctx, "taint", "--overwrite", "nodes", "--all", otherTaint+"=yes:PreferNoSchedule")
	return err
}
