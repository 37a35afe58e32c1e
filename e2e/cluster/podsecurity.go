package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// exceptions are what the agent's pod does not pass of each level of Pod Security, in the API server's words, sorted, with
// why it cannot (https://kubernetes.io/docs/concepts/security/pod-security-standards/). It passes all else.
func exceptions() map[string][]string {
	return map[string][]string{
		"baseline": {
			// The redirect is rules and addresses of the node's own network.
			`host namespaces (hostNetwork=true)`,
			// Sessions for the next agent; what the CNI did for each pod, and which pods there are; the lock of iptables.
			`hostPath volumes (volumes "state", "cni", "netns", "xtables-lock")`,
			// To change that network; the latter for the legacy backend of iptables.
			`non-default capabilities (container "podrole" must not include "NET_ADMIN", "NET_RAW" in securityContext.capabilities.add)`,
		},
		"restricted": {
			`host namespaces (hostNetwork=true)`,
			`restricted volume types (volumes "state", "cni", "netns", "xtables-lock" use restricted volume type "hostPath")`,
			// Capabilities that a container is given have no effect in programs that do not run as root.
			`runAsNonRoot != true (pod or container "podrole" must set securityContext.runAsNonRoot=true)`,
			`runAsUser=0 (container "podrole" must not set runAsUser=0)`,
			`unrestricted capabilities (container "podrole" must not include "NET_ADMIN", "NET_RAW" in securityContext.capabilities.add)`,
		},
	}
}

// podSecurity has the API server judge the agent's pod.
func (s *stage) podSecurity(ctx context.Context) error {
	daemons, err := s.kube.Admin.AppsV1().DaemonSets(agentNamespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	spec := daemons.Spec.Template.Spec
	spec.ServiceAccountName = "default" // of the Namespace that is there to judge
	for _, level := range []string{"baseline", "restricted"} {
		want := exceptions()[level]
		s.check(fmt.Sprintf("of level %s, the agent's pod passes all but %d checks", level, len(want)), func() (string, error) {
			got, err := s.violations(ctx, level, spec)
			if err != nil {
				return "", err
			}
			if !slices.Equal(got, want) {
				return "", fmt.Errorf("it does not pass:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			return strings.Join(got, ", "), nil
		})
	}
	return nil
}

// violations returns what a pod does not pass of a level, sorted, from the API server's answer where the level is enforced:
// pods "NAME" is forbidden: violates PodSecurity "LEVEL:latest": CHECK (DETAILS), CHECK (DETAILS), …
func (s *stage) violations(ctx context.Context, level string, spec corev1.PodSpec) (all []string, err error) {
	labels := map[string]string{"pod-security.kubernetes.io/enforce": level}
	if err := s.addNamespace(ctx, level, nil, labels); err != nil {
		return nil, err
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: agentName}, Spec: spec}
	err = eventually(ctx, patience, func(ctx context.Context) error { // the ServiceAccount comes a moment later
		_, err := s.kube.Admin.CoreV1().Pods(level).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil {
			return nil
		}
		_, list, judged := strings.Cut(err.Error(), fmt.Sprintf("violates PodSecurity %q: ", level+":latest"))
		if !judged || !apierrors.IsForbidden(err) {
			return err
		}
		for check := range strings.SplitSeq(strings.TrimSuffix(list, ")"), "), ") {
			all = append(all, check+")")
		}
		slices.Sort(all)
		return nil
	})
	return all, err
}
