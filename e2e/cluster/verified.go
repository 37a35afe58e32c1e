package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/kube"
)

// moved has the agents run in another namespace, where the policies on their right to tokens do not match them.
func (s *stage) moved(ctx context.Context) (err error) {
	const elsewhere = "aws-roles"
	// Two DaemonSets would be two agents on each node.
	if _, err := s.kube.Kubectl(ctx, "-n", agentNamespace, "delete", "daemonset", agentName, "--wait"); err != nil {
		return err
	}
	defer func() {
		_, problem := s.kube.Kubectl(ctx, "delete", "namespace", elsewhere, "--wait")
		err = errors.Join(err, problem, s.deploy(ctx, overlay("eks-web-identity")))
	}()
	d := overlay("eks-web-identity")
	d.namespace = elsewhere
	s.check("in another namespace, where no policy matches it, the agent does not become Ready, and says what to do", func() (string, error) {
		if said, err := s.staysOut(ctx, d, elsewhere, "have them name system:serviceaccount:"+elsewhere+":podrole"); err != nil {
			return said, err
		}
		return s.eventSays(ctx, elsewhere, "Unhealthy", `not ready: token authority "direct"`)
	})
	d.followed = true
	if !s.check("with policies that follow it there, it starts", func() (string, error) { return "", s.deploy(ctx, d) }) {
		return nil
	}
	s.check("and serves", func() (string, error) {
		return "", s.serves(ctx, "elsewhere", s.kube.Nodes[0])
	})
	return nil
}

// serves holds that a new pod on a node gets its role.
func (s *stage) serves(ctx context.Context, name string, n *kube.Node) error {
	pod, err := s.podOf(ctx, shop, name, "orders", n.Name)
	if err != nil {
		return err
	}
	return errors.Join(s.gets(ctx, pod, "orders", byWebIdentity), s.remove(ctx, pod))
}

// staysOut applies a deployment whose agents must not serve, and holds that they say why, in an Event of the Node, and that
// none of them becomes Ready for some time.
func (s *stage) staysOut(ctx context.Context, d deployment, namespace, says string) (said string, err error) {
	if err := s.apply(ctx, d); err != nil {
		return "", err
	}
	if said, err = s.eventSays(ctx, metav1.NamespaceAll, "PodroleAuthority", says); err != nil {
		return "", err
	}
	return said, s.staysUnready(ctx, namespace)
}

// staysUnready holds that there are agents of the DaemonSet as it is now, and that none of them becomes Ready for some time.
func (s *stage) staysUnready(ctx context.Context, namespace string) error {
	daemons, err := s.kube.Admin.AppsV1().DaemonSets(namespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	newest := metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=" + agentName + ",pod-template-generation=" + fmt.Sprint(daemons.Generation),
	}
	deadline := time.Now().Add(unreadyFor)
	for time.Now().Before(deadline) {
		pods, err := s.kube.Admin.CoreV1().Pods(namespace).List(ctx, newest)
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return errors.New("there is no new agent")
		}
		for _, p := range pods.Items {
			if isReady(p) {
				return fmt.Errorf("%s on %s is Ready", p.Name, p.Spec.NodeName)
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
}

// eventSays waits for an Event with a reason that says something, and returns its message. namespace is empty for all.
func (s *stage) eventSays(ctx context.Context, namespace, reason, says string) (message string, err error) {
	err = eventually(ctx, 30*time.Second, func(ctx context.Context) error {
		events, err := s.kube.Admin.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + reason})
		if err != nil {
			return err
		}
		var others []string
		for _, e := range events.Items {
			if strings.Contains(e.Message, says) {
				message = shorten(e.Message)
				return nil
			}
			others = append(others, e.Message)
		}
		return fmt.Errorf("no Event %s says %q; there are: %q", reason, says, others)
	})
	return message, err
}

// unreadyFor is how long an agent is looked at that must not become Ready.
const unreadyFor = 20 * time.Second

func isReady(p corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}
