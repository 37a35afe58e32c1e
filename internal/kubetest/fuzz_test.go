package kubetest_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/kubetest"
)

// FuzzRequests: whatever is asked, the answer is one, and nothing that the manifest does not allow succeeds.
func FuzzRequests(f *testing.F) {
	f.Add("GET", "/api/v1/pods", "fieldSelector=spec.nodeName%3Dbox&limit=500", "application/json", "")
	f.Add("GET", "/api/v1/namespaces/shop/serviceaccounts", "resourceVersion=0",
		"application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "")
	f.Add("POST", "/api/v1/namespaces/shop/serviceaccounts/orders/token", "", "",
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest"}`)
	f.Add("POST", "/api/v1/namespaces/shop/events", "", "",
		`{"apiVersion":"v1","kind":"Event","metadata":{"name":"a"},"involvedObject":{"namespace":"shop"}}`)
	f.Add("GET", "//api/v1//namespaces/../secrets", "sendInitialEvents=true", "*/*;q=0", "")
	f.Add("PATCH", "/apis/apps/v1/namespaces/a/b/c/d/e", "%", ",;,", "\x00")
	rbac, err := kubetest.ReadRBAC(manifest)
	if err != nil {
		f.Fatal(err)
	}
	issuer, err := awstest.NewIssuer(awstest.IssuerConfig{URL: "https://issuer.example"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, path, query, accept, body string) {
		api, err := kubetest.New(kubetest.Config{User: user, BearerToken: bearer, RBAC: rbac, Signer: issuer})
		check(t, err)
		check(t, api.Put(account("orders", nil)))
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", strings.NewReader(body))
		r.Method, r.URL = method, &url.URL{Path: path, RawQuery: query}
		r.Header.Set("Authorization", "Bearer "+bearer)
		r.Header.Set("Accept", accept)
		if w := r.URL.Query().Get("watch"); w != "" {
			return // may rightly last
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusGatewayTimeout {
			t.Errorf("%s %s?%s: %d %s", method, path, query, w.Code, w.Body)
		}
		allowed := func(resource string) bool { return strings.Contains(path, resource) }
		if w.Code < 300 && !slices.ContainsFunc([]string{"pods", "serviceaccounts", "namespaces", "events"}, allowed) {
			t.Errorf("%s %s?%s is allowed", method, path, query)
		}
	})
}
