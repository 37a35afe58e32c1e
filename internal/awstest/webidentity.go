package awstest

import (
	"context"
	"encoding/xml"
	"errors"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// tokenAlgorithms are those that AWS accepts of an OIDC provider.
func tokenAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512}
}

// assumeRoleWithWebIdentity is sts:AssumeRoleWithWebIdentity
// (https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html).
func (s stsService) assumeRoleWithWebIdentity(ctx context.Context, req *request) (reply, error) {
	p, err := req.assumeParams()
	if err != nil {
		return reply{}, err
	}
	token := req.params.Get("WebIdentityToken")
	if len(token) < 4 || len(token) > 20000 { // said without the value, which is a secret
		return reply{}, badRequest(codeValidation, "1 validation error detected: Value at 'webIdentityToken' failed to "+
			"satisfy constraint: Member must have length between 4 and 20000")
	}
	if req.region != "" && p.roleARN.partition != partitionOf(req.region) {
		return reply{}, badRequest(codeValidation, "Request ARN is invalid")
	}
	idp, claims, err := s.verifyToken(ctx, token, p.roleARN, req.arrived)
	if err != nil {
		return reply{}, err
	}
	audiences := idp.accepted(claims.Audience)
	if len(audiences) == 0 {
		return reply{}, badRequest(codeInvalidIdentity, "Incorrect token audience")
	}
	target := s.aws.iam.role(p.roleARN.String())
	caller := &principal{kind: federatedPrincipal, arn: idp.arn}
	key := strings.ToLower(providerPath(idp.arn))
	context := req.context()
	context["sts:rolesessionname"] = []string{p.sessionName}
	context["aws:federatedprovider"] = []string{idp.arn}
	context[key+":sub"] = []string{claims.Subject}
	context[key+":aud"] = audiences
	if target == nil || target.trust.evaluate(caller, "sts:AssumeRoleWithWebIdentity", "", context) != allowed {
		return reply{}, forbidden(codeAccessDenied, "Not authorized to perform sts:AssumeRoleWithWebIdentity")
	}
	if p.duration > target.maxDuration {
		return reply{}, badRequest(codeValidation,
			"The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	}
	minted := s.aws.sessions.mint(s.aws.now(), s.aws.tokenSize, mintRequest{
		role: target, name: p.sessionName, action: req.action, asked: p.duration,
	})

	type result struct {
		AssumedRoleUser             assumedRoleUser
		Audience                    string
		Credentials                 credentialsElement
		Provider                    string
		SubjectFromWebIdentityToken string
	}
	out := result{Audience: audiences[0], Provider: idp.arn, SubjectFromWebIdentityToken: claims.Subject}
	out.Credentials, out.AssumedRoleUser = minted.elements()
	return xmlReply(200, CodeOK, struct {
		XMLName  xml.Name         `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleWithWebIdentityResponse"`
		Result   result           `xml:"AssumeRoleWithWebIdentityResult"`
		Metadata responseMetadata `xml:"ResponseMetadata"`
	}{Result: out, Metadata: responseMetadata{req.id}}), nil
}

// verifyToken checks that the token is signed by an issuer that the role's account trusts and is valid now. The
// messages are those that AWS gives; clients tell transient from final failures of one code by them.
func (s stsService) verifyToken(
	ctx context.Context, token string, roleARN arn, now time.Time,
) (*provider, *jwt.Claims, error) {
	parsed, err := jwt.ParseSigned(token, tokenAlgorithms())
	if err != nil || len(parsed.Headers) != 1 {
		return nil, nil, badRequest(codeInvalidIdentity, "The ID Token provided is not a valid JWT. "+
			"(You may see this error if you sent an Access Token)")
	}
	var unverified jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&unverified); err != nil {
		return nil, nil, badRequest(codeInvalidIdentity, "The ID Token provided is not a valid JWT. "+
			"(You may see this error if you sent an Access Token)")
	}
	idp := s.aws.iam.provider(providerARNOf(roleARN.partition, roleARN.account, unverified.Issuer))
	if idp == nil || idp.Issuer != unverified.Issuer {
		return nil, nil, badRequest(codeInvalidIdentity, "No OpenIDConnect provider found in your account for %s",
			unverified.Issuer)
	}
	set, err := idp.keys(ctx)
	if errors.Is(err, errUnreachable) {
		return nil, nil, badRequest(codeIDPCommunication, "The identity provider %s cannot be reached.", idp.Issuer)
	}
	matching := set.Key(parsed.Headers[0].KeyID)
	if err != nil || len(matching) == 0 {
		return nil, nil, badRequest(codeInvalidIdentity, "Couldn't retrieve verification key from your identity provider,  "+
			"please reference AssumeRoleWithWebIdentity documentation for requirements")
	}
	var claims *jwt.Claims
	for _, key := range matching {
		var verified jwt.Claims
		if parsed.Claims(key.Public(), &verified) == nil {
			claims = &verified
			break
		}
	}
	switch {
	case claims == nil:
		return nil, nil, badRequest(codeInvalidIdentity, "The web identity token's signature is invalid.")
	case claims.Expiry == nil:
		return nil, nil, badRequest(codeInvalidIdentity, "Missing a required claim: exp")
	case claims.Subject == "":
		return nil, nil, badRequest(codeInvalidIdentity, "Missing a required claim: sub")
	case len(claims.Audience) == 0:
		return nil, nil, badRequest(codeInvalidIdentity, "Missing a required claim: aud")
	case claims.IssuedAt == nil:
		return nil, nil, badRequest(codeInvalidIdentity, "Missing a required claim: iat")
	case !now.Before(claims.Expiry.Time()):
		return nil, nil, badRequest("ExpiredTokenException", "Token expired: current date/time %d must be before the "+
			"expiration date/time %d", now.Unix(), claims.Expiry.Time().Unix())
	case claims.NotBefore != nil && claims.NotBefore.Time().After(now.Add(s.aws.maxSkew)),
		claims.IssuedAt.Time().After(now.Add(s.aws.maxSkew)):
		return nil, nil, badRequest(codeInvalidIdentity, "The web identity token is not yet valid.")
	}
	return idp, claims, nil
}
