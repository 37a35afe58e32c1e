package kubetest

import "time"

// SetUnavailable has every request answered with 503, and ends the watches there are; or ends that. An API server that
// cannot be connected to is the listener's matter.
func (a *API) SetUnavailable(unavailable bool) {
	a.store.change(func(s *store) { s.unavailable = unavailable })
}

// SetWatchDelay delivers every event that much later than it happened, those under way included, in order. Lists and
// initial events are of the present.
func (a *API) SetWatchDelay(d time.Duration) { a.store.change(func(s *store) { s.delay = d }) }

// DropWatches has the watches there are deliver nothing any more, without an end that the client could see, as with a
// connection that a load balancer forgot; and returns how many. Watches that begin later are whole.
func (a *API) DropWatches() int {
	n := 0
	a.store.change(func(s *store) {
		for w := range s.watches {
			if !w.dropped {
				w.dropped = true
				n++
			}
		}
	})
	return n
}

// Compact forgets all history, as etcd does from time to time: a watch that does not begin at the present meets 410.
// Watches that have been delivered everything go on.
func (a *API) Compact() { a.store.change(func(s *store) { s.changes = nil }) }

// Watches returns how many watches of the resource are open and not dropped.
func (a *API) Watches(resource string) int {
	n := 0
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	for w := range a.store.watches {
		if w.selection.kind.resource == resource && !w.dropped {
			n++
		}
	}
	return n
}

func (s *store) isUnavailable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unavailable
}

// change makes a change that watches must see.
func (s *store) change(do func(*store)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s)
	s.stirLocked()
}
