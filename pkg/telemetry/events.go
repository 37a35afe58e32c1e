package telemetry

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/podrole/podrole/pkg/role"
)

// Reasons of Events, as kubectl get events shows them.
const (
	// EventDenied: annotations or permissions give the pod no role.
	EventDenied = "PodroleDenied"
	// EventKept: the pod keeps its role in spite of an annotation that cannot be read.
	EventKept = "PodroleAnnotationUnreadable"
	// EventRefused: AWS refuses the session.
	EventRefused = "PodroleRefusedByAWS"
	// EventBypassed: the pod's environment leads its SDKs elsewhere.
	EventBypassed = "PodroleBypassed"
	// EventMetadata: the annotation that allows the pod more of the node's metadata cannot be read.
	EventMetadata = "PodroleMetadataAllowUnreadable"
	// EventNoRole: the pod asked for credentials, and no role is named for it.
	EventNoRole = "PodroleNoRole"
	// EventAuthority, of the Node: the agent may do more, or less, than it was told, and does not serve.
	EventAuthority = "PodroleAuthority"
	// EventRepaired, of the Node: another program changed the redirect, which has been repaired.
	EventRepaired = "PodroleRedirectRepaired"
	// EventLeftover, of the Node: another program redirects the metadata address too.
	EventLeftover = "PodroleOtherRedirect"
	// EventNotWhole, of the Node: the redirect cannot be repaired, and pods may be refused.
	EventNotWhole = "PodroleRedirectNotWhole"
)

// Events tells a pod's owner what is wrong with its role, as Kubernetes Events of the pod, and the node's what is wrong with
// the redirect. Repeated ones are counted
// instead of written again, and a flood of them is cut off, by client-go. A nil *Events tells nobody.
type Events struct {
	node        string
	broadcaster record.EventBroadcaster
	recorder    record.EventRecorder
	sink        record.EventSink
}

// NewEvents returns Events that are written through client from Start on.
func NewEvents(client typedcorev1.EventsGetter, node string) *Events {
	broadcaster := record.NewBroadcaster()
	return &Events{
		node:        node,
		broadcaster: broadcaster,
		recorder:    broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "podrole", Host: node}),
		sink:        &typedcorev1.EventSinkImpl{Interface: client.Events("")},
	}
}

// Start begins to write Events, until Stop. What is told before it is lost.
func (e *Events) Start() {
	if e != nil {
		e.broadcaster.StartRecordingToSink(e.sink)
	}
}

// Stop ends the writing. Events that are not written by then are lost.
func (e *Events) Stop() {
	if e != nil {
		e.broadcaster.Shutdown()
	}
}

// Warn tells pod's owner. It does not block.
func (e *Events) Warn(pod role.Workload, reason, message string) {
	if e == nil {
		return
	}
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID),
	}, corev1.EventTypeWarning, reason, message)
}

// WarnNode tells the node's owner. It does not block.
func (e *Events) WarnNode(reason, message string) {
	if e == nil {
		return
	}
	// The kubelet too gives the Node's name for its UID in its Events, by which kubectl describe finds them.
	e.recorder.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Node", Name: e.node, UID: types.UID(e.node),
	}, corev1.EventTypeWarning, reason, message)
}
