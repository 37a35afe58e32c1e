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
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/podrole/podrole/pkg/role"
)

// Config configures a Minter.
type Config struct {
	// Region whose STS endpoint is called. Required.
	Region string
	// FailoverRegions are called, in this order, while those before them leave calls unanswered or answer with 5xx. A
	// session of any region is good in all regions of its partition, so name regions of the same one. Optional; excluded
	// by Endpoint.
	FailoverRegions []string
	// FIPS asks the regions' FIPS 140 endpoints, DualStack those that speak IPv6 too. New fails where a partition has
	// none. Both are excluded by Endpoint.
	FIPS, DualStack bool
	// Endpoint is called instead of the region's own (LocalStack, a VPC endpoint, tests). An http or https URL.
	// Optional.
	Endpoint string
	// Credentials of the agent itself, which sign AssumeRole. Required for Grants with source assume-role, not used
	// for others. They are cached until close to their expiry.
	Credentials aws.CredentialsProvider
	// AssumeRoleARN is a role that Credentials assume first, and that then assumes the roles of pods: kiam's
	// --assume-role-arn. Sessions last an hour at most with it, which is AWS's limit for a role assumed by a role. One
	// mint an hour takes the time of two calls. Optional; needs Credentials.
	AssumeRoleARN string
	// AssumeRoleSession names the sessions of AssumeRoleARN in CloudTrail: 2 to 64 characters of [\w+=,.@-]. Default
	// "podrole".
	AssumeRoleSession string
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

// Minter calls STS. It is safe for concurrent use. What it keeps is about regions, the agent's own credentials, and
// the keys that AWS could not read for one role: one role's failures, retries or throttling change nothing for another.
type Minter struct {
	cfg     Config
	regions *regions
	own     *own // nil if the agent has none
	unread  *lru.Cache[string, int]
}

// maxUnread is the number of roles of which the Minter remembers that AWS could not read their issuer's keys.
const maxUnread = 1024

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
	if cfg.AssumeRoleSession == "" {
		cfg.AssumeRoleSession = "podrole"
	}
	if err := cfg.checkEndpoint(); err != nil {
		return nil, err
	}
	if cfg.AssumeRoleARN != "" && cfg.Credentials == nil {
		return nil, errors.New("new minter: AssumeRoleARN needs Credentials")
	}
	regions, err := newRegions(cfg)
	if err != nil {
		return nil, fmt.Errorf("new minter: %w", err)
	}
	unread, err := lru.New[string, int](maxUnread)
	if err != nil {
		return nil, fmt.Errorf("new minter: %w", err)
	}
	m := &Minter{cfg: cfg, regions: regions, unread: unread}
	m.own = newOwn(m, cfg)
	return m, nil
}

func (cfg Config) checkEndpoint() error {
	if cfg.Endpoint == "" {
		return nil
	}
	u, err := url.Parse(cfg.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("new minter: Endpoint %q is no http or https URL", cfg.Endpoint)
	}
	if cfg.FIPS || cfg.DualStack || len(cfg.FailoverRegions) > 0 {
		return errors.New("new minter: Endpoint is one endpoint: FIPS, DualStack and FailoverRegions choose among those of AWS")
	}
	return nil
}

// Mint returns new credentials for g. Pod is any live pod of g's ServiceAccount: web-identity asks for a token in
// its name. It makes one call to STS. A second one it makes only when STS refused the ServiceAccount token and another
// could be had, or when the first was to find out whether a region answers again. Every error is an *Error.
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

func (m *Minter) assumeRole(ctx context.Context, g role.Grant) (Credentials, error) {
	if m.own == nil {
		return Credentials{}, m.refuse(actionAssumeRole, g, errors.New("the agent has no AWS credentials of its own"))
	}
	if m.cfg.AssumeRoleARN != "" {
		g.Duration = min(g.Duration, role.MaxChainedDuration)
	}
	keys, err := m.keys(ctx, g)
	if err != nil {
		return Credentials{}, err
	}
	return m.signed(ctx, g, keys, m.own.signer)
}

func assumeRoleInput(g role.Grant) *awssts.AssumeRoleInput {
	in := &awssts.AssumeRoleInput{
		RoleArn:         &g.RoleARN,
		RoleSessionName: &g.SessionName,
		DurationSeconds: seconds(g.Duration),
		Tags:            tags(g.Tags),
	}
	if g.ExternalID != "" {
		in.ExternalId = &g.ExternalID
	}
	return in
}

// send makes one call.
type send func(context.Context, *awssts.Client) (result, error)

// result is what all calls give.
type result struct {
	credentials *types.Credentials
	user        *types.AssumedRoleUser
}

// call makes one call to STS, in the region that answers. If it was there only to see whether a region that was left
// answers again, and it does not, the call is made again where it should.
func (m *Minter) call(ctx context.Context, action string, g role.Grant, send send) (Credentials, verdict, error) {
	x, probe := m.regions.pick(time.Now(), nil)
	if !probe {
		return m.callIn(ctx, x, m.cfg.Timeout, action, g, send, false)
	}
	creds, v, err := m.callIn(ctx, x, min(probeTimeout, m.cfg.Timeout), action, g, send, true)
	if err == nil || ctx.Err() != nil || v.health != failing {
		return creds, v, err
	}
	if x, _ = m.regions.pick(time.Now(), []*region{x}); x == nil {
		return creds, v, err
	}
	return m.callIn(ctx, x, m.cfg.Timeout, action, g, send, false)
}

// callIn makes one call to a region, observes it, and turns its answer into Credentials or an *Error with its verdict.
func (m *Minter) callIn(ctx context.Context, x *region, timeout time.Duration, action string, g role.Grant, send send,
	probe bool,
) (Credentials, verdict, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errCallTimeout)
	defer cancel()
	start := time.Now()
	out, err := send(ctx, x.client)
	var creds Credentials
	if err == nil {
		creds, err = read(out.credentials, out.user)
	}
	now := time.Now()
	a := answerOf(action, err)
	h := healthOf(ctx, err, a)
	m.regions.note(x, now, h, probe)
	if err == nil {
		m.cfg.Observe(action, x.name, codeOK, now.Sub(start))
		return creds, verdict{}, nil
	}
	label := a.code
	if label == "" {
		label = unanswered(err, a.status)
	}
	m.cfg.Observe(action, x.name, bounded(label), now.Sub(start))
	v := classify(a)
	v.health = h
	// The operation's name is in Action already.
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		err = op.Err
	}
	return Credentials{}, v, &Error{
		Kind: v.kind, Action: action, RoleARN: g.RoleARN, Region: x.name,
		Code: a.code, Err: err, Remedy: remedy(a, g, x.name),
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
