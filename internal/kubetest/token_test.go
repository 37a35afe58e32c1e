package kubetest_test

import (
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/internal/kubetest"
)

func TestTokenRequest(t *testing.T) {
	f := newFixture(t, nil)
	other := pod("other", "box")
	other.Spec.ServiceAccountName = "reports"
	f.put(t, account("orders", nil), pod("a", "box"), other)
	type spec = authenticationv1.TokenRequestSpec
	keep := func(*spec) {}
	tests := []struct {
		name, account string
		change        func(*spec)
		reason        metav1.StatusReason
		kind          string // of the object that the error is about
	}{
		{"good", "orders", keep, "", ""},
		{"uid_left_out", "orders", func(s *spec) { s.BoundObjectRef.UID = "" }, "", ""},
		{"unknown_account", "nobody", keep, metav1.StatusReasonNotFound, "serviceaccounts"},
		{"unknown_pod", "orders", func(s *spec) { s.BoundObjectRef.Name = "b" },
			metav1.StatusReasonNotFound, "pods"},
		{"pods_successor", "orders", func(s *spec) { s.BoundObjectRef.UID = "x" },
			metav1.StatusReasonConflict, "Pod"},
		{"pod_of_another_account", "orders", func(s *spec) { s.BoundObjectRef.Name = "other" },
			metav1.StatusReasonBadRequest, ""},
		{"bound_to_a_secret", "orders", func(s *spec) { s.BoundObjectRef.Kind = "Secret" },
			metav1.StatusReasonBadRequest, ""},
		{"too_short", "orders", func(s *spec) { s.ExpirationSeconds = new(int64(599)) },
			metav1.StatusReasonInvalid, "TokenRequest"},
		{"too_long", "orders", func(s *spec) { s.ExpirationSeconds = new(int64(1<<32 + 1)) },
			metav1.StatusReasonInvalid, "TokenRequest"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := spec{
				Audiences:         []string{"sts.amazonaws.com"},
				ExpirationSeconds: new(int64(600)),
				BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "a", UID: "uid-of-a"},
			}
			tt.change(&asked)
			got, err := f.client.CoreV1().ServiceAccounts("shop").CreateToken(t.Context(), tt.account,
				&authenticationv1.TokenRequest{Spec: asked}, metav1.CreateOptions{})
			if tt.reason != "" {
				status, ok := err.(apierrors.APIStatus)
				if !ok || status.Status().Reason != tt.reason {
					t.Fatalf("got %v, want %s", err, tt.reason)
				}
				if d := status.Status().Details; tt.kind != "" && (d == nil || d.Kind != tt.kind) {
					t.Errorf("got details %+v, want kind %s", d, tt.kind)
				}
				return
			}
			check(t, err)
			f.verify(t, got)
		})
	}
	granted := f.Count(func(r kubetest.Request) bool {
		return r.Verb == "create" && r.Resource == "serviceaccounts/token" && r.Status == http.StatusCreated
	})
	if granted != 2 || len(f.Tokens()) != 2 {
		t.Errorf("counted %d granted and %d tokens, want 2 each", granted, len(f.Tokens()))
	}
}

// verify checks a token against the issuer's keys, and what it says.
func (f *fixture) verify(t *testing.T, got *authenticationv1.TokenRequest) {
	t.Helper()
	if !slices.Contains(f.Tokens(), got.Status.Token) {
		t.Error("the token is not among those that were granted")
	}
	if left := time.Until(got.Status.ExpirationTimestamp.Time); left < 9*time.Minute || left > 10*time.Minute {
		t.Errorf("expires in %s", left)
	}
	parsed, err := jwt.ParseSigned(got.Status.Token, []jose.SignatureAlgorithm{jose.ES256})
	check(t, err)
	keys, err := f.issuer.Keys(t.Context())
	check(t, err)
	var claims struct {
		Subject  string   `json:"sub"`
		Audience []string `json:"aud"`
		Bound    struct {
			Pod  map[string]string `json:"pod"`
			Node map[string]string `json:"node"`
		} `json:"kubernetes.io"`
	}
	check(t, parsed.Claims(keys, &claims))
	if claims.Subject != "system:serviceaccount:shop:orders" || !slices.Equal(claims.Audience, []string{"sts.amazonaws.com"}) {
		t.Errorf("got %+v", claims)
	}
	bound := map[string]string{"name": "a", "uid": "uid-of-a"}
	if diff := cmp.Diff(bound, claims.Bound.Pod); diff != "" || claims.Bound.Node["name"] != "box" {
		t.Errorf("bound to %+v", claims.Bound)
	}
}

func TestTokenRequestBodies(t *testing.T) {
	f := newFixture(t, nil)
	f.put(t, account("orders", nil))
	const path = "/api/v1/namespaces/shop/serviceaccounts/orders/token"
	for name, tt := range map[string]struct {
		body string
		want int
	}{
		"json":           {`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"audiences":["a"]}}`, 201},
		"another_name":   {`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","metadata":{"name":"x"},"spec":{}}`, 422},
		"another_uid":    {`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","metadata":{"uid":"x"},"spec":{}}`, 409},
		"another_kind":   {`{"apiVersion":"v1","kind":"Pod"}`, 400},
		"no_kind":        {`{}`, 400},
		"not_json":       {`{`, 400},
		"empty":          {``, 400},
		"false_protobuf": {"k8s\x00\xff", 400},
	} {
		t.Run(name, func(t *testing.T) {
			if r := f.raw(t, http.MethodPost, path, tt.body); r.StatusCode != tt.want {
				t.Errorf("got %s, want %d", r.Status, tt.want)
			}
		})
	}
}
