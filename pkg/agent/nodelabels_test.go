package agent

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func TestNodeLabels(t *testing.T) {
	labels := map[string]string{"topology.kubernetes.io/region": "eu-west-1"}
	nodes := schema.GroupResource{Resource: "nodes"}
	for name, tt := range map[string]struct {
		failures []error
		want     map[string]string
	}{
		"at_once":   {nil, labels},
		"not_yet":   {[]error{errors.New("connection refused"), apierrors.NewServiceUnavailable("starting")}, labels},
		"forbidden": {[]error{apierrors.NewForbidden(nodes, "n1", nil)}, nil},
		"no_node":   {[]error{apierrors.NewNotFound(nodes, "n1")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: labels}})
				failures := tt.failures
				client.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
					if len(failures) == 0 {
						return false, nil, nil
					}
					err := failures[0]
					failures = failures[1:]
					return true, nil, err
				})
				var got map[string]string
				asked := 0
				readNodeLabels(t.Context(), client.CoreV1().Nodes(), "n1", slog.New(slog.DiscardHandler),
					func(labels map[string]string) bool {
						asked++
						got = labels
						return asked == 3 // as if the first two did not tell enough
					})
				if asked != 0 && asked != 3 {
					t.Errorf("told %d times", asked)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("labels (-want +got):\n%s", diff)
				}
			})
		})
	}
}
