package awstest

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
)

const (
	account  = "111122223333"
	other    = "444455556666"
	region   = "eu-west-1"
	nodeRole = "arn:aws:iam::111122223333:role/node"
	appRole  = "arn:aws:iam::111122223333:role/team/app"
	farRole  = "arn:aws:iam::444455556666:role/far"
	irsaRole = "arn:aws:iam::111122223333:role/irsa"
)

// world is a stand-in with a few roles behind a listener that speaks for eu-west-1.
type world struct {
	*AWS
	server *httptest.Server
	node   aws.Credentials // a session of nodeRole, which appRole trusts by ARN
	user   aws.Credentials // a user that may do anything its account may
}

func newWorld(t testing.TB, cfg Config) *world {
	t.Helper()
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{AWS: a}
	w.put(t, Role{ARN: nodeRole, Trust: TrustService("ec2.amazonaws.com"), Permissions: Permit("sts:*")})
	w.put(t, Role{ARN: appRole, Trust: TrustPrincipals(nodeRole, account), MaxSessionDuration: 2 * time.Hour})
	w.put(t, Role{ARN: farRole, Trust: TrustPrincipals(nodeRole)})
	if w.node, err = a.Issue(nodeRole, "i-0123456789abcdef0", 6*time.Hour); err != nil {
		t.Fatal(err)
	}
	if w.user, err = a.AddUser(User{ARN: "arn:aws:iam::111122223333:user/ops", Permissions: Permit("*")}); err != nil {
		t.Fatal(err)
	}
	w.server = httptest.NewServer(a.Endpoint(region))
	t.Cleanup(w.server.Close)
	return w
}

func (w *world) put(t testing.TB, r Role) {
	t.Helper()
	if err := w.PutRole(r); err != nil {
		t.Fatal(err)
	}
}

// client returns the real STS client, without retries, signing with the given keys.
func (w *world) client(keys aws.Credentials, options ...func(*sts.Options)) *sts.Client {
	return sts.New(sts.Options{
		Region: region, BaseEndpoint: &w.server.URL, HTTPClient: w.server.Client(), Retryer: aws.NopRetryer{},
		Credentials: credentials.StaticCredentialsProvider{Value: keys},
	}, options...)
}

// asPod is the plainest request for a role.
func asPod(role string) *sts.AssumeRoleInput {
	return &sts.AssumeRoleInput{RoleArn: &role, RoleSessionName: new("pod")}
}

// handlerTransport hands requests to a handler in process, for tests in a synctest bubble, where a real connection
// would block the clock.
type handlerTransport struct{ http.Handler }

func (h handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	in := r.Clone(r.Context())
	if in.Host == "" {
		in.Host = in.URL.Host
	}
	in.URL.Scheme, in.URL.Host = "", ""
	if in.Body == nil {
		in.Body = http.NoBody
	}
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, in)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return recorder.Result(), nil
}

// wantCode fails the test unless err is the given refusal of AWS; "" wants success.
func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	refusal, ok := errors.AsType[smithy.APIError](err)
	switch {
	case code == "" && err != nil:
		t.Fatalf("got %v, want success", err)
	case code != "" && !ok:
		t.Fatalf("got %v, want %s", err, code)
	case code != "" && refusal.ErrorCode() != code:
		t.Fatalf("got %s (%s), want %s", refusal.ErrorCode(), refusal.ErrorMessage(), code)
	}
}

func message(err error) string {
	if refusal, ok := errors.AsType[smithy.APIError](err); ok {
		return refusal.ErrorMessage()
	}
	return ""
}
