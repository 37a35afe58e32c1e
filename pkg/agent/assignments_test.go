package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/role"
)

// ledger writes down what it is asked to want and release, and what owners are told.
type ledger struct{ entries, events []string }

func (l *ledger) Want(g role.Grant, pod role.Workload) { l.add("want", g, pod.UID) }
func (l *ledger) Release(g role.Grant, uid string)     { l.add("release", g, uid) }
func (l *ledger) Revoke(g role.Grant, uid string)      { l.add("revoke", g, uid) }
func (l *ledger) add(what string, g role.Grant, uid string) {
	l.entries = append(l.entries, fmt.Sprintf("%s %s for %s", what, g.RoleName(), uid))
}

const base = "arn:aws:iam::111122223333:role/"

func newTestAssignments(denied func(string)) (*assignments, *ledger) {
	l := &ledger{}
	policy := &role.Policy{
		Keys: role.DefaultKeys(), Source: role.WebIdentity, BaseARN: base,
		Duration: time.Hour, Audiences: []string{"sts.amazonaws.com"},
	}
	return newAssignments(assignmentsConfig{
		policy: policy, sessions: l, decisions: forgetful{}, keep: 24 * time.Hour, denied: denied,
		warn:   func(pod role.Workload, reason, _ string) { l.events = append(l.events, reason+" for "+pod.UID) },
		logger: slog.New(slog.DiscardHandler),
	}), l
}

var caller = role.Workload{Namespace: "shop", Name: "a", UID: "1", ServiceAccount: "app"}

func factsWith(value string) role.Facts {
	return role.Facts{Workload: caller, ServiceAccount: map[string]string{"podrole.io/role-arn": value}}
}

func TestSessionsFollowDecisions(t *testing.T) {
	var denials []string
	a, l := newTestAssignments(func(reason string) { denials = append(denials, reason) })
	a.Known(factsWith("one"))
	a.Known(factsWith("one")) // nothing new
	a.Known(factsWith("two"))
	a.Known(factsWith("")) // revoked
	a.Known(factsWith(""))
	a.Known(factsWith("two"))
	a.Gone(caller)
	want := []string{
		"want one for 1",
		"want two for 1", "revoke one for 1",
		"revoke two for 1",
		"want two for 1",
		"release two for 1",
	}
	if diff := cmp.Diff(want, l.entries); diff != "" {
		t.Errorf("wanted and released (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"revoked"}, denials); diff != "" {
		t.Errorf("denials counted (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"PodroleDenied for 1"}, l.events); diff != "" {
		t.Errorf("owners told (-want +got):\n%s", diff)
	}
}

func TestDecideAnswersFromMemory(t *testing.T) {
	a, _ := newTestAssignments(func(string) {})
	a.Known(factsWith("one"))
	if g, err := a.Decide(t.Context(), caller); err != nil || g.RoleName() != "one" {
		t.Errorf("got %v, %v", g, err)
	}
	a.Known(factsWith(""))
	if _, err := a.Decide(t.Context(), caller); reasonOf(err) != role.Revoked {
		t.Errorf("got %v, want a denial", err)
	}
	if diff := cmp.Diff(map[string]int{"revoked": 1}, a.deniedPods()); diff != "" {
		t.Errorf("denied pods (-want +got):\n%s", diff)
	}
}

// TestNoRoleIsToldToWhoAsks: a pod without a role is nothing to speak of until it asks for one, and then once.
func TestNoRoleIsToldToWhoAsks(t *testing.T) {
	a, l := newTestAssignments(func(string) {})
	none := role.Facts{Workload: caller}
	a.Known(none)
	if len(l.events) > 0 {
		t.Errorf("told before it asked: %v", l.events)
	}
	for range 2 {
		if _, err := a.Decide(t.Context(), caller); reasonOf(err) != role.NoRole {
			t.Errorf("got %v, want a denial", err)
		}
		a.Known(none)
	}
	if diff := cmp.Diff([]string{"PodroleNoRole for 1"}, l.events); diff != "" {
		t.Errorf("owners told (-want +got):\n%s", diff)
	}
}

func TestDecideParks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := newTestAssignments(func(string) {})
		go func() {
			time.Sleep(300 * time.Millisecond)
			a.Known(factsWith("one"))
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
		defer cancel()
		began := time.Now()
		g, err := a.Decide(ctx, caller)
		if took := time.Since(began); err != nil || g.RoleName() != "one" || took != 300*time.Millisecond {
			t.Errorf("got %v, %v after %s", g, err, took)
		}
		other := role.Workload{UID: "2"}
		if _, err := a.Decide(ctx, other); !errors.Is(err, errUndecided) || time.Since(began) != 900*time.Millisecond {
			t.Errorf("got %v after %s, want undecided after 900ms", err, time.Since(began))
		}
	})
}

// TestAnEditThatCannotBeReadLocksNobodyOut: pods that have a Grant keep it for a bounded time, new ones are denied, and
// taking the role away is no such edit.
func TestAnEditThatCannotBeReadLocksNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, l := newTestAssignments(func(string) {})
		granted := func(w role.Workload) string {
			g, err := a.Decide(t.Context(), w)
			if err != nil {
				return string(reasonOf(err))
			}
			return g.RoleName()
		}
		a.Known(factsWith("one"))
		a.Known(factsWith("arn:aws:iam:broken"))
		if got := granted(caller); got != "one" {
			t.Errorf("the running pod: got %q, want the role it had", got)
		}
		newcomer := factsWith("arn:aws:iam:broken")
		newcomer.Workload.UID = "2"
		a.Known(newcomer)
		if got := granted(newcomer.Workload); got != string(role.Malformed) {
			t.Errorf("a new pod: got %q, want a denial", got)
		}
		if got := a.keptPods(); got != 1 {
			t.Errorf("%d pods are counted as kept, want 1", got)
		}

		time.Sleep(23 * time.Hour)
		a.Known(factsWith("arn:aws:iam:broken:again")) // does not begin the time anew
		a.expire()
		if got := granted(caller); got != "one" {
			t.Errorf("after 23 hours: got %q", got)
		}
		time.Sleep(time.Hour)
		a.expire()
		if got := granted(caller); got != string(role.Malformed) {
			t.Errorf("after a day: got %q, want a denial", got)
		}
		if last := l.entries[len(l.entries)-1]; last != "revoke one for 1" {
			t.Errorf("the session was not revoked: %q", l.entries)
		}

		a.Known(factsWith("one"))
		a.Known(factsWith("arn:aws:iam:broken"))
		a.Known(factsWith("two"))
		if got := granted(caller); got != "two" || a.keptPods() != 0 {
			t.Errorf("after the edit was mended: got %q, %d kept", got, a.keptPods())
		}
		forbidden := factsWith("arn:aws:iam:broken")
		forbidden.Namespace = map[string]string{"iam.amazonaws.com/allowed-roles": `["other"]`}
		a.Known(forbidden)
		if got := granted(caller); got != string(role.NotPermitted) {
			t.Errorf("no longer permitted by its Namespace: got %q", got)
		}
		a.Known(factsWith("two"))
		a.Known(factsWith("arn:aws:iam:broken"))
		a.Known(factsWith(""))
		if got := granted(caller); got != string(role.Revoked) {
			t.Errorf("taken away after a broken edit: got %q", got)
		}
	})
}

func TestPodsThatBypassUsAreTold(t *testing.T) {
	a, l := newTestAssignments(func(string) {})
	f := factsWith("one")
	f.Bypass = "AWS_WEB_IDENTITY_TOKEN_FILE"
	a.Known(f)
	a.Known(f)
	if diff := cmp.Diff([]string{"PodroleBypassed for 1"}, l.events); diff != "" {
		t.Errorf("owners told (-want +got):\n%s", diff)
	}
	if got := a.bypassing(); got != 1 {
		t.Errorf("%d pods bypass, want 1", got)
	}
}

// TestMetadataAllowed: what the ServiceAccount allows is in force with the decision, with or without a role, and an
// annotation that cannot be read allows nothing and is said once.
func TestMetadataAllowed(t *testing.T) {
	a, l := newTestAssignments(func(string) {})
	with := func(patterns string) role.Facts {
		f := factsWith("")
		f.ServiceAccount["podrole.io/metadata-allow"] = patterns
		return f
	}
	expect := func(when string, want ...string) {
		t.Helper()
		patterns, err := a.MetadataAllowed(t.Context(), caller)
		var got []string
		for _, p := range patterns {
			got = append(got, p.String())
		}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v, allowed (-want +got):\n%s", when, err, diff)
		}
	}
	a.Known(with("network/interfaces/macs/**"))
	expect("given", "meta-data/network/interfaces/macs/**")
	a.Known(with("network/**, tags/x"))
	a.Known(with("network/**, tags/x"))
	expect("one of them is not the namespace's to give")
	a.Known(with("network/**"))
	expect("mended", "meta-data/network/**")
	if diff := cmp.Diff([]string{"PodroleDenied for 1", "PodroleMetadataAllowUnreadable for 1"}, l.events); diff != "" {
		t.Errorf("owners told (-want +got):\n%s", diff)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.MetadataAllowed(ctx, role.Workload{UID: "2"}); !errors.Is(err, errUndecided) {
		t.Errorf("a pod that is not decided on: got %v", err)
	}
}
