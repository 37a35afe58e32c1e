package awstest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// policy is a parsed policy document
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html).
type policy struct {
	statements []statement
}

type statement struct {
	deny       bool
	principals principals // trust policies only
	actions    []string
	resources  []string // identity policies only
	conditions []condition
	// unmodelled is set when a condition has an operator or key that this package does not know. Such a statement
	// matches nothing.
	unmodelled bool
}

// principals are those of one statement.
type principals struct {
	any       bool // "*"
	aws       []string
	federated []string
	service   []string
}

// condition is one operator applied to one key; all conditions of a statement must hold.
type condition struct {
	op     operator
	key    string // lower case, as keys are compared without case
	values []string
}

// parseTrustPolicy parses a role's trust policy. Errors name the statement by its place, counted from one.
//
// An Allow with an unknown operator or condition key is accepted and never matches, which is safe. A Deny with one is
// an error, since a Deny that silently never matches is not.
func parseTrustPolicy(doc string) (*policy, error) { return parsePolicy(doc, true) }

// parseIdentityPolicy parses a role's or user's permissions. An empty document permits nothing.
func parseIdentityPolicy(doc string) (*policy, error) {
	if doc == "" {
		return &policy{}, nil
	}
	return parsePolicy(doc, false)
}

func parsePolicy(doc string, trust bool) (*policy, error) {
	var raw struct {
		Version   string
		ID        string `json:"Id"`
		Statement oneOrMany[rawStatement]
	}
	if err := decodeStrict([]byte(doc), &raw); err != nil {
		return nil, fmt.Errorf("parse policy: %w", err)
	}
	if raw.Version != "2012-10-17" && raw.Version != "2008-10-17" {
		return nil, fmt.Errorf("parse policy: Version %q: want 2012-10-17 or 2008-10-17", raw.Version)
	}
	if len(raw.Statement) == 0 {
		return nil, errors.New("parse policy: no Statement")
	}
	p := &policy{}
	for i, rs := range raw.Statement {
		s, err := rs.parse(trust)
		if err != nil {
			return nil, fmt.Errorf("parse policy: statement %d: %w", i+1, err)
		}
		p.statements = append(p.statements, s)
	}
	return p, nil
}

type rawStatement struct {
	Sid       string
	Effect    string
	Principal json.RawMessage
	Action    oneOrMany[string]
	Resource  oneOrMany[string]
	Condition map[string]map[string]oneOrMany[conditionValue]
}

func (r rawStatement) parse(trust bool) (statement, error) {
	s := statement{deny: r.Effect == "Deny", actions: r.Action, resources: r.Resource}
	if r.Effect != "Allow" && r.Effect != "Deny" {
		return s, fmt.Errorf("the Effect %q is neither Allow nor Deny", r.Effect)
	}
	if len(s.actions) == 0 {
		return s, errors.New("no Action")
	}
	for _, a := range s.actions {
		if a != "*" && !strings.Contains(a, ":") {
			return s, fmt.Errorf("the Action %q names no service", a)
		}
	}
	switch {
	case trust && len(s.resources) > 0:
		return s, errors.New("a trust policy has no Resource: it is the role's own")
	case trust && r.Principal == nil:
		return s, errors.New("a trust policy needs a Principal")
	case !trust && r.Principal != nil:
		return s, errors.New("an identity policy has no Principal: it is the identity's own")
	case !trust && len(s.resources) == 0:
		return s, errors.New("no Resource")
	}
	if trust {
		var err error
		if s.principals, err = parsePrincipals(r.Principal); err != nil {
			return s, err
		}
	}
	for name, keys := range r.Condition {
		op, known := parseOperator(name)
		for key, values := range keys {
			c := condition{op: op, key: strings.ToLower(key)}
			for _, v := range values {
				c.values = append(c.values, string(v))
			}
			if len(c.values) == 0 {
				return s, fmt.Errorf("the condition %s %s has no value", name, key)
			}
			if slices.ContainsFunc(c.values, func(v string) bool { return strings.Contains(v, "${") }) {
				return s, fmt.Errorf("the condition %s %s has a policy variable, which awstest does not model", name, key)
			}
			if !known || !knownKey(c.key) {
				s.unmodelled = true
				if s.deny {
					return s, fmt.Errorf("the condition %s %s is not modelled: a Deny that never matches would be silent", name, key)
				}
			}
			s.conditions = append(s.conditions, c)
		}
	}
	return s, nil
}

func parsePrincipals(raw json.RawMessage) (principals, error) {
	var p principals
	if string(raw) == `"*"` {
		p.any = true
		return p, nil
	}
	var kinds struct {
		AWS       oneOrMany[string]
		Federated oneOrMany[string]
		Service   oneOrMany[string]
	}
	if err := decodeStrict(raw, &kinds); err != nil {
		return p, fmt.Errorf("read Principal: %w", err)
	}
	for _, v := range kinds.AWS {
		switch a, err := parseARN(v); {
		case v == "*":
			p.any = true
		case accountForm.MatchString(v):
			p.aws = append(p.aws, v)
		case err != nil:
			return p, fmt.Errorf("principal %q is no ARN, account or *", v)
		case strings.ContainsAny(v, "*?"):
			// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_principal.html:
			// no wildcard for part of a name or ARN.
			return p, fmt.Errorf("principal %q: wildcards match no part of a principal", v)
		case !accountForm.MatchString(a.account) || a.service != "iam" && a.service != "sts":
			return p, fmt.Errorf("principal %q is no user, role, session or account", v)
		default:
			p.aws = append(p.aws, v)
		}
	}
	for _, v := range kinds.Federated {
		if v == "" {
			return p, errors.New("empty Federated principal")
		}
		p.federated = append(p.federated, v)
	}
	p.service = kinds.Service
	if !p.any && len(p.aws)+len(p.federated)+len(p.service) == 0 {
		return p, errors.New("an empty Principal")
	}
	return p, nil
}

// oneOrMany reads a JSON value or a list of them, as policies write both.
type oneOrMany[T any] []T

// UnmarshalJSON implements json.Unmarshaler.
func (o *oneOrMany[T]) UnmarshalJSON(data []byte) error {
	if data = bytes.TrimSpace(data); len(data) > 0 && data[0] == '[' {
		var many []T
		if err := decodeStrict(data, &many); err != nil {
			return err
		}
		*o = many
		return nil
	}
	var one T
	if err := decodeStrict(data, &one); err != nil {
		return err
	}
	*o = []T{one}
	return nil
}

// conditionValue is a string; booleans and numbers are read as their text, as AWS does.
type conditionValue string

// UnmarshalJSON implements json.Unmarshaler.
func (v *conditionValue) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err == nil && string(data) != "null" {
		*v = conditionValue(s)
		return nil
	}
	if c := data[0]; c == 't' || c == 'f' || c == '-' || c >= '0' && c <= '9' {
		*v = conditionValue(data)
		return nil
	}
	return fmt.Errorf("condition value %s is no string, number or boolean", data)
}

// decodeStrict decodes one JSON value. Elements we do not model, such as NotAction, are errors: ignoring one would
// widen or narrow the policy in silence.
func decodeStrict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the JSON value")
	}
	return nil
}
