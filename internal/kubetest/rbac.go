package kubetest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// RBAC is who may do what.
type RBAC struct {
	source   string
	roles    map[string][]rbacv1.PolicyRule
	bindings []rbacv1.ClusterRoleBinding
}

// ReadRBAC reads ClusterRoles and ClusterRoleBindings from a manifest. ServiceAccounts in it are passed over; any other
// kind is an error, for leaving it out might change what is allowed.
func ReadRBAC(file string) (*RBAC, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read RBAC manifest: %w", err)
	}
	r := &RBAC{source: file, roles: make(map[string][]rbacv1.PolicyRule)}
	for i, document := range bytes.Split(text, []byte("\n---\n")) {
		if err := r.add(document); err != nil {
			return nil, fmt.Errorf("read RBAC manifest %s: document %d: %w", file, i+1, err)
		}
	}
	return r, nil
}

func (r *RBAC) add(document []byte) error {
	var meta metav1.TypeMeta
	if err := yaml.Unmarshal(document, &meta); err != nil {
		return err
	}
	switch meta.Kind {
	case "ServiceAccount":
	case "ClusterRole":
		var role rbacv1.ClusterRole
		if err := yaml.UnmarshalStrict(document, &role); err != nil {
			return err
		}
		if role.AggregationRule != nil {
			return errors.New("aggregated ClusterRoles are not modelled")
		}
		r.roles[role.Name] = role.Rules
	case "ClusterRoleBinding":
		var binding rbacv1.ClusterRoleBinding
		if err := yaml.UnmarshalStrict(document, &binding); err != nil {
			return err
		}
		r.bindings = append(r.bindings, binding)
	default:
		return fmt.Errorf("kind %q is not modelled", meta.Kind)
	}
	return nil
}

// allows reports whether a rule of a role that user is bound to covers t. Rights to paths that are no resources are not
// modelled, and so nobody has them.
func (r *RBAC) allows(user string, t target) bool {
	if t.resource == "" {
		return false
	}
	for _, b := range r.bindings {
		if b.RoleRef.Kind != "ClusterRole" || !slices.ContainsFunc(b.Subjects, func(s rbacv1.Subject) bool { return isUser(s, user) }) {
			continue
		}
		if slices.ContainsFunc(r.roles[b.RoleRef.Name], func(p rbacv1.PolicyRule) bool { return covers(p, t) }) {
			return true
		}
	}
	return false
}

// isUser reports whether the subject is the user. Groups are not modelled, and so nobody is in one.
func isUser(s rbacv1.Subject, user string) bool {
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		return user == "system:serviceaccount:"+s.Namespace+":"+s.Name
	case rbacv1.UserKind:
		return user == s.Name
	default:
		return false
	}
}

// covers follows https://kubernetes.io/docs/reference/access-authn-authz/rbac/.
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
