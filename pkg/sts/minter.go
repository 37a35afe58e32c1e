package sts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
	"github.com/aws/smithy-go"

	"github.com/podrole/podrole/pkg/role"
)

// Config configures a Minter.
type Config struct {
	// Region whose STS endpoint is called. Required.
	Region string
	// Endpoint is called instead of the region's own (LocalStack, a VPC endpoint, tests). An http or https URL.
	// Optional.
	Endpoint string
	// Credentials of the agent itself, which sign AssumeRole. Required for Grants with source assume-role, not used
	// for others. They are cached until close to their expiry.
	Credentials aws.CredentialsProvider
	// Tokens gives ServiceAccount tokens. Required for Grants with source web-identity, not used for others.
	Tokens Tokens
	// HTTPClient makes the calls. Optional; default NewHTTPClient().
	HTTPClient *http.Client
	// Timeout of one call to STS, answer included. Default 10 s. A longer one holds on to a slow answer, and to a
	// broken connection.
	Timeout time.Duration
	// Observe is told of every call to STS: the action, the region, the AWS error code ("OK" on success, "Timeout",
	// "Canceled" or "Unreachable" without an answer, "Other" for a code this package does not know; a fixed set) and
	// the time it took. It must not block and must be safe for concurrent use. Optional.
	Observe func(action, region, code string, took time.Duration)
}

// Tokens gives ServiceAccount tokens. TokenRequester implements it.
type Tokens interface {
	// Token returns a token of pod's ServiceAccount for audience, bound to pod, or one it returned before for the same
	// ServiceAccount and audience. An error that is an *Error keeps its Kind, Action, Code and Remedy; any other is
	// Transient.
	Token(ctx context.Context, pod role.Workload, audience string) (string, error)
}

// Renewer is implemented by a Tokens that keeps tokens: it is told when STS has refused one.
type Renewer interface {
	// Renew asks that the next Token be a new one if it would have been this one.
	Renew(pod role.Workload, audience, token string)
}

// Minter calls STS. It is safe for concurrent use and keeps no state of a role: one role's failures, retries or
// throttling change nothing for another.
type Minter struct {
	cfg    Config
	client *awssts.Client
	own    *aws.CredentialsCache // the agent's; nil if it has none
}

// New returns a Minter, or an error that names the field at fault. It makes no call.
func New(cfg Config) (*Minter, error) {
	if cfg.Region == "" {
		return nil, errors.New("new minter: Region is required")
	}
	if cfg.Credentials == nil && cfg.Tokens == nil {
		return nil, errors.New("new minter: Credentials (assume-role) or Tokens (web-identity) is required")
	}
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("new minter: Timeout %s is negative", cfg.Timeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.HTTPClient == nil {
		cfg.HTTPClient = NewHTTPClient()
	}
	if cfg.Observe == nil {
		cfg.Observe = func(string, string, string, time.Duration) {}
	}
	opts := awssts.Options{
		Region:     cfg.Region,
		HTTPClient: httpClient{cfg.HTTPClient},
		// One attempt. The SDK's retryer draws on a token bucket per client, so that the failures of one role would use
		// up the retries of all others.
		Retryer: aws.NopRetryer{},
	}
	if cfg.Endpoint != "" {
		u, err := url.Parse(cfg.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			return nil, fmt.Errorf("new minter: Endpoint %q is no http or https URL", cfg.Endpoint)
		}
		opts.BaseEndpoint = &cfg.Endpoint
	}
	m := &Minter{cfg: cfg}
	if cfg.Credentials != nil {
		m.own = cached(cfg.Credentials)
		opts.Credentials = m.own
	}
	m.client = awssts.New(opts)
	return m, nil
}

// cached returns p, which the SDK asks at every call, with a cache in front unless it is one.
func cached(p aws.CredentialsProvider) *aws.CredentialsCache {
	if c, ok := p.(*aws.CredentialsCache); ok {
		return c
	}
	return aws.NewCredentialsCache(p, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = time.Minute })
}

// Mint returns new credentials for g. Pod is any live pod of g's ServiceAccount: web-identity asks for a token in
// its name. It makes one call to STS, and a second one only when STS refused the ServiceAccount token and another
// could be had. Every error is an *Error.
func (m *Minter) Mint(ctx context.Context, g role.Grant, pod role.Workload) (Credentials, error) {
	switch g.Source {
	case role.WebIdentity:
		return m.webIdentity(ctx, g, pod)
	case role.AssumeRole:
		return m.assumeRole(ctx, g)
	default:
		return Credentials{}, m.refuse("Mint", g, fmt.Errorf("credential source %q is not known", g.Source))
	}
}

func (m *Minter) webIdentity(ctx context.Context, g role.Grant, pod role.Workload) (Credentials, error) {
	switch {
	case m.cfg.Tokens == nil:
		return Credentials{}, m.refuse(actionWebIdentity, g, errors.New("the agent has no source of ServiceAccount tokens"))
	case pod.Namespace != g.Namespace || pod.ServiceAccount != g.ServiceAccount:
		return Credentials{}, m.refuse(actionWebIdentity, g, fmt.Errorf("pod %s with ServiceAccount %s is not of %s/%s",
			pod, pod.ServiceAccount, g.Namespace, g.ServiceAccount))
	case g.ExternalID != "" || g.Tags != role.Tags{}:
		// The API has no parameter for either; leaving them out would mint another session than the Grant says.
		return Credentials{}, m.refuse(actionWebIdentity, g,
			errors.New("an external ID or session tags can be sent with assume-role only"))
	}
	token, err := m.token(ctx, g, pod)
	if err != nil {
		return Credentials{}, err
	}
	creds, v, err := m.callWebIdentity(ctx, g, token)
	if err == nil || v.token == keepToken {
		return creds, err
	}
	renewer, ok := m.cfg.Tokens.(Renewer)
	if !ok {
		return Credentials{}, err
	}
	renewer.Renew(pod, g.Audience, token)
	if v.token != retryNewToken {
		return Credentials{}, err
	}
	fresh, tokenErr := m.token(ctx, g, pod)
	if tokenErr != nil || fresh == token {
		return Credentials{}, err // what STS said is the news; the same token would only hear it again
	}
	creds, _, err = m.callWebIdentity(ctx, g, fresh)
	return creds, err
}

// token asks Tokens and puts the role's name on its errors.
func (m *Minter) token(ctx context.Context, g role.Grant, pod role.Workload) (string, error) {
	token, err := m.cfg.Tokens.Token(ctx, pod, g.Audience)
	if err == nil {
		return token, nil
	}
	e := &Error{Kind: Transient, Action: actionTokenRequest, Err: err}
	if known, ok := errors.AsType[*Error](err); ok {
		*e = *known
	}
	e.RoleARN, e.Region = g.RoleARN, m.cfg.Region
	return "", e
}

func (m *Minter) callWebIdentity(ctx context.Context, g role.Grant, token string) (Credentials, verdict, error) {
	send := func(ctx context.Context) (*types.Credentials, *types.AssumedRoleUser, error) {
		out, err := m.client.AssumeRoleWithWebIdentity(ctx, &awssts.AssumeRoleWithWebIdentityInput{
			RoleArn:          &g.RoleARN,
			RoleSessionName:  &g.SessionName,
			WebIdentityToken: &token,
			DurationSeconds:  seconds(g.Duration),
		})
		if err != nil {
			return nil, nil, err
		}
		return out.Credentials, out.AssumedRoleUser, nil
	}
	return m.call(ctx, actionWebIdentity, g, send)
}

func (m *Minter) assumeRole(ctx context.Context, g role.Grant) (Credentials, error) {
	if m.cfg.Credentials == nil {
		return Credentials{}, m.refuse(actionAssumeRole, g, errors.New("the agent has no AWS credentials of its own"))
	}
	in := &awssts.AssumeRoleInput{
		RoleArn:         &g.RoleARN,
		RoleSessionName: &g.SessionName,
		DurationSeconds: seconds(g.Duration),
		Tags:            tags(g.Tags),
	}
	if g.ExternalID != "" {
		in.ExternalId = &g.ExternalID
	}
	send := func(ctx context.Context) (*types.Credentials, *types.AssumedRoleUser, error) {
		out, err := m.client.AssumeRole(ctx, in)
		if err != nil {
			return nil, nil, err
		}
		return out.Credentials, out.AssumedRoleUser, nil
	}
	creds, _, err := m.call(ctx, actionAssumeRole, g, send)
	return creds, err
}

// call makes one call to STS, observes it, and turns its answer into Credentials or an *Error with its verdict.
func (m *Minter) call(ctx context.Context, action string, g role.Grant,
	send func(context.Context) (*types.Credentials, *types.AssumedRoleUser, error),
) (Credentials, verdict, error) {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	start := time.Now()
	out, user, err := send(ctx)
	var creds Credentials
	if err == nil {
		creds, err = read(out, user)
	}
	took := time.Since(start)
	if err == nil {
		m.cfg.Observe(action, m.cfg.Region, codeOK, took)
		return creds, verdict{}, nil
	}
	a := answerOf(action, err)
	label := a.code
	if label == "" {
		label = unanswered(err, a.status)
	}
	m.cfg.Observe(action, m.cfg.Region, bounded(label), took)
	v := classify(a)
	if m.own != nil && blamesAgent(a) {
		m.own.Invalidate()
	}
	// The operation's name is in Action already.
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		err = op.Err
	}
	return Credentials{}, v, &Error{
		Kind: v.kind, Action: action, RoleARN: g.RoleARN, Region: m.cfg.Region,
		Code: a.code, Err: err, Remedy: remedy(a, g, m.cfg.Region),
	}
}

// answerOf reads what STS said out of the SDK's error.
func answerOf(action string, err error) answer {
	a := answer{action: action}
	if e, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		a.status = e.HTTPStatusCode()
	}
	// The SDK says UnknownError for a body that is not AWS's.
	if e, ok := errors.AsType[smithy.APIError](err); ok && e.ErrorCode() != "UnknownError" {
		a.code, a.message = e.ErrorCode(), e.ErrorMessage()
	}
	return a
}

// unanswered names a failure without an AWS code.
func unanswered(err error, status int) string {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, context.Canceled):
		return codeCanceled
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return codeTimeout
	case status == 0:
		return codeUnreachable
	default:
		return codeOther
	}
}

// read checks and converts an answer of STS.
func read(c *types.Credentials, user *types.AssumedRoleUser) (Credentials, error) {
	if c == nil || c.AccessKeyId == nil || c.SecretAccessKey == nil || c.SessionToken == nil || c.Expiration == nil {
		return Credentials{}, errors.New("read answer: no complete credentials in it")
	}
	creds := Credentials{
		AccessKeyID:     *c.AccessKeyId,
		SecretAccessKey: *c.SecretAccessKey,
		SessionToken:    *c.SessionToken,
		Expiration:      *c.Expiration,
	}
	if user != nil && user.Arn != nil {
		creds.AssumedRoleARN = *user.Arn
	}
	return creds, nil
}

// refuse is the error for a Grant that no call can be made for.
func (m *Minter) refuse(action string, g role.Grant, err error) *Error {
	return &Error{Kind: Denied, Action: action, RoleARN: g.RoleARN, Region: m.cfg.Region, Err: err}
}

// seconds returns d for DurationSeconds; nil, which leaves the default (one hour) to AWS, if d is not set.
func seconds(d time.Duration) *int32 {
	if d <= 0 {
		return nil
	}
	return new(int32(d / time.Second))
}

// tags returns the session tags under the keys that EKS Pod Identity uses, so that policies written for it work
// (https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html); nil for none, because to send even an empty
// set asks the trust policy for sts:TagSession.
func tags(t role.Tags) []types.Tag {
	var out []types.Tag
	for _, kv := range [...]struct{ key, value string }{
		{"eks-cluster-name", t.Cluster},
		{"kubernetes-namespace", t.Namespace},
		{"kubernetes-service-account", t.ServiceAccount},
	} {
		if kv.value != "" {
			out = append(out, types.Tag{Key: &kv.key, Value: &kv.value})
		}
	}
	return out
}
