package kubetest_test

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/kubetest"
)

func TestSelfSubjectReview(t *testing.T) {
	const extra = "authentication.kubernetes.io/"
	type values = authenticationv1.ExtraValue
	for name, tt := range map[string]struct {
		change func(*kubetest.Config)
		want   authenticationv1.UserInfo
	}{
		"bound": {bound, authenticationv1.UserInfo{
			Username: user, UID: "uid-of-podrole",
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:podrole", "system:authenticated"},
			Extra: map[string]values{
				extra + "node-name": {"box"}, extra + "pod-name": {"podrole-box"}, extra + "pod-uid": {"uid-of-podrole-box"},
			},
		}},
		"unbound": {nil, authenticationv1.UserInfo{
			Username: user, UID: "uid-of-podrole",
			Groups: []string{"system:serviceaccounts", "system:serviceaccounts:podrole", "system:authenticated"},
			Extra:  map[string]values{},
		}},
		"node": {func(c *kubetest.Config) { c.User = "system:node:box" }, authenticationv1.UserInfo{
			Username: "system:node:box", Groups: []string{"system:nodes", "system:authenticated"}, Extra: map[string]values{},
		}},
		"somebody": {func(c *kubetest.Config) { c.User = "jane" }, authenticationv1.UserInfo{
			Username: "jane", Groups: []string{"system:authenticated"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, tt.change)
			own := account("podrole", nil)
			own.Namespace, own.UID = "podrole", "uid-of-podrole"
			f.put(t, own)
			review, err := f.client.AuthenticationV1().SelfSubjectReviews().Create(
				t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
			check(t, err)
			got := review.Status.UserInfo
			if _, ok := got.Extra[extra+"credential-id"]; ok == (name == "somebody") {
				t.Errorf("credential ID: %v", ok)
			}
			delete(got.Extra, extra+"credential-id")
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNewRefusesHalfABoundToken(t *testing.T) {
	rbac, err := kubetest.ReadRBAC(rights()...)
	check(t, err)
	issuer, err := awstest.NewIssuer(awstest.IssuerConfig{URL: "https://issuer.example"})
	check(t, err)
	cfg := kubetest.Config{User: user, BearerToken: bearer, RBAC: rbac, Signer: issuer, Node: "box", Pod: "podrole-box"}
	if _, err := kubetest.New(cfg); err == nil {
		t.Error("want an error for a pod without a UID")
	}
}

func TestSelfSubjectAccessReview(t *testing.T) {
	f := newFixture(t, nil)
	type attributes = authorizationv1.ResourceAttributes
	for name, tt := range map[string]struct {
		ask  attributes
		want bool
	}{
		"list_pods":              {attributes{Verb: "list", Resource: "pods"}, true},
		"list_pods_there":        {attributes{Verb: "list", Resource: "pods", Namespace: "shop"}, true},
		"get_pod":                {attributes{Verb: "get", Resource: "pods", Name: "a"}, false},
		"pods_of_another_group":  {attributes{Verb: "list", Resource: "pods", Group: "metrics.k8s.io"}, false},
		"get_node":               {attributes{Verb: "get", Resource: "nodes", Name: "box"}, false},
		"patch_node":             {attributes{Verb: "patch", Resource: "nodes", Name: "box"}, false},
		"create_token":           {attributes{Verb: "create", Resource: "serviceaccounts", Subresource: "token"}, true},
		"create_token_in_one":    {attributes{Verb: "create", Resource: "serviceaccounts/token"}, true},
		"create_account":         {attributes{Verb: "create", Resource: "serviceaccounts"}, false},
		"list_secrets":           {attributes{Verb: "list", Resource: "secrets"}, false},
		"anything":               {attributes{Verb: "*", Group: "*", Resource: "*"}, false},
		"any_verb_of_pods":       {attributes{Verb: "*", Resource: "pods"}, false},
		"list_anything":          {attributes{Verb: "list", Resource: "*"}, false},
		"impersonate_a_user":     {attributes{Verb: "impersonate", Resource: "users"}, false},
		"create_self_review":     {attributes{Verb: "create", Group: "authentication.k8s.io", Resource: "selfsubjectreviews"}, true},
		"create_access_review":   {attributes{Verb: "create", Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}, true},
		"list_access_reviews":    {attributes{Verb: "list", Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}, false},
		"create_review_of_other": {attributes{Verb: "create", Group: "authorization.k8s.io", Resource: "subjectaccessreviews"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := f.client.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
				Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &tt.ask},
			}, metav1.CreateOptions{})
			check(t, err)
			if got.Status.Allowed != tt.want {
				t.Errorf("allowed: %v, want %v", got.Status.Allowed, tt.want)
			}
		})
	}
}

// TestAccessReviewOfWildcards: who may do everything may do what is called *.
func TestAccessReviewOfWildcards(t *testing.T) {
	admin := edited(t, nodeLabels, "verbs: [\"get\"]", "verbs: [\"*\"]")
	rbac, err := kubetest.ReadRBAC(admin)
	check(t, err)
	f := newFixture(t, func(c *kubetest.Config) { c.RBAC = rbac })
	for resource, want := range map[string]bool{"nodes": true, "pods": false} {
		got, err := f.client.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{
				ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "*", Resource: resource},
			},
		}, metav1.CreateOptions{})
		check(t, err)
		if got.Status.Allowed != want {
			t.Errorf("%s: allowed: %v", resource, got.Status.Allowed)
		}
	}
}

func TestReviewBodies(t *testing.T) {
	f := newFixture(t, nil)
	const (
		self   = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
		access = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
		review = `{"apiVersion":"authorization.k8s.io/v1","kind":"SelfSubjectAccessReview",`
	)
	for name, tt := range map[string]struct {
		path, body string
		want       int
	}{
		"path_that_is_no_resource": {access, review + `"spec":{"nonResourceAttributes":{"verb":"get","path":"/metrics"}}}`, 201},
		"neither":                  {access, review + `"spec":{}}`, 422},
		"both":                     {access, review + `"spec":{"resourceAttributes":{},"nonResourceAttributes":{}}}`, 422},
		"named":                    {access, review + `"metadata":{"name":"a"},"spec":{"resourceAttributes":{}}}`, 422},
		"selector":                 {access, review + `"spec":{"resourceAttributes":{"fieldSelector":{"rawSelector":"a=b"}}}}`, 400},
		"another_kind":             {self, review + `"spec":{"resourceAttributes":{}}}`, 400},
		"another_version":          {"/apis/authorization.k8s.io/v1beta1/selfsubjectaccessreviews", review + `"spec":{}}`, 404},
		"read":                     {self, "", 403},
	} {
		t.Run(name, func(t *testing.T) {
			method := http.MethodPost
			if tt.body == "" {
				method = http.MethodGet
			}
			if r := f.raw(t, method, tt.path, tt.body); r.StatusCode != tt.want {
				t.Errorf("got %s, want %d", r.Status, tt.want)
			}
		})
	}
}
