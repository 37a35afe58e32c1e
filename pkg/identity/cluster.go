package identity

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

// ClusterSources reads from an API server: the pods of node, and the metadata of Namespaces and ServiceAccounts. pulse is
// that of the watch of pods.
func ClusterSources(
	client kubernetes.Interface, objects metadata.Interface, node string, quiet Quiet, pulse *Pulse,
) Sources {
	return Sources{
		Pods: listerWatcher(client,
			fields.OneTermEqualSelector("spec.nodeName", node),
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, o)
			},
			client.CoreV1().Pods(metav1.NamespaceAll).Watch,
			quiet.Pods, pulse),
		ServiceAccounts: func(namespace string) cache.ListerWatcher {
			return metadataOf(objects, "serviceaccounts", namespace, fields.Everything(), quiet.Namespaces)
		},
		Namespaces: func(name string) cache.ListerWatcher {
			one := fields.OneTermEqualSelector("metadata.name", name)
			return metadataOf(objects, "namespaces", metav1.NamespaceAll, one, quiet.Namespaces)
		},
	}
}

func metadataOf(
	objects metadata.Interface, resource, namespace string, selector fields.Selector, quiet time.Duration,
) cache.ListerWatcher {
	client := objects.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource}).Namespace(namespace)
	return listerWatcher(objects, selector,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
		client.Watch,
		quiet, nil)
}

// listerWatcher narrows list and watch to selector, and has silent watches end. client tells whether streaming lists are understood.
func listerWatcher(
	client any,
	selector fields.Selector,
	list func(context.Context, metav1.ListOptions) (runtime.Object, error),
	follow func(context.Context, metav1.ListOptions) (watch.Interface, error),
	quiet time.Duration,
	pulse *Pulse,
) cache.ListerWatcher {
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector.String()
			return list(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector.String()
			w, err := follow(ctx, o)
			if err != nil {
				return nil, err
			}
			if quiet <= 0 {
				return w, nil
			}
			return ended(w, quiet, pulse), nil
		},
	}, client)
}
