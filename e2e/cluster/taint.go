package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/ask"
)

// startupTaint keeps pods from a node until its agent serves them.
const startupTaint = "podrole.io/agent-not-ready"

// taint gives the agent the right to patch nodes, tries what else could be done with it, and has a node register with the
// taint that the right is for.
func (s *stage) taint(ctx context.Context) error {
	return s.tainted(ctx, "startup-taint", overlay("startup-taint"))
}

// tainted does so with a deployment, which is called name.
func (s *stage) tainted(ctx context.Context, name string, d deployment) error {
	if !s.check("kubectl apply -k manifests/overlays/"+name, func() (string, error) { return "", s.deploy(ctx, d) }) {
		return nil
	}
	if err := s.nodeRights(ctx); err != nil {
		return err
	}
	s.check("a node registers with the taint: its first pod comes when it is served, and gets its role at the first try",
		func() (string, error) { return s.registerTainted(ctx) })
	return nil
}

// nodeRights tries to change nodes with an agent's credentials.
func (s *stage) nodeRights(ctx context.Context) (err error) {
	t, undo, err := s.steal(ctx, s.kube.Nodes[0], s.kube.Nodes[1])
	defer func() { err = errors.Join(err, undo()) }()
	if err != nil {
		return err
	}
	attempts := t.nodeChanges(ctx, "itself", t.own)
	// The API server follows a new policy a moment after it was applied.
	err = eventually(ctx, patience, func(context.Context) error { _, err := denied(attempts[1].try()); return err })
	if err != nil {
		return err
	}
	// What the first attempts did is undone.
	if _, err := s.kube.Kubectl(ctx, "label", "--overwrite", "node", s.kube.Nodes[0].Name, "kubernetes.io/os=linux"); err != nil {
		return err
	}
	if err := s.addTaint(ctx); err != nil {
		return err
	}
	s.refusals(attempts)
	own := s.kube.Nodes[0].Name
	taints := `{"spec":{"taints":[{"key":"` + startupTaint + `","effect":"NoExecute"}]}}`
	s.refusals([]attempt{
		{"itself: putting the startup taint on " + own, func() error { return t.patchNode(ctx, t.own, own, taints) }},
		{"itself: putting the startup taint on " + t.otherNode, func() error { return t.patchNode(ctx, t.own, t.otherNode, taints) }},
	})
	return nil
}

// registerTainted has the second node come back as one that the cluster does not know yet.
func (s *stage) registerTainted(ctx context.Context) (string, error) {
	n := s.kube.Nodes[1]
	if err := n.Machine.Kill(); err != nil {
		return "", err
	}
	if err := s.kube.Admin.CoreV1().Nodes().Delete(ctx, n.Name, metav1.DeleteOptions{}); err != nil {
		return "", err
	}
	n.Taint = startupTaint + ":NoSchedule"
	defer func() { n.Taint = "" }()
	if err := n.Start(ctx); err != nil {
		return "", err
	}
	tainted, err := s.waitTaint(ctx, n.Name, true)
	if err != nil {
		return "", err
	}
	if err := s.addPod(ctx, shop, "first-on-node", podSpec("orders", n.Name, "first"), nil); err != nil {
		return "", err
	}
	served, err := s.waitTaint(ctx, n.Name, false)
	if err != nil {
		return "", err
	}
	pod, text, err := s.lastWords(ctx, metav1.ListOptions{FieldSelector: "metadata.name=first-on-node"})
	if err != nil {
		return "", err
	}
	var o ask.Outcome
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return "", fmt.Errorf("read report %q: %w", text, err)
	}
	if o.Began.Before(served.Add(-time.Second)) { // its creation is seen at once, the taint's end by asking
		return "", fmt.Errorf("the pod began %s before the taint was gone", served.Sub(o.Began))
	}
	said := fmt.Sprintf("tainted for %s", served.Sub(tainted).Round(100*time.Millisecond))
	return said, errors.Join(s.holds(o, "orders", byWebIdentity), s.remove(ctx, pod), s.rolledOut(ctx))
}

// waitTaint waits until a node has the startup taint, or has it no longer, and returns when that was.
func (s *stage) waitTaint(ctx context.Context, name string, want bool) (when time.Time, err error) {
	err = eventually(ctx, time.Minute, func(ctx context.Context) error {
		node, err := s.kube.Admin.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		has := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == startupTaint })
		if has != want {
			return fmt.Errorf("the taints of %s are %v", name, node.Spec.Taints)
		}
		when = time.Now()
		return nil
	})
	return when, err
}
