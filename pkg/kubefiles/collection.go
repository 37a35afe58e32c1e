package kubefiles

import (
	"maps"
	"slices"
	"strconv"
	"sync"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// keptChanges is how many changes are kept for watchers that come back.
	keptChanges = 1024
	// maxBacklog is how many changes a watcher may be behind before it is told to list anew. Memory is spent on it only
	// while there is such a watcher.
	maxBacklog = 1 << 16
)

// change is one step in the history of a collection.
type change struct {
	version uint64
	before  object // nil: the object came into being
	after   object // nil: it ceased to be
}

// entry is an object of a collection.
type entry struct {
	declared object // as it was given, without a version
	served   object // a copy, with the version of its last change
}

// collection holds the objects of one kind and the recent changes to them. Watchers read the changes at their own pace,
// each from the version it knows: there is no queue for each that could fill up, and nobody waits for anybody.
// It is safe for concurrent use.
type collection struct {
	backlog uint64 // see maxBacklog

	mu       sync.Mutex // guards the following
	objects  map[string]entry
	version  uint64
	changes  []change // by ascending version, without gaps, the last one's being version
	watchers map[*watcher]struct{}
	grown    chan struct{} // closed and replaced when changes grow
}

func newCollection() *collection {
	return &collection{
		backlog:  maxBacklog,
		objects:  make(map[string]entry),
		version:  1, // zero means "any version" in the API
		watchers: make(map[*watcher]struct{}),
		grown:    make(chan struct{}),
	}
}

// replace makes want, by key, what the collection holds, and reports how many changes that took. The objects must not
// be changed any more.
func (c *collection) replace(want map[string]object) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := c.version
	for _, key := range slices.Sorted(maps.Keys(c.objects)) {
		if _, ok := want[key]; !ok {
			c.recordLocked(key, nil)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		after := want[key]
		before, ok := c.objects[key]
		switch {
		case !ok:
		case before.declared == after, apiequality.Semantic.DeepEqual(before.declared, after):
			continue
		case !sameLife(before.declared, after):
			c.recordLocked(key, nil)
		}
		c.recordLocked(key, after)
	}
	if c.version != start {
		c.trimLocked()
		close(c.grown)
		c.grown = make(chan struct{})
	}
	return int(c.version - start)
}

// recordLocked makes after the object at key; nil deletes it.
func (c *collection) recordLocked(key string, after object) {
	c.version++
	ch := change{version: c.version, before: c.objects[key].served}
	if after == nil {
		delete(c.objects, key)
	} else {
		ch.after = withVersion(after, c.version)
		c.objects[key] = entry{declared: after, served: ch.after}
	}
	c.changes = append(c.changes, ch)
}

// trimLocked forgets the changes that nobody needs.
func (c *collection) trimLocked() {
	needed := c.version - min(c.version, keptChanges) // the version after which changes are kept
	for w := range c.watchers {
		needed = min(needed, w.version)
	}
	needed = max(needed, c.version-min(c.version, c.backlog))
	oldest := c.version - uint64(len(c.changes))
	if needed > oldest {
		gone := needed - oldest
		clear(c.changes[:gone]) // lets go of the objects; the array itself is replaced by a later append
		c.changes = c.changes[gone:]
	}
}

// sinceLocked returns the changes after version, and whether they are all still there.
func (c *collection) sinceLocked(version uint64) ([]change, bool) {
	oldest := c.version - uint64(len(c.changes))
	if version < oldest {
		return nil, false
	}
	return c.changes[version-oldest:], true
}

// next returns up to limit changes after the version that w has reached, and moves w on. With none it returns a channel
// that is closed when there are some. The changes are gone when w is too far behind: then ok is false.
func (c *collection) next(w *watcher, limit int) (batch []change, grown <-chan struct{}, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pending, ok := c.sinceLocked(w.version)
	if !ok {
		return nil, nil, false
	}
	batch = slices.Clone(pending[:min(limit, len(pending))])
	if len(batch) > 0 {
		w.version = batch[len(batch)-1].version
	}
	return batch, c.grown, true
}

// snapshotLocked returns all objects that s selects, by key.
func (c *collection) snapshotLocked(s selection) []object {
	var selected []object
	for _, key := range slices.Sorted(maps.Keys(c.objects)) {
		if o := c.objects[key].served; s.matches(o) {
			selected = append(selected, o)
		}
	}
	return selected
}

// event turns a change into what somebody sees who is shown only what s selects: an object that comes to be selected is
// added, one that ceases to be is deleted. It returns false when there is nothing to see.
func (s selection) event(ch change) (watch.Event, bool) {
	was := ch.before != nil && s.matches(ch.before)
	is := ch.after != nil && s.matches(ch.after)
	switch {
	case is && was:
		return watch.Event{Type: watch.Modified, Object: s.present(ch.after)}, true
	case is:
		return watch.Event{Type: watch.Added, Object: s.present(ch.after)}, true
	case was:
		// The last state, with the version of its end.
		return watch.Event{Type: watch.Deleted, Object: s.present(withVersion(ch.before, ch.version))}, true
	default:
		return watch.Event{}, false
	}
}

// withVersion returns a copy of o with that version.
func withVersion(o object, version uint64) object {
	o = o.DeepCopyObject().(object)
	o.SetResourceVersion(formatVersion(version))
	return o
}

func formatVersion(v uint64) string { return strconv.FormatUint(v, 10) }
