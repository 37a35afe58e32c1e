package sts

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/retry"

	"github.com/podrole/podrole/pkg/role"
)

// The STS actions of this package, as they appear in errors, metrics and IAM policies.
const (
	actionAssumeRole  = "AssumeRole"
	actionWebIdentity = "AssumeRoleWithWebIdentity"
)

// tokenAdvice is what an STS answer says about the ServiceAccount token that was sent.
type tokenAdvice int

const (
	keepToken     tokenAdvice = iota
	replaceToken              // before the next mint, whenever that is
	retryNewToken             // now: the token, not the role, was refused
)

// verdict is what to do about a failed STS call.
type verdict struct {
	kind   Kind
	token  tokenAdvice
	health health // of the region; classify does not know it
}

// answer is what STS said when a call failed. Status is 0 when nothing was received.
type answer struct {
	action  string
	code    string
	message string
	status  int
}

// rule decides answers with one error code. The first rule that matches wins.
type rule struct {
	code     string
	action   string // empty: any
	contains string // in the message, whatever its case; empty: any
	verdict  verdict
}

// rules is the error table. Codes and messages are those of the STS API reference ("Errors" of AssumeRole and of
// AssumeRoleWithWebIdentity, and "Common Errors") and of IAM's troubleshooting pages.
var rules = []rule{
	// The ServiceAccount token.
	{"ExpiredTokenException", actionWebIdentity, "", verdict{kind: Transient, token: retryNewToken}},
	{"ExpiredToken", actionWebIdentity, "", verdict{kind: Transient, token: retryNewToken}},
	{"InvalidIdentityToken", "", "expired", verdict{kind: Transient, token: retryNewToken}},
	// AWS could not read the issuer's keys: an outage on either side, or the token's key has left the key set since.
	{"InvalidIdentityToken", "", "verification key", verdict{kind: Transient, token: replaceToken}},
	{"InvalidIdentityToken", "", "no openidconnect provider", verdict{kind: Denied, token: keepToken}},
	{"InvalidIdentityToken", "", "audience", verdict{kind: Denied, token: keepToken}},
	{"InvalidIdentityToken", "", "thumbprint", verdict{kind: Denied, token: keepToken}},
	{"InvalidIdentityToken", "", "", verdict{kind: Denied, token: retryNewToken}},
	{"IDPRejectedClaim", "", "", verdict{kind: Denied, token: retryNewToken}}, // "can also mean that the claim has expired"
	{"IDPCommunicationError", "", "", verdict{kind: Transient, token: keepToken}},
	{"JWTPayloadSizeExceededException", "", "", verdict{kind: Denied, token: keepToken}},

	// The agent's own credentials or clock: not the role's fault.
	{"ExpiredToken", "", "", verdict{kind: Transient, token: keepToken}},
	{"ExpiredTokenException", "", "", verdict{kind: Transient, token: keepToken}},
	{"InvalidClientTokenId", "", "", verdict{kind: Transient, token: keepToken}},
	{"UnrecognizedClientException", "", "", verdict{kind: Transient, token: keepToken}},
	{"SignatureDoesNotMatch", "", "", verdict{kind: Transient, token: keepToken}},
	{"InvalidSignatureException", "", "", verdict{kind: Transient, token: keepToken}},
	{"IncompleteSignature", "", "", verdict{kind: Transient, token: keepToken}},
	{"MissingAuthenticationToken", "", "", verdict{kind: Transient, token: keepToken}},
	{"RequestExpired", "", "", verdict{kind: Transient, token: keepToken}},
	{"RequestTimeTooSkewed", "", "", verdict{kind: Transient, token: keepToken}},

	// AWS itself, where the status alone would not tell.
	{"InternalFailure", "", "", verdict{kind: Transient, token: keepToken}},
	{"InternalError", "", "", verdict{kind: Transient, token: keepToken}},
	{"ServiceUnavailable", "", "", verdict{kind: Transient, token: keepToken}},
	{"RequestTimeout", "", "", verdict{kind: Transient, token: keepToken}},

	// The role, its policies, or what was asked of it.
	{"AccessDenied", "", "", verdict{kind: Denied, token: keepToken}},
	{"AccessDeniedException", "", "", verdict{kind: Denied, token: keepToken}},
	{"ValidationError", "", "", verdict{kind: Denied, token: keepToken}},
	{"InvalidParameterValue", "", "", verdict{kind: Denied, token: keepToken}},
	{"InvalidParameterCombination", "", "", verdict{kind: Denied, token: keepToken}},
	{"MissingParameter", "", "", verdict{kind: Denied, token: keepToken}},
	{"MalformedPolicyDocument", "", "", verdict{kind: Denied, token: keepToken}},
	{"PackedPolicyTooLarge", "", "", verdict{kind: Denied, token: keepToken}},
	{"RegionDisabledException", "", "", verdict{kind: Denied, token: keepToken}},
	{"OptInRequired", "", "", verdict{kind: Denied, token: keepToken}},
}

// classify decides what a failed call means. It is total: an answer that no rule knows is Transient, a 4xx too,
// because a Denial reaches the pod as "you have no role", which a client may remember, while a retry costs at most
// a call a minute. A proxy's own 403 page, which has no AWS code, is the common case.
func classify(a answer) verdict {
	if _, ok := retry.DefaultThrottleErrorCodes[a.code]; ok || a.status == http.StatusTooManyRequests {
		return verdict{kind: Throttled, token: keepToken}
	}
	if a.status >= http.StatusInternalServerError {
		return verdict{kind: Transient, token: keepToken}
	}
	message := strings.ToLower(a.message)
	for _, r := range rules {
		if r.code == a.code && (r.action == "" || r.action == a.action) && strings.Contains(message, r.contains) {
			return r.verdict
		}
	}
	return verdict{kind: Transient, token: keepToken}
}

// remedy says what an operator can do about an answer, or nothing.
func remedy(a answer, g role.Grant, region string) string {
	message := strings.ToLower(a.message)
	switch a.code {
	case "AccessDenied", "AccessDeniedException":
		return accessRemedy(a.action, message, g)
	case "InvalidIdentityToken":
		switch {
		case strings.Contains(message, "no openidconnect provider"):
			return "create the IAM OIDC provider of this cluster's issuer in the account that owns the role"
		case strings.Contains(message, "audience"):
			return fmt.Sprintf("add %q to the client IDs of the IAM OIDC provider", g.Audience)
		case strings.Contains(message, "thumbprint"):
			return "update the thumbprint of the IAM OIDC provider"
		case strings.Contains(message, "verification key"):
			return "if this lasts, check that the issuer's /.well-known/openid-configuration and keys can be read " +
				"from the internet"
		}
	case "ValidationError":
		if strings.Contains(message, "durationseconds") {
			return fmt.Sprintf("shorten the session duration (%s): AWS allows the role's maximum session duration, "+
				"and one hour for a role that is assumed by a role", g.Duration)
		}
	case "RegionDisabledException":
		return fmt.Sprintf("activate STS in %s in the account that owns the role", region)
	case "RequestExpired", "RequestTimeTooSkewed":
		return "check the node's clock"
	}
	if blamesAgent(a) {
		return "check the agent's own AWS credentials and the node's clock"
	}
	return ""
}

// blamesAgent reports whether AWS refused the credentials that signed the call.
func blamesAgent(a answer) bool {
	switch a.code {
	case "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException",
		"SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature", "MissingAuthenticationToken":
		return a.action == actionAssumeRole
	}
	return false
}

// accessRemedy names the line that a trust policy lacks. STS says the same words for a role that does not exist.
func accessRemedy(action, message string, g role.Grant) string {
	switch {
	case strings.Contains(message, "sts:tagsession"):
		return "the role's trust policy lacks sts:TagSession: add it beside sts:AssumeRole, or switch session tags off"
	case action == actionWebIdentity:
		return fmt.Sprintf("the role must exist and its trust policy must allow sts:AssumeRoleWithWebIdentity to this "+
			"cluster's OIDC provider with sub %q and aud %q",
			"system:serviceaccount:"+g.Namespace+":"+g.ServiceAccount, g.Audience)
	case g.ExternalID != "":
		return "the role must exist, its trust policy must name the agent's role as principal and the external ID of " +
			"the annotation, and the agent's own policy must allow sts:AssumeRole on the role"
	default:
		return "the role must exist, its trust policy must name the agent's role as principal and ask for no external " +
			"ID, and the agent's own policy must allow sts:AssumeRole on the role"
	}
}

// The codes given to Config.Observe when there is no AWS code to give.
const (
	codeOK          = "OK"
	codeTimeout     = "Timeout"
	codeCanceled    = "Canceled"
	codeUnreachable = "Unreachable" // no answer: DNS, connection, TLS
	codeOther       = "Other"
)

// isKeyRetrieval reports whether AWS says that it could not read the keys of a token's issuer.
func isKeyRetrieval(code string, err error) bool {
	return code == "InvalidIdentityToken" && strings.Contains(strings.ToLower(err.Error()), "verification key")
}

// bounded returns code if this package knows it and "Other" if not: codes are metric labels, and what answers at
// the endpoint is not ours to trust with their number.
func bounded(code string) string {
	switch code {
	case codeOK, codeTimeout, codeCanceled, codeUnreachable:
		return code
	}
	if _, ok := retry.DefaultThrottleErrorCodes[code]; ok {
		return code
	}
	for _, r := range rules {
		if r.code == code {
			return code
		}
	}
	return codeOther
}
