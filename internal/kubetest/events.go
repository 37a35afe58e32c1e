package kubetest

import (
	"cmp"
	"encoding/json"
	"mime"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// eventsResource is that of the core group, where client-go's recorder writes.
const eventsResource = "events"

// Events returns the Events as they were last written, in order of their creation. Nothing else reads them: they have no
// resource version, and the store's history is not theirs.
func (a *API) Events() []*corev1.Event {
	a.store.mu.Lock()
	defer a.store.mu.Unlock()
	list := make([]*corev1.Event, len(a.store.events))
	for i, e := range a.store.events {
		list[i] = e.DeepCopy()
	}
	return list
}

// createEvent writes a new Event. Dry runs are not modelled of Events.
func (x *exchange) createEvent() error {
	in, err := decode[*corev1.Event](x)
	if err != nil {
		return err
	}
	if x.dryRun {
		return apierrors.NewBadRequest("dry runs are not modelled of Events")
	}
	if in.Namespace == "" {
		in.Namespace = x.target.namespace
	}
	if in.Namespace != x.target.namespace {
		return apierrors.NewBadRequest("the namespace of the Event is not that of the path")
	}
	if err := validateEvent(in); err != nil {
		return err
	}
	in.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Event"))
	in.CreationTimestamp = metav1.Now()
	if err := x.api.store.addEvent(in); err != nil {
		return err
	}
	return x.answer(http.StatusCreated, in)
}

// patchEvent changes an Event, as client-go's recorder does to count one that repeats itself. Of the forms of a patch the
// recorder's alone is modelled.
func (x *exchange) patchEvent() error {
	if form, _, _ := mime.ParseMediaType(x.r.Header.Get("Content-Type")); form != string(types.StrategicMergePatchType) {
		return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, x.target.verb,
			schema.GroupResource{Resource: eventsResource}, x.target.name, "only strategic merge patches are modelled", 0, false)
	}
	if x.dryRun {
		return apierrors.NewBadRequest("dry runs are not modelled of Events")
	}
	patch, err := x.readBody()
	if err != nil {
		return err
	}
	after, err := x.api.store.patchEvent(x.target.namespace, x.target.name, patch)
	if err != nil {
		return err
	}
	return x.answer(http.StatusOK, after)
}

// patched returns what the patch makes of before, which stays as it is.
func patched(before *corev1.Event, patch []byte) (*corev1.Event, error) {
	text, err := json.Marshal(before)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if text, err = strategicpatch.StrategicMergePatch(text, patch, corev1.Event{}); err != nil {
		return nil, apierrors.NewBadRequest("apply patch: " + err.Error())
	}
	var after corev1.Event
	if err := json.Unmarshal(text, &after); err != nil {
		return nil, apierrors.NewBadRequest("apply patch: " + err.Error())
	}
	return &after, nil
}

// validateEvent checks what the API server checks of the Events that client-go writes
// (https://github.com/kubernetes/kubernetes, pkg/apis/core/validation/events.go).
func validateEvent(e *corev1.Event) error {
	errs := validation.ValidateObjectMeta(&e.ObjectMeta, true, validation.NameIsDNSSubdomain, field.NewPath("metadata"))
	// Events about what is in no namespace, such as a Node, are in namespace default.
	of := cmp.Or(e.InvolvedObject.Namespace, metav1.NamespaceDefault)
	if of != e.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), e.InvolvedObject.Namespace,
			"is not the namespace of the Event"))
	}
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Event").GroupKind(), e.Name, errs)
}

// addEvent keeps an Event, which nobody changes from then on.
func (s *store) addEvent(e *corev1.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.eventLocked(e.Namespace, e.Name) >= 0 {
		return apierrors.NewAlreadyExists(schema.GroupResource{Resource: eventsResource}, e.Name)
	}
	s.events = append(s.events, e)
	return nil
}

// patchEvent puts what the patch makes of an Event in its place, and returns it.
func (s *store) patchEvent(namespace, name string, patch []byte) (*corev1.Event, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.eventLocked(namespace, name)
	if i < 0 {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: eventsResource}, name)
	}
	after, err := patched(s.events[i], patch)
	if err != nil {
		return nil, err
	}
	if after.Name != name || after.Namespace != namespace {
		return nil, apierrors.NewBadRequest("a patch cannot rename an Event")
	}
	if err := validateEvent(after); err != nil {
		return nil, err
	}
	s.events[i] = after
	return after, nil
}

// eventLocked returns the index of an Event; -1: there is none.
func (s *store) eventLocked(namespace, name string) int {
	return slices.IndexFunc(s.events, func(e *corev1.Event) bool { return e.Namespace == namespace && e.Name == name })
}
