package agent

import (
	"context"
	"time"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/telemetry"
)

// verifyAuthority holds what the agent may do against what it was told that it may, and lets it request tokens and lead pods
// here once that is the same. It returns an *authority.Fault if it is not.
func (a *agent) verifyAuthority(ctx context.Context) error {
	err := authority.Verify(ctx, authority.Config{
		Kind:         a.tokenAuthority(),
		Node:         a.cfg.Cluster.NodeName,
		Own:          a.kube.client,
		AsNode:       a.kube.node,
		AsAnother:    a.kube.another,
		Audiences:    a.cfg.STS.Audiences,
		Lifetime:     a.cfg.STS.TokenLifetime,
		AnyAccount:   a.cfg.Roles.DefaultRole != "" || a.cfg.Roles.PodRoleAnnotations,
		StartupTaint: a.cfg.Cluster.StartupTaint != "",
		Warn: func(f *authority.Fault) {
			a.lacking.Store(f.Lacking)
			a.events.WarnNode(telemetry.EventAuthority, f.Error())
		},
		Logger: a.logger,
	})
	switch {
	case ctx.Err() != nil: // told to end before
		return nil
	case err != nil:
		return err
	}
	close(a.verified)
	return nil
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

// trusted waits until the authority is verified. It does not wait where the API server does not answer, or this agent may do
// less than it was told, if it is left alone with sessions that are still good: no token is requested then, and nobody else
// would serve them. It returns false if ctx ends first.
func (a *agent) trusted(ctx context.Context) bool {
	for {
		select {
		case <-a.verified:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(patience):
			if a.kube.reach == nil {
				continue
			}
			if !a.kube.reach.Answered() || a.lacking.Load() && a.holdsSessions() && !a.othersServe() {
				return true
			}
		}
	}
}

// holdsSessions reports whether there is any session to serve.
func (a *agent) holdsSessions() bool {
	for range a.cache.Sessions() {
		return true
	}
	return false
}
