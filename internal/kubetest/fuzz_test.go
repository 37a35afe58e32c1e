package kubetest_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/kubetest"
)

// FuzzRequests: whatever is asked, the answer is one, and nothing that the manifest does not allow succeeds.
func FuzzRequests(f *testing.F) {
	const box = "system:node:box"
	f.Add("GET", "/api/v1/pods", "fieldSelector=spec.nodeName%3Dbox&limit=500", "application/json", "", "", "")
	f.Add("GET", "/api/v1/pods", "fieldSelector=spec.nodeName%3Dbox", "", "", box, "")
	f.Add("GET", "/api/v1/namespaces/shop/serviceaccounts", "resourceVersion=0",
		"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "", "", "")
	f.Add("POST", "/api/v1/namespaces/shop/serviceaccounts/orders/token", "", "", "", "",
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest"}`)
	f.Add("POST", "/api/v1/namespaces/shop/serviceaccounts/orders/token", "dryRun=All", "", "", box,
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"audiences":["sts.amazonaws.com"],`+
			`"boundObjectRef":{"apiVersion":"v1","kind":"Pod","name":"a","uid":"uid-of-a"}}}`)
	f.Add("POST", "/api/v1/namespaces/shop/events", "", "", "", "",
		`{"apiVersion":"v1","kind":"Event","metadata":{"name":"a"},"involvedObject":{"namespace":"shop"}}`)
	f.Add("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "", "", "", "",
		`{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview","spec":{"resourceAttributes":{"verb":"*"}}}`)
	f.Add("PATCH", "/api/v1/nodes/box", "dryRun=All", "", "application/json-patch+json", "",
		`[{"op":"copy","from":"/metadata","path":"/spec/taints"}]`)
	f.Add("PATCH", "/api/v1/nodes/box", "", "", "application/merge-patch+json", "", `{"spec":{"taints":null},"metadata":null}`)
	f.Add("GET", "//api/v1//namespaces/../secrets", "sendInitialEvents=true", "*/*;q=0", "", "", "")
	f.Add("PATCH", "/apis/apps/v1/namespaces/a/b/c/d/e", "%", ",;,", "", "system:node:", "\x00")
	rbac, err := kubetest.ReadRBAC(append(rights(),
		manifests+"policies/node-tokens/rbac.yaml", manifests+"options/startup-taint/rbac.yaml")...)
	if err != nil {
		f.Fatal(err)
	}
	policies, err := kubetest.ReadPolicies(directPolicies, nodePolicies, taintPolicies)
	if err != nil {
		f.Fatal(err)
	}
	issuer, err := awstest.NewIssuer(awstest.IssuerConfig{URL: "https://issuer.example"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, path, query, accept, content, impersonate, body string) {
		cfg := kubetest.Config{User: user, BearerToken: bearer, RBAC: rbac, Policies: policies, Signer: issuer}
		bound(&cfg)
		api, err := kubetest.New(cfg)
		check(t, err)
		check(t, api.Put(account("orders", map[string]string{"podrole.io/role-arn": "arn"})))
		check(t, api.Put(pod("a", "box")))
		check(t, api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "box"}}))
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", strings.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		r.Header.Set("Authorization", "Bearer "+bearer)
		r.Header.Set("Accept", accept)
		r.Header.Set("Content-Type", content)
		r.Header.Set("Impersonate-User", impersonate)
		if w := r.URL.Query().Get("watch"); w != "" {
			return // may rightly last
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusGatewayTimeout {
			t.Errorf("%s %s?%s: %d %s", method, path, query, w.Code, w.Body)
		}
		allowed := func(resource string) bool { return strings.Contains(path, resource) }
		may := []string{"pods", "serviceaccounts", "namespaces", "events", "nodes", "selfsubject"}
		if w.Code < 300 && !slices.ContainsFunc(may, allowed) {
			t.Errorf("%s %s?%s is allowed", method, path, query)
		}
	})
}
