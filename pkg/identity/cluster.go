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

// Cluster is how an API server is read.
type Cluster struct {
	Client  kubernetes.Interface // required
	Objects metadata.Interface   // required
	Node    string               // whose pods; required
	Quiet   Quiet
	Pulse   *Pulse // of the watch of pods; may be nil
	Reach   *Reach // told of every request; may be nil
}

// Sources reads the pods of the node, and the metadata of Namespaces and ServiceAccounts.
func (c Cluster) Sources() Sources {
	pods := c.Client.CoreV1().Pods(metav1.NamespaceAll)
	return Sources{
		Pods: c.listerWatcher(c.Client,
			fields.OneTermEqualSelector("spec.nodeName", c.Node),
			func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return pods.List(ctx, o) },
			pods.Watch,
			c.Quiet.Pods, c.Pulse),
		ServiceAccounts: func(namespace string) cache.ListerWatcher {
			return c.metadataOf("serviceaccounts", namespace, fields.Everything())
		},
		Namespaces: func(name string) cache.ListerWatcher {
			return c.metadataOf("namespaces", metav1.NamespaceAll, fields.OneTermEqualSelector("metadata.name", name))
		},
	}
}

func (c Cluster) metadataOf(resource, namespace string, selector fields.Selector) cache.ListerWatcher {
	client := c.Objects.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource}).Namespace(namespace)
	return c.listerWatcher(c.Objects, selector,
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) },
		client.Watch,
		c.Quiet.Namespaces, nil)
}

// listerWatcher narrows list and watch to selector, and has silent watches end. client tells whether streaming lists are understood.
func (c Cluster) listerWatcher(
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
			object, err := list(ctx, o)
			c.Reach.note(ctx, err)
			return object, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.FieldSelector = selector.String()
			w, err := follow(ctx, o)
			c.Reach.note(ctx, err)
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
