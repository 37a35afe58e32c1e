package kubetest_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/kubetest"
)

func TestOnlyWhatTheManifestAllows(t *testing.T) {
	f := newFixture(t, nil)
	f.put(t, namespace("shop"), account("orders", nil), pod("a", "box"))
	tests := []struct {
		name, method, path string
		want               int
		reason             metav1.StatusReason
	}{
		{"list_pods", "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dbox", 200, ""},
		{"list_accounts", "GET", "/api/v1/namespaces/shop/serviceaccounts", 200, ""},
		{"list_namespaces", "GET", "/api/v1/namespaces?fieldSelector=metadata.name%3Dshop", 200, ""},
		{"get_pod", "GET", "/api/v1/namespaces/shop/pods/a", 403, metav1.StatusReasonForbidden},
		{"get_account", "GET", "/api/v1/namespaces/shop/serviceaccounts/orders", 403, metav1.StatusReasonForbidden},
		{"get_namespace", "GET", "/api/v1/namespaces/shop", 403, metav1.StatusReasonForbidden},
		{"list_secrets", "GET", "/api/v1/secrets", 403, metav1.StatusReasonForbidden},
		{"watch_secrets", "GET", "/api/v1/secrets?watch=true", 403, metav1.StatusReasonForbidden},
		{"list_nodes", "GET", "/api/v1/nodes", 403, metav1.StatusReasonForbidden},
		{"delete_pod", "DELETE", "/api/v1/namespaces/shop/pods/a", 403, metav1.StatusReasonForbidden},
		{"delete_pods", "DELETE", "/api/v1/namespaces/shop/pods", 403, metav1.StatusReasonForbidden},
		{"create_account", "POST", "/api/v1/namespaces/shop/serviceaccounts", 403, metav1.StatusReasonForbidden},
		{"patch_account", "PATCH", "/api/v1/namespaces/shop/serviceaccounts/orders", 403, metav1.StatusReasonForbidden},
		{"list_events", "GET", "/apis/events.k8s.io/v1/events", 403, metav1.StatusReasonForbidden},
		{"pods_of_another_group", "GET", "/apis/metrics.k8s.io/v1beta1/pods", 403, metav1.StatusReasonForbidden},
		{"pod_log", "GET", "/api/v1/namespaces/shop/pods/a/log", 403, metav1.StatusReasonForbidden},
		{"discovery", "GET", "/api/v1", 403, metav1.StatusReasonForbidden},
		{"field_that_cannot_be_selected", "GET", "/api/v1/pods?fieldSelector=spec.color%3Dred", 400, metav1.StatusReasonBadRequest},
		{"match_without_version", "GET", "/api/v1/pods?resourceVersionMatch=Exact", 422, metav1.StatusReasonInvalid},
		{"version_of_the_future", "GET", "/api/v1/pods?resourceVersion=4711", 504, metav1.StatusReasonTimeout},
		{"version_no_number", "GET", "/api/v1/pods?resourceVersion=now", 400, metav1.StatusReasonBadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := f.raw(t, tt.method, tt.path, "")
			if r.StatusCode != tt.want {
				t.Fatalf("got %d, want %d", r.StatusCode, tt.want)
			}
			if tt.want != http.StatusOK {
				if s := status(t, r); s.Reason != tt.reason {
					t.Errorf("got %+v, want reason %s", s, tt.reason)
				}
			}
		})
	}
	forbidden := f.Count(func(r kubetest.Request) bool { return r.Status == http.StatusForbidden })
	logs := f.Count(func(r kubetest.Request) bool { return r.Verb == "get" && r.Resource == "pods/log" })
	if logs != 1 || forbidden != 14 {
		t.Errorf("counted %d requests for logs and %d refused, want 1 and 14", logs, forbidden)
	}
}

func TestAuthentication(t *testing.T) {
	f := newFixture(t, nil)
	for name, value := range map[string]string{"none": "", "another": "Bearer x", "basic": "Basic " + bearer} {
		t.Run(name, func(t *testing.T) {
			if s := status(t, f.raw(t, "GET", "/api/v1/pods", "", "Authorization", value)); s.Code != http.StatusUnauthorized {
				t.Errorf("got %+v", s)
			}
		})
	}
}

// TestUserWithoutBinding: the rules are those of the user, not of everybody.
func TestUserWithoutBinding(t *testing.T) {
	f := newFixture(t, func(c *kubetest.Config) { c.User = "system:serviceaccount:default:podrole" })
	if _, err := f.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("got %v, want forbidden", err)
	}
}

func TestReadRBACRefusesWhatItDoesNotModel(t *testing.T) {
	for name, text := range map[string]string{
		"role":          "kind: Role\napiVersion: rbac.authorization.k8s.io/v1\nmetadata: {name: a}\n",
		"aggregation":   "kind: ClusterRole\naggregationRule: {clusterRoleSelectors: []}\n",
		"unknown_field": "kind: ClusterRole\nrule: []\n",
		"not_yaml":      "kind: [",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "rbac.yaml")
			check(t, os.WriteFile(file, []byte(text), 0o600))
			if _, err := kubetest.ReadRBAC(file); err == nil || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v, want an error that names the file", err)
			}
		})
	}
}

func TestReadRBACOfSeveralFiles(t *testing.T) {
	const base = manifests + "base/rbac.yaml"
	if _, err := kubetest.ReadRBAC(base, base); err == nil || !strings.Contains(err.Error(), "patches are not modelled") {
		t.Errorf("the same twice: got %v", err)
	}
	if _, err := kubetest.ReadRBAC(); err == nil {
		t.Error("want an error without files")
	}
	rbac, err := kubetest.ReadRBAC(base)
	check(t, err)
	f := newFixture(t, func(c *kubetest.Config) { c.RBAC = rbac })
	f.put(t, account("orders", nil))
	expect(t, requestToken(t, f.client, "shop", "orders", tokenSpec{}), http.StatusForbidden,
		`serviceaccounts "orders" is forbidden: User "`+user+`" cannot create resource "serviceaccounts/token" in API group "" in the namespace "shop"`)
}

func TestContentNegotiation(t *testing.T) {
	f := newFixture(t, nil)
	f.put(t, account("orders", map[string]string{"k": "v"}))
	const (
		list  = "/api/v1/namespaces/shop/serviceaccounts"
		watch = list + "?watch=1&timeoutSeconds=1"
		as    = ";g=meta.k8s.io;v=v1;as="
		proto = "application/vnd.kubernetes.protobuf"
	)
	tests := []struct{ name, path, accept, kind, itemKind string }{
		{"json", list, "application/json", "ServiceAccountList", "ServiceAccount"},
		{"none", list, "", "ServiceAccountList", "ServiceAccount"},
		{"anything", list, "*/*", "ServiceAccountList", "ServiceAccount"},
		{"protobuf_first", list, proto + ",application/json", "ServiceAccountList", "ServiceAccount"},
		{"metadata", list, "application/json" + as + "PartialObjectMetadataList",
			"PartialObjectMetadataList", "PartialObjectMetadata"},
		{"metadata_in_protobuf_first", list, proto + as + "PartialObjectMetadataList,application/json" + as +
			"PartialObjectMetadataList,application/json", "PartialObjectMetadataList", "PartialObjectMetadata"},
		{"metadata_of_a_list_in_the_wrong_form", list, "application/json" + as + "PartialObjectMetadata", "", ""},
		{"metadata_or_whole", list, "application/json" + as + "PartialObjectMetadata,application/json",
			"ServiceAccountList", "ServiceAccount"},
		{"table", list, "application/json" + as + "Table", "", ""},
		{"protobuf_only", list, proto, "", ""},
		{"html", list, "text/html", "", ""},
		{"watch", watch, "application/json", "", "ServiceAccount"},
		{"watch_metadata", watch, "application/json" + as + "PartialObjectMetadata", "", "PartialObjectMetadata"},
		{"watch_metadata_in_the_wrong_form", watch, "application/json" + as + "PartialObjectMetadataList", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.itemKind == "" {
				if s := status(t, f.raw(t, "GET", tt.path, "", "Accept", tt.accept)); s.Reason != metav1.StatusReasonNotAcceptable {
					t.Errorf("got %+v, want not acceptable", s)
				}
				return
			}
			if strings.HasPrefix(tt.path, watch) {
				e := f.watch(t, tt.path, "Accept", tt.accept).expect(t, "ADDED orders")
				if e.Object.Kind != tt.itemKind || e.Object.Metadata.Annotations["k"] != "v" {
					t.Errorf("got %+v, want a %s", e, tt.itemKind)
				}
				return
			}
			r := f.raw(t, "GET", tt.path, "", "Accept", tt.accept)
			var got struct {
				Kind  string
				Items []map[string]any
			}
			check(t, json.NewDecoder(r.Body).Decode(&got))
			if got.Kind != tt.kind || len(got.Items) != 1 || got.Items[0]["kind"] != tt.itemKind {
				t.Fatalf("got %+v, want a %s of one %s", got, tt.kind, tt.itemKind)
			}
			if _, whole := got.Items[0]["secrets"]; whole != (tt.itemKind == "ServiceAccount") {
				t.Errorf("got %v", got.Items[0])
			}
			if diff := cmp.Diff("application/json", r.Header.Get("Content-Type")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPutRefuses(t *testing.T) {
	f := newFixture(t, nil)
	if err := f.Put(&metav1.PartialObjectMetadata{}); err == nil {
		t.Error("want an error for an object of another kind")
	}
	if err := f.Put(namespace("")); err == nil {
		t.Error("want an error for an object without a name")
	}
	nowhere := account("a", nil)
	nowhere.Namespace = ""
	if err := f.Put(nowhere); err == nil {
		t.Error("want an error for a ServiceAccount without a namespace")
	}
	if err := f.Delete("pods", "shop", "a"); err == nil {
		t.Error("want an error for what is not there")
	}
	if _, err := kubetest.New(kubetest.Config{}); err == nil {
		t.Error("want an error without a configuration")
	}
}
