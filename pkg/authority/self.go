package authority

import (
	"context"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"
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
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
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

// right is something that RBAC can grant.
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
// name the agent would be none. It is not all such rights, but what roles that are bound by mistake are likely to have.
func (c Config) tooMuch() []right {
	const (
		authentication = "authentication.k8s.io"
		rbac           = "rbac.authorization.k8s.io"
		admission      = "admissionregistration.k8s.io"
	)
	rights := []right{
		{"*", "*", "*", ""},
		{"get", "", "secrets", ""},
		{"list", "", "secrets", ""},
		{"watch", "", "secrets", ""},
		{"create", "", "pods", ""},
		{"create", "", "pods", "exec"},
		{"get", "", "nodes", "proxy"},
		{"patch", "", "serviceaccounts", ""},
		{"patch", "apps", "daemonsets", ""},
		{"patch", "apps", "deployments", ""},
		{"create", "batch", "jobs", ""},
		{"create", rbac, "clusterrolebindings", ""},
		{"bind", rbac, "clusterroles", ""},
		{"escalate", rbac, "clusterroles", ""},
		{"delete", admission, "validatingadmissionpolicies", ""},
		{"patch", admission, "validatingadmissionpolicies", ""},
		{"delete", admission, "validatingadmissionpolicybindings", ""},
		{"patch", admission, "validatingadmissionpolicybindings", ""},
		{"create", admission, "mutatingwebhookconfigurations", ""},
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

// review asks for the rights that the agent must not have: in all namespaces, and in its own, where a RoleBinding is most
// likely to be.
func (c Config) review(ctx context.Context, s self) error {
	rights := c.tooMuch()
	held := make([]bool, len(rights))
	asking, ctx := errgroup.WithContext(ctx)
	asking.SetLimit(atOnce)
	for i, r := range rights {
		asking.Go(func() (err error) {
			held[i], err = c.may(ctx, r, metav1.NamespaceAll)
			if err == nil && !held[i] && r.group == "" && r.verb != "impersonate" && s.Namespace != "" {
				held[i], err = c.may(ctx, r, s.Namespace)
			}
			return err
		})
	}
	if err := asking.Wait(); err != nil {
		return err
	}
	var names []string
	for i, r := range rights {
		if held[i] {
			names = append(names, r.String())
		}
	}
	if len(names) == 0 {
		return nil
	}
	return c.fault("take the bindings away that the manifests in use do not have: kubectl get clusterrolebindings,rolebindings -A -o wide; "+
		"or say --token-authority=unverified",
		"the agent may do more than it was told to: %s", strings.Join(names, ", "))
}

// may asks the API server whether the agent has a right in a namespace.
func (c Config) may(ctx context.Context, r right, namespace string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	review, err := c.Own.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: namespace, Verb: r.verb, Group: r.group, Resource: r.resource, Subresource: r.subresource,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("create SelfSubjectAccessReview for %s: %w", r, err)
	}
	return review.Status.Allowed, nil
}
