package kubetest_test

import (
	"net/http"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func eventOf(name, about string) *corev1.Event {
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: name},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: about, Name: "a"},
		Reason:         "Because", Count: 1,
	}
}

func TestEvents(t *testing.T) {
	f := newFixture(t, nil)
	events := f.client.CoreV1().Events("shop")
	if _, err := events.Create(t.Context(), eventOf("a.1", "shop"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := events.Create(t.Context(), eventOf("a.1", "shop"), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("the same Event again: got %v", err)
	}
	if _, err := events.Create(t.Context(), eventOf("a.2", "elsewhere"), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an Event about another namespace: got %v", err)
	}
	counted := []byte(`{"count":2}`)
	patch := func(name string, form types.PatchType, patch []byte) error {
		_, err := events.Patch(t.Context(), name, form, patch, metav1.PatchOptions{})
		return err
	}
	if err := patch("a.1", types.StrategicMergePatchType, counted); err != nil {
		t.Error(err)
	}
	if err := patch("a.3", types.StrategicMergePatchType, counted); !apierrors.IsNotFound(err) {
		t.Errorf("a patch of nothing: got %v", err)
	}
	if err := patch("a.1", types.MergePatchType, counted); !apierrors.IsUnsupportedMediaType(err) {
		t.Errorf("another form of patch: got %v", err)
	}
	for _, bad := range []string{`{`, `{"count":"two"}`, `{"metadata":{"name":"b"}}`} {
		if err := patch("a.1", types.StrategicMergePatchType, []byte(bad)); !apierrors.IsBadRequest(err) {
			t.Errorf("patch %s: got %v", bad, err)
		}
	}
	got := f.Events()
	if len(got) != 1 || got[0].Name != "a.1" || got[0].Namespace != "shop" || got[0].Reason != "Because" || got[0].Count != 2 {
		t.Errorf("got %+v", got)
	}
}

func TestEventBodies(t *testing.T) {
	f := newFixture(t, nil)
	const event = `{"apiVersion":"v1","kind":"Event","metadata":{"name":"a","namespace":"shop"},` +
		`"involvedObject":{"namespace":"shop"}}`
	for name, tt := range map[string]struct {
		namespace, body string
		want            int
	}{
		"json":              {"shop", event, http.StatusCreated},
		"another_namespace": {"other", event, http.StatusBadRequest},
		"of_no_namespace":   {"default", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"a"}}`, http.StatusCreated},
		"of_none_elsewhere": {"shop", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"b"}}`, http.StatusUnprocessableEntity},
		"another_kind":      {"shop", `{"apiVersion":"v1","kind":"Pod"}`, http.StatusBadRequest},
		"no_name":           {"shop", `{"apiVersion":"v1","kind":"Event"}`, http.StatusUnprocessableEntity},
		"not_json":          {"shop", `{`, http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			if r := f.raw(t, http.MethodPost, "/api/v1/namespaces/"+tt.namespace+"/events", tt.body); r.StatusCode != tt.want {
				t.Errorf("got %s, want %d", r.Status, tt.want)
			}
		})
	}
}
