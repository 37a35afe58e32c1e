package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/podrole/podrole/e2e/cluster/ask"
)

func TestReportEndsWithFigures(t *testing.T) {
	var out bytes.Buffer
	r := &report{w: &out, nodes: 2}
	r.check("good", func() (string, error) { return "noted", nil })
	if err := r.end(time.Second); err != nil {
		t.Errorf("all is well, but: %v", err)
	}
	r.check("bad", func() (string, error) { return "not said", errors.New("because\nof this") })
	if err := r.end(2 * time.Second); !errors.Is(err, errFailed) {
		t.Errorf("got %v, want that it failed", err)
	}
	for _, want := range []string{"ok     good: noted (", "FAILED bad: because\n          of this (",
		"e2e: nodes=2 checks=1 failed=0 seconds=1\n", "e2e: nodes=2 checks=2 failed=1 seconds=2\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
}

func TestKustomization(t *testing.T) {
	d := deployment{
		resources:  []string{"manifests/overlays/a"},
		components: []string{"manifests/policies/b"},
		env:        map[string]string{"PODROLE_STS_ENDPOINT": "http://10.0.0.1:8000"},
		secret:     []string{"KEY=value"},
	}
	got, err := d.kustomization("/run/cluster/deploy-1", "/src/podrole")
	if err != nil {
		t.Fatal(err)
	}
	want := `components:
- ../../../src/podrole/manifests/policies/b
images:
- name: podrole
  newName: localhost/podrole
  newTag: dev
patches:
- patch: |
    - {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: PODROLE_STS_ENDPOINT, value: "http://10.0.0.1:8000"}}
  target:
    kind: DaemonSet
    name: podrole
resources:
- ../../../src/podrole/manifests/overlays/a
secretGenerator:
- behavior: merge
  literals:
  - KEY=value
  name: podrole-aws
  namespace: podrole
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOutageIsFromFirstFailureToLast(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(after, took time.Duration) ask.Outcome { return ask.Outcome{Began: began.Add(after), Took: took} }
	for name, c := range map[string]struct {
		failures []ask.Outcome
		want     time.Duration
	}{
		"none":         {nil, 0},
		"one":          {[]ask.Outcome{at(0, time.Second)}, time.Second},
		"out_of_order": {[]ask.Outcome{at(3*time.Second, 0), at(time.Second, 4*time.Second)}, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if got := outage(c.failures); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestCountAgents(t *testing.T) {
	agent := func(kind watch.EventType, uid, node string, phase corev1.PodPhase) watch.Event {
		return watch.Event{Type: kind, Object: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase},
		}}
	}
	for name, c := range map[string]struct {
		changes []watch.Event
		want    agentCount
	}{
		"one_after_the_other": {[]watch.Event{
			agent(watch.Added, "a", "n1", corev1.PodRunning), agent(watch.Added, "b", "n2", corev1.PodRunning),
			agent(watch.Modified, "a", "n1", corev1.PodFailed), agent(watch.Added, "c", "", corev1.PodPending),
			agent(watch.Modified, "c", "n1", corev1.PodPending), agent(watch.Deleted, "a", "n1", corev1.PodFailed),
			agent(watch.Deleted, "b", "n2", corev1.PodRunning), agent(watch.Added, "d", "n2", corev1.PodPending),
		}, agentCount{all: 4, most: 1}},
		"beside_each_other": {[]watch.Event{
			agent(watch.Added, "a", "n1", corev1.PodRunning), agent(watch.Added, "b", "n1", corev1.PodPending),
			agent(watch.Deleted, "a", "n1", corev1.PodRunning),
		}, agentCount{all: 2, most: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			changes := make(chan watch.Event, len(c.changes))
			for _, change := range c.changes {
				changes <- change
			}
			close(changes)
			if got := count(changes); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestOnlyRefused(t *testing.T) {
	refused := ask.Outcome{Error: "dial tcp 169.254.169.254:80: connect: permission denied"}
	answered := func(status int) ask.Outcome { return ask.Outcome{Error: "status", Status: status} }
	for name, c := range map[string]struct {
		outcomes []ask.Outcome
		ok       bool
	}{
		"nothing_failed":  {[]ask.Outcome{{Status: 200}}, false},
		"refused":         {[]ask.Outcome{{Status: 200}, refused, answered(503)}, true},
		"says_no_role":    {[]ask.Outcome{refused, answered(404)}, false},
		"says_forbidden":  {[]ask.Outcome{refused, answered(403)}, false},
		"says_try_slower": {[]ask.Outcome{answered(429)}, false},
		"says_nonsense":   {[]ask.Outcome{answered(200)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var f findings
			for _, o := range c.outcomes {
				if o.Error != "" {
					f.failed++
				}
				if o.Final() {
					f.final = append(f.final, o)
				}
			}
			if err := f.onlyRefused(); (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestDue(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if got := (ask.Load{Began: began, Every: 40 * time.Millisecond}).Due(began.Add(time.Second)); got != 25 {
		t.Errorf("every 40 ms for a second: %d due", got)
	}
	if got := (ask.Load{Began: began}).Due(began.Add(time.Second)); got != 0 {
		t.Errorf("not asking: %d due", got)
	}
}

func TestEventually(t *testing.T) {
	tries := 0
	err := eventually(t.Context(), time.Minute, func(context.Context) error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries: %v", tries, err)
	}
	tries = 0
	wrong := errors.New("wrong role")
	err = eventually(t.Context(), time.Minute, func(context.Context) error { tries++; return final(wrong) })
	if !errors.Is(err, wrong) || tries != 1 {
		t.Errorf("a final error: %d tries: %v", tries, err)
	}
}
