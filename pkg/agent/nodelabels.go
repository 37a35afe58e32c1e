package agent

import (
	"context"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// nodeLabels reads the labels of the Node, and tries until that is done. It returns none where the Node cannot be read at all,
// or ctx ends: they are of help only where neither flags nor a metadata service tell the region.
func nodeLabels(
	ctx context.Context, nodes typedcorev1.NodeInterface, name string, logger *slog.Logger,
) (labels map[string]string) {
	retry(ctx, time.Second, 5*time.Minute, func(time.Duration) (done bool) {
		node, err := nodes.Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			labels = node.Labels
			return true
		case apierrors.IsForbidden(err), apierrors.IsNotFound(err):
			logger.Info("the Node's labels are not read; pods are told region and zone by flags and the metadata service alone",
				"node", name, "error", err)
			return true
		}
		return false
	})
	return labels
}
