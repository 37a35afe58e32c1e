package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podrole/podrole/e2e/cluster/kube"
)

// uninstalls is the DaemonSet of manifests/uninstall.
const uninstalls = agentName + "-uninstall"

// uninstall takes the agent away by its manifests alone, after which pods are refused, and then as README says, after which
// the nodes are as they were before it, and so are the pods.
func (s *stage) uninstall(ctx context.Context) error {
	deployed := overlay("eks-web-identity")
	remover := deployment{resources: []string{"manifests/uninstall"}}
	if err := s.drop(ctx, "podrole-as-node", "podrole-node-audience", "podrole-startup-taint"); err != nil {
		return err
	}
	if err := s.deploy(ctx, deployed); err != nil {
		return err
	}
	var pods []*corev1.Pod
	for _, n := range s.kube.Nodes {
		pod, err := s.podOf(ctx, shop, "staying-"+n.Name, "orders", n.Name)
		if err != nil {
			return err
		}
		pods = append(pods, pod)
	}
	served := func() (string, error) {
		return "", all(len(pods), func(i int) error { return s.gets(ctx, pods[i], "orders", byWebIdentity) })
	}
	s.check("pods on both nodes get their role", served)
	for _, n := range s.kube.Nodes {
		s.check("the host's own tools see rules, guard and address on "+n.Name, func() (string, error) {
			return seesAll(ctx, n)
		})
	}
	s.check("kubectl delete -k of the deployment alone: pods are refused, and nothing leaks", func() (string, error) {
		if err := s.takeAway(ctx, deployed); err != nil {
			return "", err
		}
		err := all(len(pods), func(i int) error { return s.shutOut(ctx, pods[i]) })
		return "", errors.Join(err, s.leaksSince(s.before))
	})
	if !s.check("kubectl apply -k of it again: they are served again", func() (string, error) {
		if err := s.deploy(ctx, deployed); err != nil {
			return "", err
		}
		return served()
	}) {
		return nil
	}
	if !s.check("kubectl delete daemonset podrole, kubectl apply -k manifests/uninstall: it rolls out", func() (string, error) {
		if _, err := s.kube.Kubectl(ctx, "-n", agentNamespace, "delete", "daemonset", agentName); err != nil {
			return "", err
		}
		if err := s.apply(ctx, remover); err != nil {
			return "", err
		}
		return "", errors.Join(s.rolledOutAs(ctx, agentNamespace, uninstalls), s.leaksSince(s.before))
	}) {
		return nil
	}
	for i, n := range s.kube.Nodes {
		s.check("nothing is left on "+n.Name, func() (string, error) { return "", nothingLeft(ctx, n) })
		s.check("a pod on "+n.Name+" is at the node's metadata service again", func() (string, error) {
			return "", s.leaks(ctx, pods[i])
		})
	}
	s.check("kubectl delete -k of both: nothing is left in the cluster", func() (string, error) {
		if err := s.takeAway(ctx, remover); err != nil {
			return "", err
		}
		return "", s.takeAway(ctx, deployed)
	})
	return s.remove(ctx, pods...)
}

// shutOut holds that nobody answers a pod any more, and that it stays so for some time.
func (s *stage) shutOut(ctx context.Context, pod *corev1.Pod) error {
	const tries = 10
	for range tries {
		o, err := s.credentials(ctx, pod)
		if err != nil {
			return err
		}
		if o.Error == "" || o.Status != 0 {
			return fmt.Errorf("pod %s is answered: role %q, status %d", pod.Name, o.Role, o.Status)
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// trace is something that the agent leaves on a node, and the host's tools that show it.
type trace struct {
	name  string
	tools [][]string
}

func traces() []trace {
	return []trace{
		{"rules", [][]string{{"iptables-nft-save"}, {"iptables-legacy-save"}, {"ip6tables-nft-save"}, {"ip6tables-legacy-save"}}},
		{"guard", [][]string{
			{"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
		}},
		{"address", [][]string{{"ip", "address"}}},
	}
}

// see returns the lines of what a host's tools show that are the agent's doing.
func (t trace) see(ctx context.Context, n *kube.Node) (lines []string, err error) {
	// Its chains and comments, the guard's refusals, and its addresses, as the flags have them.
	agents := regexp.MustCompile(`(?i)podrole|prohibit|169\.254\.77\.1|fd70:6f64:726f:6c65`)
	for _, tool := range t.tools {
		out, err := n.Machine.Command(ctx, tool...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s on %s: %w", strings.Join(tool, " "), n.Name, err)
		}
		for line := range strings.Lines(string(out)) {
			if agents.MatchString(line) {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return lines, nil
}

// seesAll holds that each trace can be seen on a node where an agent is.
func seesAll(ctx context.Context, n *kube.Node) (string, error) {
	var said []string
	for _, t := range traces() {
		lines, err := t.see(ctx, n)
		if err != nil {
			return "", err
		}
		if len(lines) == 0 {
			return "", fmt.Errorf("no %s", t.name)
		}
		said = append(said, fmt.Sprintf("%d lines of %s", len(lines), t.name))
	}
	return strings.Join(said, ", "), nil
}

// nothingLeft holds that a node has nothing of the agent's any more.
func nothingLeft(ctx context.Context, n *kube.Node) error {
	for _, t := range traces() {
		lines, err := t.see(ctx, n)
		if err != nil {
			return err
		}
		if len(lines) > 0 {
			return fmt.Errorf("%s:\n%s", t.name, strings.Join(lines, "\n"))
		}
	}
	files, err := os.ReadDir(n.Machine.File(stateDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(files) > 0 { // the folder itself is mounted, and stays
		return fmt.Errorf("%s holds %s and %d more", stateDir, files[0].Name(), len(files)-1)
	}
	return nil
}
