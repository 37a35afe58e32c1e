package kubetest

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	watchapi "k8s.io/apimachinery/pkg/watch"
)

// watch is one client that follows changes. Its version is its own; the rest belongs to the store.
type watch struct {
	selection selection
	version   uint64 // up to which everything has been delivered

	dropped bool // nothing arrives any more, and nobody is told; guarded by store.mu
}

// watch streams events until the client leaves, the time it asked for is over, or history does not go back far enough.
func (x *exchange) watch(s selection, options internalversion.ListOptions) error {
	version, err := parseVersion(options.ResourceVersion)
	if err != nil {
		return err
	}
	x.streaming = options.SendInitialEvents != nil && *options.SendInitialEvents
	// Where streaming lists are unknown, a watch from nowhere begins with what there is all the same.
	initial := x.streaming || options.SendInitialEvents == nil && version == 0
	store := x.api.store
	store.mu.Lock()
	if version > store.version {
		defer store.mu.Unlock()
		return tooLarge(version, store.version)
	}
	w := &watch{selection: s, version: version}
	var events []watchapi.Event
	if initial {
		for _, o := range store.selectLocked(s) {
			events = append(events, watchapi.Event{Type: watchapi.Added, Object: o})
		}
	}
	if initial || version == 0 {
		w.version = store.version
	}
	if x.streaming && options.AllowWatchBookmarks {
		events = append(events, s.bookmark(w.version, map[string]string{metav1.InitialEventsAnnotationKey: "true"}))
	}
	store.watches[w] = struct{}{}
	store.mu.Unlock()
	defer store.forget(w)

	x.header(http.StatusOK)
	out := &eventWriter{exchange: x, encoder: json.NewEncoder(x.w), controller: http.NewResponseController(x.w)}
	if out.write(events) {
		x.follow(w, out, options)
	}
	return nil
}

// follow delivers what comes after the initial events.
func (x *exchange) follow(w *watch, out *eventWriter, options internalversion.ListOptions) {
	var end, bookmarks <-chan time.Time
	if options.TimeoutSeconds != nil && *options.TimeoutSeconds > 0 {
		timer := time.NewTimer(time.Duration(*options.TimeoutSeconds) * time.Second)
		defer timer.Stop()
		end = timer.C
	}
	if options.AllowWatchBookmarks {
		ticker := time.NewTicker(x.api.cfg.BookmarkEvery)
		defer ticker.Stop()
		bookmarks = ticker.C
	}
	due := time.NewTimer(0)
	defer due.Stop()
	for {
		next := x.api.store.next(w, time.Now())
		if next.dropped {
			<-x.r.Context().Done()
			return
		}
		if !out.write(next.events) || next.over {
			return
		}
		due.Reset(next.wait)
		select {
		case <-x.r.Context().Done():
			return
		case <-end:
			return
		case <-bookmarks:
			if !out.write([]watchapi.Event{w.selection.bookmark(w.version, nil)}) {
				return
			}
		case <-due.C:
		case <-next.stirred:
		}
	}
}

// step is what a watch does next.
type step struct {
	events  []watchapi.Event
	wait    time.Duration // until there may be more
	stirred <-chan struct{}
	over    bool
	dropped bool
}

// next returns what is due for w, and moves it on.
func (s *store) next(w *watch, now time.Time) step {
	const forever = 24 * time.Hour
	s.mu.Lock()
	defer s.mu.Unlock()
	out := step{wait: forever, stirred: s.stirred, over: s.unavailable, dropped: w.dropped}
	if out.over || out.dropped {
		return out
	}
	changes, ok := s.sinceLocked(w.version)
	if !ok {
		out.events = []watchapi.Event{{Type: watchapi.Error, Object: statusObject(expired(w.version))}}
		out.over = true
		return out
	}
	for _, c := range changes {
		if wait := c.at.Add(s.delay).Sub(now); wait > 0 {
			out.wait = wait
			break
		}
		if e, visible := w.selection.event(c); visible {
			out.events = append(out.events, e)
		}
		w.version = c.version
	}
	return out
}

func (s *store) forget(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watches, w)
}

// bookmark says that everything up to version has been delivered.
func (s selection) bookmark(version uint64, annotations map[string]string) watchapi.Event {
	m := metav1.ObjectMeta{ResourceVersion: formatVersion(version), Annotations: annotations}
	return watchapi.Event{Type: watchapi.Bookmark, Object: s.kind.bare(m)}
}

// eventWriter writes events in the form that was asked for.
type eventWriter struct {
	exchange   *exchange
	encoder    *json.Encoder
	controller *http.ResponseController
}

// write reports whether the client is still there. Without events it sends the header on its way.
func (e *eventWriter) write(events []watchapi.Event) bool {
	for _, event := range events {
		var o runtime.Object = event.Object
		if whole, ok := o.(object); ok {
			o = e.exchange.present(whole)
		}
		frame := metav1.WatchEvent{Type: string(event.Type), Object: runtime.RawExtension{Object: o}}
		if err := e.encoder.Encode(frame); err != nil {
			return false
		}
	}
	err := e.controller.Flush()
	return err == nil || errors.Is(err, http.ErrNotSupported)
}
