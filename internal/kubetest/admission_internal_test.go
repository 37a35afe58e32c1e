package kubetest

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestParametersOfNoNamespace: a policy whose parameters are of the request's namespace refuses a request that has none, or
// one without ServiceAccounts.
func TestParametersOfNoNamespace(t *testing.T) {
	policies, err := ReadPolicies("../../manifests/policies/direct-tokens/policies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	policies.policies = policies.policies[1:] // podrole-token-role
	for namespace, want := range map[string]string{
		"":     "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources",
		"shop": "no params found for policy binding with `Deny` parameterNotFoundAction",
	} {
		x := &exchange{
			api:    &API{cfg: Config{Policies: policies}, store: newStore(1)},
			target: target{version: "v1", resource: "serviceaccounts", subresource: "token", namespace: namespace, name: "a"},
		}
		p := proposal{operation: admissionv1.Create, kind: tokenRequestKind(), object: &authenticationv1.TokenRequest{}}
		if err := x.admit(p); err == nil || !strings.Contains(err.Error(), "denied request: failed to configure binding: "+want) {
			t.Errorf("namespace %q: got %v, want %s", namespace, err, want)
		}
	}
}

// TestReplaceOfWhatIsGone: a change that was made from something else than what there is by now is not made.
func TestReplaceOfWhatIsGone(t *testing.T) {
	s := newStore(8)
	api := &API{store: s}
	put := func() object {
		if err := api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box"}}); err != nil {
			t.Fatal(err)
		}
		o, _ := s.get("nodes", "", "box")
		return o
	}
	stale, current := put(), put()
	if s.replace("nodes", stale, stale.DeepCopyObject().(object)) {
		t.Error("what is gone was replaced")
	}
	if !s.replace("nodes", current, current.DeepCopyObject().(object)) {
		t.Error("what is there was not replaced")
	}
}

// TestAbsentObjects: a creation has no old object, a deletion no new one.
func TestAbsentObjects(t *testing.T) {
	policies, err := ReadPolicies("../../manifests/options/startup-taint/policies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	x := &exchange{
		api:    &API{cfg: Config{Policies: policies}, store: newStore(1)},
		target: target{version: "v1", resource: "nodes", name: "box"},
		user: authenticationv1.UserInfo{
			Username: "system:serviceaccount:podrole:podrole",
			Extra:    map[string]authenticationv1.ExtraValue{nodeExtra: {"box"}},
		},
	}
	node := kinds()["nodes"].bare(metav1.ObjectMeta{Name: "box"}).(*corev1.Node)
	const want = "podrole may change a node's startup taint and nothing else"
	for _, p := range []proposal{
		{operation: admissionv1.Create, kind: node.GroupVersionKind(), object: node},
		{operation: admissionv1.Delete, kind: node.GroupVersionKind(), oldObject: node},
	} {
		if err := x.admit(p); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: got %v", p.operation, err)
		}
	}
	x.target.subresource = "status"
	p := proposal{operation: admissionv1.Update, kind: node.GroupVersionKind(), object: node, oldObject: node}
	if err := x.admit(p); err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("status: got %v", err)
	}
	x.user.Username = "system:node:box"
	if err := x.admit(p); err != nil {
		t.Errorf("somebody else: %v", err)
	}
}
