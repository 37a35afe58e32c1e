package agent

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

const testTaint = "podrole.io/agent-not-ready"

func tainted(keys ...string) *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	for _, key := range keys {
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule})
	}
	return node
}

func TestStartupTaintIsRemoved(t *testing.T) {
	other, third := "node.kubernetes.io/not-ready", "example.com/gpu"
	for name, tt := range map[string]struct{ before, after []string }{
		"none":    {nil, nil},
		"only":    {[]string{testTaint}, nil},
		"others":  {[]string{other, third}, []string{other, third}},
		"between": {[]string{other, testTaint, third}, []string{other, third}},
		"twice":   {[]string{testTaint, other, testTaint, third}, []string{other, third}}, // with two effects
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(tainted(tt.before...))
			startupTaint{client.CoreV1().Nodes(), "n1", testTaint, slog.New(slog.DiscardHandler)}.remove(t.Context())
			node, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var after []string
			for _, taint := range node.Spec.Taints {
				after = append(after, taint.Key)
			}
			if diff := cmp.Diff(tt.after, after); diff != "" {
				t.Errorf("taints (-want +got):\n%s", diff)
			}
		})
	}
}

// TestStartupTaintIsNotGivenUp: a refusal, or somebody who changes the taints at the same time, is tried again.
func TestStartupTaintIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(tainted("example.com/gpu", testTaint))
		refusals := 3
		client.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
			refusals--
			return refusals >= 0, nil, errors.New("no")
		})
		began := time.Now()
		startupTaint{client.CoreV1().Nodes(), "n1", testTaint, slog.New(slog.DiscardHandler)}.remove(t.Context())
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("took %s, want three pauses, each twice as long as the one before", took)
		}
		node, err := client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil || len(node.Spec.Taints) != 1 {
			t.Errorf("%v, %v", node, err)
		}
	})
}
