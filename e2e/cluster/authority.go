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

// kept is a Secret that pods mount, which their kubelet may therefore read.
const kept = "kept"

// stolen is what somebody could try who has taken an agent's credentials from its node.
type stolen struct {
	*stage
	own  kubernetes.Interface // as the agent itself
	node kubernetes.Interface // the same, acting as its own node
	as   func(rest.ImpersonationConfig) (kubernetes.Interface, error)

	here, there          *corev1.Pod // ordinary pods on the agent's node and on the other
	projecting, roleless *corev1.Pod // on the agent's node: with a second audience, and of a ServiceAccount without a role
	ownNode, otherNode   string
}

// steal puts the pods in place, takes the token of the agent of a node from where the kubelet put it, and returns what can
// be tried with it. undo removes the pods.
func (s *stage) steal(ctx context.Context, here, there *kube.Node) (t *stolen, undo func() error, err error) {
	t = &stolen{stage: s, ownNode: here.Name, otherNode: there.Name}
	var pods []*corev1.Pod
	secrets := s.kube.Admin.CoreV1().Secrets(shop)
	undo = func() error {
		return errors.Join(s.remove(ctx, pods...), secrets.Delete(ctx, kept, metav1.DeleteOptions{}))
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: kept}, StringData: map[string]string{"password": "example"}}
	if _, err := secrets.Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return nil, undo, err
	}
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
		spec.Volumes = []corev1.Volume{{
			Name: kept, VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: kept}},
		}}
		if p.audience != "" {
			spec.Volumes = append(spec.Volumes, corev1.Volume{Name: "token", VolumeSource: corev1.VolumeSource{
				Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: p.audience, Path: "token"},
				}}},
			}})
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
	for _, node := range []string{t.ownNode, t.otherNode} {
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

// reads are what a kubelet may do with what is on its node, and the agent may not, by whatever name. Nothing is changed where it
// is granted.
func (t *stolen) reads(ctx context.Context, whoName string, who kubernetes.Interface) []attempt {
	core := who.CoreV1()
	dry := []string{metav1.DryRunAll}
	attempts := []attempt{
		{"reading a Secret that a pod of its node mounts", func() error { return t.readKept(ctx, who) }},
		{"listing the Secrets of a namespace", func() error {
			_, err := core.Secrets(shop).List(ctx, metav1.ListOptions{})
			return err
		}},
		{"listing all Secrets", func() error {
			_, err := core.Secrets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
			return err
		}},
		{"reading a ConfigMap that a pod of its node mounts", func() error {
			_, err := core.ConfigMaps(shop).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			return err
		}},
		{"deleting a pod of its node", func() error {
			return core.Pods(shop).Delete(ctx, t.here.Name, metav1.DeleteOptions{DryRun: dry})
		}},
		{"changing the status of a pod of its node", func() error {
			_, err := core.Pods(shop).Patch(ctx, t.here.Name, types.MergePatchType, []byte(`{"status":{"message":"mine"}}`),
				metav1.PatchOptions{DryRun: dry}, "status")
			return err
		}},
		{"running a program in a pod of its node", func() error {
			return core.RESTClient().Post().Namespace(shop).Resource("pods").Name(t.here.Name).SubResource("exec").
				Param("command", "/client").Do(ctx).Error()
		}},
		{"asking its kubelet what runs", func() error {
			return core.RESTClient().Get().Resource("nodes").Name(t.ownNode).SubResource("proxy").Suffix("pods").Do(ctx).Error()
		}},
	}
	for i := range attempts {
		attempts[i].name = whoName + ": " + attempts[i].name
	}
	return attempts
}

// refusals makes attempts, of which each must be refused by the API server, be it by RBAC, by admission or by a policy.
func (s *stage) refusals(attempts []attempt) {
	for _, a := range attempts {
		s.check("refused: "+a.name, func() (string, error) { return denied(a.try()) })
	}
}

// refusalsToo makes attempts as refusals does, with the credentials of another node's agent, in one check.
func (s *stage) refusalsToo(t *stolen, attempts []attempt) {
	s.check(fmt.Sprintf("refused: the same to the agent of %s", t.ownNode), func() (string, error) {
		var errs []error
		for _, a := range attempts {
			if _, err := denied(a.try()); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
			}
		}
		return fmt.Sprintf("%d attempts", len(attempts)), errors.Join(errs...)
	})
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

// eachAgent steals from the agent of each node in turn, and tries what can be tried with that.
func (s *stage) eachAgent(ctx context.Context, try func(*stolen) error) error {
	nodes := s.kube.Nodes
	for i, n := range nodes {
		t, undo, err := s.steal(ctx, n, nodes[(i+1)%len(nodes)])
		if err == nil {
			err = try(t)
		}
		if err := errors.Join(err, undo()); err != nil {
			return err
		}
	}
	return nil
}

// first says that it is the agent whose attempts are reported one by one.
func (t *stolen) first() bool { return t.ownNode == t.kube.Nodes[0].Name }

// directAuthority tries what the agent's own right to request tokens is kept from by policies/direct-tokens.
func (s *stage) directAuthority(ctx context.Context) error {
	return s.eachAgent(ctx, func(t *stolen) error { return s.stolenDirectly(ctx, t) })
}

// stolenDirectly tries what the credentials of an agent are good for that may request tokens by its own right.
func (s *stage) stolenDirectly(ctx context.Context, t *stolen) error {
	asOther, err := t.as(rest.ImpersonationConfig{UserName: "system:node:" + t.otherNode})
	if err != nil {
		return err
	}
	noUID := func(spec *authenticationv1.TokenRequestSpec) { spec.BoundObjectRef.UID = "" }
	attempts := slices.Concat(t.tokens(ctx, t.own), []attempt{
		{"a token bound to a pod by its name alone", func() error { return t.request(ctx, t.own, t.here, noUID) }},
		{"a token of a ServiceAccount that names no role", func() error { return t.request(ctx, t.own, t.roleless, nil) }},
		{"a token, acting as the other node", func() error { return t.request(ctx, asOther, t.there, nil) }},
		{"a token, acting as the own node", func() error { return t.request(ctx, t.node, t.here, nil) }},
		{"reading a Secret that a pod there mounts, acting as the other node", func() error { return t.readKept(ctx, asOther) }},
		{"reading a Secret that a pod mounts, acting as the own node", func() error { return t.readKept(ctx, t.node) }},
	}, t.reads(ctx, "itself", t.own), t.nodeChanges(ctx, "itself", t.own))
	s.check("granted to the agent of "+t.ownNode+": what it is for", func() (string, error) {
		return "", t.request(ctx, t.own, t.here, nil)
	})
	if !t.first() {
		s.refusalsToo(t, attempts)
		return nil
	}
	s.refusals(attempts)
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
		for _, n := range s.kube.Nodes {
			err = errors.Join(err, s.serves(ctx, "meanwhile-"+n.Name, n))
		}
		return said, err
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
	if err := s.eachAgent(ctx, func(t *stolen) error { return s.stolenFromNode(ctx, t) }); err != nil {
		return err
	}
	nodes.components = []string{"manifests/options/startup-taint"}
	return s.tainted(ctx, "node-web-identity with manifests/options/startup-taint", nodes)
}

// stolenFromNode tries what the credentials of an agent are good for that may act as its node.
func (s *stage) stolenFromNode(ctx context.Context, t *stolen) error {
	asOther, err := t.as(rest.ImpersonationConfig{UserName: "system:node:" + t.otherNode})
	if err != nil {
		return err
	}
	asMaster, err := t.as(rest.ImpersonationConfig{UserName: "system:node:" + t.ownNode, Groups: []string{"system:masters"}})
	if err != nil {
		return err
	}
	asCertified, err := t.as(rest.ImpersonationConfig{
		UserName: "system:node:" + t.ownNode,
		Extra:    map[string][]string{"authentication.kubernetes.io/credential-id": {"X509SHA256=1"}},
	})
	if err != nil {
		return err
	}
	attempts := slices.Concat(t.tokens(ctx, t.node), []attempt{
		{"a token for a pod on the other node", func() error { return t.request(ctx, t.node, t.there, nil) }},
		{"a token by its own right", func() error { return t.request(ctx, t.own, t.here, nil) }},
		{"a token, acting as the other node", func() error { return t.request(ctx, asOther, t.there, nil) }},
		{"a token, acting as its node with a group of its choice", func() error { return t.request(ctx, asMaster, t.here, nil) }},
		{"a token, acting as its node with a certificate's extra", func() error { return t.request(ctx, asCertified, t.here, nil) }},
		{"reading the other node's pods, acting as its own", func() error { return t.listPods(ctx, t.node, t.otherNode) }},
		{"reading the other node's pods, acting as that", func() error { return t.listPods(ctx, asOther, t.otherNode) }},
		{"reading the other node's pods by its own right", func() error { return t.listPods(ctx, t.own, t.otherNode) }},
		{"reading all pods, acting as its node", func() error { return t.listPods(ctx, t.node, "") }},
		{"reading a Secret that a pod there mounts, acting as the other node", func() error { return t.readKept(ctx, asOther) }},
	}, t.reads(ctx, "itself", t.own), t.reads(ctx, "acting as its node", t.node),
		t.nodeChanges(ctx, "itself", t.own), t.nodeChanges(ctx, "acting as its node", t.node))
	s.check("granted to the agent of "+t.ownNode+": what it is for, acting as its node", func() (string, error) {
		return "", errors.Join(t.request(ctx, t.node, t.here, nil), t.listPods(ctx, t.node, t.ownNode))
	})
	if t.first() {
		s.refusals(attempts)
	} else {
		s.refusalsToo(t, attempts)
	}
	return nil
}

func (t *stolen) readKept(ctx context.Context, who kubernetes.Interface) error {
	_, err := who.CoreV1().Secrets(shop).Get(ctx, kept, metav1.GetOptions{})
	return err
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
