package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"time"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/state"
)

// The functions of this file carry decisions from one agent to the next. They count in two cases: for a pod whose
// annotations have become unreadable while no agent ran, as they would if one had, and while the API server cannot be
// asked.

// forgetful keeps no decisions: there is no --state-dir.
type forgetful struct{}

func (forgetful) Put(state.Decision) {}
func (forgetful) Delete(string)      {}

// decisionOf is the decision that an earlier agent kept.
func decisionOf(e state.Decision) decision {
	d := decision{pod: e.Workload, grant: e.Grant, until: e.Until}
	if e.Unreadable != "" {
		d.unreadable = &role.Denial{Reason: role.Malformed, Message: e.Unreadable}
	}
	d.allow(e.MetadataAllow)
	return d
}

// outlive keeps what is new about a decision for the agent after this one. The caller holds mu.
func (a *assignments) outlive(old, next decision, had bool) {
	uid := next.pod.UID
	if next.denial != nil {
		if _, kept := a.earlier[uid]; kept || had && old.denial == nil {
			a.cfg.decisions.Delete(uid)
			delete(a.earlier, uid)
		}
		return
	}
	_, kept := a.earlier[uid]
	if !kept && had && old.denial == nil && old.grant == next.grant && (old.unreadable == nil) == (next.unreadable == nil) &&
		old.allowList == next.allowList {
		return // nothing is new
	}
	a.cfg.decisions.Put(a.entry(next, time.Now()))
	delete(a.earlier, uid)
}

// recent returns the pods of which the agent before knew, no longer ago than bound and by the settings of this one, that they
// may use a role. By others they might have none, or another.
func (a *assignments) recent(bound time.Duration) []role.Workload {
	a.mu.Lock()
	defer a.mu.Unlock()
	var pods []role.Workload
	for _, e := range a.earlier {
		if e.Policy == a.settings && time.Since(e.Decided) < bound {
			pods = append(pods, e.Workload)
		}
	}
	return pods
}

// remember replaces what the agent before decided by what it decided later.
func (a *assignments) remember(earlier []state.Decision) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.earlier = a.usable(earlier)
}

// usable is the decisions by UID, without those that this agent could not make: its operator has changed the source. What
// was decided by settings that differ otherwise is not adopted (see recent), but is kept through an edit that cannot be read.
func (a *assignments) usable(earlier []state.Decision) map[string]state.Decision {
	m := make(map[string]state.Decision, len(earlier))
	p := a.cfg.policy
	others := 0
	for _, e := range earlier {
		if e.Policy != a.settings {
			others++
		}
		if e.Grant.Source == p.Source && (p.Source != role.WebIdentity || slices.Contains(p.Audiences, e.Grant.Audience)) {
			m[e.Workload.UID] = e
		}
	}
	if others > 0 {
		a.cfg.logger.Info("what was decided by other settings does not count, should the API server not be reached", "pods", others)
	}
	return m
}

// retell keeps every decision in force anew, as of the time at which it was last known to be right.
func (a *assignments) retell(at time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.byUID {
		if d.denial == nil && d.adoptedUntil.IsZero() {
			a.cfg.decisions.Put(a.entry(d, at))
		}
	}
}

// granted returns the UIDs of the pods that have a Grant, and whether these are all that there are.
func (a *assignments) granted() (uids map[string]bool, all bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	uids = make(map[string]bool)
	for uid, d := range a.byUID {
		if d.denial == nil {
			uids[uid] = true
		}
	}
	return uids, a.settled
}

// entry is a decision as it is kept.
func (a *assignments) entry(d decision, at time.Time) state.Decision {
	e := state.Decision{
		Workload: d.pod, Grant: d.grant, Policy: a.settings, Decided: at, Until: d.until,
	}
	if d.notAllowed == nil {
		e.MetadataAllow = d.allowList
	}
	if denial, ok := errors.AsType[*role.Denial](d.unreadable); ok {
		e.Unreadable = denial.Message
	}
	return e
}

// fingerprint is the same for policies that decide alike, whatever the node's name, which is no setting.
func fingerprint(p *role.Policy) string {
	settings := *p
	settings.Node = ""
	data, err := json.Marshal(settings)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// adopt has what the agent before decided of pods count, until it is older than bound or this agent has decided itself. It
// returns of how many that is new.
func (a *assignments) adopt(pods []role.Workload, bound time.Duration) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range pods {
		e, kept := a.earlier[w.UID]
		if _, decided := a.byUID[w.UID]; decided || !kept || e.Workload != w {
			continue
		}
		d := decisionOf(e)
		d.adoptedUntil = time.Now().Add(bound - time.Since(e.Decided)) // by a clock that nobody sets
		a.cfg.sessions.Want(d.grant, w)
		a.byUID[w.UID] = d
		a.parked.Wake(w.UID)
		n++
	}
	return n
}

// settle ends what was adopted, now that all pods of the node have been decided on, and returns the UIDs of those that have
// a Grant.
func (a *assignments) settle() map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.earlier)
	a.settled = true
	granted := make(map[string]bool)
	for uid, d := range a.byUID {
		switch {
		case !d.adoptedUntil.IsZero():
			a.abandon(d)
		case d.denial == nil:
			granted[uid] = true
		}
	}
	return granted
}

// abandon ends an adopted decision: nothing is known of the pod from here on. The caller holds mu.
func (a *assignments) abandon(d decision) {
	delete(a.byUID, d.pod.UID)
	a.cfg.sessions.Revoke(d.grant, d.pod.UID)
	a.cfg.logger.Warn("pod is no longer served by what was decided of it before", "pod", d.pod, "grant", d.grant)
}

// adopted counts the pods that are served by what the agent before decided.
func (a *assignments) adopted() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, d := range a.byUID {
		if !d.adoptedUntil.IsZero() {
			n++
		}
	}
	return n
}
