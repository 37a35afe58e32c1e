package kubetest_test

import (
	"net/http"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/podrole/podrole/internal/kubetest"
)

// newNodeFixture is an API with the rights and policies of node-tokens, for the agent on node box.
func newNodeFixture(t *testing.T, change func(*kubetest.Config)) *fixture {
	t.Helper()
	rbac, err := kubetest.ReadRBAC(manifests+"base/rbac.yaml", manifests+"policies/node-tokens/rbac.yaml")
	check(t, err)
	f := newFixture(t, func(c *kubetest.Config) {
		bound(c)
		c.RBAC, c.Policies = rbac, policies(t, nodePolicies)
		if change != nil {
			change(c)
		}
	})
	vault := pod("v", "box")
	vault.Spec.ServiceAccountName = "vault"
	vault.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "vault"}}},
	}}}}
	far := pod("f", "other")
	far.Spec.ServiceAccountName = "far"
	closed := pod("c", "box")
	closed.Spec.ServiceAccountName, closed.Spec.AutomountServiceAccountToken = "closed", new(false)
	shut := account("shut", nil)
	shut.AutomountServiceAccountToken = new(false)
	shutPod := pod("s", "box")
	shutPod.Spec.ServiceAccountName = "shut"
	f.put(t, pod("a", "box"), vault, far, pod("z", "other"), closed, shutPod, account("orders", nil), account("vault", nil),
		account("far", nil), account("closed", nil), shut,
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	return f
}

// as returns a client that impersonates.
func (f *fixture) as(t *testing.T, who rest.ImpersonationConfig) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: f.url, BearerToken: bearer, QPS: -1, Impersonate: who})
	check(t, err)
	return client
}

func (f *fixture) asNode(t *testing.T) kubernetes.Interface {
	t.Helper()
	return f.as(t, rest.ImpersonationConfig{UserName: "system:node:box"})
}

func listPods(t *testing.T, client kubernetes.Interface, selector string) error {
	t.Helper()
	_, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: selector})
	return err
}

func TestImpersonation(t *testing.T) {
	const mine = "spec.nodeName=box"
	node := rest.ImpersonationConfig{UserName: "system:node:box"}
	with := func(change func(*rest.ImpersonationConfig)) rest.ImpersonationConfig {
		who := node
		change(&who)
		return who
	}
	drop := func(old string) func(*testing.T) *kubetest.RBAC {
		return func(t *testing.T) *kubetest.RBAC {
			rbac, err := kubetest.ReadRBAC(edited(t, manifests+"policies/node-tokens/rbac.yaml", old, `"nothing"`))
			check(t, err)
			return rbac
		}
	}
	for name, tt := range map[string]struct {
		who  rest.ImpersonationConfig
		rbac func(*testing.T) *kubetest.RBAC
		node string // of the token
		want string
	}{
		"own_node":        {node, nil, "box", ""},
		"another_node":    {rest.ImpersonationConfig{UserName: "system:node:other"}, nil, "box", "cannot impersonate-on:arbitrary-node:list"},
		"node_of_nobody":  {node, nil, "", "cannot impersonate-on:arbitrary-node:list"},
		"user":            {rest.ImpersonationConfig{UserName: "jane"}, nil, "box", "no impersonation is modelled"},
		"account":         {rest.ImpersonationConfig{UserName: "system:serviceaccount:shop:orders"}, nil, "box", "no impersonation is modelled"},
		"with_a_group":    {with(func(c *rest.ImpersonationConfig) { c.Groups = []string{"system:nodes"} }), nil, "box", "no impersonation"},
		"with_a_uid":      {with(func(c *rest.ImpersonationConfig) { c.UID = "1" }), nil, "box", "no impersonation is modelled"},
		"with_an_extra":   {with(func(c *rest.ImpersonationConfig) { c.Extra = map[string][]string{"a": {"b"}} }), nil, "box", "no impersonation"},
		"no_such_verb":    {node, drop(`"impersonate-on:associated-node:list"`), "box", "cannot impersonate-on:associated-node:list resource \"pods\""},
		"no_impersonator": {node, drop(`"impersonate:associated-node"`), "box", "cannot impersonate:associated-node resource \"nodes\""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newNodeFixture(t, func(c *kubetest.Config) {
				if c.Node = tt.node; tt.node == "" {
					c.Pod, c.PodUID = "", ""
				}
				if tt.rbac != nil {
					c.RBAC = tt.rbac(t)
				}
			})
			expect(t, listPods(t, f.as(t, tt.who), mine), http.StatusForbidden, tt.want)
			if n := f.Count(func(r kubetest.Request) bool { return r.AsNode }); (n == 1) != (tt.want == "") {
				t.Errorf("%d requests as the node", n)
			}
		})
	}
	t.Run("nobody", func(t *testing.T) {
		f := newNodeFixture(t, nil)
		if r := f.raw(t, "GET", "/api/v1/pods", "", "Impersonate-Group", "system:nodes"); r.StatusCode != http.StatusBadRequest {
			t.Errorf("got %s", r.Status)
		}
	})
}

// TestActingAsANode: a node reads its own, and the agent's rights are not the node's.
func TestActingAsANode(t *testing.T) {
	f := newNodeFixture(t, nil)
	core := f.asNode(t).CoreV1()
	watch := func(selector string) error {
		w, err := core.Pods("").Watch(t.Context(), metav1.ListOptions{FieldSelector: selector})
		if err == nil {
			w.Stop()
		}
		return err
	}
	getNode := func(name string) error {
		_, err := core.Nodes().Get(t.Context(), name, metav1.GetOptions{})
		return err
	}
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"list_own_pods":      {listPods(t, f.asNode(t), "spec.nodeName=box"), ""},
		"list_pods_narrowly": {listPods(t, f.asNode(t), "spec.nodeName=box,status.phase=Running"), ""},
		"list_all_pods":      {listPods(t, f.asNode(t), ""), `User "system:node:box" cannot list resource "pods"`},
		"list_others_pods":   {listPods(t, f.asNode(t), "spec.nodeName=other"), `User "system:node:box" cannot list`},
		"list_all_but_own":   {listPods(t, f.asNode(t), "spec.nodeName!=box"), `User "system:node:box" cannot list`},
		"watch_own_pods":     {watch("spec.nodeName=box"), ""},
		"watch_all_pods":     {watch(""), `User "system:node:box" cannot watch resource "pods"`},
		"get_own_node":       {getNode("box"), ""},
		"get_another_node":   {getNode("other"), `User "system:node:box" cannot get resource "nodes"`},
	} {
		t.Run(name, func(t *testing.T) { expect(t, tt.err, http.StatusForbidden, tt.want) })
	}
	t.Run("what_is_not_given_on_its_behalf", func(t *testing.T) {
		_, err := f.asNode(t).AuthenticationV1().SelfSubjectReviews().Create(
			t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		expect(t, err, http.StatusForbidden, "cannot impersonate-on:associated-node:create")
	})
	t.Run("no_patch_of_its_node", func(t *testing.T) {
		k := newNodeFixture(t, func(c *kubetest.Config) { c.User, c.Node, c.Pod, c.PodUID = "system:node:box", "", "", "" })
		_, err := k.client.CoreV1().Nodes().Patch(t.Context(), "box", types.MergePatchType, []byte(`{}`), metav1.PatchOptions{})
		expect(t, err, http.StatusForbidden, `User "system:node:box" cannot patch resource "nodes"`)
	})
	t.Run("no_token_of_its_own", func(t *testing.T) {
		expect(t, requestToken(t, f.client, "shop", "orders", wanted(nil)), http.StatusForbidden, `User "`+user+`" cannot create`)
	})
}

func TestNodeTokens(t *testing.T) {
	const (
		refused  = "ValidatingAdmissionPolicy 'podrole-impersonated-token' with binding 'podrole-impersonated-token' denied request: who acts"
		audience = "not found in pod spec volume, system:node:box is not authorized to request tokens for this audience"
		none     = `User "system:node:box" cannot create resource "serviceaccounts/token"`
	)
	of := func(name string) func(*tokenSpec) {
		return func(s *tokenSpec) { s.BoundObjectRef.Name, s.BoundObjectRef.UID = name, types.UID("uid-of-"+name) }
	}
	both := func(changes ...func(*tokenSpec)) func(*tokenSpec) {
		return func(s *tokenSpec) {
			for _, change := range changes {
				change(s)
			}
		}
	}
	named := func(audiences ...string) func(*tokenSpec) { return func(s *tokenSpec) { s.Audiences = audiences } }
	for name, tt := range map[string]struct {
		account string
		change  func(*tokenSpec)
		code    int32
		want    string
		kubelet string // what a kubelet is told, which authenticates by certificate; empty: it is granted
	}{
		"granted":              {"orders", nil, 0, "", ""},
		"too_long":             {"orders", func(s *tokenSpec) { s.ExpirationSeconds = new(int64(21601)) }, 422, refused, ""},
		"api_server":           {"orders", named(), 422, refused, ""},
		"api_server_by_name":   {"orders", named("https://kubernetes.default.svc"), 403, audience, audience},
		"api_server_closed":    {"closed", both(of("c"), named()), 403, audience, audience},
		"api_server_shut":      {"shut", both(of("s"), named()), 403, audience, audience},
		"sts_closed":           {"closed", of("c"), 0, "", ""},
		"projected_by_another": {"orders", named("vault"), 403, audience, audience},
		"projected":            {"vault", both(of("v"), named("vault")), 422, refused, ""},
		"two_audiences":        {"orders", named("sts.amazonaws.com", "vault"), 403, "node may only request 0 or 1", "node may only request 0 or 1"},
		"unbound":              {"orders", func(s *tokenSpec) { s.BoundObjectRef = nil }, 403, "not bound to a pod", "not bound to a pod"},
		"no_uid":               {"orders", func(s *tokenSpec) { s.BoundObjectRef.UID = "" }, 403, "without a uid", "without a uid"},
		"successor":            {"orders", func(s *tokenSpec) { s.BoundObjectRef.UID = "x" }, 403, "does not match", "does not match"},
		"pod_of_another_node":  {"orders", of("z"), 403, "scheduled on a different node", "scheduled on a different node"},
		"account_elsewhere":    {"far", of("f"), 403, none, none},
		"account_of_nobody":    {"nobody", nil, 403, none, none},
		"no_such_pod":          {"orders", of("none"), 404, `pods "none" not found`, `pods "none" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newNodeFixture(t, nil)
			expect(t, requestToken(t, f.asNode(t), "shop", tt.account, wanted(tt.change)), tt.code, tt.want)
			// A kubelet comes by itself. It has the same limits but the policy's.
			k := newNodeFixture(t, func(c *kubetest.Config) { c.User, c.Node, c.Pod, c.PodUID = "system:node:box", "", "", "" })
			expect(t, requestToken(t, k.client, "shop", tt.account, wanted(tt.change)), tt.code, tt.kubelet)
		})
	}
	t.Run("account_of_another_namespace", func(t *testing.T) {
		f := newNodeFixture(t, nil)
		namesake := account("orders", nil)
		namesake.Namespace = "bank"
		f.put(t, namesake)
		expect(t, requestToken(t, f.asNode(t), "bank", "orders", wanted(nil)), 403, none)
	})
	t.Run("without_the_policy", func(t *testing.T) {
		f := newNodeFixture(t, func(c *kubetest.Config) { c.Policies = nil })
		expect(t, requestToken(t, f.asNode(t), "shop", "orders", wanted(named())), 0, "")
	})
	t.Run("without_the_audience", func(t *testing.T) {
		f := newNodeFixture(t, func(c *kubetest.Config) {
			var err error
			c.RBAC, err = kubetest.ReadRBAC(edited(t, manifests+"policies/node-tokens/rbac.yaml", "name: system:nodes", "name: system:pods"))
			check(t, err)
		})
		expect(t, requestToken(t, f.asNode(t), "shop", "orders", wanted(nil)), 403, audience)
	})
}
