package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// startupTaint is what keeps pods off a node until its agent serves.
type startupTaint struct {
	nodes  typedcorev1.NodeInterface
	node   string
	key    string
	logger *slog.Logger
}

// remove takes the taint off the node, if it has it, and tries until that is done or ctx ends. It is called when pods are
// led here and answered, and once: who taints the node later has other reasons.
func (t startupTaint) remove(ctx context.Context) {
	retry(ctx, time.Second, time.Minute, func(next time.Duration) (done bool) {
		removed, err := t.try(ctx)
		switch {
		case removed:
			t.logger.Info("startup taint removed: pods may come", "taint", t.key)
		case err != nil && ctx.Err() == nil:
			t.logger.Error("startup taint is not removed yet; pods stay away from this node",
				"taint", t.key, "retry_in", next, "error", err)
		}
		return err == nil
	})
}

func (t startupTaint) try(ctx context.Context) (removed bool, err error) {
	node, err := t.nodes.Get(ctx, t.node, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("read node %s: %w", t.node, err)
	}
	patch, err := withoutTaint(node.Spec.Taints, t.key)
	if err != nil || patch == nil {
		return false, err
	}
	if _, err := t.nodes.Patch(ctx, t.node, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
		return false, fmt.Errorf("patch node %s: %w", t.node, err)
	}
	return true, nil
}

// withoutTaint returns the JSON patch (RFC 6902) that takes all taints of that key away, or nil if there is none. It fails
// to apply where somebody else has changed the taints meanwhile.
func withoutTaint(taints []corev1.Taint, key string) ([]byte, error) {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value,omitempty"`
	}
	var patch []operation
	for i := len(taints) - 1; i >= 0; i-- { // from the end: what is removed moves those behind it
		if taints[i].Key == key {
			path := fmt.Sprintf("/spec/taints/%d", i)
			patch = append(patch, operation{"test", path, taints[i]}, operation{Op: "remove", Path: path})
		}
	}
	if patch == nil {
		return nil, nil
	}
	text, err := json.Marshal(patch)
	if err != nil {
		return nil, fmt.Errorf("write patch of taints: %w", err)
	}
	return text, nil
}
