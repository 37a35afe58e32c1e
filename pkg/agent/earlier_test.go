package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/state"
)

// book is where decisions outlive the agent, in memory.
type book map[string]state.Decision

func (b book) Put(d state.Decision) { b[d.Workload.UID] = d }
func (b book) Delete(uid string)    { delete(b, uid) }

func (b book) all() (all []state.Decision) {
	for _, d := range b {
		all = append(all, d)
	}
	return all
}

// successor is an agent's assignments that begin with what is in the book.
func successor(b book) (*assignments, *ledger) {
	a, l := newTestAssignments(func(string) {})
	cfg := a.cfg
	cfg.decisions, cfg.earlier = b, b.all()
	return newAssignments(cfg), l
}

func roleOf(t *testing.T, a *assignments, w role.Workload) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	g, err := a.Decide(ctx, w)
	switch {
	case errors.Is(err, errUndecided):
		return "undecided"
	case err != nil:
		return string(reasonOf(err))
	}
	return g.RoleName()
}

// TestDecisionsOutliveTheAgent: what is granted is kept, as it changes, and what is not is not.
func TestDecisionsOutliveTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book{}
		a, _ := successor(b)
		kept := func() string { return b[caller.UID].Grant.RoleName() + " " + b[caller.UID].Unreadable }
		for _, step := range []struct{ annotation, want string }{
			{"one", "one "},
			{"two", "two "},
			{"arn:aws:iam:broken", `two annotation podrole.io/role-arn of ServiceAccount shop/app: `},
			{"two", "two "},
			{"", " "},
			{"one", "one "},
		} {
			a.Known(factsWith(step.annotation))
			if got := kept(); len(got) < len(step.want) || got[:len(step.want)] != step.want {
				t.Errorf("after %q: %q is kept, want %q", step.annotation, got, step.want)
			}
		}
		a.Gone(caller)
		if len(b) > 0 {
			t.Errorf("%v is kept of a pod that is gone", b)
		}
	})
}

// TestAdopt: what the agent before decided counts while nothing is known, for a bounded time, and then only what is decided
// anew.
func TestAdopt(t *testing.T) {
	const bound = time.Hour
	other := role.Workload{Namespace: "shop", Name: "b", UID: "2", ServiceAccount: "app"}
	before := func() book {
		b := book{}
		a, _ := successor(b)
		a.Known(factsWith("one"))
		f := factsWith("one")
		f.Workload = other
		a.Known(f)
		return b
	}
	tests := []struct {
		name string
		then func(*assignments)
		want [2]string // of the pods
		kept int
	}{
		{"nothing", func(*assignments) {}, [2]string{"one", "one"}, 2},
		{"almost_too_old", func(a *assignments) { time.Sleep(bound - time.Minute); a.expire() }, [2]string{"one", "one"}, 2},
		{"too_old", func(a *assignments) { time.Sleep(bound); a.expire() }, [2]string{"undecided", "undecided"}, 2},
		{"confirmed", func(a *assignments) { a.Known(factsWith("one")); time.Sleep(bound); a.expire() }, [2]string{"one", "undecided"}, 2},
		{"changed", func(a *assignments) { a.Known(factsWith("two")) }, [2]string{"two", "one"}, 2},
		{"revoked", func(a *assignments) { a.Known(factsWith("")) }, [2]string{"revoked", "one"}, 1},
		{"gone", func(a *assignments) { a.Gone(caller) }, [2]string{"undecided", "one"}, 2}, // or only its sandbox is
		{"settled", func(a *assignments) { a.Known(factsWith("one")); a.settle() }, [2]string{"one", "undecided"}, 2},
		{"unreadable", func(a *assignments) { a.Known(factsWith("arn:aws:iam:broken")); a.settle() }, [2]string{"one", "undecided"}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := before()
				a, l := successor(b)
				if got := roleOf(t, a, caller); got != "undecided" {
					t.Errorf("before it is adopted: %q", got)
				}
				pods := a.recent(bound)
				if len(pods) != 2 {
					t.Errorf("recent: %v", pods)
				}
				a.adopt(pods, bound)
				if a.adopted() != 2 || len(l.entries) != 2 {
					t.Errorf("%d are adopted, and %q", a.adopted(), l.entries)
				}
				tt.then(a)
				got := [2]string{roleOf(t, a, caller), roleOf(t, a, other)}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("roles (-want +got):\n%s", diff)
				}
				if len(b) != tt.kept {
					t.Errorf("%d decisions are kept, want %d", len(b), tt.kept)
				}
			})
		})
	}
}

// TestRecent: what is too old is not adopted at all.
func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book{}
		a, _ := successor(b)
		a.Known(factsWith("one"))
		time.Sleep(time.Hour)
		a, _ = successor(b)
		if got := a.recent(time.Hour); got != nil {
			t.Errorf("%v after an hour", got)
		}
		if got := a.recent(time.Hour + time.Second); len(got) != 1 {
			t.Errorf("%v, want one pod", got)
		}
	})
}

// TestUnreadableWhileNoAgentRan: an edit that cannot be read locks nobody out either if no agent saw what was before it.
func TestUnreadableWhileNoAgentRan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book{}
		a, _ := successor(b)
		a.Known(factsWith("one"))
		time.Sleep(10 * time.Hour)
		for range 2 { // and the next agent goes on where this one was
			a, _ = successor(b)
			a.Known(factsWith("arn:aws:iam:broken"))
			a.settle()
			if got := roleOf(t, a, caller); got != "one" {
				t.Errorf("the running pod: got %q, want the role it had", got)
			}
		}
		time.Sleep(14 * time.Hour) // a day after the last time that it was surely readable
		a.expire()
		if got := roleOf(t, a, caller); got != string(role.Malformed) {
			t.Errorf("after a day: got %q, want a denial", got)
		}
		if len(b) > 0 {
			t.Errorf("%v is still kept", b)
		}
		a, _ = successor(b)
		a.Known(factsWith("arn:aws:iam:broken"))
		if got := roleOf(t, a, caller); got != string(role.Malformed) {
			t.Errorf("under the next agent: got %q, want a denial", got)
		}
	})
}

// TestUnreadableAfterAdoption: the bound on what is kept counts from when the annotation was last known to be readable, also
// if the pod was served by adoption in between, and a later agent's shorter bound holds.
func TestUnreadableAfterAdoption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book{}
		a, _ := successor(b)
		a.Known(factsWith("one"))
		decided := time.Now()
		time.Sleep(5 * time.Hour)
		a, _ = successor(b)
		a.adopt(a.recent(6*time.Hour), 6*time.Hour)
		a.Known(factsWith("arn:aws:iam:broken"))
		a.settle()
		if got := b[caller.UID].Until.Sub(decided); got != a.cfg.keep {
			t.Errorf("kept until %s after it was readable, want %s", got, a.cfg.keep)
		}
		cfg := a.cfg
		cfg.earlier, cfg.keep = b.all(), 0
		a = newAssignments(cfg)
		a.Known(factsWith("arn:aws:iam:broken"))
		if got := roleOf(t, a, caller); got != string(role.Malformed) {
			t.Errorf("under an agent that keeps nothing: got %q, want a denial", got)
		}
	})
}

// TestSettingsChanged: what was decided by other settings is not gone by, but outlives an edit that cannot be read as before.
func TestSettingsChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, tt := range map[string]struct {
			change func(*role.Policy)
			adopt  bool
		}{
			"nothing":      {func(*role.Policy) {}, true},
			"node":         {func(p *role.Policy) { p.Node = "another" }, true},
			"default_role": {func(p *role.Policy) { p.DefaultRole = "arn:aws:iam::111122223333:role/other" }, false},
			"base_arn":     {func(p *role.Policy) { p.BaseARN = "arn:aws:iam::444455556666:role/" }, false},
			"key":          {func(p *role.Policy) { p.Keys.RoleARN = "example.com/role" }, false},
			"duration":     {func(p *role.Policy) { p.Duration = 2 * time.Hour }, false},
			"permission":   {func(p *role.Policy) { p.RequirePermission = !p.RequirePermission }, false},
			"cluster":      {func(p *role.Policy) { p.Cluster = "another" }, false},
			"audiences":    {func(p *role.Policy) { p.Audiences = append([]string{"first"}, p.Audiences...) }, false},
		} {
			b := book{}
			a, _ := successor(b)
			a.Known(factsWith("one"))
			cfg, policy := a.cfg, *a.cfg.policy
			tt.change(&policy)
			cfg.policy, cfg.earlier = &policy, b.all()
			a = newAssignments(cfg)
			pods := a.recent(time.Hour)
			if a.adopt(pods, time.Hour); a.adopted() > 0 != tt.adopt {
				t.Errorf("%s: %v are adopted, want any: %t", name, pods, tt.adopt)
			}
			f := factsWith("arn:aws:iam:broken")
			f.ServiceAccount[policy.Keys.RoleARN] = "arn:aws:iam:broken"
			a.Known(f)
			if got := roleOf(t, a, caller); got != "one" {
				t.Errorf("%s: an edit that cannot be read leaves %q", name, got)
			}
			cfg.earlier = b.all() // decided, or kept, by this one
			if pods := newAssignments(cfg).recent(time.Hour); len(pods) != 1 {
				t.Errorf("%s: by the same settings, %v can be adopted", name, pods)
			}
		}
	})
}

// TestGrantsOfAnotherSource: what this agent could not grant is neither adopted nor kept.
func TestGrantsOfAnotherSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, change := range map[string]func(*role.Policy){
			"source":   func(p *role.Policy) { p.Source = role.AssumeRole },
			"audience": func(p *role.Policy) { p.Audiences = []string{"another"} },
		} {
			b := book{}
			a, _ := successor(b)
			a.Known(factsWith("one"))
			cfg, policy := a.cfg, *a.cfg.policy
			change(&policy)
			cfg.policy, cfg.earlier = &policy, b.all()
			a = newAssignments(cfg)
			if pods := a.recent(time.Hour); pods != nil {
				t.Errorf("%s: %v can be adopted", name, pods)
			}
			a.Known(factsWith("arn:aws:iam:broken"))
			if got := roleOf(t, a, caller); got != string(role.Malformed) {
				t.Errorf("%s: kept as %q", name, got)
			}
		}
	})
}

// TestMetadataAllowOutlivesTheAgent: what a pod may read of the node's metadata is adopted with its Grant, as it was last
// said, and no more than could be read.
func TestMetadataAllowOutlivesTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := book{}
		for _, step := range []struct{ list, want string }{
			{"", "[]"}, {"network/interfaces/macs/**", "[meta-data/network/interfaces/macs/**]"}, {"spot/*", "[meta-data/spot/*]"},
			{"iam/**", "[]"}, {"spot/*", "[meta-data/spot/*]"}, {"", "[]"},
		} {
			a, _ := successor(b)
			f := factsWith("one")
			f.ServiceAccount[a.cfg.policy.Keys.MetadataAllow] = step.list
			a.Known(f)

			a, _ = successor(b)
			a.adopt(a.recent(time.Hour), time.Hour)
			got, err := a.MetadataAllowed(t.Context(), caller)
			if fmt.Sprint(got) != step.want || err != nil {
				t.Errorf("after %q: the next agent allows %v (%v), want %s", step.list, got, err, step.want)
			}
		}
	})
}
