package main

import (
	"errors"
	"strings"
	"testing"
)

// table prints what fill makes of the results of two clients, of which one has no region.
func table(t *testing.T, fill func(r *results)) (text string, ok bool) {
	t.Helper()
	old := ready{client: client{name: "old", asks: "LC", lacks: map[string]string{"second": noRegion}}}
	young := ready{client: client{name: "young", asks: "TLC"}}
	r := newResults([]ready{old, young}, []scenario{{name: "first", what: "one thing"}}, []scenario{{name: "second", what: "another"}})
	fill(r)
	var out strings.Builder
	ok = r.print(&out)
	return out.String(), ok
}

func TestTable(t *testing.T) {
	tests := []struct {
		name  string
		fill  func(r *results)
		ok    bool
		lines []string
	}{
		{"all_well", func(r *results) {
			r.record("old", "first", "ok", nil)
			r.absent(r.clients[0], "second")
			r.record("young", "first", "ok", nil)
			r.record("young", "second", "refused", nil)
		}, true, []string{
			"old     LC    ok     n/a (1)",
			"young   TLC   ok     refused",
			"n/a (1): the client " + noRegion,
			"played and as it should be: 3; n/a: 1",
			"conformance: clients=2 scenarios=2 failed=0",
		}},
		{"one_failed", func(r *results) {
			r.record("old", "first", "ok", errors.New("want this, got that"))
			r.absent(r.clients[0], "second")
			r.record("young", "first", "ok", nil)
			r.record("young", "second", "ok", nil)
		}, false, []string{
			"failed: old, first: want this, got that",
			"conformance: clients=2 scenarios=2 failed=1",
		}},
		{"not_installed_is_not_skipped", func(r *results) {
			r.clients[0].err = errors.New("no such package")
			r.absent(r.clients[0], "first")
			r.absent(r.clients[0], "second")
			r.record("young", "first", "ok", nil)
			r.record("young", "second", "ok", nil)
		}, false, []string{
			"old     LC    FAILED  FAILED",
			"failed: old is not installed: no such package",
			"conformance: clients=2 scenarios=2 failed=1",
		}},
		{"not_played_is_a_failure", func(r *results) {
			r.record("old", "first", "ok", nil)
			r.absent(r.clients[0], "second")
			r.record("young", "first", "ok", nil)
		}, false, []string{
			"failed: young, second: not played",
			"conformance: clients=2 scenarios=2 failed=1",
		}},
		{"leaks", func(r *results) {
			r.record("old", "first", "ok", nil)
			r.absent(r.clients[0], "second")
			r.record("young", "first", "ok", nil)
			r.record("young", "second", "ok", nil)
			r.leaks = 2
		}, false, []string{
			"failed: packets of pods that reached the node's own metadata service: 2",
			"conformance: clients=2 scenarios=2 failed=1",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text, ok := table(t, tt.fill)
			if ok != tt.ok {
				t.Errorf("all well: %t", ok)
			}
			lines := strings.Split(strings.TrimSpace(text), "\n")
			for _, want := range tt.lines {
				if !strings.Contains("\n"+text, "\n"+want+"\n") {
					t.Errorf("no line %q in\n%s", want, text)
				}
			}
			if last := lines[len(lines)-1]; last != tt.lines[len(tt.lines)-1] {
				t.Errorf("the last line is %q", last)
			}
		})
	}
}
