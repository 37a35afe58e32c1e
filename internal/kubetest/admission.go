package kubetest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

// proposal is what policies judge.
type proposal struct {
	operation admissionv1.Operation
	kind      schema.GroupVersionKind // of object and oldObject
	object    runtime.Object          // nil: it is to be deleted
	oldObject runtime.Object          // nil: there is none yet
}

// refusal is why a policy refuses.
type refusal struct {
	message string
	reason  metav1.StatusReason
}

// admit asks the policies, and refuses as the API server does: by the first policy that has anything against it.
func (x *exchange) admit(p proposal) error {
	policies := x.api.cfg.Policies
	if policies == nil {
		return nil
	}
	var accounts []object
	if x.target.namespace != "" {
		accounts = x.api.store.of("serviceaccounts", x.target.namespace)
	}
	input, err := x.input(p)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	for _, of := range policies.policies {
		if !of.matches(p.operation, x.target) {
			continue
		}
		for _, b := range policies.bindings {
			denies := slices.Contains(b.Spec.ValidationActions, admissionregistrationv1.Deny)
			if b.Spec.PolicyName != of.name || !denies { // Warn and Audit leave no trace here
				continue
			}
			r, err := of.judge(input, x.target.namespace, accounts)
			if err != nil {
				return apierrors.NewInternalError(err)
			}
			if r != nil {
				return x.refusedBy(of, b.Name, *r)
			}
		}
	}
	return nil
}

// refusedBy is a policy's refusal as clients see it: https://github.com/kubernetes/apiserver,
// pkg/admission/plugin/policy/validating.
func (x *exchange) refusedBy(p *policy, binding string, r refusal) error {
	message := fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", p.name, binding, r.message)
	err := x.notAdmitted(message)
	err.ErrStatus.Reason, err.ErrStatus.Code = r.reason, codeOf(r.reason)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	return err
}

// codeOf returns the status code of the reasons that a validation may have; zero: it may not.
func codeOf(reason metav1.StatusReason) int32 {
	switch reason {
	case metav1.StatusReasonInvalid:
		return http.StatusUnprocessableEntity
	case metav1.StatusReasonForbidden:
		return http.StatusForbidden
	case metav1.StatusReasonUnauthorized:
		return http.StatusUnauthorized
	case metav1.StatusReasonRequestEntityTooLarge:
		return http.StatusRequestEntityTooLarge
	default:
		return 0
	}
}

// input returns what expressions see, but for params and variables.
func (x *exchange) input(p proposal) (map[string]any, error) {
	t := x.target
	kind := metav1.GroupVersionKind{Group: p.kind.Group, Version: p.kind.Version, Kind: p.kind.Kind}
	resource := metav1.GroupVersionResource{Group: t.group, Version: t.version, Resource: t.resource}
	request := &admissionv1.AdmissionRequest{
		Kind: kind, Resource: resource, SubResource: t.subresource,
		RequestKind: &kind, RequestResource: &resource, RequestSubResource: t.subresource,
		Name: t.name, Namespace: t.namespace, Operation: p.operation, UserInfo: x.user, DryRun: &x.dryRun,
	}
	input := make(map[string]any)
	for name, o := range map[string]any{"request": request, "object": p.object, "oldObject": p.oldObject} {
		value, err := unstructured(o)
		if err != nil {
			return nil, err
		}
		input[name] = value
	}
	return input, nil
}

// unstructured returns o as expressions see it: a field that is empty and may be left out is not there. Nil remains nil.
func unstructured(o any) (any, error) {
	if o == nil {
		return nil, nil
	}
	value, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, fmt.Errorf("convert %T: %w", o, err)
	}
	return value, nil
}

// matches reports whether one of the policy's resourceRules is about such a request.
func (p *policy) matches(operation admissionv1.Operation, t target) bool {
	one := func(list []string, value string) bool {
		return slices.Contains(list, "*") || slices.Contains(list, value)
	}
	return slices.ContainsFunc(p.rules, func(r admissionregistrationv1.NamedRuleWithOperations) bool {
		about := func(o admissionregistrationv1.OperationType) bool {
			return o == admissionregistrationv1.OperationAll || string(o) == string(operation)
		}
		named := func(s string) bool {
			resource, subresource, _ := strings.Cut(s, "/")
			return (resource == "*" || resource == t.resource) && (subresource == "*" || subresource == t.subresource)
		}
		return slices.ContainsFunc(r.Operations, about) && one(r.APIGroups, t.group) && one(r.APIVersions, t.version) &&
			slices.ContainsFunc(r.Resources, named)
	})
}

// judge returns the first refusal there is, or nil. accounts are those of the namespace, if there is one.
func (p *policy) judge(input map[string]any, namespace string, accounts []object) (*refusal, error) {
	if !p.perAccount {
		return p.judgeOne(input, nil), nil
	}
	if namespace == "" || len(accounts) == 0 {
		message := "no params found for policy binding with `Deny` parameterNotFoundAction"
		if namespace == "" {
			message = "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
		}
		return &refusal{"failed to configure binding: " + message, metav1.StatusReasonInvalid}, nil
	}
	for _, account := range accounts {
		params, err := unstructured(account)
		if err != nil {
			return nil, err
		}
		if r := p.judgeOne(input, params); r != nil {
			return r, nil
		}
	}
	return nil, nil
}

// judgeOne judges with one parameter.
func (p *policy) judgeOne(shared map[string]any, params any) *refusal {
	input := maps.Clone(shared)
	input["params"] = params
	failed := func(err error) *refusal { return &refusal{err.Error(), metav1.StatusReasonInvalid} }
	var errs []error
	for _, c := range p.conditions {
		switch met, err := c.isTrue(input); {
		case err != nil:
			errs = append(errs, err)
		case !met: // whatever the others say
			return nil
		}
	}
	if len(errs) > 0 {
		return failed(utilerrors.NewAggregate(errs))
	}
	for _, v := range p.variables {
		v.bind(input)
	}
	for _, v := range p.validations {
		switch valid, err := v.isTrue(input); {
		case err != nil:
			return failed(err)
		case !valid:
			return &refusal{v.message, v.reason}
		}
	}
	return nil
}
