package kubefiles

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
)

// batchSize is how many changes a watcher takes from its collection at a time.
const batchSize = 256

// watcher is one watch. It has one goroutine, which ends when the watch is stopped or its context ends.
type watcher struct {
	collection *collection
	selection  selection
	initial    []object // to be sent as added before anything else
	bookmark   object   // to be sent after initial; nil: none
	version    uint64   // up to which the watcher has taken changes; guarded by collection.mu
	results    chan watch.Event
	cancel     context.CancelFunc
}

var _ watch.Interface = (*watcher)(nil)

// start begins to send. The collection already knows the watcher.
func (w *watcher) start(ctx context.Context) {
	ctx, w.cancel = context.WithCancel(ctx)
	go w.run(ctx)
}

// Stop implements [watch.Interface]. It may be called more than once.
func (w *watcher) Stop() { w.cancel() }

// ResultChan implements [watch.Interface].
func (w *watcher) ResultChan() <-chan watch.Event { return w.results }

func (w *watcher) run(ctx context.Context) {
	defer close(w.results)
	defer w.cancel()
	defer w.leave()
	for _, o := range w.initial {
		if !w.send(ctx, watch.Event{Type: watch.Added, Object: w.selection.present(o)}) {
			return
		}
	}
	w.initial = nil
	if w.bookmark != nil && !w.send(ctx, watch.Event{Type: watch.Bookmark, Object: w.bookmark}) {
		return
	}
	for {
		batch, grown, ok := w.collection.next(w, batchSize)
		if !ok {
			status := expired(w.version).(apierrors.APIStatus).Status()
			w.send(ctx, watch.Event{Type: watch.Error, Object: &status})
			return
		}
		for _, ch := range batch {
			if e, visible := w.selection.event(ch); visible && !w.send(ctx, e) {
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return
		}
	}
}

// send tells whether the event was received.
func (w *watcher) send(ctx context.Context, e watch.Event) bool {
	select {
	case w.results <- e:
		return true
	case <-ctx.Done():
		return false
	}
}

// leave lets the collection forget what only this watcher needed.
func (w *watcher) leave() {
	w.collection.mu.Lock()
	defer w.collection.mu.Unlock()
	delete(w.collection.watchers, w)
	w.collection.trimLocked()
}
