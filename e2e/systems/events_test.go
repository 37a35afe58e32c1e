package systems_test

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/podrole/podrole/internal/nodebox"
)

// warning waits for a pod's Event of that reason, and returns its message. It fails if it was said more than once.
func (s *stage) warning(t *testing.T, pod *nodebox.Pod, reason string) (message string) {
	t.Helper()
	eventually(t, reason+" of "+pod.Config.Name, func() error {
		for _, e := range s.cluster.API.Events() {
			if !isAbout(e, pod) || e.Reason != reason || e.Type != corev1.EventTypeWarning {
				continue
			}
			if e.Count > 1 || message != "" {
				t.Errorf("%s of %s was said again: %d times %q", reason, pod.Config.Name, e.Count, e.Message)
			}
			message = e.Message
		}
		if message == "" {
			return errors.New("no such Event")
		}
		return nil
	})
	return message
}

// untroubled fails if a pod has any Event.
func (s *stage) untroubled(t *testing.T, pod *nodebox.Pod) {
	t.Helper()
	for _, e := range s.cluster.API.Events() {
		if isAbout(e, pod) {
			t.Errorf("Event of %s: %s: %s", pod.Config.Name, e.Reason, e.Message)
		}
	}
}

func isAbout(e *corev1.Event, pod *nodebox.Pod) bool {
	o := e.InvolvedObject
	return o.Kind == "Pod" && o.Namespace == pod.Config.Namespace && o.Name == pod.Config.Name && string(o.UID) == pod.Config.UID
}
