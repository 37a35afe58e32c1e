package kubetest

import (
	"errors"
	"fmt"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const (
	authenticationGroup = authenticationv1.GroupName
	authorizationGroup  = "authorization.k8s.io"
)

// authorize refuses what the user may not do.
func (x *exchange) authorize() error {
	if x.api.allows(x.user, x.target) {
		return nil
	}
	return forbidden(x.user, x.target, "no rule of "+x.api.cfg.RBAC.source+" allows it")
}

// allows asks the API server's authorizers: the node authorizer and RBAC, with the manifests' roles and, of those that every
// cluster has, system:basic-user's. system:discovery's rights are not needed.
func (a *API) allows(user authenticationv1.UserInfo, t target) bool {
	if node, ok := nodeOf(user); ok && a.nodeMay(node, t) {
		return true
	}
	if t.verb == "create" && t.subresource == "" {
		switch (schema.GroupResource{Group: t.group, Resource: t.resource}) {
		case schema.GroupResource{Group: authenticationGroup, Resource: "selfsubjectreviews"},
			schema.GroupResource{Group: authorizationGroup, Resource: "selfsubjectaccessreviews"}:
			return true
		}
	}
	return a.cfg.RBAC.allows(user, t)
}

// forbidden is the API server's 403, with a reason of ours.
func forbidden(user authenticationv1.UserInfo, t target, reason string) error {
	who := fmt.Sprintf("User %q", user.Username) // with a capital, as there
	if t.resource == "" {
		return apierrors.NewForbidden(schema.GroupResource{}, "", fmt.Errorf("%s cannot %s path %q: %s", who, t.verb, t.path, reason))
	}
	where := "at the cluster scope"
	if t.namespace != "" {
		where = fmt.Sprintf("in the namespace %q", t.namespace)
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: t.group, Resource: t.resource}, t.name,
		fmt.Errorf("%s cannot %s resource %q in API group %q %s: %s",
			who, t.verb, t.fullResource(), t.group, where, reason))
}

// notAdmitted is the refusal of an admission plugin.
func (x *exchange) notAdmitted(reason string) *apierrors.StatusError {
	return apierrors.NewForbidden(schema.GroupResource{Group: x.target.group, Resource: x.target.resource}, x.target.name,
		errors.New(reason))
}
