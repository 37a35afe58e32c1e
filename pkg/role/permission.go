package role

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// permission is what a Namespace's annotations say about the roles its pods may use.
type permission struct {
	allowed   []*regexp.Regexp // iam.amazonaws.com/allowed-roles, one per glob; nil when absent
	permitted *regexp.Regexp   // iam.amazonaws.com/permitted; nil when absent
	present   bool
}

// maxPermission bounds what is read of a Namespace's permissions: a decision must not take long, whoever wrote them.
const maxPermission = 32 << 10

// parsePermission reads both annotations, as policy says. Either one that is present and unreadable is an error: a
// permission that cannot be read must not be taken for none.
func parsePermission(annotations map[string]string, policy *Policy) (permission, error) {
	var p permission
	keys := policy.Keys
	if size := len(annotations[keys.AllowedRoles]) + len(annotations[keys.Permitted]); size > maxPermission {
		return permission{}, fmt.Errorf("%s and %s have %d characters together; at most %d are read",
			keys.AllowedRoles, keys.Permitted, size, maxPermission)
	}
	if text, ok := annotations[keys.AllowedRoles]; ok {
		p.present = true
		var patterns []string
		if err := json.Unmarshal([]byte(text), &patterns); err != nil {
			return permission{}, fmt.Errorf("%s is not a JSON list of role names or patterns: %w", keys.AllowedRoles, err)
		}
		p.allowed = make([]*regexp.Regexp, 0, len(patterns))
		for _, pattern := range patterns {
			re, err := policy.allowedRegexp(pattern)
			if err != nil {
				return permission{}, fmt.Errorf("%s: %q is not a regular expression: %w", keys.AllowedRoles, pattern, err)
			}
			p.allowed = append(p.allowed, re)
		}
	}
	if text, ok := annotations[keys.Permitted]; ok {
		p.present = true
		re, err := anchored("", text)
		if err != nil {
			return permission{}, fmt.Errorf("%s is not a regular expression: %w", keys.Permitted, err)
		}
		p.permitted = re
	}
	return p, nil
}

// allows reports whether every annotation that is present allows arn.
func (p permission) allows(arn string) bool {
	if p.allowed != nil && !anyMatch(p.allowed, arn) {
		return false
	}
	return p.permitted == nil || p.permitted.MatchString(arn)
}

func anyMatch(patterns []*regexp.Regexp, s string) bool {
	for _, re := range patterns {
		if re.MatchString(s) {
			return true
		}
	}
	return false
}

// anchored compiles an expression for all of what comes after before. It is put into a group: kiam's ^a|b$ let "b" permit
// anything that ends in b.
func anchored(before, expression string) (*regexp.Regexp, error) {
	// It must be one by itself: "a)|(?:b" would close the group.
	if _, err := regexp.Compile(expression); err != nil {
		return nil, err
	}
	return regexp.Compile(`^` + regexp.QuoteMeta(before) + `(?:` + expression + `)$`)
}

// allowedRegexp compiles an entry of kube2iam's list. One that is no ARN, nor begins like an expression for one, is relative
// to the base ARN.
func (p *Policy) allowedRegexp(pattern string) (*regexp.Regexp, error) {
	if !p.AllowedAsRegexps {
		return globRegexp(pattern, p.BaseARN), nil
	}
	if strings.HasPrefix(pattern, "arn:") || strings.HasPrefix(pattern, "^") {
		return anchored("", pattern)
	}
	return anchored(p.BaseARN, strings.TrimPrefix(pattern, "/"))
}

// globRegexp is kube2iam's glob: * stands for any text, slashes included, and a pattern that is no ARN is relative to
// the base ARN.
func globRegexp(glob, base string) *regexp.Regexp {
	if !strings.HasPrefix(glob, "arn:") {
		glob = base + strings.TrimPrefix(glob, "/")
	}
	return regexp.MustCompile(`^(?s:` + strings.ReplaceAll(regexp.QuoteMeta(glob), `\*`, `.*`) + `)$`)
}
