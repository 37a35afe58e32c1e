package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/park"
	"github.com/podrole/podrole/pkg/proxy/metadata"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/state"
	"github.com/podrole/podrole/pkg/telemetry"
)

// sessions is where a Grant's Session is wanted and no longer wanted.
type sessions interface {
	Want(g role.Grant, pod role.Workload)
	Release(g role.Grant, uid string) // the pod is gone; the next one may find the Session warm
	Revoke(g role.Grant, uid string)  // the pod may no longer have it
}

// decisions is where the Grants of pods outlive the agent.
type decisions interface {
	Put(state.Decision)
	Delete(uid string)
}

// assignments holds the decision in force for each pod of this node, recomputed on events and never per request, and
// has the sessions of the granted ones kept warm. It is the Follower of identity and the Decider of the proxy.
//
// An edit that cannot be read locks nobody out: a pod that has a Grant keeps it for a bounded time. Only new pods are
// denied. (An annotation that is removed or empty can be read: it takes the role away.)
type assignments struct {
	cfg      assignmentsConfig
	settings string // fingerprint of the policy

	mu      sync.Mutex // guards the following
	byUID   map[string]decision
	earlier map[string]state.Decision // of the agent before, by pod UID, until all pods have been decided on anew
	settled bool                      // they have been
	parked  park.Lot[string]          // by pod UID
}

// assignmentsConfig is what assignments are made of. All fields are required.
type assignmentsConfig struct {
	policy    *role.Policy
	sessions  sessions
	decisions decisions
	earlier   []state.Decision                                // of the agent before
	keep      time.Duration                                   // how long a Grant outlives an edit that cannot be read
	denied    func(reason string)                             // counts new denials
	warn      func(pod role.Workload, reason, message string) // tells the pod's owner
	logger    *slog.Logger
}

// decision is a Grant, or the Denial that says why there is none.
type decision struct {
	pod    role.Workload
	bypass string // variable that leads the pod's SDKs elsewhere
	allowance
	grant  role.Grant
	denial error
	asked  bool // for credentials, without a role
	// unreadable is the Denial in spite of which the Grant is kept, until the time given; else nil.
	unreadable error
	until      time.Time
	// adoptedUntil is how long a decision of the agent before counts that was not made anew; zero: this agent made it.
	adoptedUntil time.Time
}

// allowance is what a pod may read of the node's metadata besides what every pod may.
type allowance struct {
	allowList  string // as its ServiceAccount says it
	allowed    []metadata.Pattern
	notAllowed error // why it is nothing
}

// allow reads what a ServiceAccount says.
func (a *allowance) allow(list string) {
	a.allowList = list
	a.allowed, a.notAllowed = metadata.ParseAnnotation(list)
}

func newAssignments(cfg assignmentsConfig) *assignments {
	a := &assignments{cfg: cfg, settings: fingerprint(cfg.policy), byUID: make(map[string]decision)}
	a.earlier = a.usable(cfg.earlier)
	return a
}

// errUndecided says that ServiceAccount or Namespace of a pod have not been read yet.
var errUndecided = errors.New("pod is not decided on yet: its ServiceAccount or Namespace has not been read")

// Known implements identity.Follower.
func (a *assignments) Known(f role.Facts) {
	grant, denial := a.cfg.policy.Decide(f)
	var may allowance
	may.allow(a.cfg.policy.MetadataAllow(f))
	a.mu.Lock()
	defer a.mu.Unlock()
	next := decision{pod: f.Workload, bypass: f.Bypass, grant: grant, denial: denial}
	if old, readable, had := a.last(f.Workload.UID); had && old.denial == nil && reasonOf(denial) == role.Malformed {
		if forbidden := a.cfg.policy.Forbids(f, old.grant); forbidden != nil {
			next.denial = forbidden
		} else {
			next = keep(old, denial, readable.Add(a.cfg.keep), time.Now().Add(a.cfg.keep))
		}
	}
	next.allowance = may
	a.put(next)
}

// last returns what was last decided of a pod, be it by the agent before, and until when its annotations could be read as
// far as is known. The caller holds mu.
func (a *assignments) last(uid string) (d decision, readable time.Time, ok bool) {
	e, ok := a.earlier[uid]
	if d, decided := a.byUID[uid]; decided {
		if !d.adoptedUntil.IsZero() {
			return d, e.Decided, true
		}
		return d, time.Now(), true
	}
	return decisionOf(e), e.Decided, ok
}

// keep returns old, kept in spite of denial: until the bound that the first edit that could not be read has set, which is
// now this one if there was none before, and latest at the latest: an operator may have shortened it.
func keep(old decision, denial error, until, latest time.Time) decision {
	if old.unreadable == nil {
		old.until = until
	}
	if latest.Before(old.until) {
		old.until = latest
	}
	old.unreadable, old.adoptedUntil = denial, time.Time{}
	if !time.Now().Before(old.until) {
		return decision{pod: old.pod, denial: denial}
	}
	return old
}

// put makes next the decision in force. The new Grant is wanted before any request can be told of it, and before the old
// one is released, so that a change that leaves the session as it was costs nothing. The caller holds mu.
func (a *assignments) put(next decision) {
	w := next.pod
	old, had := a.byUID[w.UID]
	granted, wasGranted := next.denial == nil, had && old.denial == nil
	same := granted && wasGranted && old.grant == next.grant
	if granted && !same {
		a.cfg.sessions.Want(next.grant, w)
	}
	next.asked = old.asked
	a.byUID[w.UID] = next
	a.parked.Wake(w.UID)
	if wasGranted && !same {
		a.cfg.sessions.Revoke(old.grant, w.UID)
	}
	a.outlive(old, next, had)
	a.report(old, next, had)
}

// expire ends what has counted for long enough: what was kept in spite of an edit that cannot be read, and what was
// adopted.
func (a *assignments) expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	for _, d := range a.byUID {
		if d.unreadable != nil && !now.Before(d.until) {
			a.put(decision{pod: d.pod, denial: d.unreadable, allowance: d.allowance})
		}
		if !d.adoptedUntil.IsZero() && !now.Before(d.adoptedUntil) {
			a.abandon(d)
		}
	}
}

// report says what is new about a decision, once.
func (a *assignments) report(old, next decision, had bool) {
	logger := a.cfg.logger.With("pod", next.pod)
	if err := next.notAllowed; err != nil && (old.notAllowed == nil || old.notAllowed.Error() != err.Error()) {
		logger.Warn("pod may read no more of the node's metadata than others: its annotation cannot be read", "error", err)
		a.cfg.warn(next.pod, telemetry.EventMetadata, fmt.Sprintf("Annotation %s of its ServiceAccount allows nothing: %v",
			a.cfg.policy.Keys.MetadataAllow, err))
	}
	switch {
	case next.unreadable != nil:
		if old.unreadable == nil || old.unreadable.Error() != next.unreadable.Error() {
			logger.Warn("pod keeps its role in spite of an edit that cannot be read; new pods are denied",
				"grant", next.grant, "until", next.until, "error", next.unreadable)
			a.cfg.warn(next.pod, telemetry.EventKept, fmt.Sprintf("The role is kept until %s, but new pods are denied: %v",
				next.until.UTC().Format(time.RFC3339), next.unreadable))
		}
	case next.denial == nil:
		if had && old.denial == nil && old.grant == next.grant && old.unreadable == nil {
			return
		}
		logger.Info("pod granted a role", "grant", next.grant)
		if next.bypass != "" {
			remedy := fmt.Sprintf("%s is set in this pod, so SDKs that know it do not ask podrole for credentials. If the IRSA "+
				"webhook set it, rename the ServiceAccount's annotation to %s; if EKS Pod Identity did, delete the association. "+
				"Then restart the pod.", next.bypass, a.cfg.policy.Keys.RoleARN)
			logger.Warn("pod's SDKs will not ask for it: its environment leads them elsewhere",
				"variable", next.bypass, "remedy", remedy)
			a.cfg.warn(next.pod, telemetry.EventBypassed, remedy)
		}
	case !had || old.denial == nil || old.denial.Error() != next.denial.Error():
		reason := reasonOf(next.denial)
		a.cfg.denied(string(reason))
		if reason == role.NoRole { // the ordinary pod, as long as it does not ask
			logger.Debug("pod has no role", "error", next.denial)
			return
		}
		logger.Warn("pod denied a role", "reason", reason, "error", next.denial)
		a.cfg.warn(next.pod, telemetry.EventDenied, next.denial.Error())
	}
}

// Gone implements identity.Follower.
func (a *assignments) Gone(w role.Workload) {
	a.mu.Lock()
	defer a.mu.Unlock()
	old, had := a.byUID[w.UID]
	delete(a.byUID, w.UID)
	a.parked.Wake(w.UID)
	if had && old.denial == nil {
		a.cfg.sessions.Release(old.grant, w.UID)
	}
	if had && !old.adoptedUntil.IsZero() {
		return // its sandbox is gone, which may come back before the API server has been asked about the pod
	}
	delete(a.earlier, w.UID)
	if had && old.denial == nil {
		a.cfg.decisions.Delete(w.UID)
	}
}

// Decide implements proxy.Decider. A pod that has not been decided on parks until it is, or ctx ends.
func (a *assignments) Decide(ctx context.Context, w role.Workload) (role.Grant, error) {
	d, err := a.await(ctx, w.UID)
	if err != nil {
		return role.Grant{}, err
	}
	if d.denial != nil && !d.asked && reasonOf(d.denial) == role.NoRole {
		a.tellNoRole(w.UID)
	}
	return d.grant, d.denial
}

// tellNoRole says, once for each pod, that one asks for credentials that has no role.
func (a *assignments) tellNoRole(uid string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, ok := a.byUID[uid]
	if !ok || d.asked || d.denial == nil {
		return
	}
	d.asked = true
	a.byUID[uid] = d
	a.cfg.logger.Warn("pod asks for credentials and has no role", "pod", d.pod, "error", d.denial)
	a.cfg.warn(d.pod, telemetry.EventNoRole, "This pod asks for credentials and has no role: "+d.denial.Error())
}

// MetadataAllowed implements proxy.Allowances, and parks as Decide does.
func (a *assignments) MetadataAllowed(ctx context.Context, w role.Workload) ([]metadata.Pattern, error) {
	d, err := a.await(ctx, w.UID)
	return d.allowed, err
}

// await returns the decision on a pod once there is one. It is errUndecided if ctx ends before.
func (a *assignments) await(ctx context.Context, uid string) (decision, error) {
	for {
		a.mu.Lock()
		if d, ok := a.byUID[uid]; ok {
			a.mu.Unlock()
			return d, nil
		}
		ticket := a.parked.Join(uid)
		a.mu.Unlock()
		select {
		case <-ticket.Woken():
		case <-ctx.Done():
			a.mu.Lock()
			a.parked.Leave(ticket)
			a.mu.Unlock()
			return decision{}, errUndecided
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

// keptPods counts the pods that keep a Grant in spite of an edit that cannot be read.
func (a *assignments) keptPods() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, d := range a.byUID {
		if d.unreadable != nil {
			n++
		}
	}
	return n
}

// bypassing counts the pods with a Grant whose SDKs are led elsewhere.
func (a *assignments) bypassing() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, d := range a.byUID {
		if d.denial == nil && d.bypass != "" {
			n++
		}
	}
	return n
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

// reasonOf returns why a pod was denied; nothing for nil.
func reasonOf(denial error) role.Reason {
	if d, ok := errors.AsType[*role.Denial](denial); ok {
		return d.Reason
	}
	return ""
}
