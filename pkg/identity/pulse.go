package identity

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/watch"
)

// Quiet bounds how long a watch of the API server may say nothing before it is taken for dead and made anew. A connection
// whose other end is gone, and whose packets a firewall drops, looks just like one on which nothing happens. To make a
// watch anew goes on where the last one was and costs the API server little; for pods, of which each agent has one watch,
// it may be done every minute, for the many watches of namespaces rarely. Zero is no bound.
type Quiet struct {
	Pods       time.Duration
	Namespaces time.Duration // and their ServiceAccounts
}

// Pulse is when a watch was last heard of. It is safe for concurrent use.
type Pulse struct{ last atomic.Int64 }

// Age returns how long ago that was: an event, a bookmark, or a new watch. Zero before the first.
func (p *Pulse) Age() time.Duration {
	if last := p.last.Load(); last != 0 {
		return time.Duration(time.Now().UnixNano() - last)
	}
	return 0
}

func (p *Pulse) beat() {
	if p != nil {
		p.last.Store(time.Now().UnixNano())
	}
}

// ended makes a watch end when nothing has been heard for quiet. pulse may be nil.
func ended(w watch.Interface, quiet time.Duration, pulse *Pulse) watch.Interface {
	ctx, cancel := context.WithCancel(context.Background())
	e := &endingWatch{inner: w, events: make(chan watch.Event), cancel: cancel}
	pulse.beat()
	go e.pass(ctx, quiet, pulse)
	return e
}

// endingWatch passes on another watch's events. Its goroutine ends with Stop, with the other watch, or with the quiet.
type endingWatch struct {
	inner  watch.Interface
	events chan watch.Event
	cancel context.CancelFunc
}

// Stop implements watch.Interface.
func (e *endingWatch) Stop() {
	e.cancel()
	e.inner.Stop()
}

// ResultChan implements watch.Interface.
func (e *endingWatch) ResultChan() <-chan watch.Event { return e.events }

func (e *endingWatch) pass(ctx context.Context, quiet time.Duration, pulse *Pulse) {
	defer close(e.events)
	defer e.inner.Stop()
	silence := time.NewTimer(quiet)
	defer silence.Stop()
	for {
		select {
		case event, open := <-e.inner.ResultChan():
			if !open {
				return
			}
			pulse.beat()
			silence.Reset(quiet)
			select {
			case e.events <- event:
			case <-ctx.Done():
				return
			}
		case <-silence.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
