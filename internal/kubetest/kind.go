package kubetest

import (
	"fmt"
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// object is a Kubernetes object. Those in the store are never changed.
type object interface {
	metav1.Object
	runtime.Object
}

// kind is one of the resources that are modelled.
type kind struct {
	resource   string
	namespaced bool
	gvk        schema.GroupVersionKind
	fields     func(object) fields.Set // what field selectors may name
}

func kinds() map[string]kind {
	core := func(resource, name string, namespaced bool, more func(object) fields.Set) kind {
		return kind{resource, namespaced, corev1.SchemeGroupVersion.WithKind(name), func(o object) fields.Set {
			set := fields.Set{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
			maps.Copy(set, more(o))
			return set
		}}
	}
	none := func(object) fields.Set { return nil }
	return map[string]kind{
		"pods": core("pods", "Pod", true, func(o object) fields.Set {
			p := o.(*corev1.Pod)
			return fields.Set{
				"spec.nodeName":           p.Spec.NodeName,
				"spec.serviceAccountName": p.Spec.ServiceAccountName,
				"status.phase":            string(p.Status.Phase),
				"status.podIP":            p.Status.PodIP,
			}
		}),
		"serviceaccounts": core("serviceaccounts", "ServiceAccount", true, none),
		"namespaces":      core("namespaces", "Namespace", false, none),
		"nodes": core("nodes", "Node", false, func(o object) fields.Set {
			return fields.Set{"spec.unschedulable": strconv.FormatBool(o.(*corev1.Node).Spec.Unschedulable)}
		}),
	}
}

// kindOf returns the kind of an object that a test puts.
func kindOf(o object) (kind, error) {
	switch o.(type) {
	case *corev1.Pod:
		return kinds()["pods"], nil
	case *corev1.ServiceAccount:
		return kinds()["serviceaccounts"], nil
	case *corev1.Namespace:
		return kinds()["namespaces"], nil
	case *corev1.Node:
		return kinds()["nodes"], nil
	default:
		return kind{}, fmt.Errorf("objects of type %T are not modelled", o)
	}
}

// bare returns an object of the kind that has nothing but metadata: a bookmark.
func (k kind) bare(m metav1.ObjectMeta) object {
	var o object
	switch k.resource {
	case "pods":
		o = &corev1.Pod{ObjectMeta: m}
	case "serviceaccounts":
		o = &corev1.ServiceAccount{ObjectMeta: m}
	case "nodes":
		o = &corev1.Node{ObjectMeta: m}
	default:
		o = &corev1.Namespace{ObjectMeta: m}
	}
	o.GetObjectKind().SetGroupVersionKind(k.gvk)
	return o
}

// partial returns the metadata of o.
func partial(o metav1.Object) *metav1.PartialObjectMetadata {
	p := meta.AsPartialObjectMetadata(o)
	p.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
	return p
}
