package awstest

import (
	"strings"
	"testing"
)

func TestParseTrustPolicyErrors(t *testing.T) {
	statement := func(s string) string { return `{"Version":"2012-10-17","Statement":[` + s + `]}` }
	tests := map[string]struct {
		doc      string
		contains string // of the error; empty wants none
	}{
		"good": {
			statement(`{"Sid":"a","Effect":"Allow","Principal":{"AWS":["111122223333"]},"Action":["sts:AssumeRole"]}`), "",
		},
		"single":       {`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":"*","Action":"sts:*"}}`, ""},
		"empty":        {"", "EOF"},
		"no-json":      {"allow all", "invalid character"},
		"trailing":     {statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*"}`) + "x", "text after"},
		"version":      {`{"Version":"2020-01-01","Statement":[]}`, "Version"},
		"no-statement": {`{"Version":"2012-10-17"}`, "no Statement"},
		"effect":       {statement(`{"Effect":"allow","Principal":"*","Action":"sts:*"}`), "neither Allow nor Deny"},
		"no-action":    {statement(`{"Effect":"Allow","Principal":"*"}`), "no Action"},
		"not-action":   {statement(`{"Effect":"Allow","Principal":"*","NotAction":"sts:*"}`), "NotAction"},
		"no-principal": {statement(`{"Effect":"Allow","Action":"sts:*"}`), "needs a Principal"},
		"principal-kind": {
			statement(`{"Effect":"Allow","Action":"sts:*","Principal":{"CanonicalUser":"x"}}`), "CanonicalUser",
		},
		"principal-glob": {
			statement(`{"Effect":"Allow","Action":"sts:*","Principal":{"AWS":"arn:aws:iam::111122223333:role/*"}}`),
			"wildcards",
		},
		"principal-text":  {statement(`{"Effect":"Allow","Action":"sts:*","Principal":{"AWS":"me"}}`), "no ARN"},
		"principal-empty": {statement(`{"Effect":"Allow","Action":"sts:*","Principal":{}}`), "empty Principal"},
		"resource":        {statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*","Resource":"*"}`), "no Resource"},
		"condition-number": {
			statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*","Condition":{"StringEquals":{"sts:ExternalId":12}}}`),
			"",
		},
		"condition-object": {
			statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*","Condition":{"StringEquals":{"sts:ExternalId":{}}}}`),
			"no string",
		},
		"condition-empty": {
			statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*","Condition":{"StringEquals":{"sts:ExternalId":[]}}}`),
			"no value",
		},
		"variable": {
			statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*",
				"Condition":{"StringEquals":{"sts:ExternalId":"${aws:userid}"}}}`),
			"policy variable",
		},
		"unmodelled-allow": {
			statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*",
				"Condition":{"IpAddress":{"aws:SourceIp":"10.0.0.0/8"}}}`),
			"",
		},
		"unmodelled-deny": {
			statement(`{"Effect":"Deny","Principal":"*","Action":"sts:*","Condition":{"Bool":{"aws:SecureTransport":"false"}}}`),
			"would be silent",
		},
		"names-the-culprit": {
			statement(`{"Effect":"Allow","Principal":"*","Action":"sts:*"},{"Effect":"Allow","Principal":"*","Action":"x"}`),
			"statement 2",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := parseTrustPolicy(test.doc)
			switch {
			case test.contains == "" && err != nil:
				t.Errorf("got %v, want none", err)
			case test.contains != "" && (err == nil || !strings.Contains(err.Error(), test.contains)):
				t.Errorf("got %v, want %q", err, test.contains)
			}
		})
	}
}

func TestTrustPolicyConditions(t *testing.T) {
	const key = "oidc.example.net/id/a:sub"
	tests := map[string]struct {
		condition string
		context   map[string][]string
		want      access
	}{
		"none": {`{}`, nil, allowed},
		"equals": {
			`{"StringEquals":{"sts:ExternalId":["x","y"]}}`, map[string][]string{"sts:externalid": {"y"}}, allowed,
		},
		"equals-case": {
			`{"StringEquals":{"sts:ExternalId":"Y"}}`, map[string][]string{"sts:externalid": {"y"}}, implicitDeny,
		},
		"equals-no-glob": {
			`{"StringEquals":{"sts:ExternalId":"*"}}`, map[string][]string{"sts:externalid": {"y"}}, implicitDeny,
		},
		"key-without-case": {
			`{"StringEquals":{"STS:externalID":"y"}}`, map[string][]string{"sts:externalid": {"y"}}, allowed,
		},
		"absent":           {`{"StringEquals":{"sts:ExternalId":"x"}}`, nil, implicitDeny},
		"absent-if-exists": {`{"StringEqualsIfExists":{"sts:ExternalId":"x"}}`, nil, allowed},
		"absent-negated":   {`{"StringNotEquals":{"sts:ExternalId":"x"}}`, nil, allowed},
		"negated-same": {
			`{"StringNotEquals":{"sts:ExternalId":["x","y"]}}`, map[string][]string{"sts:externalid": {"y"}}, implicitDeny,
		},
		"negated-other": {
			`{"StringNotEquals":{"sts:ExternalId":["x","y"]}}`, map[string][]string{"sts:externalid": {"z"}}, allowed,
		},
		"like": {
			`{"StringLike":{"` + key + `":"system:serviceaccount:*:web"}}`,
			map[string][]string{key: {"system:serviceaccount:a:web"}}, allowed,
		},
		"like-whole": {
			`{"StringLike":{"` + key + `":"system:serviceaccount:a"}}`,
			map[string][]string{key: {"system:serviceaccount:a:web"}}, implicitDeny,
		},
		"not-like": {
			`{"StringNotLike":{"` + key + `":"*:web"}}`, map[string][]string{key: {"a:web"}}, implicitDeny,
		},
		"other-issuer": {
			`{"StringLike":{"oidc.example.net/id/b:sub":"*"}}`, map[string][]string{key: {"x"}}, implicitDeny,
		},
		"both-must-hold": {
			`{"StringEquals":{"sts:ExternalId":"x","sts:RoleSessionName":"s"}}`,
			map[string][]string{"sts:externalid": {"x"}, "sts:rolesessionname": {"t"}}, implicitDeny,
		},
		"any-value": {
			`{"ForAnyValue:StringEquals":{"aws:TagKeys":"a"}}`, map[string][]string{"aws:tagkeys": {"a", "b"}}, allowed,
		},
		"all-values": {
			`{"ForAllValues:StringEquals":{"aws:TagKeys":"a"}}`, map[string][]string{"aws:tagkeys": {"a", "b"}}, implicitDeny,
		},
		"all-values-absent": {`{"ForAllValues:StringEquals":{"aws:TagKeys":"a"}}`, nil, allowed},
		"unknown-operator": {
			`{"IpAddress":{"sts:ExternalId":"x"}}`, map[string][]string{"sts:externalid": {"x"}}, implicitDeny,
		},
		"unknown-key": {
			`{"StringLike":{"aws:MultiFactorAuthAge":"*"}}`, map[string][]string{"aws:multifactorauthage": {"1"}},
			implicitDeny,
		},
		"unknown-key-negated":   {`{"StringNotEquals":{"aws:SourceVpc":"x"}}`, nil, implicitDeny},
		"unknown-key-if-exists": {`{"StringEqualsIfExists":{"aws:SourceVpc":"x"}}`, nil, implicitDeny},
		"unknown-operator-prefix": {
			`{"ForSomeValue:StringEquals":{"aws:TagKeys":"a"}}`, map[string][]string{"aws:tagkeys": {"a"}}, implicitDeny,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := parseTrustPolicy(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Principal":"*",
				"Action":"sts:AssumeRole","Condition":` + test.condition + `}}`)
			if err != nil {
				t.Fatal(err)
			}
			caller := &principal{kind: userPrincipal, arn: "arn:aws:iam::111122223333:user/u", account: account,
				partition: "aws"}
			if got := p.evaluate(caller, "sts:AssumeRole", "", test.context); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestGlob(t *testing.T) {
	tests := []struct {
		value, pattern string
		want           bool
	}{
		{"", "", true}, {"", "*", true}, {"", "?", false}, {"abc", "abc", true}, {"abc", "a*", true}, {"abc", "*c", true},
		{"abc", "a?c", true}, {"abc", "a?", false}, {"a/b:c", "a*c", true}, {"aXbXc", "a*X*c", true}, {"abcd", "a*bc", false},
		{"aaa", "a*a*a*a", false}, {"abc", "ABC", false}, {"a*", "a*", true}, {"ab", "a**b", true},
	}
	for _, test := range tests {
		if got := glob(test.value, test.pattern); got != test.want {
			t.Errorf("glob(%q, %q) = %v", test.value, test.pattern, got)
		}
	}
}

// FuzzTrustPolicy: no document panics, and one that parses can be asked. A federated caller that no document of the
// seeds names is let in only by "*".
func FuzzTrustPolicy(f *testing.F) {
	f.Add(TrustPrincipals(nodeRole, account))
	f.Add(TrustService("ec2.amazonaws.com"))
	f.Add(TrustServiceAccount("arn:aws:iam::111122223333:oidc-provider/oidc.example.net/id/a", "shop", "web"))
	f.Add(`{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"sts:*",
		"Condition":{"ForAllValues:StringLikeIfExists":{"aws:TagKeys":["*",true,1.5]}}}]}`)
	f.Add(`{"Version":"2012-10-17",
		"Statement":{"Effect":"Allow","Principal":null,"Action":null,"Condition":{"":{"":""}}}}`)
	f.Fuzz(func(t *testing.T, doc string) {
		p, err := parseTrustPolicy(doc)
		if err != nil {
			return
		}
		const name = "arn:aws:iam::999999999999:oidc-provider/never.example"
		caller := &principal{kind: federatedPrincipal, arn: name}
		got := p.evaluate(caller, "sts:AssumeRoleWithWebIdentity", "", map[string][]string{})
		if got == allowed && !strings.Contains(doc, "*") && !strings.Contains(doc, `\u`) && !strings.Contains(doc, name) {
			t.Errorf("let in by %s", doc)
		}
	})
}
