package kubefiles

import (
	"context"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// listWatch is a collection as one client sees it. It follows the rules of the API server's list and watch, streaming
// lists included (https://kubernetes.io/docs/reference/using-api/api-concepts/), but never ends a watch by itself:
// timeoutSeconds is there to spread the load on servers.
type listWatch struct {
	kind       kind
	collection *collection
	selection  selection
}

var (
	_ cache.ListerWatcher            = (*listWatch)(nil)
	_ cache.ListerWatcherWithContext = (*listWatch)(nil)
)

// List implements [cache.Lister].
func (l *listWatch) List(options metav1.ListOptions) (runtime.Object, error) {
	return l.ListWithContext(context.Background(), options)
}

// ListWithContext implements [cache.ListerWithContext]. Lists come in one piece: limit is not honoured, as the API
// allows.
func (l *listWatch) ListWithContext(_ context.Context, options metav1.ListOptions) (runtime.Object, error) {
	s, err := l.selection.with(options)
	if err != nil {
		return nil, err
	}
	version, err := parseVersion(options.ResourceVersion)
	if err != nil {
		return nil, err
	}
	l.collection.mu.Lock()
	current, objects := l.collection.version, l.collection.snapshotLocked(s)
	l.collection.mu.Unlock()
	switch {
	case options.Continue != "":
		return nil, apierrors.NewResourceExpired("there are no lists to be continued")
	case version > current:
		return nil, tooLarge(version, current)
	case options.ResourceVersionMatch == metav1.ResourceVersionMatchExact && version != current:
		return nil, expired(version)
	}
	return l.list(s, objects, current), nil
}

// list makes a list of the kind's type.
func (l *listWatch) list(s selection, objects []object, version uint64) runtime.Object {
	meta := metav1.ListMeta{ResourceVersion: formatVersion(version)}
	if l.kind == kindPod {
		list := &corev1.PodList{ListMeta: meta, Items: make([]corev1.Pod, 0, len(objects))}
		for _, o := range objects {
			list.Items = append(list.Items, *s.present(o).(*corev1.Pod))
		}
		return list
	}
	list := &metav1.PartialObjectMetadataList{ListMeta: meta}
	list.Items = make([]metav1.PartialObjectMetadata, 0, len(objects))
	for _, o := range objects {
		list.Items = append(list.Items, *s.present(o).(*metav1.PartialObjectMetadata))
	}
	return list
}

// Watch implements [cache.Watcher].
func (l *listWatch) Watch(options metav1.ListOptions) (watch.Interface, error) {
	return l.WatchWithContext(context.Background(), options)
}

// WatchWithContext implements [cache.WatcherWithContext]. The watch ends when it is stopped or ctx ends.
func (l *listWatch) WatchWithContext(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	s, err := l.selection.with(options)
	if err != nil {
		return nil, err
	}
	version, err := parseVersion(options.ResourceVersion)
	if err != nil {
		return nil, err
	}
	streaming := options.SendInitialEvents != nil
	if streaming && options.ResourceVersionMatch != metav1.ResourceVersionMatchNotOlderThan {
		return nil, apierrors.NewBadRequest("sendInitialEvents needs resourceVersionMatch NotOlderThan")
	}
	c := l.collection
	c.mu.Lock()
	defer c.mu.Unlock()
	if version > c.version {
		return nil, tooLarge(version, c.version)
	}
	w := &watcher{collection: c, selection: s, version: version, results: make(chan watch.Event)}
	switch {
	case streaming && *options.SendInitialEvents, !streaming && version == 0:
		// All there is, then what changes.
		w.initial, w.version = c.snapshotLocked(s), c.version
		if streaming && options.AllowWatchBookmarks {
			w.bookmark = l.bookmark(c.version)
		}
	case version == 0:
		w.version = c.version
	default:
		if _, ok := c.sinceLocked(version); !ok {
			return nil, expired(version)
		}
	}
	c.watchers[w] = struct{}{}
	w.start(ctx)
	return w, nil
}

// bookmark is the event that ends the initial events of a streaming list.
func (l *listWatch) bookmark(version uint64) object {
	meta := metav1.ObjectMeta{
		ResourceVersion: formatVersion(version),
		Annotations:     map[string]string{metav1.InitialEventsAnnotationKey: "true"},
	}
	if l.kind == kindPod {
		return &corev1.Pod{ObjectMeta: meta}
	}
	return partial(l.kind, meta)
}

// parseVersion reads a resource version; none is zero, which is any.
func parseVersion(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version %q", s))
	}
	return v, nil
}

// expired is the 410 that makes a reflector list anew.
func expired(version uint64) error {
	return apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d", version))
}

// tooLarge is what the API server answers about a version that it has not seen; reflectors recognise the cause.
func tooLarge(version, current uint64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", version, current), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{
		{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"},
	}
	return err
}
