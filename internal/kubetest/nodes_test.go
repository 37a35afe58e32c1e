package kubetest_test

import (
	"net/http"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podrole/podrole/internal/kubetest"
)

func TestGet(t *testing.T) {
	rbac, err := kubetest.ReadRBAC(nodeLabels, edited(t, manifests+"base/rbac.yaml", `["list", "watch"]`, `["get"]`))
	check(t, err)
	f := newFixture(t, func(c *kubetest.Config) { c.RBAC = rbac })
	f.put(t, namespace("shop"), pod("a", "box"), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box", Labels: map[string]string{"zone": "a"}}})
	node, err := f.client.CoreV1().Nodes().Get(t.Context(), "box", metav1.GetOptions{})
	check(t, err)
	if node.Labels["zone"] != "a" {
		t.Errorf("got %+v", node)
	}
	bare, err := f.objects.Resource(corev1.SchemeGroupVersion.WithResource("nodes")).Get(t.Context(), "box", metav1.GetOptions{})
	check(t, err)
	if bare.Labels["zone"] != "a" {
		t.Errorf("got %+v", bare)
	}
	_, err = f.client.CoreV1().Namespaces().Get(t.Context(), "shop", metav1.GetOptions{})
	check(t, err)
	_, err = f.client.CoreV1().Pods("shop").Get(t.Context(), "a", metav1.GetOptions{})
	check(t, err)
	if _, err := f.client.CoreV1().Nodes().Get(t.Context(), "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("got %v, want not found", err)
	}
	if n := f.Count(func(r kubetest.Request) bool { return r.Verb == "get" && r.Metadata }); n != 1 {
		t.Errorf("%d requests for metadata", n)
	}
	if err := f.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box", Namespace: "shop"}}); err == nil {
		t.Error("want an error for a Node in a namespace")
	}
}

func TestNodePatches(t *testing.T) {
	const merge, operations = string(types.MergePatchType), string(types.JSONPatchType)
	f := newTaintFixture(t, func(c *kubetest.Config) { c.Policies = nil })
	for name, tt := range map[string]struct {
		node, form, patch string
		want              int
	}{
		"merge":             {"box?dryRun=All", merge, `{"metadata":{"labels":{"a":"b"}}}`, 200},
		"operations":        {"box?dryRun=All", operations, `[{"op":"remove","path":"/spec/taints"}]`, 200},
		"test_fails":        {"box", operations, `[{"op":"test","path":"/spec/taints/0/key","value":"x"}]`, 422},
		"nothing_there":     {"box", operations, `[{"op":"remove","path":"/spec/nothing"}]`, 422},
		"no_json":           {"box", merge, `{`, 400},
		"no_operations":     {"box", operations, `{}`, 400},
		"null_operation":    {"box", operations, `[null]`, 422},
		"null":              {"box", merge, `null`, 400},
		"another_type":      {"box", merge, `{"spec":{"taints":1}}`, 422},
		"another_name":      {"box", merge, `{"metadata":{"name":"x"}}`, 422},
		"another_uid":       {"box", merge, `{"metadata":{"uid":"x"}}`, 422},
		"another_version":   {"box", merge, `{"metadata":{"resourceVersion":"4711"}}`, 409},
		"no_node":           {"none", merge, `{}`, 404},
		"another_form":      {"box", string(types.StrategicMergePatchType), `{}`, 415},
		"unknown_dry_run":   {"box?dryRun=Some", merge, `{}`, 422},
		"status":            {"box/status", merge, `{}`, 403},
		"dry_run_of_events": {"", "", "", 400},
	} {
		t.Run(name, func(t *testing.T) {
			method, path := http.MethodPatch, "/api/v1/nodes/"+tt.node
			if tt.form == "" {
				method, path = http.MethodPost, "/api/v1/namespaces/shop/events?dryRun=All"
				tt.patch = `{"apiVersion":"v1","kind":"Event","metadata":{"name":"a"},"involvedObject":{"namespace":"shop"}}`
			}
			if r := f.raw(t, method, path, tt.patch, "Content-Type", tt.form); r.StatusCode != tt.want {
				t.Errorf("got %s, want %d", r.Status, tt.want)
			}
		})
	}
	if len(f.Events()) != 0 {
		t.Error("a dry run left an Event")
	}
}

// TestNodePatchesAtOnce: none of them is lost.
func TestNodePatchesAtOnce(t *testing.T) {
	f := newTaintFixture(t, func(c *kubetest.Config) { c.Policies = nil })
	var running sync.WaitGroup
	for _, label := range []string{"a", "b", "c"} {
		running.Go(func() {
			patch := []byte(`{"metadata":{"labels":{"` + label + `":"yes"}}}`)
			if _, err := f.client.CoreV1().Nodes().Patch(t.Context(), "box", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
	node, err := f.client.CoreV1().Nodes().Get(t.Context(), "box", metav1.GetOptions{})
	check(t, err)
	if len(node.Labels) != 3 {
		t.Errorf("got %v", node.Labels)
	}
}
