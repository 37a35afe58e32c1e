package telemetry_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/telemetry"
)

func TestEventsAreThePods(t *testing.T) {
	client := fake.NewClientset()
	written := make(chan *corev1.Event, 1)
	client.PrependReactor("create", "events", func(a clienttesting.Action) (bool, runtime.Object, error) {
		event := a.(clienttesting.CreateAction).GetObject().(*corev1.Event)
		written <- event
		return true, event, nil
	})
	events := telemetry.NewEvents(client.CoreV1(), "n1")
	events.Start()
	events.Warn(role.Workload{Namespace: "shop", Name: "a", UID: "u1"}, telemetry.EventDenied, "no role")
	event := <-written
	if o := event.InvolvedObject; o.Kind != "Pod" || o.Namespace != "shop" || o.Name != "a" || o.UID != "u1" {
		t.Errorf("the event is about %+v", o)
	}
	if event.Type != corev1.EventTypeWarning || event.Reason != telemetry.EventDenied || event.Message != "no role" || event.Source.Host != "n1" {
		t.Errorf("got %+v", event)
	}
	events.WarnNode(telemetry.EventRepaired, "flushed")
	event = <-written
	if o := event.InvolvedObject; o.Kind != "Node" || o.Namespace != "" || o.Name != "n1" || event.Reason != telemetry.EventRepaired {
		t.Errorf("the event %q is about %+v", event.Reason, o)
	}
	events.Stop()
}

func TestNoEventsTellNobody(t *testing.T) {
	var events *telemetry.Events
	events.Start()
	events.Warn(role.Workload{}, telemetry.EventDenied, "")
	events.WarnNode(telemetry.EventRepaired, "")
	events.Stop()
}
