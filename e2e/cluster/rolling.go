package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/ask"
)

// nextImage is the agent's image under the tag that it is updated to.
const nextImage = agentRepo + ":next"

// every is how often each pod asks while the agent is replaced. It takes three requests, and they are to stay below what one pod
// may make in the long run (--request-rate).
const every = 40 * time.Millisecond

// seldom is the same where pods are refused for seconds: of their failures the first hundred are known.
const seldom = 100 * time.Millisecond

// settle is how long pods go on asking after a change, so that what it broke is seen.
const settle = 3 * time.Second

// rolling replaces the agents under load, deletes them, and takes a node away.
func (s *stage) rolling(ctx context.Context) (err error) {
	for _, n := range s.kube.Nodes {
		if err := n.Tag(ctx, agentImage, nextImage); err != nil {
			return err
		}
	}
	leaks := len(s.aws.leaks())
	pods, err := s.askingPods(ctx, every)
	if err != nil {
		return err
	}
	s.check("rolling update to a new image tag under load: no failed request", func() (string, error) {
		if err := s.update(ctx, nextImage); err != nil {
			return "", err
		}
		said, err := s.sinceStart(ctx, pods)
		return said, errors.Join(err, s.leaksSince(leaks))
	})
	if err := s.remove(ctx, pods...); err != nil {
		return err
	}
	if pods, err = s.askingPods(ctx, seldom); err != nil {
		return err
	}
	s.check("agent pods deleted under load: refused until the next agents serve, and nothing leaks", func() (string, error) {
		if err := s.deleteAgents(ctx); err != nil {
			return "", err
		}
		for _, p := range pods {
			if err := s.gets(ctx, p, p.Spec.ServiceAccountName, byWebIdentity); err != nil {
				return "", fmt.Errorf("pod %s: %w", p.Name, err)
			}
		}
		found, err := s.sumUp(ctx, pods)
		return found.String(), errors.Join(err, found.onlyRefused(), s.leaksSince(leaks))
	})
	if err := s.remove(ctx, pods...); err != nil {
		return err
	}
	const name = "a node is taken away and comes back, with podrole guard before the kubelet: pods are refused until there is an agent"
	s.check(name, func() (string, error) {
		said, err := s.replaceNode(ctx)
		return said, errors.Join(err, s.leaksSince(leaks))
	})
	return nil
}

// askingPods creates two pods on each node that ask every interval, and returns when all get their credentials.
func (s *stage) askingPods(ctx context.Context, interval time.Duration) (pods []*corev1.Pod, err error) {
	for _, n := range s.kube.Nodes {
		for _, role := range []string{"orders", "reports"} {
			name := fmt.Sprintf("asking-%s-%s", role, n.Name)
			pod, err := s.podOf(ctx, shop, name, role, n.Name, interval.String())
			if err != nil {
				return nil, err
			}
			pods = append(pods, pod)
			if err := s.gets(ctx, pod, role, byWebIdentity); err != nil {
				return nil, fmt.Errorf("pod %s: %w", name, err)
			}
		}
	}
	return pods, nil
}

// update gives the DaemonSet another image and returns when it has rolled out.
func (s *stage) update(ctx context.Context, image string) error {
	before, err := s.agents(ctx)
	if err != nil {
		return err
	}
	_, err = s.kube.Kubectl(ctx, "-n", agentNamespace, "set", "image", "daemonset/"+agentName, "*="+image)
	if err != nil {
		return err
	}
	if err := s.rolledOut(ctx); err != nil {
		return err
	}
	return s.replaced(ctx, before)
}

// replaced holds that on each node another agent is Ready than before.
func (s *stage) replaced(ctx context.Context, before map[string]corev1.Pod) error {
	now, err := s.agents(ctx)
	if err != nil {
		return err
	}
	for _, n := range s.kube.Nodes {
		if p, there := now[n.Name]; !there || p.UID == before[n.Name].UID || !isReady(p) {
			return fmt.Errorf("no other agent is Ready on %s", n.Name)
		}
	}
	return nil
}

// deleteAgents deletes the agents' pods, and returns when others are Ready in their places.
func (s *stage) deleteAgents(ctx context.Context) error {
	before, err := s.agents(ctx)
	if err != nil {
		return err
	}
	if _, err := s.kube.Kubectl(ctx, "-n", agentNamespace, "delete", "pods", "--all", "--wait=false"); err != nil {
		return err
	}
	return eventually(ctx, 90*time.Second, func(ctx context.Context) error { return s.replaced(ctx, before) })
}

// sinceStart waits a moment and sums up what pods have found, with an error if any request failed.
func (s *stage) sinceStart(ctx context.Context, pods []*corev1.Pod) (string, error) {
	f, err := s.sumUp(ctx, pods)
	if err == nil && len(f.failures) > 0 {
		example := f.failures[len(f.failures)-1]
		err = fmt.Errorf("%s; such as %s: %s", f, example.Step, example.Error)
	}
	return f.String(), err
}

// findings are what pods that ask all the time have found, together.
type findings struct {
	requests, failed int
	slowest          time.Duration
	refused          time.Duration // on one pod, at most
	failures, final  []ask.Outcome // of each pod the first hundred
}

// onlyRefused holds that requests failed, and none by an answer that SDKs take for good.
func (f findings) onlyRefused() error {
	if f.failed == 0 {
		return errors.New("no request failed: nothing was in their way")
	}
	if len(f.final) > 0 {
		return fmt.Errorf("answered wrongly at %s: %s", f.final[0].Step, f.final[0].Error)
	}
	return nil
}

func (f findings) String() string {
	said := fmt.Sprintf("%d requests, %d failed, slowest %s", f.requests, f.failed, f.slowest.Round(time.Millisecond))
	if f.failed > 0 {
		said += fmt.Sprintf(", refused for %s on one pod at most", f.refused.Round(10*time.Millisecond))
	}
	return said
}

// sumUp waits a moment and sums up what pods have found, with an error if any of them got another's role, or has asked too
// seldom to have found anything.
func (s *stage) sumUp(ctx context.Context, pods []*corev1.Pod) (f findings, err error) {
	if err := pause(ctx, settle); err != nil {
		return f, err
	}
	for _, p := range pods {
		l, err := s.load(ctx, p)
		if err != nil {
			return f, err
		}
		// The processors are busy, and who is not answered waits: a quarter of what it set out to do is enough.
		if due := l.Due(time.Now()); l.Requests < due/4 || due == 0 {
			return f, fmt.Errorf("pod %s has asked %d times, of %d that were due", p.Name, l.Requests, due)
		}
		f.requests, f.failed, f.slowest = f.requests+l.Requests, f.failed+l.Failed, max(f.slowest, l.Slowest)
		f.refused, f.failures = max(f.refused, outage(l.Failures)), append(f.failures, l.Failures...)
		f.final = append(f.final, l.Final...)
		for _, key := range l.Keys {
			if session, err := s.aws.minted(key); err != nil || session.RoleARN != roleARN(p.Spec.ServiceAccountName) {
				return f, fmt.Errorf("WRONG ROLE: pod %s got %s of %s (%w)", p.Name, key, session.RoleARN, err)
			}
		}
	}
	return f, nil
}

// outage is the time from the first failure to the last. The first hundred of a pod's are known.
func outage(failures []ask.Outcome) time.Duration {
	if len(failures) == 0 {
		return 0
	}
	first, last := failures[0].Began, failures[0].Began
	for _, f := range failures {
		if f.Began.Before(first) {
			first = f.Began
		}
		if end := f.Began.Add(f.Took); end.After(last) {
			last = end
		}
	}
	return last.Sub(first)
}

// stateDir is the agent's folder on the node, as in the manifests.
const stateDir = "/run/podrole"

// replaceNode kills the second node's machine and starts another in its place, with a file where the agent's folder should be,
// which keeps the agent from starting. A pod that was on the node starts again with it, and must be refused: by the guard
// alone, for there was no agent on that machine. Then the agent may start.
func (s *stage) replaceNode(ctx context.Context) (said string, err error) {
	n := s.kube.Nodes[1]
	spec := podSpec("orders", n.Name, "serve", seldom.String())
	spec.RestartPolicy = corev1.RestartPolicyAlways
	if err := s.addPod(ctx, shop, "survivor", spec, nil); err != nil {
		return "", err
	}
	pod, err := s.running(ctx, shop, "survivor")
	if err != nil {
		return "", err
	}
	if err := s.gets(ctx, pod, "orders", byWebIdentity); err != nil {
		return "", err
	}
	if err := n.Machine.Kill(); err != nil {
		return "", err
	}
	n.BeforeKubelet = []string{"sh", "-c", `"$0" guard && touch "$1"`, s.agent(), stateDir}
	defer func() { n.BeforeKubelet = nil }()
	began := time.Now()
	if err := n.Start(ctx); err != nil {
		return "", err
	}
	again, l, err := s.refusedAgain(ctx, pod)
	if err != nil {
		return "", err
	}
	if pid, err := agentPID(ctx, n); err == nil {
		return "", fmt.Errorf("an agent runs in spite of %s: process %d", stateDir, pid)
	}
	said = fmt.Sprintf("the pod that was there asks %s after, and is refused %d times without an agent",
		l.Began.Sub(began).Round(100*time.Millisecond), l.Failed)
	free := time.Now()
	if err := os.Remove(n.Machine.File(stateDir)); err != nil {
		return "", fmt.Errorf("let the agent start: %w", err)
	}
	err = eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
		o, err := s.credentials(ctx, again)
		if err != nil {
			return err
		}
		return s.holds(o, "orders", byWebIdentity)
	})
	if err != nil {
		return "", err
	}
	said += fmt.Sprintf("; it gets its credentials %s after that may start", time.Since(free).Round(100*time.Millisecond))
	if err := s.rolledOut(ctx); err != nil {
		return "", err
	}
	if l, err = s.load(ctx, again); err != nil {
		return "", err
	}
	if len(l.Final) > 0 {
		return "", fmt.Errorf("answered wrongly at %s: %s", l.Final[0].Step, l.Final[0].Error)
	}
	return said, s.remove(ctx, again)
}

// refusedAgain waits until a pod has started again, with another address, and has asked some times, and holds that it got no
// answer.
func (s *stage) refusedAgain(ctx context.Context, before *corev1.Pod) (pod *corev1.Pod, l ask.Load, err error) {
	const some = 10
	err = eventually(ctx, time.Minute, func(ctx context.Context) (err error) {
		if pod, err = s.kube.Admin.CoreV1().Pods(before.Namespace).Get(ctx, before.Name, metav1.GetOptions{}); err != nil {
			return err
		}
		old, now := before.Status.ContainerStatuses, pod.Status.ContainerStatuses
		if len(now) == 0 || now[0].ContainerID == old[0].ContainerID {
			return errors.New("the pod has not started again")
		}
		if l, err = s.load(ctx, pod); err != nil {
			return err
		}
		answered := slices.ContainsFunc(l.Failures, func(o ask.Outcome) bool { return o.Status != 0 })
		if l.Failed < l.Requests || answered {
			return final(fmt.Errorf("answered where nobody should: %d of %d requests failed, %+v", l.Failed, l.Requests, l.Failures))
		}
		if l.Requests < some {
			return fmt.Errorf("the pod has asked %d times", l.Requests)
		}
		return nil
	})
	return pod, l, err
}

// agent is the agent's binary, for the nodes' hosts.
func (s settings) agent() string { return filepath.Join(s.cache, "podrole") }
