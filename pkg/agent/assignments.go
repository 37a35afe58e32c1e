package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/podrole/podrole/internal/park"
	"github.com/podrole/podrole/pkg/role"
)

// sessions is where a Grant's Session is wanted and no longer wanted.
type sessions interface {
	Want(g role.Grant, pod role.Workload)
	Release(g role.Grant, uid string)
}

// assignments holds the decision in force for each pod of this node, recomputed on events and never per request, and
// has the sessions of the granted ones kept warm. It is the Follower of identity and the Decider of the proxy.
type assignments struct {
	policy   *role.Policy
	sessions sessions
	denied   func(reason string) // counts new denials
	logger   *slog.Logger

	mu     sync.Mutex // guards the following
	byUID  map[string]decision
	parked park.Lot[string] // by pod UID
}

// decision is a Grant, or the Denial that says why there is none.
type decision struct {
	grant  role.Grant
	denial error
}

func newAssignments(policy *role.Policy, s sessions, denied func(reason string), logger *slog.Logger) *assignments {
	return &assignments{policy: policy, sessions: s, denied: denied, logger: logger, byUID: make(map[string]decision)}
}

// errUndecided says that ServiceAccount or Namespace of a pod have not been read yet.
var errUndecided = errors.New("pod is not decided on yet: its ServiceAccount or Namespace has not been read")

// Known implements identity.Follower. The new Grant is wanted before any request can be told of it, and before the old
// one is released, so that a change that leaves the session as it was costs nothing.
func (a *assignments) Known(f role.Facts) {
	w := f.Workload
	grant, denial := a.policy.Decide(f)
	next := decision{grant, denial}

	a.mu.Lock()
	old, had := a.byUID[w.UID] // nobody else changes it: identity makes one call at a time
	a.mu.Unlock()
	granted, wasGranted := denial == nil, had && old.denial == nil
	same := granted && wasGranted && old.grant == grant

	if granted && !same {
		a.sessions.Want(grant, w)
	}
	a.mu.Lock()
	a.byUID[w.UID] = next
	a.parked.Wake(w.UID)
	a.mu.Unlock()
	if wasGranted && !same {
		a.sessions.Release(old.grant, w.UID)
	}
	a.report(w, old, next, had)
}

// report says what is new about a decision, once.
func (a *assignments) report(w role.Workload, old, next decision, had bool) {
	switch {
	case next.denial == nil && (!had || old.denial != nil || old.grant != next.grant):
		a.logger.Info("pod granted a role", "pod", w, "grant", next.grant)
	case next.denial != nil && (!had || old.denial == nil || old.denial.Error() != next.denial.Error()):
		reason := reasonOf(next.denial)
		a.denied(string(reason))
		level := slog.LevelWarn
		if reason == role.NoRole { // the ordinary pod
			level = slog.LevelDebug
		}
		a.logger.Log(context.Background(), level, "pod denied a role", "pod", w, "reason", reason, "error", next.denial)
	}
}

// Gone implements identity.Follower.
func (a *assignments) Gone(w role.Workload) {
	a.mu.Lock()
	old, had := a.byUID[w.UID]
	delete(a.byUID, w.UID)
	a.parked.Wake(w.UID)
	a.mu.Unlock()
	if had && old.denial == nil {
		a.sessions.Release(old.grant, w.UID)
	}
}

// Decide implements proxy.Decider. A pod that has not been decided on parks until it is, or ctx ends.
func (a *assignments) Decide(ctx context.Context, w role.Workload) (role.Grant, error) {
	for {
		a.mu.Lock()
		if d, ok := a.byUID[w.UID]; ok {
			a.mu.Unlock()
			return d.grant, d.denial
		}
		ticket := a.parked.Join(w.UID)
		a.mu.Unlock()
		select {
		case <-ticket.Woken():
		case <-ctx.Done():
			a.mu.Lock()
			a.parked.Leave(ticket)
			a.mu.Unlock()
			return role.Grant{}, errUndecided
		}
	}
}

// grants returns the Grants in force.
func (a *assignments) grants() map[role.Grant]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	set := make(map[role.Grant]bool)
	for _, d := range a.byUID {
		if d.denial == nil {
			set[d.grant] = true
		}
	}
	return set
}

// deniedPods counts the pods without a role by reason.
func (a *assignments) deniedPods() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := make(map[string]int)
	for _, d := range a.byUID {
		if d.denial != nil {
			n[string(reasonOf(d.denial))]++
		}
	}
	return n
}

func reasonOf(denial error) role.Reason {
	if d, ok := errors.AsType[*role.Denial](denial); ok {
		return d.Reason
	}
	return role.Malformed
}
