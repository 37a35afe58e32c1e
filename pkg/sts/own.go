package sts

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/podrole/podrole/pkg/role"
)

// ownWindow is how long before their expiry the agent's own credentials are asked for anew.
const ownWindow = 5 * time.Minute

// hopPause is the time between two tries to replace credentials that still work.
const hopPause = 30 * time.Second

// own is the credentials that sign AssumeRole: the agent's, or those of Config.AssumeRoleARN, assumed with the agent's.
type own struct {
	agent  *aws.CredentialsCache
	signer *aws.CredentialsCache // agent, or a cache of the role between
}

// newOwn returns nil where there are no credentials.
func newOwn(m *Minter, cfg Config) *own {
	if cfg.Credentials == nil {
		return nil
	}
	o := &own{agent: cached(cfg.Credentials)}
	o.signer = o.agent
	if cfg.AssumeRoleARN != "" {
		between := role.Grant{
			RoleARN: cfg.AssumeRoleARN, SessionName: cfg.AssumeRoleSession, Duration: role.MaxChainedDuration,
			Source: role.AssumeRole,
		}
		o.signer = cached(&hop{minter: m, agent: o.agent, grant: between})
	}
	return o
}

// cached returns p, which is asked at every call, with a cache in front unless it is one.
func cached(p aws.CredentialsProvider) *aws.CredentialsCache {
	if c, ok := p.(*aws.CredentialsCache); ok {
		return c
	}
	return aws.NewCredentialsCache(p, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = ownWindow })
}

// hop is the role between the agent's credentials and the roles of pods: kiam's --assume-role-arn.
type hop struct {
	minter *Minter
	agent  *aws.CredentialsCache
	grant  role.Grant
	latest atomic.Pointer[aws.Credentials]
}

// Retrieve implements aws.CredentialsProvider.
func (h *hop) Retrieve(ctx context.Context) (aws.Credentials, error) {
	keys, err := h.agent.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, err
	}
	creds, err := h.minter.signed(ctx, h.grant, keys, h.agent)
	if err != nil {
		return aws.Credentials{}, err
	}
	latest := aws.Credentials{
		AccessKeyID: creds.AccessKeyID, SecretAccessKey: creds.SecretAccessKey, SessionToken: creds.SessionToken,
		Source: "podrole", CanExpire: true, Expires: creds.Expiration,
	}
	h.latest.Store(&latest)
	return latest, nil
}

// HandleFailToRefresh implements aws.HandleFailRefreshCredentialsCacheStrategy: while no new session of the role between
// is to be had, the one there is does for as long as it lasts. The cache asks again after hopPause, not at every mint.
// One that AWS has refused is no longer before.
func (h *hop) HandleFailToRefresh(_ context.Context, before aws.Credentials, err error) (aws.Credentials, error) {
	latest := h.latest.Load()
	if latest == nil || !before.HasKeys() || time.Until(latest.Expires) < time.Minute {
		return aws.Credentials{}, err
	}
	again := *latest
	if pause := time.Now().Add(hopPause); pause.Before(again.Expires) {
		again.Expires = pause
	}
	again.Expires = again.Expires.Add(ownWindow) // which the cache takes off
	return again, nil
}

// keys returns the credentials to sign the calls for pods with. That they cannot be had is never the fault of the pod's
// role, so the error is Transient whatever AWS said of the role between.
func (m *Minter) keys(ctx context.Context, g role.Grant) (aws.Credentials, *Error) {
	keys, err := m.own.signer.Retrieve(ctx)
	if err == nil {
		return keys, nil
	}
	e := &Error{
		Kind: Transient, Action: actionAssumeRole, RoleARN: g.RoleARN, Region: m.cfg.Region,
		Err:    fmt.Errorf("get the agent's own AWS credentials: %w", err),
		Remedy: "check the agent's own AWS credentials",
	}
	if between, ok := errors.AsType[*Error](err); ok {
		e.Code, e.Region, e.Remedy = between.Code, between.Region, ""
		if between.Kind == Throttled {
			e.Kind = Throttled
		}
		// The role between is in the cause, with a remedy of its own.
		e.Err = fmt.Errorf("assume the role between, as the agent's configuration says: %w", between)
	}
	return aws.Credentials{}, e
}

// signed makes one AssumeRole call, signed with keys. If AWS refuses those, source is told to get others.
func (m *Minter) signed(ctx context.Context, g role.Grant, keys aws.Credentials, source *aws.CredentialsCache,
) (Credentials, error) {
	in := assumeRoleInput(g)
	sign := func(o *awssts.Options) {
		o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return keys, nil })
	}
	creds, _, err := m.call(ctx, actionAssumeRole, g, func(ctx context.Context, client *awssts.Client) (result, error) {
		out, err := client.AssumeRole(ctx, in, sign)
		if err != nil {
			return result{}, err
		}
		return result{out.Credentials, out.AssumedRoleUser}, nil
	})
	if e, ok := errors.AsType[*Error](err); ok && blamesAgent(answer{action: actionAssumeRole, code: e.Code}) {
		source.Invalidate()
	}
	return creds, err
}
