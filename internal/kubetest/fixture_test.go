package kubetest_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/kubetest"
)

// rights returns the manifests that say what an agent with the right to tokens may do.
func rights() []string {
	return []string{manifests + "base/rbac.yaml", manifests + "policies/direct-tokens/rbac.yaml"}
}

const (
	manifests  = "../../manifests/"
	nodeLabels = manifests + "options/node-labels/rbac.yaml" // the right to read Nodes
	user       = "system:serviceaccount:podrole:podrole"
	bearer     = "a-bearer-token"
	patience   = 20 * time.Second
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixture is an API with the rights of the manifests, served over plain HTTP, and clients of it.
type fixture struct {
	*kubetest.API
	issuer  *awstest.Issuer
	url     string
	client  kubernetes.Interface
	objects metadata.Interface
}

func newFixture(t *testing.T, change func(*kubetest.Config)) *fixture {
	t.Helper()
	rbac, err := kubetest.ReadRBAC(rights()...)
	check(t, err)
	f := &fixture{}
	f.issuer, err = awstest.NewIssuer(awstest.IssuerConfig{URL: "https://issuer.example"})
	check(t, err)
	cfg := kubetest.Config{User: user, BearerToken: bearer, RBAC: rbac, Signer: f.issuer}
	if change != nil {
		change(&cfg)
	}
	f.API, err = kubetest.New(cfg)
	check(t, err)
	server := httptest.NewServer(f.API)
	t.Cleanup(func() {
		server.CloseClientConnections() // watches end only with their connections
		server.Close()
	})
	f.url = server.URL
	rc := &rest.Config{Host: server.URL, BearerToken: bearer, QPS: -1}
	f.client, err = kubernetes.NewForConfig(rc)
	check(t, err)
	f.objects, err = metadata.NewForConfig(rc)
	check(t, err)
	return f
}

func (f *fixture) put(t *testing.T, objects ...any) {
	t.Helper()
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Pod:
			check(t, f.Put(o))
		case *corev1.ServiceAccount:
			check(t, f.Put(o))
		case *corev1.Namespace:
			check(t, f.Put(o))
		case *corev1.Node:
			check(t, f.Put(o))
		}
	}
}

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-of-" + name)},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "orders"},
	}
}

func account(name string, annotations map[string]string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: annotations},
		Secrets:    []corev1.ObjectReference{{Name: "not-metadata"}},
	}
}

func namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// raw makes a request without client-go. headers are pairs; an empty value leaves a header out.
func (f *fixture) raw(t *testing.T, method, path, body string, headers ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, f.url+path, strings.NewReader(body))
	check(t, err)
	r.Header.Set("Authorization", "Bearer "+bearer)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
		}
	}
	response, err := http.DefaultClient.Do(r)
	check(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func status(t *testing.T, r *http.Response) metav1.Status {
	t.Helper()
	var s metav1.Status
	check(t, json.NewDecoder(r.Body).Decode(&s))
	if s.Kind != "Status" || s.APIVersion != "v1" || s.Status != metav1.StatusFailure || int(s.Code) != r.StatusCode {
		t.Errorf("HTTP %d with %+v, want a Status of the same code", r.StatusCode, s)
	}
	return s
}

// event is one frame of a watch, as far as the tests look at it.
type event struct {
	Type   string
	Object struct {
		Kind, APIVersion string
		Code             int
		Metadata         metav1.ObjectMeta
		Spec             map[string]any
	}
}

func (e event) String() string {
	return fmt.Sprintf("%s %s %s@%s", e.Type, e.Object.Kind, e.Object.Metadata.Name, e.Object.Metadata.ResourceVersion)
}

// stream is a watch whose events arrive on a channel, which is closed with the watch.
type stream struct{ events chan event }

func (f *fixture) watch(t *testing.T, path string, headers ...string) *stream {
	t.Helper()
	response := f.raw(t, http.MethodGet, path, "", headers...)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("watch %s: %+v", path, status(t, response))
	}
	s := &stream{events: make(chan event, 1024)}
	go func() {
		defer close(s.events)
		decoder := json.NewDecoder(response.Body)
		for {
			var e event
			if decoder.Decode(&e) != nil {
				return
			}
			s.events <- e
		}
	}()
	return s
}

// next returns the next event, and false at the end.
func (s *stream) next(t *testing.T) (event, bool) {
	t.Helper()
	select {
	case e, ok := <-s.events:
		return e, ok
	case <-time.After(patience):
		t.Fatal("no event")
		return event{}, false
	}
}

// expect fails unless the next events are those, by type and name.
func (s *stream) expect(t *testing.T, want ...string) (last event) {
	t.Helper()
	for _, w := range want {
		e, ok := s.next(t)
		if got := strings.TrimSpace(e.Type + " " + e.Object.Metadata.Name); !ok || got != w {
			t.Fatalf("got %v (%v), want %s", e, ok, w)
		}
		last = e
	}
	return last
}
