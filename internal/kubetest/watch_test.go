package kubetest_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/kubetest"
)

const podsOfBox = "/api/v1/pods?fieldSelector=spec.nodeName%3Dbox&watch=true&timeoutSeconds=60"

func TestWatchFollowsASelection(t *testing.T) {
	f := newFixture(t, nil)
	f.put(t, pod("a", "box"), pod("b", "other"))
	w := f.watch(t, podsOfBox+"&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
	w.expect(t, "ADDED a")
	bookmark := w.expect(t, "BOOKMARK")
	if bookmark.Object.Metadata.Annotations["k8s.io/initial-events-end"] != "true" || bookmark.Object.Kind != "Pod" {
		t.Errorf("got %+v, want the bookmark that ends the initial events", bookmark)
	}
	f.put(t, pod("c", ""), pod("b", "other"), pod("c", "box"))
	w.expect(t, "ADDED c")
	f.put(t, pod("a", "box"))
	w.expect(t, "MODIFIED a")
	f.put(t, pod("a", "other"))
	w.expect(t, "DELETED a")
	successor := pod("c", "box")
	successor.UID = "another"
	f.put(t, successor)
	deleted := w.expect(t, "DELETED c")
	if added := w.expect(t, "ADDED c"); added.Object.Metadata.UID != "another" || deleted.Object.Metadata.UID != "uid-of-c" {
		t.Errorf("got %+v and %+v, want the end of one life and the beginning of another", deleted, added)
	}
	check(t, f.Delete("pods", "shop", "c"))
	w.expect(t, "DELETED c")

	// From the bookmark on, the same once more.
	again := f.watch(t, podsOfBox+"&resourceVersion="+bookmark.Object.Metadata.ResourceVersion)
	again.expect(t, "ADDED c", "MODIFIED a", "DELETED a", "DELETED c", "ADDED c", "DELETED c")
}

func TestWatchWithoutVersionBeginsWithWhatThereIs(t *testing.T) {
	for name, older := range map[string]bool{"streaming_lists": false, "no_streaming_lists": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(c *kubetest.Config) { c.NoStreamingLists = older })
			f.put(t, pod("a", "box"))
			w := f.watch(t, podsOfBox)
			w.expect(t, "ADDED a")
			f.put(t, pod("b", "box"))
			w.expect(t, "ADDED b")
		})
	}
}

func TestHistoryIsBounded(t *testing.T) {
	f := newFixture(t, func(c *kubetest.Config) { c.History = 2 })
	f.put(t, pod("a", "box"), pod("b", "box"), pod("c", "box")) // versions 2 to 4
	f.watch(t, podsOfBox+"&resourceVersion=2").expect(t, "ADDED b", "ADDED c")
	w := f.watch(t, podsOfBox+"&resourceVersion=1")
	if e := w.expect(t, "ERROR"); e.Object.Kind != "Status" || e.Object.Code != http.StatusGone {
		t.Errorf("got %+v, want 410", e)
	}
	if e, ok := w.next(t); ok {
		t.Errorf("got %v after the error", e)
	}
	present := f.watch(t, podsOfBox+"&resourceVersion=4")
	f.Compact()
	f.put(t, pod("d", "box"))
	present.expect(t, "ADDED d")
	f.watch(t, podsOfBox+"&resourceVersion=3").expect(t, "ERROR")
}

func TestBookmarks(t *testing.T) {
	f := newFixture(t, func(c *kubetest.Config) { c.BookmarkEvery = 10 * time.Millisecond })
	w := f.watch(t, podsOfBox+"&resourceVersion=1&allowWatchBookmarks=true")
	f.put(t, pod("a", "other")) // version 2, and nothing to see here
	for {
		if e := w.expect(t, "BOOKMARK"); e.Object.Metadata.ResourceVersion == "2" {
			return
		}
	}
}

func TestWatchTimeout(t *testing.T) {
	f := newFixture(t, nil)
	w := f.watch(t, "/api/v1/namespaces?watch=true&timeoutSeconds=1")
	if e, ok := w.next(t); ok {
		t.Errorf("got %v, want the end", e)
	}
	if n := f.Watches("namespaces"); n > 1 {
		t.Errorf("%d watches are open", n)
	}
}

func TestWatchDelay(t *testing.T) {
	f := newFixture(t, nil)
	const delay = 100 * time.Millisecond
	f.SetWatchDelay(delay)
	w := f.watch(t, podsOfBox)
	began := time.Now()
	f.put(t, pod("a", "box"), pod("b", "box"))
	w.expect(t, "ADDED a", "ADDED b")
	if took := time.Since(began); took < delay {
		t.Errorf("arrived after %s", took)
	}
	f.SetWatchDelay(time.Hour)
	f.put(t, pod("c", "box"))
	f.SetWatchDelay(0)
	w.expect(t, "ADDED c")
}

func TestDroppedWatchesAreSilent(t *testing.T) {
	f := newFixture(t, nil)
	w := f.watch(t, podsOfBox)
	if n := f.DropWatches(); n != 1 || f.Watches("pods") != 0 {
		t.Errorf("dropped %d watches, %d are left", n, f.Watches("pods"))
	}
	f.put(t, pod("a", "box"))
	f.watch(t, podsOfBox).expect(t, "ADDED a") // whole, and later than anything that w could have got
	select {
	case e, ok := <-w.events:
		t.Errorf("got %v (%v), want silence", e, ok)
	default:
	}
}

func TestUnavailable(t *testing.T) {
	f := newFixture(t, nil)
	w := f.watch(t, podsOfBox)
	f.SetUnavailable(true)
	if e, ok := w.next(t); ok {
		t.Errorf("got %v, want the end of the watch", e)
	}
	if s := status(t, f.raw(t, "GET", "/api/v1/pods", "")); s.Code != http.StatusServiceUnavailable {
		t.Errorf("got %+v", s)
	}
	f.SetUnavailable(false)
	if r := f.raw(t, "GET", "/api/v1/pods", ""); r.StatusCode != http.StatusOK {
		t.Errorf("got %s", r.Status)
	}
}
