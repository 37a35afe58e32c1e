package kubefiles

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
)

// selection is which objects of a collection somebody sees. Empty fields select everything.
type selection struct {
	node      string // of Pods; those without a node are this node's
	namespace string
	name      string
	labels    labels.Selector
	fields    fields.Selector
}

// with adds the selectors of a request.
func (s selection) with(options metav1.ListOptions) (selection, error) {
	var err error
	if s.labels, err = labels.Parse(options.LabelSelector); err != nil {
		return s, apierrors.NewBadRequest(fmt.Sprintf("label selector: %v", err))
	}
	if s.fields, err = fields.ParseSelector(options.FieldSelector); err != nil {
		return s, apierrors.NewBadRequest(fmt.Sprintf("field selector: %v", err))
	}
	for _, r := range s.fields.Requirements() {
		switch r.Field {
		case "metadata.name", "metadata.namespace", "spec.nodeName", "status.phase":
		default:
			return s, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", r.Field))
		}
	}
	return s, nil
}

// matches tells whether o is selected.
func (s selection) matches(o object) bool {
	set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	if pod, ok := o.(*corev1.Pod); ok {
		node := pod.Spec.NodeName
		if node == "" {
			node = s.node
		}
		if s.node != "" && node != s.node {
			return false
		}
		set["spec.nodeName"], set["status.phase"] = node, string(pod.Status.Phase)
	}
	return (s.namespace == "" || s.namespace == o.GetNamespace()) &&
		(s.name == "" || s.name == o.GetName()) &&
		s.labels.Matches(labels.Set(o.GetLabels())) && s.fields.Matches(set)
}

// present returns o as it is shown: a copy, because informers may trim what they receive in place, with the node filled
// in.
func (s selection) present(o object) object {
	o = o.DeepCopyObject().(object)
	if pod, ok := o.(*corev1.Pod); ok && pod.Spec.NodeName == "" {
		pod.Spec.NodeName = s.node
	}
	return o
}
