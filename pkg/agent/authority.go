package agent

import (
	"context"
	"errors"
	"time"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/telemetry"
)

// verifyAuthority holds what the agent may do against what it was told that it may, until that is the same, and lets it
// request tokens and lead pods here then. It returns when ctx ends.
func (a *agent) verifyAuthority(ctx context.Context) {
	told := authority.Config{
		Kind:         a.tokenAuthority(),
		Node:         a.cfg.Cluster.NodeName,
		Own:          a.kube.client,
		AsNode:       a.kube.node,
		AsAnother:    a.kube.another,
		Another:      anotherNode(a.cfg),
		WithToken:    a.kube.withToken,
		Audiences:    a.cfg.STS.Audiences,
		Lifetime:     a.cfg.STS.TokenLifetime,
		AnyAccount:   a.cfg.Roles.DefaultRole != "" || a.cfg.Roles.PodRoleAnnotations,
		StartupTaint: a.cfg.Cluster.StartupTaint != "",
		Found:        a.fault.Store,
		Warn:         func(f *authority.Fault) { a.events.WarnNode(telemetry.EventAuthority, f.Error()) },
		Logger:       a.logger,
	}
	if err := authority.Verify(ctx, told); err != nil {
		return // the agent is told to end
	}
	close(a.verified)
	authority.Watch(ctx, told)
}

// tokenAuthority is the one that the agent is to have.
func (a *agent) tokenAuthority() authority.Kind {
	switch {
	case a.kube.client == nil: // nobody issues tokens
		return authority.Unverified
	case a.cfg.STS.CredentialSource == role.AssumeRole && a.cfg.STS.TokenAuthority != authority.Unverified:
		return authority.None
	}
	return a.cfg.STS.TokenAuthority
}

// errUnverified says that the authority is not verified yet.
var errUnverified = errors.New("token authority is not verified yet")

// untrusted returns why the authority is not as told, as far as is known, and nil once it is, or while the API server does
// not answer.
func (a *agent) untrusted() error {
	select {
	case <-a.verified:
		return nil
	default:
	}
	if fault := a.fault.Load(); fault != nil {
		return fault
	}
	if a.kube.reach != nil && !a.kube.reach.Answered() {
		return nil
	}
	return errUnverified
}

// trusted waits until the authority is verified. An agent that is left alone does not wait to serve sessions that are still
// good, for which nobody needs a token, nor while the API server does not answer; unless it is known to be granted more than
// it was told. It returns false if ctx ends first.
func (a *agent) trusted(ctx context.Context) bool {
	may := func() bool {
		return servesUnverified(a.fault.Load(), a.kube.reach.Answered(), a.othersServe(), a.holdsSessions())
	}
	if a.kube.reach != nil && !a.kube.reach.Answered() && may() { // that has been waited for
		return true
	}
	for {
		select {
		case <-a.verified:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(patience):
			if a.kube.reach != nil && may() {
				return true
			}
		}
	}
}

// servesUnverified reports whether an agent is to lead pods to itself before its authority is verified.
func servesUnverified(fault *authority.Fault, apiAnswers, othersServe, holdsSessions bool) bool {
	tooMuch := fault != nil && !fault.Lacking
	return !tooMuch && !othersServe && (!apiAnswers || holdsSessions)
}

// holdsSessions reports whether there is any session to serve.
func (a *agent) holdsSessions() bool {
	for range a.cache.Sessions() {
		return true
	}
	return false
}
