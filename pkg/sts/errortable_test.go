package sts_test

import (
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// TestErrorTable sends each answer that STS is known to give over a connection, and checks what becomes of it: its kind,
// and whether a new ServiceAccount token is asked for, now or before the next mint.
func TestErrorTable(t *testing.T) {
	const (
		transient, throttled, denied = sts.Transient, sts.Throttled, sts.Denied
		web, assume                  = "AssumeRoleWithWebIdentity", "AssumeRole"
	)
	type advice int
	const (
		keep advice = iota
		later
		now
	)
	tests := []struct {
		action  string
		status  int
		code    string
		message string
		kind    sts.Kind
		token   advice
	}{
		{web, 400, "ExpiredTokenException", "Token expired: current date/time 2 must be before the expiration date/time 1",
			transient, now},
		{web, 400, "ExpiredToken", "", transient, now},
		{web, 400, "InvalidIdentityToken", "Token is expired", transient, now},
		{web, 400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider, please reference " +
			"AssumeRoleWithWebIdentity documentation for requirements", transient, later},
		{web, 400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for https://x", denied, keep},
		{web, 400, "InvalidIdentityToken", "Incorrect token audience", denied, keep},
		{web, 400, "InvalidIdentityToken", "OpenIDConnect provider's HTTPS certificate doesn't match configured " +
			"thumbprint", denied, keep},
		{web, 400, "InvalidIdentityToken", "The ID Token provided is not a valid JWT.", denied, now},
		{web, 403, "IDPRejectedClaim", "The identity provider reported that authentication failed.", denied, now},
		{web, 400, "IDPCommunicationError", "", transient, keep},
		{web, 400, "JWTPayloadSizeExceededException", "", denied, keep},

		{assume, 403, "ExpiredToken", "The security token included in the request is expired", transient, keep},
		{assume, 403, "ExpiredTokenException", "", transient, keep},
		{assume, 403, "InvalidClientTokenId", "", transient, keep},
		{assume, 403, "UnrecognizedClientException", "", transient, keep},
		{assume, 403, "SignatureDoesNotMatch", "", transient, keep},
		{assume, 403, "InvalidSignatureException", "", transient, keep},
		{assume, 403, "IncompleteSignature", "", transient, keep},
		{assume, 403, "MissingAuthenticationToken", "", transient, keep},
		{assume, 403, "RequestExpired", "", transient, keep},
		{assume, 403, "RequestTimeTooSkewed", "", transient, keep},

		{web, 500, "InternalFailure", "", transient, keep},
		{web, 400, "InternalFailure", "", transient, keep},
		{web, 400, "InternalError", "", transient, keep},
		{web, 503, "ServiceUnavailable", "", transient, keep},
		{web, 400, "ServiceUnavailable", "", transient, keep},
		{web, 400, "RequestTimeout", "", transient, keep},
		{web, 502, "AccessDenied", "", transient, keep}, // a 5xx is never a refusal
		{web, 400, "SomethingNew", "", transient, keep},

		{web, 400, "Throttling", "Rate exceeded", throttled, keep},
		{web, 400, "ThrottlingException", "", throttled, keep},
		{web, 429, "TooManyRequestsException", "", throttled, keep},
		{web, 503, "RequestLimitExceeded", "", throttled, keep},
		{assume, 503, "SlowDown", "", throttled, keep},

		{web, 403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", denied, keep},
		{assume, 403, "AccessDenied", "", denied, keep},
		{web, 403, "AccessDeniedException", "", denied, keep},
		{web, 400, "ValidationError", "", denied, keep},
		{web, 400, "InvalidParameterValue", "", denied, keep},
		{web, 400, "InvalidParameterCombination", "", denied, keep},
		{web, 400, "MissingParameter", "", denied, keep},
		{web, 400, "MalformedPolicyDocument", "", denied, keep},
		{web, 400, "PackedPolicyTooLarge", "", denied, keep},
		{web, 403, "RegionDisabledException", "", denied, keep},
		{web, 403, "OptInRequired", "", denied, keep},
	}
	covered := make(map[string]bool)
	for _, tt := range tests {
		covered[sts.Rule(tt.action, tt.code, tt.message)] = true
	}
	for _, row := range sts.Rules() {
		if !covered[row] {
			t.Errorf("no test of the row %s", row)
		}
	}

	w := newWorld(t)
	w.tokens.renewed = w.tokens.lifetime
	for _, tt := range tests {
		t.Run(tt.action+"/"+tt.code, func(t *testing.T) {
			clear, err := w.Inject(awstest.Fault{
				Outcome: &awstest.Outcome{Status: tt.status, Code: tt.code, Message: tt.message},
			})
			check(t, err)
			defer clear()
			w.ResetCalls()
			grants := map[string]role.Grant{web: webGrant(), assume: assumeGrant(kubeRole)}
			_, err = w.tokens.Token(t.Context(), caller, audience) // there is one in hand
			check(t, err)
			w.tokens.asked = 0
			before := w.tokens.token
			_, err = w.minter.Mint(t.Context(), grants[tt.action], caller)
			wantError(t, err, tt.kind, tt.code)
			calls, asked, replaced := 1, 1, false
			switch {
			case tt.action == assume:
				asked = 0
			case tt.token == now:
				calls, asked = 2, 2
			case tt.token == later:
				replaced = true
			}
			if n := w.Count(awstest.Filter{}); n != calls || w.tokens.asked != asked {
				t.Errorf("%d calls and %d tokens, want %d and %d", n, w.tokens.asked, calls, asked)
			}
			_, err = w.tokens.Token(t.Context(), caller, audience)
			check(t, err)
			if changed := w.tokens.token != before; changed != (replaced || tt.token == now) {
				t.Errorf("token replaced: %t", changed)
			}
		})
	}
}
