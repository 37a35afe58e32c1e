package kubetest_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"github.com/podrole/podrole/internal/kubetest"
	"github.com/podrole/podrole/pkg/identity"
)

// follow runs an informer and returns a channel of what its handler hears: a verb and the object's name.
func follow(t *testing.T, source cache.ListerWatcher, of runtime.Object) <-chan string {
	t.Helper()
	heard := make(chan string, 1024)
	informer := cache.NewSharedIndexInformer(source, of, 0, nil)
	say := func(verb string, o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		heard <- verb + " " + o.(metav1.Object).GetName()
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { say("add", o) },
		UpdateFunc: func(_, o any) { say("update", o) },
		DeleteFunc: func(o any) { say("delete", o) },
	})
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	select {
	case <-registration.HasSyncedChecker().Done():
	case <-time.After(patience):
		t.Fatal("the informer has not synced")
	}
	return heard
}

func hear(t *testing.T, heard <-chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-heard:
			if got != w {
				t.Fatalf("heard %q, want %q", got, w)
			}
		case <-time.After(patience):
			t.Fatalf("heard nothing, want %q", w)
		}
	}
}

// TestAgentsInformers runs the agent's own sources, with client-go as it comes, against streaming lists and without.
func TestAgentsInformers(t *testing.T) {
	for name, older := range map[string]bool{"streaming_lists": false, "no_streaming_lists": true} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(c *kubetest.Config) { c.NoStreamingLists = older })
			f.put(t, namespace("shop"), namespace("other"), account("orders", nil), pod("a", "box"), pod("b", "other"))
			elsewhere := account("elsewhere", nil)
			elsewhere.Namespace = "other"
			f.put(t, elsewhere)
			sources := identity.Cluster{Client: f.client, Objects: f.objects, Node: "box"}.Sources()
			pods := follow(t, sources.Pods, &corev1.Pod{})
			accounts := follow(t, sources.ServiceAccounts("shop"), &metav1.PartialObjectMetadata{})
			namespaces := follow(t, sources.Namespaces("shop"), &metav1.PartialObjectMetadata{})
			hear(t, pods, "add a")
			hear(t, accounts, "add orders")
			hear(t, namespaces, "add shop")

			check(t, f.Delete("serviceaccounts", "other", "elsewhere"))
			f.put(t, pod("c", "box"), account("orders", map[string]string{"k": "v"}), account("late", nil))
			check(t, f.Delete("pods", "shop", "a"))
			f.put(t, namespace("shop"), namespace("other"))
			hear(t, pods, "add c", "delete a")
			hear(t, accounts, "update orders", "add late")
			hear(t, namespaces, "update shop")

			lists := f.Count(func(r kubetest.Request) bool { return r.Verb == "list" && r.Status == http.StatusOK })
			streams := f.Count(func(r kubetest.Request) bool { return r.Streaming && r.Status == http.StatusOK })
			if want := map[bool][2]int{false: {0, 3}, true: {3, 0}}[older]; want != [2]int{lists, streams} {
				t.Errorf("%d lists and %d streaming lists, want %v", lists, streams, want)
			}
			whole := f.Count(func(r kubetest.Request) bool { return r.Resource != "pods" && !r.Metadata })
			if whole > 0 {
				t.Errorf("%d requests for more than metadata", whole)
			}
			if refused := f.Count(func(r kubetest.Request) bool { return r.Status == http.StatusForbidden }); refused > 0 {
				t.Errorf("%d requests refused by RBAC", refused)
			}
		})
	}
}

// TestInformersComeBack: after an outage, and from a version that is gone.
func TestInformersComeBack(t *testing.T) {
	f := newFixture(t, nil)
	f.put(t, pod("a", "box"))
	pods := follow(t, identity.Cluster{Client: f.client, Objects: f.objects, Node: "box"}.Sources().Pods, &corev1.Pod{})
	hear(t, pods, "add a")
	f.SetUnavailable(true)
	f.put(t, pod("b", "box"))
	check(t, f.Delete("pods", "shop", "a"))
	f.Compact()
	f.SetUnavailable(false)
	heard := map[string]bool{}
	for range 2 {
		select {
		case s := <-pods:
			heard[s] = true
		case <-time.After(patience):
			t.Fatalf("heard %v only", heard)
		}
	}
	if !heard["add b"] || !heard["delete a"] {
		t.Errorf("heard %v", heard)
	}
}
