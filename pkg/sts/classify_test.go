package sts

import (
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/role"
)

func TestClassify(t *testing.T) {
	const web, assume = actionWebIdentity, actionAssumeRole
	tests := []struct {
		name   string
		answer answer
		want   verdict
	}{
		{"throttling_is_400", answer{web, "Throttling", "Rate exceeded", 400}, verdict{kind: Throttled, token: keepToken}},
		{"throttling_exception", answer{assume, "ThrottlingException", "", 400}, verdict{kind: Throttled, token: keepToken}},
		{"request_limit", answer{assume, "RequestLimitExceeded", "", 503}, verdict{kind: Throttled, token: keepToken}},
		{"slow_down", answer{assume, "SlowDown", "", 503}, verdict{kind: Throttled, token: keepToken}},
		{"status_429", answer{web, "", "", 429}, verdict{kind: Throttled, token: keepToken}},

		{"internal_failure", answer{web, "InternalFailure", "", 500}, verdict{kind: Transient, token: keepToken}},
		{"unavailable", answer{web, "ServiceUnavailable", "", 503}, verdict{kind: Transient, token: keepToken}},
		{"access_denied_by_5xx", answer{web, "AccessDenied", "", 502}, verdict{kind: Transient, token: keepToken}},
		{"request_timeout_400", answer{web, "RequestTimeout", "", 400}, verdict{kind: Transient, token: keepToken}},
		{"no_answer", answer{web, "", "", 0}, verdict{kind: Transient, token: keepToken}},

		{"idp_unreachable", answer{web, "IDPCommunicationError", "", 400}, verdict{kind: Transient, token: keepToken}},
		{
			"key_retrieval",
			answer{
				web, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider, please " +
					"reference AssumeRoleWithWebIdentity documentation for requirements", 400,
			},
			verdict{kind: Transient, token: replaceToken},
		},
		{
			"token_expired",
			answer{
				web, "ExpiredTokenException", "Token expired: current date/time 2 must be before the expiration " +
					"date/time 1", 400,
			},
			verdict{kind: Transient, token: retryNewToken},
		},
		{"token_expired_short", answer{web, "ExpiredToken", "", 400}, verdict{kind: Transient, token: retryNewToken}},
		{
			"token_expired_invalid", answer{web, "InvalidIdentityToken", "Token is expired", 400},
			verdict{kind: Transient, token: retryNewToken},
		},
		{
			"no_provider",
			answer{web, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for https://x", 400},
			verdict{kind: Denied, token: keepToken},
		},
		{
			"audience", answer{web, "InvalidIdentityToken", "Incorrect token audience", 400},
			verdict{kind: Denied, token: keepToken},
		},
		{
			"thumbprint",
			answer{
				web, "InvalidIdentityToken", "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint",
				400,
			},
			verdict{kind: Denied, token: keepToken},
		},
		{
			"other_bad_token", answer{web, "InvalidIdentityToken", "not a valid JWT", 400},
			verdict{kind: Denied, token: retryNewToken},
		},
		{"claim_rejected", answer{web, "IDPRejectedClaim", "", 403}, verdict{kind: Denied, token: retryNewToken}},

		{"agent_expired", answer{assume, "ExpiredToken", "", 403}, verdict{kind: Transient, token: keepToken}},
		{"agent_unknown_key", answer{assume, "InvalidClientTokenId", "", 403}, verdict{kind: Transient, token: keepToken}},
		{"agent_signature", answer{assume, "SignatureDoesNotMatch", "", 403}, verdict{kind: Transient, token: keepToken}},
		{"agent_unsigned", answer{assume, "MissingAuthenticationToken", "", 403}, verdict{kind: Transient, token: keepToken}},
		{"agent_clock", answer{assume, "RequestTimeTooSkewed", "", 403}, verdict{kind: Transient, token: keepToken}},

		{"trust", answer{web, "AccessDenied", "Not authorized", 403}, verdict{kind: Denied, token: keepToken}},
		{"trust_assume", answer{assume, "AccessDenied", "", 403}, verdict{kind: Denied, token: keepToken}},
		{"validation", answer{web, "ValidationError", "", 400}, verdict{kind: Denied, token: keepToken}},
		{"malformed_policy", answer{assume, "MalformedPolicyDocument", "", 400}, verdict{kind: Denied, token: keepToken}},
		{"packed_policy", answer{assume, "PackedPolicyTooLarge", "", 400}, verdict{kind: Denied, token: keepToken}},
		{"region_disabled", answer{web, "RegionDisabledException", "", 403}, verdict{kind: Denied, token: keepToken}},

		{"unknown_4xx", answer{web, "SomethingNew", "", 400}, verdict{kind: Transient, token: keepToken}},
		{"proxy_403", answer{web, "", "", 403}, verdict{kind: Transient, token: keepToken}},
		{"redirect", answer{web, "", "", 302}, verdict{kind: Transient, token: keepToken}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := classify(tt.answer); got != tt.want {
				t.Errorf("classify(%+v) = %+v, want %+v", tt.answer, got, tt.want)
			}
			if tt.answer.code == "" || tt.answer.code == "SomethingNew" {
				return
			}
			if got := bounded(tt.answer.code); got != tt.answer.code {
				t.Errorf("bounded(%q) = %q", tt.answer.code, got)
			}
		})
	}
}

func TestRemedy(t *testing.T) {
	g := role.Grant{
		Namespace: "billing", ServiceAccount: "api", Audience: "sts.amazonaws.com", Duration: 12 * time.Hour,
	}
	withExternalID := g
	withExternalID.ExternalID = "4711"
	tests := []struct {
		name   string
		answer answer
		grant  role.Grant
		want   []string
	}{
		{
			"web_identity_trust", answer{actionWebIdentity, "AccessDenied", "Not authorized to perform " +
				"sts:AssumeRoleWithWebIdentity", 403}, g,
			[]string{"trust policy", `sub "system:serviceaccount:billing:api"`, `aud "sts.amazonaws.com"`},
		},
		{
			"tags", answer{actionAssumeRole, "AccessDenied", "User: arn:aws:sts::1:assumed-role/node/i-1 is not " +
				"authorized to perform: sts:TagSession on resource: arn:aws:iam::1:role/app", 403}, g,
			[]string{"trust policy lacks sts:TagSession"},
		},
		{"assume_trust", answer{actionAssumeRole, "AccessDenied", "", 403}, g, []string{"principal", "no external ID"}},
		{
			"external_id", answer{actionAssumeRole, "AccessDenied", "", 403}, withExternalID,
			[]string{"external ID of the annotation"},
		},
		{
			"no_provider", answer{actionWebIdentity, "InvalidIdentityToken", "No OpenIDConnect provider found", 400}, g,
			[]string{"create the IAM OIDC provider"},
		},
		{
			"audience", answer{actionWebIdentity, "InvalidIdentityToken", "Incorrect token audience", 400}, g,
			[]string{`"sts.amazonaws.com"`, "client IDs"},
		},
		{
			"duration", answer{actionAssumeRole, "ValidationError", "The requested DurationSeconds exceeds the 1 hour " +
				"session limit for roles assumed by role chaining", 400}, g,
			[]string{"12h0m0s", "one hour"},
		},
		{"region", answer{actionWebIdentity, "RegionDisabledException", "", 403}, g, []string{"activate STS in eu-west-1"}},
		{"agent", answer{actionAssumeRole, "ExpiredToken", "", 403}, g, []string{"agent's own AWS credentials"}},
		{"nothing_to_do", answer{actionWebIdentity, "InternalFailure", "", 500}, g, nil},
		{"token_is_not_the_agents", answer{actionWebIdentity, "ExpiredTokenException", "", 400}, g, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := remedy(tt.answer, tt.grant, "eu-west-1")
			if (got == "") != (tt.want == nil) {
				t.Errorf("remedy = %q", got)
			}
			for _, part := range tt.want {
				if !strings.Contains(got, part) {
					t.Errorf("remedy = %q, want %q in it", got, part)
				}
			}
			if strings.Contains(got, "4711") {
				t.Errorf("remedy = %q gives the external ID away", got)
			}
		})
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(actionWebIdentity, "InvalidIdentityToken", "Incorrect token audience", 400)
	f.Add(actionAssumeRole, "Throttling", "Rate exceeded", 400)
	f.Add("", "", "<html>", 403)
	f.Fuzz(func(t *testing.T, action, code, message string, status int) {
		a := answer{action, code, message, status}
		if v := classify(a); v.kind == Denied && (status >= 500 || code == "") {
			t.Errorf("classify(%+v) = %+v: a Denial needs AWS's word", a, v)
		}
		remedy(a, role.Grant{}, "eu-west-1")
		if label := bounded(code); label != code && label != codeOther {
			t.Errorf("bounded(%q) = %q", code, label)
		}
	})
}
