package kubefiles

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// state returns what a collection is to hold: one pod for each name, on a node if it says so (name@node).
func state(pods ...*corev1.Pod) map[string]object {
	objects := make(map[string]object)
	for _, p := range pods {
		objects[p.Namespace+"/"+p.Name] = p
	}
	return objects
}

func podOn(name, node string, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "1"}}
	p.Spec.NodeName = node
	for _, e := range edit {
		e(p)
	}
	return p
}

func podsOf(c *collection, node string) *listWatch {
	return &listWatch{kind: kindPod, collection: c, selection: selection{node: node}}
}

// drain returns all events that are there, as TYPE name version.
func drain(t *testing.T, w watch.Interface) []string {
	t.Helper()
	var events []string
	for {
		synctest.Wait()
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				return append(events, "closed")
			}
			switch o := e.Object.(type) {
			case *corev1.Pod:
				events = append(events, fmt.Sprintf("%s %s %s", e.Type, o.Name, o.ResourceVersion))
			case *metav1.Status:
				events = append(events, fmt.Sprintf("%s %s", e.Type, o.Reason))
			}
		default:
			return events
		}
	}
}

func TestWatch(t *testing.T) {
	relabel := func(p *corev1.Pod) { p.Labels = map[string]string{"app": "x"} }
	streaming := metav1.ListOptions{
		SendInitialEvents: new(true), AllowWatchBookmarks: true,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	}
	for name, c := range map[string]struct {
		options metav1.ListOptions
		start   []string
		then    []string
	}{
		"streaming": {streaming,
			[]string{"ADDED a 2", "BOOKMARK  3"},
			[]string{"MODIFIED a 4", "ADDED b 5", "DELETED b 6", "ADDED b 7", "DELETED a 8"}},
		"from_version": {metav1.ListOptions{ResourceVersion: "1"},
			[]string{"ADDED a 2"},
			[]string{"MODIFIED a 4", "ADDED b 5", "DELETED b 6", "ADDED b 7", "DELETED a 8"}},
		"from_now": {metav1.ListOptions{SendInitialEvents: new(false), ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan},
			nil,
			[]string{"MODIFIED a 4", "ADDED b 5", "DELETED b 6", "ADDED b 7", "DELETED a 8"}},
		"any_version": {metav1.ListOptions{ResourceVersion: "0"},
			[]string{"ADDED a 2"},
			[]string{"MODIFIED a 4", "ADDED b 5", "DELETED b 6", "ADDED b 7", "DELETED a 8"}},
		"labels": {metav1.ListOptions{LabelSelector: "app=x"},
			nil,
			[]string{"ADDED a 4", "DELETED a 8"}},
		"fields": {metav1.ListOptions{FieldSelector: "metadata.name=b,spec.nodeName=n"},
			nil,
			[]string{"ADDED b 5", "DELETED b 6", "ADDED b 7"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := struct {
					*collection
					options     metav1.ListOptions
					start, then []string
				}{newCollection(), c.options, c.start, c.then}
				c.replace(state(podOn("a", "n"), podOn("b", "other"))) // 2, 3
				w, err := podsOf(c.collection, "n").WatchWithContext(t.Context(), c.options)
				if err != nil {
					t.Fatal(err)
				}
				defer w.Stop()
				if diff := cmp.Diff(c.start, drain(t, w)); diff != "" {
					t.Errorf("start: %s", diff)
				}
				c.replace(state(podOn("a", "n", relabel), podOn("b", "other"))) // 4
				c.replace(state(podOn("a", "n", relabel), podOn("b", "")))      // 5: no node is every node
				another := podOn("b", "", func(p *corev1.Pod) { p.UID = "2" })
				c.replace(state(podOn("a", "n", relabel), another))     // 6, 7
				c.replace(state(podOn("a", "n", relabel), another))     // nothing
				c.replace(state(podOn("a", "other", relabel), another)) // 8
				if diff := cmp.Diff(c.then, drain(t, w)); diff != "" {
					t.Errorf("then: %s", diff)
				}
				w.Stop()
				w.Stop()
				if diff := cmp.Diff([]string{"closed"}, drain(t, w)); diff != "" {
					t.Errorf("stop: %s", diff)
				}
			})
		})
	}
}

func TestAnotherServiceAccountIsAnotherPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollection()
		c.replace(state(podOn("a", "n")))
		w, err := podsOf(c, "n").WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "2"})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		c.replace(state(podOn("a", "n", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "other" })))
		if diff := cmp.Diff([]string{"DELETED a 3", "ADDED a 4"}, drain(t, w)); diff != "" {
			t.Error(diff)
		}
	})
}

// TestSlowWatcher lets a watcher fall behind: first by what is kept for it, then by more.
func TestSlowWatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollection()
		c.backlog = 4 * keptChanges
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w, err := podsOf(c, "n").WatchWithContext(ctx, metav1.ListOptions{ResourceVersion: "1"})
		if err != nil {
			t.Fatal(err)
		}
		flip := func(times int) {
			for n := range times {
				c.replace(state(podOn("a", "n", func(p *corev1.Pod) { p.Generation = int64(c.version) + int64(n) })))
			}
		}
		flip(3 * keptChanges)
		if got := drain(t, w); len(got) != 3*keptChanges || got[0] != "ADDED a 2" {
			t.Errorf("%d events, first %v", len(got), got[:min(1, len(got))])
		}
		flip(1)
		if len(c.changes) != keptChanges {
			t.Errorf("%d changes are kept with nobody behind, want %d", len(c.changes), keptChanges)
		}
		flip(2 * int(c.backlog))
		got := drain(t, w)
		end := got[max(0, len(got)-2):]
		if diff := cmp.Diff([]string{"ERROR Expired", "closed"}, end); diff != "" || len(got) > 3*batchSize {
			t.Errorf("%d events, last %s", len(got), diff)
		}
		if len(c.changes) > keptChanges || len(c.watchers) != 0 {
			t.Errorf("%d changes and %d watchers left", len(c.changes), len(c.watchers))
		}
	})
}

func TestRefusals(t *testing.T) {
	c := newCollection()
	lw := podsOf(c, "n")
	for range 3 * keptChanges {
		c.replace(state(podOn("a", "n", func(p *corev1.Pod) { p.Generation = int64(c.version) })))
	}
	tooLarge := func(err error) bool { return apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) }
	for name, r := range map[string]struct {
		options metav1.ListOptions
		list    func(error) bool // nil: no error
		watch   func(error) bool
	}{
		"too_old":       {metav1.ListOptions{ResourceVersion: "5"}, nil, apierrors.IsResourceExpired},
		"exactly_old":   {metav1.ListOptions{ResourceVersion: "5", ResourceVersionMatch: "Exact"}, apierrors.IsResourceExpired, apierrors.IsResourceExpired},
		"too_large":     {metav1.ListOptions{ResourceVersion: "99999"}, tooLarge, tooLarge},
		"no_version":    {metav1.ListOptions{ResourceVersion: "x"}, apierrors.IsBadRequest, apierrors.IsBadRequest},
		"bad_labels":    {metav1.ListOptions{LabelSelector: "=="}, apierrors.IsBadRequest, apierrors.IsBadRequest},
		"bad_fields":    {metav1.ListOptions{FieldSelector: "a"}, apierrors.IsBadRequest, apierrors.IsBadRequest},
		"unknown_field": {metav1.ListOptions{FieldSelector: "spec.color=red"}, apierrors.IsBadRequest, apierrors.IsBadRequest},
		"continued":     {metav1.ListOptions{Continue: "x"}, apierrors.IsResourceExpired, nil},
		"no_match":      {metav1.ListOptions{SendInitialEvents: new(true)}, nil, apierrors.IsBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := lw.List(r.options); (r.list == nil) != (err == nil) || r.list != nil && !r.list(err) {
				t.Errorf("list: %v", err)
			}
			w, err := lw.Watch(r.options)
			if err == nil {
				w.Stop()
			}
			if (r.watch == nil) != (err == nil) || r.watch != nil && !r.watch(err) {
				t.Errorf("watch: %v", err)
			}
		})
	}
}

// TestReceiversOwnWhatTheyGet changes what was received, as an informer's transform may.
func TestReceiversOwnWhatTheyGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCollection()
		lw := podsOf(c, "n")
		c.replace(state(podOn("a", "n")))
		spoil := func(p *corev1.Pod) {
			p.UID = "spoiled"
			p.Spec.NodeName = "spoiled"
		}
		list, err := lw.List(metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		spoil(&list.(*corev1.PodList).Items[0])
		for _, version := range []string{"0", "1"} { // a snapshot, a change
			w, err := lw.WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				t.Fatal(err)
			}
			p := (<-w.ResultChan()).Object.(*corev1.Pod)
			if p.UID != "1" || p.Spec.NodeName != "n" {
				t.Errorf("version %s: received what another receiver changed: %+v", version, p)
			}
			spoil(p)
			w.Stop()
		}
		if list, err = lw.List(metav1.ListOptions{}); err != nil {
			t.Fatal(err)
		}
		if p := list.(*corev1.PodList).Items[0]; p.UID != "1" || p.Spec.NodeName != "n" {
			t.Errorf("listed what a receiver changed: %+v", p)
		}
	})
}
