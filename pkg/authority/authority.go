package authority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"k8s.io/client-go/kubernetes"
)

// Kind is the authority by which an agent gets ServiceAccount tokens.
type Kind string

// The kinds.
const (
	// Direct is a right of the agent's own to create serviceaccounts/token, which admission policies bound
	// (manifests/policies/direct-tokens; Kubernetes 1.30 or later).
	Direct Kind = "direct"
	// Node is the right to act as the agent's own node, for tokens and for reading its pods (constrained impersonation,
	// https://kubernetes.io/docs/reference/access-authn-authz/user-impersonation/), which an admission policy bounds too
	// (manifests/policies/node-tokens; Kubernetes 1.36 or later).
	Node Kind = "node"
	// None is an agent that needs no tokens and must not be able to get any.
	None Kind = "none"
	// Unverified is whatever the agent's credentials are good for: nothing is asked, and nothing refused.
	Unverified Kind = "unverified"
)

// defaultSettle is how long a fault of the authority may last before it counts. Rights and policies that are applied
// together come into force one after the other, within some seconds.
const defaultSettle = 30 * time.Second

// Config is what is to be verified.
type Config struct {
	Kind Kind   // required
	Node string // name of the Node that the agent is on; required
	// Own is the API server as the agent itself. Required.
	Own kubernetes.Interface
	// AsNode is the API server as the agent acting as its own node. Required for Node.
	AsNode kubernetes.Interface
	// AsAnother is the same as another node, which there need not be. Required for Node.
	AsAnother kubernetes.Interface
	// Audiences are those of the tokens that the agent is going to ask for. At least one for Direct and Node.
	Audiences []string
	// Lifetime is how long those are asked to live.
	Lifetime time.Duration
	// AnyAccount is whether ServiceAccounts that name no role are to get tokens too.
	AnyAccount bool
	// StartupTaint is whether the agent is to take a taint off its Node.
	StartupTaint bool
	// Settle is how long a Fault may last before it counts. Default 30 s.
	Settle time.Duration
	// Warn is told of a Fault when it is found, though it may still pass. Optional.
	Warn   func(*Fault)
	Logger *slog.Logger // required
}

// Verify returns nil once the API server has shown the authority to be as told. If it is more than that for as long as
// Settle, Verify returns the *Fault. While it is less, or the API server cannot be reached, it goes on trying: that does no
// harm, and may pass. It returns the context's error if ctx ends before.
func Verify(ctx context.Context, c Config) error {
	if c.Kind == Unverified {
		return nil
	}
	if c.Settle == 0 {
		c.Settle = defaultSettle
	}
	if c.Warn == nil {
		c.Warn = func(*Fault) {}
	}
	const shortest, longest = 250 * time.Millisecond, 10 * time.Second
	var last *Fault
	var since time.Time // when the last Fault, or another like it, was found first
	for wait := shortest; ; wait = min(2*wait, longest) {
		err := c.verify(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("verify authority: %w", context.Cause(ctx))
		}
		fault, faulty := errors.AsType[*Fault](err)
		switch {
		case !faulty:
			c.Logger.Info("authority cannot be verified yet", "retry_in", wait, "error", err)
		case last == nil || last.Lacking != fault.Lacking:
			since = time.Now()
			c.Logger.Warn("authority is not as told; trying again, as rights and policies may be on their way", "error", fault)
			c.Warn(fault)
		case !fault.Lacking && time.Since(since) >= c.Settle:
			return fault
		}
		if last = fault; faulty && !fault.Lacking {
			wait = min(wait, max(c.Settle-time.Since(since), shortest))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// verify asks all there is to ask, once.
func (c Config) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	self, err := c.whoAmI(ctx)
	if err != nil {
		return err
	}
	c.Logger.Debug("the API server takes this agent for", "user", self.User, "node", self.Node, "pod", self.Pod)
	if err := c.review(ctx); err != nil {
		return err
	}
	needs, refusals := c.questions(self)
	if err := c.ask(ctx, self, needs, refusals); err != nil {
		return err
	}
	c.Logger.Info("authority verified: what the agent is for is granted, what it is not for is refused",
		"token_authority", c.Kind, "user", self.User, "granted", len(needs), "refused", len(refusals))
	return nil
}

// Fault says in what an authority is not as told.
type Fault struct {
	Kind    Kind
	Lacking bool   // it is less than told; else more, or not such that it can be told
	Problem string // in what it is not
	Remedy  string // what to do
}

// Error implements error.
func (f *Fault) Error() string {
	return fmt.Sprintf("token authority %q: %s; %s", f.Kind, f.Problem, f.Remedy)
}

func (c Config) fault(remedy, format string, args ...any) *Fault {
	return &Fault{Kind: c.Kind, Problem: fmt.Sprintf(format, args...), Remedy: remedy}
}
