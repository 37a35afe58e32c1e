package kubetest

import (
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// impersonate has the exchange go on as the user that the headers name, if they name one
// (https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/). Of all impersonation, the constrained one
// of the own node is modelled: by a ServiceAccount, of the node that its token is bound to. Others are refused, whatever
// RBAC says.
func (x *exchange) impersonate() error {
	name := x.r.Header.Get(authenticationv1.ImpersonateUserHeader)
	more := false
	for key, values := range x.r.Header {
		more = more || strings.HasPrefix(key, authenticationv1.ImpersonateUserExtraHeaderPrefix) || len(values) > 0 &&
			slices.Contains([]string{authenticationv1.ImpersonateUIDHeader, authenticationv1.ImpersonateGroupHeader}, key)
	}
	switch {
	case name == "" && more:
		return apierrors.NewBadRequest("groups, UID or extras are impersonated, and no user")
	case name == "":
		return nil
	}
	on := x.target
	own := x.user.Extra[nodeExtra]
	if _, _, account := splitServiceAccount(x.user.Username); !account || more || len(own) != 1 || name != nodeUser+own[0] {
		on.verb = "impersonate-on:arbitrary-node:" + on.verb
		return forbidden(x.user, on, "no impersonation is modelled but that of the own node, of its name alone")
	}
	on.verb = "impersonate-on:associated-node:" + on.verb
	// The API server asks for all nodes at once: that it is the own one is settled.
	as := target{group: authenticationGroup, version: "v1", resource: "nodes", name: "*", verb: "impersonate:associated-node"}
	for _, t := range []target{on, as} {
		if !x.api.allows(x.user, t) {
			return forbidden(x.user, t, "no rule of "+x.api.cfg.RBAC.source+" allows it")
		}
	}
	x.user = authenticationv1.UserInfo{Username: name, Groups: []string{nodesGroup, authenticatedGroup}}
	x.asNode = true
	return nil
}
