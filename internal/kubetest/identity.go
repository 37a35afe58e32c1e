package kubetest

import (
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// Users, groups and extras that the API server itself knows
// (https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/, …/authorization/node/).
const (
	serviceAccountUser = "system:serviceaccount:"
	nodeUser           = "system:node:"

	authenticatedGroup   = "system:authenticated"
	nodesGroup           = "system:nodes"
	serviceAccountsGroup = "system:serviceaccounts"

	credentialExtra = "authentication.kubernetes.io/credential-id"
	nodeExtra       = "authentication.kubernetes.io/node-name"
	podExtra        = "authentication.kubernetes.io/pod-name"
	podUIDExtra     = "authentication.kubernetes.io/pod-uid"
)

// newIdentity returns whom the bearer token makes of a client: a ServiceAccount, bound to a pod or not; or a node, as if it
// had shown a certificate.
func newIdentity(cfg Config) authenticationv1.UserInfo {
	u := authenticationv1.UserInfo{Username: cfg.User, Extra: make(map[string]authenticationv1.ExtraValue)}
	if namespace, _, ok := splitServiceAccount(cfg.User); ok {
		u.Groups = append(u.Groups, serviceAccountsGroup, serviceAccountsGroup+":"+namespace)
		u.Extra[credentialExtra] = authenticationv1.ExtraValue{"JTI=" + string(uuid.NewUUID())}
	}
	if strings.HasPrefix(cfg.User, nodeUser) {
		u.Groups = append(u.Groups, nodesGroup)
		u.Extra[credentialExtra] = authenticationv1.ExtraValue{"X509SHA256=" + strings.Repeat("0", 64)}
	}
	u.Groups = append(u.Groups, authenticatedGroup)
	if cfg.Pod != "" {
		u.Extra[nodeExtra] = authenticationv1.ExtraValue{cfg.Node}
		u.Extra[podExtra] = authenticationv1.ExtraValue{cfg.Pod}
		u.Extra[podUIDExtra] = authenticationv1.ExtraValue{cfg.PodUID}
	}
	return u
}

// whoami returns who presents the bearer token, with the UID of the ServiceAccount if it is among the objects.
func (a *API) whoami() authenticationv1.UserInfo {
	u := a.identity
	if namespace, name, ok := splitServiceAccount(u.Username); ok {
		if account, exists := a.store.get("serviceaccounts", namespace, name); exists {
			u.UID = string(account.GetUID())
		}
	}
	return u
}

// splitServiceAccount returns which ServiceAccount a user is.
func splitServiceAccount(user string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(user, serviceAccountUser)
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, ":")
}

// nodeOf returns which node a user is to the node authorizer and to NodeRestriction.
func nodeOf(user authenticationv1.UserInfo) (node string, ok bool) {
	if slices.Contains(user.Groups, nodesGroup) {
		return strings.CutPrefix(user.Username, nodeUser)
	}
	return "", false
}
