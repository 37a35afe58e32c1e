package main

import (
	"context"
	"errors"
	"fmt"
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
	s.check("in another namespace, where no policy matches it, the agent does not start, and says what to do", func() (string, error) {
		if said, err := s.staysOut(ctx, d, elsewhere, "have them name system:serviceaccount:"+elsewhere+":podrole"); err != nil {
			return said, err
		}
		return s.ends(ctx, elsewhere)
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
// none of them is Ready meanwhile.
func (s *stage) staysOut(ctx context.Context, d deployment, namespace, says string) (said string, err error) {
	if err := s.apply(ctx, d); err != nil {
		return "", err
	}
	err = eventually(ctx, time.Minute, func(ctx context.Context) error {
		out, err := s.kube.Kubectl(ctx, "get", "events", "--all-namespaces",
			"--field-selector=reason=PodroleAuthority", "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, says) {
				said = strings.TrimSpace(line)
				return nil
			}
		}
		return fmt.Errorf("no Event of a Node says %q; there are: %s", says, out)
	})
	if err != nil {
		return "", err
	}
	daemons, err := s.kube.Admin.AppsV1().DaemonSets(namespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return said, err
	}
	pods, err := s.kube.Admin.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=" + agentName + ",pod-template-generation=" + fmt.Sprint(daemons.Generation),
	})
	if err != nil {
		return said, err
	}
	if len(pods.Items) == 0 {
		return said, errors.New("no new agent was started")
	}
	for _, p := range pods.Items {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return said, fmt.Errorf("%s on %s is Ready", p.Name, p.Spec.NodeName)
			}
		}
	}
	return said, nil
}

// ends waits until an agent in a namespace has given up, and returns its last words.
func (s *stage) ends(ctx context.Context, namespace string) (string, error) {
	var last string
	return last, eventually(ctx, 90*time.Second, func(ctx context.Context) error {
		pods, err := s.kube.Admin.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, p := range pods.Items {
			for _, c := range p.Status.ContainerStatuses {
				if c.RestartCount == 0 && c.State.Terminated == nil {
					continue
				}
				log, err := s.kube.Kubectl(ctx, "-n", namespace, "logs", p.Name, "--previous="+fmt.Sprint(c.State.Terminated == nil))
				if err != nil {
					return err
				}
				lines := strings.Split(strings.TrimSpace(log), "\n")
				last = shorten(lines[len(lines)-1])
				return nil
			}
		}
		return errors.New("no agent has ended")
	})
}
