package kubetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/cel-go/cel"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Policies are ValidatingAdmissionPolicies with their bindings. They are safe for concurrent use.
type Policies struct {
	policies []*policy // in the order of the files
	bindings []admissionregistrationv1.ValidatingAdmissionPolicyBinding
}

// policy is a ValidatingAdmissionPolicy, compiled.
type policy struct {
	name        string
	rules       []admissionregistrationv1.NamedRuleWithOperations
	perAccount  bool // each ServiceAccount of the request's namespace is a parameter, and must pass
	conditions  []expression
	variables   []variable
	validations []rule
}

// rule is what must be true.
type rule struct {
	expression
	message string
	reason  metav1.StatusReason
}

// ReadPolicies reads ValidatingAdmissionPolicies and their bindings from manifests
// (https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/). What of them is not modelled is an
// error, for leaving it out might change what is refused; and so is what does not compile, which no API server would take.
// A policy that nothing binds refuses nothing, nor does a binding of nothing.
func ReadPolicies(files ...string) (*Policies, error) {
	p := &Policies{}
	if err := readManifests(files, p.add); err != nil {
		return nil, err
	}
	for _, b := range p.bindings {
		for _, of := range p.policies {
			if of.name == b.Spec.PolicyName && of.perAccount != (b.Spec.ParamRef != nil) {
				return nil, fmt.Errorf("read manifests: binding %s has a paramRef where its policy has no paramKind, "+
					"or the reverse: not modelled", b.Name)
			}
		}
	}
	return p, nil
}

func (p *Policies) add(kind string, document []byte) error {
	switch kind {
	case "ValidatingAdmissionPolicy":
		var in admissionregistrationv1.ValidatingAdmissionPolicy
		if err := yaml.UnmarshalStrict(document, &in); err != nil {
			return err
		}
		if slices.ContainsFunc(p.policies, func(other *policy) bool { return other.name == in.Name }) {
			return fmt.Errorf("there is a policy %q already, and patches are not modelled", in.Name)
		}
		compiled, err := newPolicy(in)
		if err != nil {
			return fmt.Errorf("policy %s: %w", in.Name, err)
		}
		p.policies = append(p.policies, compiled)
	case "ValidatingAdmissionPolicyBinding":
		var in admissionregistrationv1.ValidatingAdmissionPolicyBinding
		if err := yaml.UnmarshalStrict(document, &in); err != nil {
			return err
		}
		if err := checkBinding(in.Spec); err != nil {
			return fmt.Errorf("binding %s: %w", in.Name, err)
		}
		p.bindings = append(p.bindings, in)
	default:
		return fmt.Errorf("kind %q is not modelled", kind)
	}
	return nil
}

// newPolicy compiles a policy.
func newPolicy(in admissionregistrationv1.ValidatingAdmissionPolicy) (*policy, error) {
	if err := checkPolicy(in.Spec); err != nil {
		return nil, err
	}
	p := &policy{name: in.Name, rules: in.Spec.MatchConstraints.ResourceRules, perAccount: in.Spec.ParamKind != nil}
	env, err := policyEnv(p.perAccount)
	if err != nil {
		return nil, err
	}
	for _, c := range in.Spec.MatchConditions {
		e, err := compileBool(env, c.Expression)
		if err != nil {
			return nil, err
		}
		p.conditions = append(p.conditions, e)
	}
	for _, v := range in.Spec.Variables {
		e, result, err := compile(env, v.Expression)
		if err != nil {
			return nil, err
		}
		named := variable{v.Name, e}
		if env, err = env.Extend(cel.Variable(named.qualified(), result)); err != nil {
			return nil, fmt.Errorf("declare variable %s: %w", v.Name, err)
		}
		p.variables = append(p.variables, named)
	}
	for _, v := range in.Spec.Validations {
		e, err := compileBool(env, v.Expression)
		if err != nil {
			return nil, err
		}
		checked := rule{e, strings.TrimSpace(v.Message), metav1.StatusReasonInvalid}
		if checked.message == "" {
			checked.message = "failed expression: " + strings.TrimSpace(v.Expression)
		}
		if v.Reason != nil {
			checked.reason = *v.Reason
		}
		p.validations = append(p.validations, checked)
	}
	return p, nil
}

// checkPolicy refuses what is not modelled.
func checkPolicy(in admissionregistrationv1.ValidatingAdmissionPolicySpec) error {
	var errs []error
	want := func(modelled bool, what string) {
		if !modelled {
			errs = append(errs, errors.New(what+" is not modelled"))
		}
	}
	want(in.FailurePolicy == nil || *in.FailurePolicy == admissionregistrationv1.Fail, "another failurePolicy than Fail")
	want(len(in.AuditAnnotations) == 0, "auditAnnotations")
	account := admissionregistrationv1.ParamKind{APIVersion: "v1", Kind: "ServiceAccount"}
	want(in.ParamKind == nil || *in.ParamKind == account, "another paramKind than v1 ServiceAccount")
	for _, v := range in.Validations {
		want(v.MessageExpression == "", "messageExpression")
		want(v.Reason == nil || codeOf(*v.Reason) != 0, "such a reason")
	}
	want(len(in.Validations) > 0, "a policy without validations")
	want(in.MatchConstraints != nil && len(in.MatchConstraints.ResourceRules) > 0, "a policy without resourceRules")
	if m := in.MatchConstraints; m != nil {
		want(m.NamespaceSelector == nil && m.ObjectSelector == nil, "a selector in matchConstraints")
		want(len(m.ExcludeResourceRules) == 0, "excludeResourceRules")
		for _, r := range m.ResourceRules {
			want(len(r.ResourceNames) == 0, "resourceNames")
			want(r.Scope == nil || *r.Scope == admissionregistrationv1.AllScopes, "another scope than *")
		}
	}
	return errors.Join(errs...)
}

// checkBinding refuses what is not modelled.
func checkBinding(in admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec) error {
	var errs []error
	if in.MatchResources != nil {
		errs = append(errs, errors.New("matchResources is not modelled"))
	}
	if len(in.ValidationActions) == 0 {
		errs = append(errs, errors.New("validationActions are required"))
	}
	if r := in.ParamRef; r != nil {
		s := r.Selector
		if r.Name != "" || r.Namespace != "" || s == nil || len(s.MatchLabels)+len(s.MatchExpressions) > 0 {
			errs = append(errs, errors.New("another paramRef than one of the empty selector is not modelled"))
		}
		if r.ParameterNotFoundAction == nil || *r.ParameterNotFoundAction != admissionregistrationv1.DenyAction {
			errs = append(errs, errors.New("another parameterNotFoundAction than Deny is not modelled"))
		}
	}
	return errors.Join(errs...)
}
