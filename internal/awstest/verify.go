package awstest

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	signingAlgorithm = "AWS4-HMAC-SHA256"
	amzDateForm      = "20060102T150405Z"
	unsignedPayload  = "UNSIGNED-PAYLOAD"

	messageInvalidToken = "The security token included in the request is invalid."
	messageExpiredToken = "The security token included in the request is expired"
	messageMismatch     = "The request signature we calculated does not match the signature you provided. Check your " +
		"AWS Secret Access Key and signing method. Consult the service documentation for details."
)

// signature is what a request claims about how it was signed
// (https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html).
type signature struct {
	accessKeyID, scopeDate, region, service string
	signedHeaders                           []string
	value                                   string // hexadecimal
	date                                    string // X-Amz-Date
	token                                   string // X-Amz-Security-Token
	presigned                               bool
	expires                                 time.Duration // presigned only
}

// presignedLimit is how long a presigned request lives at most, and when it says nothing
// (S3 alone allows longer ones, with the limit of seven days).
const presignedLimit = 15 * time.Minute

// parseSignature reads the claims from the Authorization header or the query; nil when the request is unsigned.
func parseSignature(r *http.Request, query url.Values) (*signature, error) {
	var s *signature
	var err error
	switch header := r.Header.Get("Authorization"); {
	case header != "":
		s, err = parseAuthorization(header)
	case query.Has("X-Amz-Algorithm") || query.Has("X-Amz-Signature"):
		s, err = parsePresigned(query)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !s.presigned {
		s.date = r.Header.Get("X-Amz-Date")
		s.token = r.Header.Get("X-Amz-Security-Token")
	}
	return s, nil
}

func parseAuthorization(header string) (*signature, error) {
	algorithm, rest, _ := strings.Cut(strings.TrimSpace(header), " ")
	if algorithm != signingAlgorithm {
		return nil, badRequest(codeIncomplete, "Authorization header does not use %s", signingAlgorithm)
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, badRequest(codeIncomplete, "'%s' not a valid key=value pair (missing equal-sign) in "+
				"Authorization header.", name)
		}
		if _, twice := fields[name]; twice {
			return nil, badRequest(codeIncomplete, "Authorization header has '%s' twice.", name)
		}
		fields[name] = value
	}
	for _, name := range []string{"Credential", "SignedHeaders", "Signature"} {
		if fields[name] == "" {
			return nil, badRequest(codeIncomplete, "Authorization header requires '%s' parameter.", name)
		}
	}
	s := &signature{signedHeaders: strings.Split(fields["SignedHeaders"], ";"), value: fields["Signature"]}
	return s, s.parseCredential(fields["Credential"])
}

func parsePresigned(query url.Values) (*signature, error) {
	names := []string{"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Signature"}
	for _, name := range names {
		if query.Get(name) == "" || len(query[name]) > 1 {
			return nil, badRequest(codeIncomplete, "AWS query-string parameters must include '%s' once.", name)
		}
	}
	if query.Get("X-Amz-Algorithm") != signingAlgorithm {
		return nil, badRequest(codeIncomplete, "X-Amz-Algorithm is not %s", signingAlgorithm)
	}
	s := &signature{
		presigned:     true,
		expires:       presignedLimit,
		signedHeaders: strings.Split(query.Get("X-Amz-SignedHeaders"), ";"),
		value:         query.Get("X-Amz-Signature"),
		date:          query.Get("X-Amz-Date"),
		token:         query.Get("X-Amz-Security-Token"),
	}
	if err := s.parseCredential(query.Get("X-Amz-Credential")); err != nil {
		return nil, err
	}
	if query.Has("X-Amz-Expires") {
		seconds, err := strconv.Atoi(query.Get("X-Amz-Expires"))
		if err != nil || seconds < 1 || seconds > 7*24*3600 {
			return nil, badRequest(codeIncomplete, "X-Amz-Expires must be between 1 and 604800 seconds")
		}
		s.expires = time.Duration(seconds) * time.Second
	}
	if s.service != "s3" {
		s.expires = min(s.expires, presignedLimit)
	}
	return s, nil
}

func (s *signature) parseCredential(credential string) error {
	parts := strings.Split(credential, "/")
	if len(parts) != 5 || slices.Contains(parts, "") {
		return badRequest(codeIncomplete, "Credential must have exactly 5 slash-delimited elements, e.g. "+
			"keyid/date/region/service/term, got '%s'", credential)
	}
	if parts[4] != "aws4_request" {
		return forbidden(codeSignature, "Credential should be scoped with a valid terminator: 'aws4_request', not '%s'.",
			parts[4])
	}
	s.accessKeyID, s.scopeDate, s.region, s.service = parts[0], parts[1], parts[2], parts[3]
	return nil
}

// verify establishes who made the request, or says why that cannot be established.
func (a *AWS) verify(req *request) error {
	s := req.signature
	if s == nil {
		return forbidden(codeMissingAuth, "Request is missing Authentication Token")
	}
	secret, caller, err := a.keyOf(s, req.arrived)
	if err != nil {
		return err
	}
	if caller.partition != partitionOf(req.region) { // partitions share nothing
		return forbidden(codeInvalidClient, messageInvalidToken)
	}
	if req.told != "" && s.region != req.told {
		return forbidden(codeSignature, "Credential should be scoped to a valid region.")
	}
	date, err := s.checkDate(req.arrived, a.skewFor(s.service))
	if err != nil {
		return err
	}
	if !slices.Contains(s.signedHeaders, "host") {
		return forbidden(codeSignature, "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	payload, err := req.payloadHash()
	if err != nil {
		return err
	}
	computed, err := s.compute(req, aws.Credentials{AccessKeyID: s.accessKeyID, SecretAccessKey: secret}, payload, date)
	if err != nil {
		return err
	}
	// The signer lists headers in lower case and sorted; a list in any other form is not canonical, nor is one that
	// names a header which was not sent.
	sameHeaders := slices.Equal(computed.signedHeaders, s.signedHeaders)
	if subtle.ConstantTimeCompare([]byte(computed.value), []byte(s.value)) != 1 || !sameHeaders {
		return forbidden(codeSignature, messageMismatch)
	}
	req.caller = caller
	return nil
}

// keyOf looks up the secret of the access key and checks that the session token belongs to it and has not expired.
func (a *AWS) keyOf(s *signature, now time.Time) (secret string, caller *principal, err error) {
	if session := a.sessions.get(s.accessKeyID); session != nil {
		if subtle.ConstantTimeCompare([]byte(session.token), []byte(s.token)) != 1 {
			return "", nil, forbidden(codeInvalidClient, messageInvalidToken)
		}
		if !now.Before(session.Expires) {
			return "", nil, forbidden(codeExpiredToken, messageExpiredToken)
		}
		if a.iam.role(session.RoleARN) == nil {
			return "", nil, forbidden(codeInvalidClient, messageInvalidToken)
		}
		return session.secret, &session.principal, nil
	}
	a.iam.mu.RLock()
	defer a.iam.mu.RUnlock()
	u := a.iam.users[s.accessKeyID]
	if u == nil || s.token != "" {
		return "", nil, forbidden(codeInvalidClient, messageInvalidToken)
	}
	return u.secret, &u.principal, nil
}

func (a *AWS) skewFor(service string) time.Duration {
	if service == "s3" {
		return 15 * time.Minute
	}
	return a.maxSkew
}

// checkDate checks that the request was signed now, give or take the skew, or for a presigned one that it has not
// expired, and that the scope is of the same day.
func (s *signature) checkDate(now time.Time, skew time.Duration) (time.Time, error) {
	date, err := time.Parse(amzDateForm, s.date)
	if err != nil {
		return date, badRequest(codeIncomplete, "Date must be in ISO-8601 'basic format'. Got '%s'. "+
			"See http://en.wikipedia.org/wiki/ISO_8601", s.date)
	}
	if day := date.Format("20060102"); day != s.scopeDate {
		return date, forbidden(codeSignature, "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of "+
			"date from HTTP: '%s' != '%s', from '%s'.", s.scopeDate, day, s.date)
	}
	now = now.UTC()
	limit := skew
	if s.presigned {
		limit = s.expires
	}
	if earliest := now.Add(-limit); date.Before(earliest.Truncate(time.Second)) {
		if s.presigned && s.service == "s3" {
			return date, forbidden(codeRequestExpired, "Request has expired")
		}
		return date, forbidden(codeSignature, "Signature expired: %s is now earlier than %s (%s - %s)", s.date,
			earliest.Format(amzDateForm), now.Format(amzDateForm), minutes(limit))
	}
	if latest := now.Add(skew); date.After(latest) {
		return date, forbidden(codeSignature, "Signature not yet current: %s is still later than %s (%s + %s)", s.date,
			latest.Format(amzDateForm), now.Format(amzDateForm), minutes(skew))
	}
	return date, nil
}

func minutes(d time.Duration) string {
	return strconv.FormatFloat(d.Minutes(), 'f', -1, 64) + " min."
}

// compute signs the request as it was received, with the same headers, date and scope, and returns the outcome.
//
// The signer signs every header it is given, so it is given those that the client signed. It skips a few by their
// canonical spelling (User-Agent, for one) which older SDKs do sign; in lower case it takes them.
func (s *signature) compute(req *request, key aws.Credentials, payloadHash string, date time.Time) (*signature, error) {
	target := *req.http.URL
	target.Opaque = "" // the signer would prefer it
	again := &http.Request{Method: req.http.Method, URL: &target, Host: req.http.Host, Header: http.Header{}}
	for _, name := range s.signedHeaders {
		switch {
		case name == "host":
		case name == "content-length":
			again.ContentLength = req.http.ContentLength
		case name == "x-amz-date" && !s.presigned:
			// Set by the signer.
		default:
			if values := req.http.Header.Values(name); len(values) > 0 {
				again.Header[name] = slices.Clone(values)
			}
		}
	}
	options := func(o *v4.SignerOptions) {
		o.DisableHeaderHoisting = true // the query is as hoisted already
		o.DisableSessionToken = true   // it stands where the client put it
		o.DisableURIPathEscaping = s.service == "s3"
	}
	signer := v4.NewSigner(options) // not shared: a signer remembers derived keys by access key
	if !s.presigned {
		if err := signer.SignHTTP(context.Background(), key, again, payloadHash, s.service, s.region, date); err != nil {
			return nil, forbidden(codeSignature, messageMismatch)
		}
		return parseAuthorization(again.Header.Get("Authorization"))
	}
	query := target.Query()
	query.Del("X-Amz-Signature")
	target.RawQuery = query.Encode()
	signed, _, err := signer.PresignHTTP(context.Background(), key, again, payloadHash, s.service, s.region, date)
	if err != nil {
		return nil, forbidden(codeSignature, messageMismatch)
	}
	u, err := url.Parse(signed)
	if err != nil {
		return nil, forbidden(codeSignature, messageMismatch)
	}
	return parsePresigned(u.Query())
}

// payloadHash returns the hash that the signature covers: of the body as received, never as claimed.
func (r *request) payloadHash() (string, error) {
	sum := sha256.Sum256(r.body)
	actual := hex.EncodeToString(sum[:])
	if r.signature.service != "s3" {
		return actual, nil
	}
	if r.signature.presigned {
		return unsignedPayload, nil
	}
	// https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
	const header = "x-amz-content-sha256"
	switch claimed := r.http.Header.Get(header); {
	case claimed == "":
		return "", badRequest("InvalidRequest", "Missing required header for this request: %s", header)
	case !slices.Contains(r.signature.signedHeaders, header):
		return "", forbidden(codeAccessDenied, "There were headers present in the request which were not signed")
	case claimed == unsignedPayload:
		return claimed, nil
	case claimed != actual:
		return "", badRequest("XAmzContentSHA256Mismatch",
			"The provided 'x-amz-content-sha256' header does not match what was computed.")
	default:
		return actual, nil
	}
}
