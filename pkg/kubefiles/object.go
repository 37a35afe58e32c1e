package kubefiles

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

// kind is one of the kinds that are served.
type kind string

const (
	kindPod            kind = "Pod"
	kindServiceAccount kind = "ServiceAccount"
	kindNamespace      kind = "Namespace"
)

// defaultName is both the namespace of objects that name none and the ServiceAccount of pods that name none
// (https://kubernetes.io/docs/concepts/security/service-accounts/#default-service-accounts).
const defaultName = "default"

// object is a *corev1.Pod or a *metav1.PartialObjectMetadata. Once it is in a collection nobody changes it.
type object interface {
	runtime.Object
	metav1.Object
}

// id is what may exist once.
type id struct {
	kind      kind
	namespace string // empty for a Namespace
	name      string
}

// String returns the kind and the name as Kubernetes tools print it.
func (i id) String() string {
	if i.namespace == "" {
		return fmt.Sprintf("%s %s", i.kind, i.name)
	}
	return fmt.Sprintf("%s %s/%s", i.kind, i.namespace, i.name)
}

// key returns the name under which the object stands in its collection.
func (i id) key() string { return i.namespace + "/" + i.name }

// declared is one object of a file.
type declared struct {
	id     id
	object object
	line   int // where it begins
}

// newDeclared completes and checks an object that was read from a file.
func newDeclared(k kind, o object, line int) (declared, error) {
	switch {
	case o.GetName() == "":
		return declared{}, fmt.Errorf("%s without metadata.name", k)
	case k == kindNamespace && o.GetNamespace() != "":
		return declared{}, fmt.Errorf("namespace %s has a metadata.namespace", o.GetName())
	case k != kindNamespace && o.GetNamespace() == "":
		o.SetNamespace(defaultName)
	}
	if err := checkNames(k, o); err != nil {
		return declared{}, err
	}
	if pod, ok := o.(*corev1.Pod); ok {
		if err := completePod(pod); err != nil {
			return declared{}, err
		}
	}
	d := declared{id: id{k, o.GetNamespace(), o.GetName()}, object: o, line: line}
	if o.GetUID() == "" {
		o.SetUID(derivedUID(d))
	}
	if k == kindNamespace {
		labelNamespace(o)
	}
	o.SetResourceVersion("")
	return d, nil
}

// checkNames holds names to what the API server accepts
// (https://kubernetes.io/docs/concepts/overview/working-with-objects/names/).
func checkNames(k kind, o object) error {
	check, what := validation.IsDNS1123Subdomain, string(k)
	if k == kindNamespace {
		check = validation.IsDNS1123Label
	}
	if len(check(o.GetName())) > 0 {
		return fmt.Errorf("%s: metadata.name %q is not a valid name", what, o.GetName())
	}
	if ns := o.GetNamespace(); ns != "" && len(validation.IsDNS1123Label(ns)) > 0 {
		return fmt.Errorf("%s %s: metadata.namespace %q is not a valid name", what, o.GetName(), ns)
	}
	return nil
}

// completePod does what the API server would have done to the pod.
func completePod(pod *corev1.Pod) error {
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = defaultName
	}
	status := &pod.Status
	if len(status.PodIPs) == 0 && status.PodIP != "" {
		status.PodIPs = []corev1.PodIP{{IP: status.PodIP}}
	}
	for _, ip := range status.PodIPs {
		if _, err := netip.ParseAddr(ip.IP); err != nil {
			return fmt.Errorf("pod %s/%s: status.podIPs: %q is not an address", pod.Namespace, pod.Name, ip.IP)
		}
	}
	if len(status.PodIPs) > 0 {
		if status.PodIP == "" {
			status.PodIP = status.PodIPs[0].IP
		}
		// The API server keeps the first of podIPs equal to podIP.
		if status.PodIP != status.PodIPs[0].IP {
			return fmt.Errorf("pod %s/%s: status.podIP %q is not the first of status.podIPs",
				pod.Namespace, pod.Name, status.PodIP)
		}
	}
	return nil
}

// labelNamespace sets the label that the API server keeps on every namespace.
func labelNamespace(o object) {
	labels := o.GetLabels()
	if labels == nil {
		labels = make(map[string]string, 1)
	}
	labels[corev1.LabelMetadataName] = o.GetName()
	o.SetLabels(labels)
}

// implicit returns an object that exists without being declared.
func implicit(i id) object {
	o := partial(i.kind, metav1.ObjectMeta{Namespace: i.namespace, Name: i.name})
	o.SetUID(derivedUID(declared{id: i, object: o}))
	if i.kind == kindNamespace {
		labelNamespace(o)
	}
	return o
}

// derivedUID makes a UID, in the form of a version 8 UUID (RFC 9562, section 5.8), of what identifies the object.
func derivedUID(d declared) types.UID {
	parts := []string{"podrole", string(d.id.kind), d.id.namespace, d.id.name}
	if pod, ok := d.object.(*corev1.Pod); ok {
		parts = append(parts, pod.Spec.ServiceAccountName)
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]))
}

// partial returns the metadata of an object as the API server's metadata endpoint does.
func partial(k kind, meta metav1.ObjectMeta) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: string(k)},
		ObjectMeta: meta,
	}
}

// sameLife tells whether b may be an update of a: a change that the API server would refuse makes another object.
func sameLife(a, b object) bool {
	if a.GetUID() != b.GetUID() {
		return false
	}
	podA, ok := a.(*corev1.Pod)
	if !ok {
		return true
	}
	return podA.Spec.ServiceAccountName == b.(*corev1.Pod).Spec.ServiceAccountName
}
