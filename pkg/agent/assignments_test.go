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

// ledger writes down what it is asked to want and release.
type ledger struct{ entries []string }

func (l *ledger) Want(g role.Grant, pod role.Workload) { l.add("want", g, pod.UID) }
func (l *ledger) Release(g role.Grant, uid string)     { l.add("release", g, uid) }
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
	return newAssignments(policy, l, denied, slog.New(slog.DiscardHandler)), l
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
		"want two for 1", "release one for 1",
		"release two for 1",
		"want two for 1",
		"release two for 1",
	}
	if diff := cmp.Diff(want, l.entries); diff != "" {
		t.Errorf("wanted and released (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"revoked"}, denials); diff != "" {
		t.Errorf("denials counted (-want +got):\n%s", diff)
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
