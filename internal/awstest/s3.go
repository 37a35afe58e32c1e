package awstest

import (
	"context"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// s3Service is S3, as far as ListBuckets (https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListBuckets.html).
type s3Service struct{ aws *AWS }

// PutBucket creates a bucket in an account.
func (a *AWS) PutBucket(account, name string) error {
	if !accountForm.MatchString(account) || len(name) < 3 || len(name) > 63 {
		return fmt.Errorf("put bucket %q in account %q: want 3 to 63 characters and 12 digits", name, account)
	}
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	for owner, list := range a.store.buckets {
		if slices.ContainsFunc(list, func(b bucket) bool { return b.name == name }) {
			return fmt.Errorf("put bucket %q in account %s: account %s has it, and names are global", name, account, owner)
		}
	}
	a.store.buckets[account] = append(a.store.buckets[account], bucket{name, a.now()})
	return nil
}

func (s s3Service) action(req *request) string {
	if req.http.Method == http.MethodGet && req.http.URL.Path == "/" {
		return "ListBuckets"
	}
	return ""
}

func (s s3Service) serve(_ context.Context, req *request) (reply, error) {
	if err := s.aws.verify(req); err != nil {
		return reply{}, err
	}
	if err := s.allHeadersSigned(req); err != nil {
		return reply{}, err
	}
	if req.action != "ListBuckets" {
		return reply{}, &apiError{http.StatusNotImplemented, "NotImplemented", "awstest serves ListBuckets only"}
	}
	if err := s.aws.authorize(req, "s3:ListAllMyBuckets", "*"); err != nil {
		return reply{}, err
	}
	type entry struct {
		Name         string
		CreationDate string
	}
	out := struct {
		XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListAllMyBucketsResult"`
		OwnerID string   `xml:"Owner>ID"`
		Buckets []entry  `xml:"Buckets>Bucket"`
	}{OwnerID: strings.Repeat(req.caller.account, 6)[:64]}
	s.aws.store.mu.RLock()
	for _, b := range s.aws.store.buckets[req.caller.account] {
		out.Buckets = append(out.Buckets, entry{b.name, b.created.UTC().Format("2006-01-02T15:04:05.000Z")})
	}
	s.aws.store.mu.RUnlock()
	slices.SortFunc(out.Buckets, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	answer := xmlReply(http.StatusOK, CodeOK, out)
	answer.header.Set("Content-Type", "application/xml")
	answer.header.Set("X-Amz-Request-Id", req.id)
	return answer, nil
}

// allHeadersSigned refuses x-amz-* headers that the signature does not cover.
func (s s3Service) allHeadersSigned(req *request) error {
	for name := range req.http.Header {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-") && !slices.Contains(req.signature.signedHeaders, name) {
			return forbidden(codeAccessDenied, "There were headers present in the request which were not signed")
		}
	}
	return nil
}

// fail renders a refusal in S3's words (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html).
func (s s3Service) fail(err *apiError, requestID string) reply {
	e := *err
	switch {
	case e.code == codeInvalidClient:
		e.code, e.message = "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."
	case e.code == codeExpiredToken:
		e.status, e.message = http.StatusBadRequest, "The provided token has expired."
	case e.code == codeMissingAuth:
		e.code, e.message = codeAccessDenied, "Access Denied"
	case e.code == codeIncomplete:
		e.code = "AuthorizationHeaderMalformed"
	case e.code == codeThrottling:
		e = apiError{http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate."}
	case e.code == codeSignature && strings.HasPrefix(e.message, "Signature "):
		e.code = "RequestTimeTooSkewed"
		e.message = "The difference between the request time and the current time is too large."
	case e.code == codeSignature && strings.HasPrefix(e.message, "Credential "):
		e.status, e.code = http.StatusBadRequest, "AuthorizationHeaderMalformed"
	}
	answer := xmlReply(e.status, e.code, struct {
		XMLName   xml.Name `xml:"Error"`
		Code      string
		Message   string
		RequestID string `xml:"RequestId"`
		HostID    string `xml:"HostId"`
	}{Code: e.code, Message: e.message, RequestID: requestID, HostID: "awstest"})
	answer.header.Set("Content-Type", "application/xml")
	answer.header.Set("X-Amz-Request-Id", requestID)
	answer.body = append([]byte(xml.Header), answer.body...)
	return answer
}
