package agent

import (
	"context"
	"log/slog"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// readNodeLabels tells the labels of the Node until that is enough: a cloud controller may write them some time after the
// Node has registered. It ends where the Node cannot be read at all.
func readNodeLabels(
	ctx context.Context, nodes typedcorev1.NodeInterface, name string, logger *slog.Logger,
	tell func(labels map[string]string) (enough bool),
) {
	retry(ctx, time.Second, 5*time.Minute, func(time.Duration) (done bool) {
		node, err := nodes.Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			return tell(node.Labels)
		case apierrors.IsForbidden(err), apierrors.IsNotFound(err):
			logger.Info("the Node's labels are not read; pods are told region and zone by flags alone",
				"node", name, "error", err)
			return true
		}
		return false
	})
}
