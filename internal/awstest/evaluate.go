package awstest

import (
	"slices"
	"strings"
)

// principal is who makes a request.
type principal struct {
	kind      principalKind
	arn       string // as GetCallerIdentity reports it
	userID    string
	account   string
	partition string
	roleARN   string // of sessions, the role they are of; empty otherwise
	tags      map[string]string
}

type principalKind int

const (
	userPrincipal      principalKind = iota // an IAM user's long-lived keys
	sessionPrincipal                        // a role session
	federatedPrincipal                      // a web identity; arn is the provider's
	servicePrincipal                        // an AWS service; arn is its name, such as ec2.amazonaws.com
)

// access is what a policy says about a request.
type access int

const (
	implicitDeny access = iota
	// allowedAccount: an Allow names the caller's account only, which delegates the choice to the account: the
	// caller's own permissions must allow the action too.
	allowedAccount
	allowed
	explicitDeny
)

// evaluate applies the policy to an action. p is nil for identity policies, resource is empty for trust policies.
func (d *policy) evaluate(p *principal, action, resource string, context map[string][]string) access {
	result := implicitDeny
	for _, s := range d.statements {
		if s.unmodelled || !matchesAny(s.actions, action, true) {
			continue
		}
		grade := allowed
		if p != nil {
			grade = s.principals.match(p)
		} else if !matchesAny(s.resources, resource, false) {
			grade = implicitDeny
		}
		if grade == implicitDeny || slices.ContainsFunc(s.conditions, func(c condition) bool { return !c.holds(context) }) {
			continue
		}
		if s.deny {
			return explicitDeny
		}
		result = max(result, grade)
	}
	return result
}

// match returns allowed when the principal itself is named, allowedAccount when its account is, and implicitDeny.
func (ps principals) match(p *principal) access {
	switch p.kind {
	case federatedPrincipal:
		if ps.any || slices.Contains(ps.federated, p.arn) {
			return allowed
		}
		return implicitDeny
	case servicePrincipal:
		if slices.Contains(ps.service, p.arn) {
			return allowed
		}
		return implicitDeny
	}
	if ps.any || slices.Contains(ps.aws, p.arn) || p.roleARN != "" && slices.Contains(ps.aws, p.roleARN) {
		return allowed
	}
	root := arn{partition: p.partition, service: "iam", account: p.account, resource: "root"}.String()
	if slices.Contains(ps.aws, p.account) || slices.Contains(ps.aws, root) {
		return allowedAccount
	}
	return implicitDeny
}

func matchesAny(patterns []string, value string, fold bool) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if fold { // actions are compared without case
			return glob(strings.ToLower(value), strings.ToLower(p))
		}
		return glob(value, p)
	})
}
