package kubetest

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	watchapi "k8s.io/apimachinery/pkg/watch"
)

// listOptions decodes the query and validates it, both with the API server's own code.
func (x *exchange) listOptions() (internalversion.ListOptions, error) {
	var options internalversion.ListOptions
	err := internalscheme.ParameterCodec.DecodeParameters(x.r.URL.Query(), metav1.SchemeGroupVersion, &options)
	if err != nil {
		return options, apierrors.NewBadRequest(err.Error())
	}
	streams := !x.api.cfg.NoStreamingLists
	internalversion.SetListOptionsDefaults(&options, streams)
	if errs := validation.ValidateListOptions(&options, streams); len(errs) > 0 {
		return options, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	return options, nil
}

// selection is which objects a request is about.
type selection struct {
	kind      kind
	namespace string // empty: of all
	fields    fields.Selector
	labels    labels.Selector
}

func newSelection(k kind, namespace string, options internalversion.ListOptions) (selection, error) {
	s := selection{kind: k, namespace: namespace, fields: options.FieldSelector, labels: options.LabelSelector}
	if s.fields == nil {
		s.fields = fields.Everything()
	}
	if s.labels == nil {
		s.labels = labels.Everything()
	}
	supported := k.fields(k.bare(metav1.ObjectMeta{}))
	for _, r := range s.fields.Requirements() {
		if !supported.Has(r.Field) {
			return s, apierrors.NewBadRequest(fmt.Sprintf("%s cannot be selected by the field %q", k.resource, r.Field))
		}
	}
	return s, nil
}

func (s selection) matches(o object) bool {
	return (s.namespace == "" || s.namespace == o.GetNamespace()) &&
		s.fields.Matches(s.kind.fields(o)) && s.labels.Matches(labels.Set(o.GetLabels()))
}

// event returns a change as it looks to somebody who sees only what s selects: what comes to be selected is added, what
// ceases to be is deleted. It returns false when there is nothing to see.
func (s selection) event(c change) (watchapi.Event, bool) {
	if c.resource != s.kind.resource {
		return watchapi.Event{}, false
	}
	was := c.before != nil && s.matches(c.before)
	is := c.after != nil && s.matches(c.after)
	switch {
	case is && was:
		return watchapi.Event{Type: watchapi.Modified, Object: c.after}, true
	case is:
		return watchapi.Event{Type: watchapi.Added, Object: c.after}, true
	case was:
		// The last state, with the version of its end.
		last := c.before.DeepCopyObject().(object)
		last.SetResourceVersion(formatVersion(c.version))
		return watchapi.Event{Type: watchapi.Deleted, Object: last}, true
	default:
		return watchapi.Event{}, false
	}
}
