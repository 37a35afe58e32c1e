package authority

import (
	"context"
	"fmt"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// self is who the API server takes the agent for.
type self struct {
	User               string
	Namespace, Account string // of its ServiceAccount
	Node, Pod, PodUID  string // that its token is bound to
}

// Extras of a ServiceAccount token that is bound to a pod, since Kubernetes 1.30
// (https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-tokens).
const (
	extraNode   = "authentication.kubernetes.io/node-name"
	extraPod    = "authentication.kubernetes.io/pod-name"
	extraPodUID = "authentication.kubernetes.io/pod-uid"
)

// whoAmI asks the API server for whom it takes the agent. With Direct and Node, that must be a ServiceAccount, by a token
// that is bound to a pod of the node.
func (c Config) whoAmI(ctx context.Context) (self, error) {
	review, err := c.Own.AuthenticationV1().SelfSubjectReviews().Create(
		ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil {
		return self{}, fmt.Errorf("create SelfSubjectReview: %w", err)
	}
	info := review.Status.UserInfo
	extra := func(key string) string {
		if values := info.Extra[key]; len(values) == 1 {
			return values[0]
		}
		return ""
	}
	s := self{User: info.Username, Node: extra(extraNode), Pod: extra(extraPod), PodUID: extra(extraPodUID)}
	parts := strings.Split(info.Username, ":")
	if len(parts) == 4 && parts[0] == "system" && parts[1] == "serviceaccount" {
		s.Namespace, s.Account = parts[2], parts[3]
	}
	switch {
	case c.Kind == None:
	case s.Account == "":
		return self{}, c.fault("run it as a pod with a ServiceAccount, or say --token-authority=unverified",
			"the agent is %s, which is no ServiceAccount", s.User)
	case s.Node == "" || s.Pod == "" || s.PodUID == "":
		return self{}, c.fault("run it as a pod with the token that the kubelet mounts, on Kubernetes 1.30 or later",
			"the token of %s is not bound to a pod on a node", s.User)
	case s.Node != c.Node:
		return self{}, c.fault("give --node-name from the field spec.nodeName of the agent's pod",
			"the token of %s was made for a pod on node %s, not %s", s.User, s.Node, c.Node)
	}
	return s, nil
}

// right is something that RBAC can grant, in all namespaces.
type right struct{ verb, group, resource, subresource string }

// String implements fmt.Stringer.
func (r right) String() string {
	resource := r.resource
	if r.subresource != "" {
		resource += "/" + r.subresource
	}
	if r.group != "" && r.group != "*" {
		resource += "." + r.group
	}
	return r.verb + " " + resource
}

// tooMuch are rights that agents of this kind must not have: with them it could be whom it likes, and policies that
// name the agent would be none.
func (c Config) tooMuch() []right {
	const authentication = "authentication.k8s.io"
	rights := []right{
		{"*", "*", "*", ""},
		{"get", "", "secrets", ""},
		{"list", "", "secrets", ""},
		{"create", "", "pods", ""},
		{"create", "", "pods", "exec"},
		{"impersonate", "", "users", ""},
		{"impersonate", "", "groups", ""},
		{"impersonate", "", "serviceaccounts", ""},
		{"impersonate:user-info", authentication, "users", ""},
		{"impersonate:serviceaccount", authentication, "serviceaccounts", ""},
		{"impersonate:arbitrary-node", authentication, "nodes", ""},
	}
	if c.Kind != Direct {
		rights = append(rights, right{"create", "", "serviceaccounts", "token"})
	}
	if c.Kind == Node {
		rights = append(rights, right{"list", "", "pods", ""}, right{"watch", "", "pods", ""})
	} else {
		rights = append(rights, right{"impersonate:associated-node", authentication, "nodes", ""})
	}
	if !c.StartupTaint {
		rights = append(rights, right{"patch", "", "nodes", ""}, right{"update", "", "nodes", ""})
	}
	return rights
}

// review asks for the rights that the agent must not have.
func (c Config) review(ctx context.Context) error {
	var held []string
	for _, r := range c.tooMuch() {
		review, err := c.Own.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: r.verb, Group: r.group, Resource: r.resource, Subresource: r.subresource,
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("create SelfSubjectAccessReview for %s: %w", r, err)
		}
		if review.Status.Allowed {
			held = append(held, r.String())
		}
	}
	if len(held) == 0 {
		return nil
	}
	return c.fault("take the ClusterRoleBindings away that the manifests in use do not have: kubectl get clusterrolebindings -o wide; "+
		"or say --token-authority=unverified",
		"the agent may do more than it was told to: %s", strings.Join(held, ", "))
}
