package authority

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
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

const (
	// warnAfter is how long a Fault must last to be told of. Rights and policies that are applied together come into force
	// one after the other, as they do when an API server starts.
	warnAfter = 5 * time.Second
	// shortest is the time between the first passes, soon the longest while rights and policies come into force, which is for
	// settling.
	shortest, soon, settling = 250 * time.Millisecond, 4 * time.Second, 30 * time.Second
	// away is the longest time between passes that cannot be finished, and longest that between all others: a cluster full of
	// agents with a fault is to be no burden.
	away, longest = 10 * time.Second, time.Minute
	// hourly is about how long after it has been verified an authority is verified again.
	hourly = time.Hour
	// atOnce is how many rights are asked for at the same time.
	atOnce = 8
	// requestTimeout is how long one request may take.
	requestTimeout = 10 * time.Second
)

// Config is what is to be verified.
type Config struct {
	Kind Kind   // required
	Node string // name of the Node that the agent is on; required
	// Own is the API server as the agent itself. Required.
	Own kubernetes.Interface
	// AsNode is the API server as the agent acting as its own node. Required for Node.
	AsNode kubernetes.Interface
	// AsAnother is the same as another node, called Another, which there need not be. Required for Node.
	AsAnother kubernetes.Interface
	Another   string
	// Audiences are those of the tokens that the agent is going to ask for. At least one for Direct and Node.
	Audiences []string
	// Lifetime is how long those are asked to live.
	Lifetime time.Duration
	// AnyAccount is whether ServiceAccounts that name no role are to get tokens too.
	AnyAccount bool
	// StartupTaint is whether the agent is to take a taint off its Node.
	StartupTaint bool
	// WithToken returns the API server as whoever has a bearer token. Required for Direct and Node.
	WithToken func(token string) (kubernetes.Interface, error)
	// Found is told what each pass found: nil if all is as told. It is not told of a pass that could not be finished. Optional.
	Found func(*Fault)
	// Warn is told of a Fault that lasts, and of passes that cannot be finished, once each. Optional.
	Warn   func(*Fault)
	Logger *slog.Logger // required
}

// Verify returns nil once the API server has shown the authority to be as told. Until then it goes on trying: what is wrong
// with rights and policies is mended while agents run. It returns the context's error if ctx ends before.
func Verify(ctx context.Context, c Config) error {
	if c.Kind == Unverified {
		return nil
	}
	if c.Found == nil {
		c.Found = func(*Fault) {}
	}
	if c.Warn == nil {
		c.Warn = func(*Fault) {}
	}
	var last, warned string // what was found, and what of it was told
	var since time.Time     // when last was found first
	began := time.Now()
	for wait := shortest; ; wait *= 2 {
		err := c.verify(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("verify authority: %w", context.Cause(ctx))
		}
		fault, faulty := errors.AsType[*Fault](err)
		if err == nil || faulty {
			c.Found(fault)
		}
		if err == nil {
			c.Logger.Info("authority verified: what the agent is for is granted, what it is not for is refused", "token_authority", c.Kind)
			return nil
		}
		if !faulty {
			fault = c.fault("see to the API server and its admission webhooks", "it cannot be verified: %v", err)
			fault.Lacking = true
		}
		kind := fmt.Sprint(faulty, fault.Lacking)
		if kind != last {
			last, since = kind, time.Now()
		}
		switch lasting := time.Since(since) >= warnAfter; {
		case lasting && kind != warned:
			warned = kind
			c.Logger.Error("this agent does not serve, or no longer than its sessions last, until its authority is as told", "error", fault)
			c.Warn(fault)
		default:
			c.Logger.Info("authority is not verified yet", "error", fault)
		}
		switch {
		case time.Since(began) < settling:
			wait = min(wait, soon)
		case !faulty:
			wait = min(wait, away)
		default:
			wait = min(wait, longest)
		}
		pause(ctx, wait)
	}
}

// Watch verifies about once an hour, until ctx ends, what [Verify] has verified: a policy may be deleted while agents run,
// or a right added. It only warns, with each pass that confirms a Fault: pods that are served are worth more than the agent
// giving up what it holds. What a pass finds that comes while something is being replaced is looked at again before it counts.
func Watch(ctx context.Context, c Config) {
	if c.Kind == Unverified {
		return
	}
	suspected, warned := false, false
	for wait := hourly; pause(ctx, wait); {
		wait = hourly
		err := c.verify(ctx)
		fault, faulty := errors.AsType[*Fault](err)
		switch {
		case faulty && !suspected:
			suspected, wait = true, longest
		case faulty:
			warned = true
			c.Logger.Error("the authority is no longer as told; this agent serves on, but would not begin to", "error", fault)
			if c.Warn != nil {
				c.Warn(fault)
			}
		case err == nil:
			if warned {
				c.Logger.Info("authority is as told again", "token_authority", c.Kind)
			}
			suspected, warned = false, false
		}
		// A pass that could not be finished says nothing of the authority.
	}
}

// pause waits for between half and one and a half of a time, so that not all agents ask at once. It returns false if ctx
// ends before.
func pause(ctx context.Context, about time.Duration) bool {
	select {
	case <-time.After(about/2 + rand.N(about)):
		return true
	case <-ctx.Done():
		return false
	}
}

// verify asks all there is to ask, once.
func (c Config) verify(ctx context.Context) error {
	self, err := c.whoAmI(ctx)
	if err != nil {
		return err
	}
	c.Logger.Debug("the API server takes this agent for", "user", self.User, "node", self.Node, "pod", self.Pod)
	if err := c.review(ctx, self); err != nil {
		return err
	}
	needs, refusals := c.questions(self)
	return c.ask(ctx, self, needs, refusals)
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
