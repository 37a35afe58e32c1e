package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podrole/podrole/e2e/cluster/kube"
	"github.com/podrole/podrole/internal/awstest"
)

// How sessions are minted.
const (
	byWebIdentity = "AssumeRoleWithWebIdentity"
	byAssumeRole  = "AssumeRole"
)

// serve deploys the agent with the overlay for EKS, and leaves it there for the suites after it.
func (s *stage) serve(ctx context.Context) error {
	if err := s.addNamespace(ctx, shop, nil, nil); err != nil {
		return err
	}
	s.check("without an agent, a pod gets the role of its node, and is seen to: a leak would be, too", func() (string, error) {
		return "", s.leak(ctx)
	})
	if !s.check("kubectl apply -k manifests/overlays/eks-web-identity", func() (string, error) {
		return "", s.deploy(ctx, overlay("eks-web-identity"))
	}) {
		return errors.New("the agent does not run")
	}
	s.check("an agent is Ready on each node, at its first start", func() (string, error) {
		agents, err := s.agents(ctx)
		if err != nil {
			return "", err
		}
		if len(agents) != len(s.kube.Nodes) {
			return "", fmt.Errorf("agents on %d nodes", len(agents))
		}
		for node, p := range agents {
			if n := p.Status.ContainerStatuses[0].RestartCount; n != 0 {
				return "", fmt.Errorf("%d restarts on %s", n, node)
			}
		}
		return "", nil
	})
	s.check("the agents' logs say first which version runs", func() (string, error) { return s.saysVersion(ctx) })
	if err := s.addRole(ctx, "orders", "reports"); err != nil {
		return err
	}
	if err := s.addAccount(ctx, shop, "nobody", nil); err != nil {
		return err
	}
	var pods []*corev1.Pod
	for _, n := range s.kube.Nodes {
		for _, role := range []string{"orders", "reports"} {
			s.check(fmt.Sprintf("a pod of ServiceAccount %s on %s gets its role from 169.254.169.254", role, n.Name), func() (string, error) {
				pod, err := s.podOf(ctx, shop, role+"-"+n.Name, role, n.Name)
				if err != nil {
					return "", err
				}
				pods = append(pods, pod)
				return "", s.gets(ctx, pod, role, byWebIdentity)
			})
		}
		s.check(fmt.Sprintf("a pod without a role on %s gets none", n.Name), func() (string, error) {
			pod, err := s.podOf(ctx, shop, "nobody-"+n.Name, "nobody", n.Name)
			if err != nil {
				return "", err
			}
			pods = append(pods, pod)
			return "", s.refused(ctx, pod)
		})
		s.check("the agent on "+n.Name+" knows pods by their CNI results, before the API names their address", func() (string, error) {
			return s.knownByCNI(ctx, n)
		})
	}
	return s.remove(ctx, pods...)
}

// leak has a pod do what agents are there to prevent, which is the test of what counts leaks.
func (s *stage) leak(ctx context.Context) error {
	pod, err := s.podOf(ctx, shop, "early", "default", s.kube.Nodes[0].Name)
	if err != nil {
		return err
	}
	if err := s.leaks(ctx, pod); err != nil {
		return err
	}
	return s.remove(ctx, pod)
}

// leaks holds that a pod is at the node's metadata service and gets the node's role, which is no fault from here on.
func (s *stage) leaks(ctx context.Context, pod *corev1.Pod) error {
	before := len(s.aws.leaks())
	o, err := s.credentials(ctx, pod)
	if err != nil {
		return err
	}
	if session, err := s.aws.minted(o.AccessKeyID); err != nil || session.RoleARN != nodeRole {
		return fmt.Errorf("got a session of %q (%s: %s)", session.RoleARN, o.Step, o.Error)
	}
	all := s.aws.leaks()
	s.before = len(all)
	isPod := func(r awstest.MetadataRequest) bool { return r.Source.Addr().String() == pod.Status.PodIP }
	if !slices.ContainsFunc(all[before:], isPod) {
		return fmt.Errorf("nobody from %s was seen: %+v", pod.Status.PodIP, all[before:])
	}
	return nil
}

// saysVersion holds that the first record of each agent's log names the version that its image was built as.
func (s *stage) saysVersion(ctx context.Context) (first string, err error) {
	agents, err := s.agents(ctx)
	if err != nil {
		return "", err
	}
	for node, p := range agents {
		log, err := s.kube.Kubectl(ctx, "-n", agentNamespace, "logs", p.Name)
		if err != nil {
			return "", err
		}
		first, _, _ = strings.Cut(log, "\n")
		var record struct{ Version string }
		if err := json.Unmarshal([]byte(first), &record); err != nil || record.Version != agentVersion {
			return "", fmt.Errorf("the log of the agent on %s begins with %q, want version %s", node, first, agentVersion)
		}
	}
	return agentVersion, nil
}

// knownByCNI asks an agent whether it identifies pods by what the CNI cached of them.
func (s *stage) knownByCNI(ctx context.Context, n *kube.Node) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:9716/metrics", n.Address), nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	const metric = "podrole_cni_results"
	var verdicts []string
	for line := range strings.Lines(string(text)) {
		if verdict, ok := strings.CutPrefix(strings.TrimSpace(line), metric+"{verdict="); ok && !strings.HasSuffix(verdict, " 0") {
			verdicts = append(verdicts, verdict)
		}
	}
	said := metric + ": " + strings.Join(verdicts, ", ")
	if !strings.Contains(said, `"counted"}`) {
		return "", fmt.Errorf("none counts; %s", said)
	}
	return said, nil
}

// event waits for an Event of the agent's about a pod that says something, and returns it.
func (s *stage) event(ctx context.Context, pod *corev1.Pod, says string) (message string, err error) {
	err = eventually(ctx, 10*time.Second, func(ctx context.Context) error {
		out, err := s.kube.Kubectl(ctx, "-n", pod.Namespace, "get", "events",
			"--field-selector=source=podrole,involvedObject.name="+pod.Name, "-o", "jsonpath={range .items[*]}{.message}{\"\\n\"}{end}")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, says) {
				message = strings.TrimSpace(line)
				return nil
			}
		}
		return fmt.Errorf("no Event about pod %s says %q; there are: %s", pod.Name, says, out)
	})
	return message, err
}
