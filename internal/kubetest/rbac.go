package kubetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// RBAC is who may do what.
type RBAC struct {
	source   string
	roles    map[string][]rbacv1.PolicyRule
	bindings []rbacv1.ClusterRoleBinding
}

// ReadRBAC reads ClusterRoles and ClusterRoleBindings from manifests. ServiceAccounts in them are passed over; any other
// kind is an error, for leaving it out might change what is allowed. So is a ClusterRole that is there twice: patches are
// not modelled.
func ReadRBAC(files ...string) (*RBAC, error) {
	r := &RBAC{source: strings.Join(files, ", "), roles: make(map[string][]rbacv1.PolicyRule)}
	if err := readManifests(files, r.add); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *RBAC) add(kind string, document []byte) error {
	switch kind {
	case "ServiceAccount":
	case "ClusterRole":
		var role rbacv1.ClusterRole
		if err := yaml.UnmarshalStrict(document, &role); err != nil {
			return err
		}
		if role.AggregationRule != nil {
			return errors.New("aggregated ClusterRoles are not modelled")
		}
		if _, twice := r.roles[role.Name]; twice {
			return fmt.Errorf("there is a ClusterRole %q already, and patches are not modelled", role.Name)
		}
		r.roles[role.Name] = role.Rules
	case "ClusterRoleBinding":
		var binding rbacv1.ClusterRoleBinding
		if err := yaml.UnmarshalStrict(document, &binding); err != nil {
			return err
		}
		r.bindings = append(r.bindings, binding)
	default:
		return fmt.Errorf("kind %q is not modelled", kind)
	}
	return nil
}

// allows reports whether a rule of a role that the user is bound to covers t. Rights to paths that are no resources are not
// modelled, and so nobody has them.
func (r *RBAC) allows(user authenticationv1.UserInfo, t target) bool {
	if t.resource == "" {
		return false
	}
	for _, b := range r.bindings {
		is := func(s rbacv1.Subject) bool { return isUser(s, user) }
		if b.RoleRef.Kind != "ClusterRole" || !slices.ContainsFunc(b.Subjects, is) {
			continue
		}
		if slices.ContainsFunc(r.roles[b.RoleRef.Name], func(p rbacv1.PolicyRule) bool { return covers(p, t) }) {
			return true
		}
	}
	return false
}

// isUser reports whether the subject is the user, or a group that the user is in.
func isUser(s rbacv1.Subject, user authenticationv1.UserInfo) bool {
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		return user.Username == serviceAccountUser+s.Namespace+":"+s.Name
	case rbacv1.UserKind:
		return user.Username == s.Name
	case rbacv1.GroupKind:
		return slices.Contains(user.Groups, s.Name)
	default:
		return false
	}
}

// covers follows https://kubernetes.io/docs/reference/access-authn-authz/rbac/. That * covers everything is a matter of
// the rule: a question about * is about that very word.
func covers(p rbacv1.PolicyRule, t target) bool {
	has := func(list []string, values ...string) bool {
		return slices.ContainsFunc(values, func(v string) bool { return slices.Contains(list, v) })
	}
	resources := []string{"*", t.fullResource()}
	if t.subresource != "" {
		resources = append(resources, "*/"+t.subresource)
	}
	return has(p.Verbs, "*", t.verb) && has(p.APIGroups, "*", t.group) && has(p.Resources, resources...) &&
		(len(p.ResourceNames) == 0 || t.name != "" && has(p.ResourceNames, t.name))
}
