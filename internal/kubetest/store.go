package kubetest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// change is one step in the history of all objects.
type change struct {
	version  uint64
	at       time.Time
	resource string
	before   object // nil: the object came into being
	after    object // nil: it ceased to be
}

// store holds the objects and their history, and what faults are on. Watches read the history at their own pace.
type store struct {
	limit int // of changes

	mu          sync.Mutex                   // guards the following
	objects     map[string]map[string]object // by resource, then by key
	version     uint64
	changes     []change // by ascending version, without gaps, the last one's being version
	stirred     chan struct{}
	watches     map[*watch]struct{}
	unavailable bool
	delay       time.Duration
	tokens      []string
	events      []*corev1.Event
}

func newStore(limit int) *store {
	return &store{
		limit:   limit,
		objects: make(map[string]map[string]object),
		version: 1, // 0 means "any" in the API
		stirred: make(chan struct{}),
		watches: make(map[*watch]struct{}),
	}
}

// Put creates an object or replaces it: a *corev1.Pod, *corev1.ServiceAccount, *corev1.Namespace or *corev1.Node, of which
// a copy is kept. Without a UID it keeps the one it has, or gets a new one; with another one it is another object, and the
// old one is deleted first. Resource versions are set here. Nothing but name and namespace is validated, and no policy is
// asked: tests may put what an API server would not accept.
func (a *API) Put(o object) error {
	k, err := kindOf(o)
	if err != nil {
		return fmt.Errorf("put object: %w", err)
	}
	if o.GetName() == "" || (o.GetNamespace() != "") != k.namespaced {
		return fmt.Errorf("put %s %s/%s: want a name, and a namespace if the kind has one", k.gvk.Kind, o.GetNamespace(), o.GetName())
	}
	after := o.DeepCopyObject().(object)
	after.GetObjectKind().SetGroupVersionKind(k.gvk)

	s := a.store
	s.mu.Lock()
	defer s.mu.Unlock()
	before, exists := s.objects[k.resource][key(o.GetNamespace(), o.GetName())]
	switch {
	case after.GetUID() == "" && exists:
		after.SetUID(before.GetUID())
	case after.GetUID() == "":
		after.SetUID(uuid.NewUUID())
	case exists && before.GetUID() != after.GetUID():
		s.recordLocked(k.resource, before, nil)
		before, exists = nil, false
	}
	if exists {
		after.SetCreationTimestamp(before.GetCreationTimestamp())
	} else if stamp := after.GetCreationTimestamp(); stamp.IsZero() {
		after.SetCreationTimestamp(metav1.NewTime(time.Now().Truncate(time.Second)))
	}
	s.recordLocked(k.resource, before, after)
	s.stirLocked()
	return nil
}

// Delete removes an object at once, as a deletion without grace period does. resource is its plural, such as pods.
func (a *API) Delete(resource, namespace, name string) error {
	s := a.store
	s.mu.Lock()
	defer s.mu.Unlock()
	before, exists := s.objects[resource][key(namespace, name)]
	if !exists {
		return fmt.Errorf("delete %s %s/%s: there is none", resource, namespace, name)
	}
	s.recordLocked(resource, before, nil)
	s.stirLocked()
	return nil
}

// recordLocked makes the change. after is the store's own and gets its version here.
func (s *store) recordLocked(resource string, before, after object) {
	s.version++
	of := s.objects[resource]
	if of == nil {
		of = make(map[string]object)
		s.objects[resource] = of
	}
	if after == nil {
		delete(of, key(before.GetNamespace(), before.GetName()))
	} else {
		after.SetResourceVersion(formatVersion(s.version))
		of[key(after.GetNamespace(), after.GetName())] = after
	}
	s.changes = append(s.changes, change{s.version, time.Now(), resource, before, after})
	if extra := len(s.changes) - s.limit; extra > 0 {
		s.changes = slices.Delete(s.changes, 0, extra)
	}
}

// stirLocked has every watch look again.
func (s *store) stirLocked() {
	close(s.stirred)
	s.stirred = make(chan struct{})
}

// sinceLocked returns the changes after version, and whether they are all still there.
func (s *store) sinceLocked(version uint64) ([]change, bool) {
	oldest := s.version - uint64(len(s.changes))
	if version < oldest {
		return nil, false
	}
	return s.changes[version-oldest:], true
}

// selectLocked returns what s selects, by key.
func (s *store) selectLocked(sel selection) []object {
	of := s.objects[sel.kind.resource]
	var selected []object
	for _, key := range slices.Sorted(maps.Keys(of)) {
		if sel.matches(of[key]) {
			selected = append(selected, of[key])
		}
	}
	return selected
}

// get returns one object.
func (s *store) get(resource, namespace, name string) (object, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[resource][key(namespace, name)]
	return o, ok
}

// of returns the objects of a namespace, by name.
func (s *store) of(resource, namespace string) []object {
	s.mu.Lock()
	defer s.mu.Unlock()
	var objects []object
	for _, key := range slices.Sorted(maps.Keys(s.objects[resource])) {
		if o := s.objects[resource][key]; o.GetNamespace() == namespace {
			objects = append(objects, o)
		}
	}
	return objects
}

// has reports whether there is such an object.
func (s *store) has(resource string, such func(object) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.objects[resource] {
		if such(o) {
			return true
		}
	}
	return false
}

// replace puts after, which is the store's own from then on, in the place of before, and returns false if before is not
// what is there any more.
func (s *store) replace(resource string, before, after object) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[resource][key(before.GetNamespace(), before.GetName())] != before {
		return false
	}
	s.recordLocked(resource, before, after)
	s.stirLocked()
	return true
}

func key(namespace, name string) string {
	return types.NamespacedName{Namespace: namespace, Name: name}.String()
}

func formatVersion(v uint64) string { return strconv.FormatUint(v, 10) }
