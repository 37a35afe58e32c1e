package awstest

import (
	"slices"
	"strings"
)

// operator is a condition operator with its modifiers
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html).
type operator struct {
	match    func(value, pattern string) bool
	negated  bool
	ifExists bool
	set      setQualifier
}

type setQualifier int

const (
	single setQualifier = iota
	forAnyValue
	forAllValues
)

// parseOperator reads an operator's name; false when it is not modelled.
func parseOperator(name string) (operator, bool) {
	var op operator
	if rest, ok := strings.CutPrefix(name, "ForAnyValue:"); ok {
		op.set, name = forAnyValue, rest
	} else if rest, ok := strings.CutPrefix(name, "ForAllValues:"); ok {
		op.set, name = forAllValues, rest
	}
	name, op.ifExists = strings.CutSuffix(name, "IfExists")
	equal := func(value, pattern string) bool { return value == pattern }
	switch name {
	case "StringEquals":
		op.match = equal
	case "StringNotEquals":
		op.match, op.negated = equal, true
	case "StringEqualsIgnoreCase":
		op.match = strings.EqualFold
	case "StringNotEqualsIgnoreCase":
		op.match, op.negated = strings.EqualFold, true
	case "StringLike", "ArnEquals", "ArnLike": // ArnEquals and ArnLike behave identically
		op.match = glob
	case "StringNotLike", "ArnNotEquals", "ArnNotLike":
		op.match, op.negated = glob, true
	default:
		return operator{}, false
	}
	return op, true
}

// holds evaluates the condition on a request's context.
func (c condition) holds(context map[string][]string) bool {
	have, present := context[c.key]
	if !present || len(have) == 0 {
		// A key that the request does not have: negated operators and ForAllValues hold, positive ones do not.
		return c.op.ifExists || c.op.negated && c.op.set != forAnyValue || c.op.set == forAllValues
	}
	passes := func(v string) bool {
		matched := slices.ContainsFunc(c.values, func(p string) bool { return c.op.match(v, p) })
		return matched != c.op.negated
	}
	if c.op.set == forAllValues || c.op.set == single && c.op.negated {
		return !slices.ContainsFunc(have, func(v string) bool { return !passes(v) })
	}
	return slices.ContainsFunc(have, passes)
}

// knownKey reports whether this package puts a condition key, in lower case, into the contexts where AWS has it.
func knownKey(key string) bool {
	switch key {
	case "sts:externalid", "sts:rolesessionname", "sts:sourceidentity", "sts:transitivetagkeys", "aws:tagkeys",
		"aws:principalarn", "aws:principalaccount", "aws:federatedprovider", "aws:requestedregion":
		return true
	}
	for _, prefix := range []string{"aws:requesttag/", "aws:principaltag/"} {
		if name, ok := strings.CutPrefix(key, prefix); ok && name != "" {
			return true
		}
	}
	// Keys of an OIDC provider: the issuer without its scheme, then the claim. A port's colon may precede.
	i := strings.LastIndexByte(key, ':')
	return i > 0 && (key[i+1:] == "sub" || key[i+1:] == "aud") && strings.ContainsAny(key[:i], ".:/")
}

// glob matches with AWS's wildcards: * for any run of characters, / and : included, ? for one.
func glob(value, pattern string) bool {
	v, p := 0, 0
	star, mark := -1, 0 // the last * and where its run ends so far
	for v < len(value) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, v
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == value[v]):
			v++
			p++
		case star >= 0:
			mark++
			v, p = mark, star+1
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
