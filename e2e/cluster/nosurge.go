package main

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// noSurge deploys the overlay for nodes without room for a second agent, and updates it under load.
func (s *stage) noSurge(ctx context.Context) (err error) {
	for _, n := range s.kube.Nodes {
		if err := n.Tag(ctx, agentImage, nextImage); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, s.deploy(ctx, overlay("eks-web-identity"))) }()
	if !s.check("kubectl apply -k manifests/overlays/no-surge", func() (string, error) {
		return "", s.deploy(ctx, overlay("no-surge"))
	}) {
		return nil
	}
	var pods []*corev1.Pod
	if !s.check("pods on both nodes get their roles", func() (_ string, err error) {
		pods, err = s.askingPods(ctx, seldom)
		return "", err
	}) {
		return nil
	}
	leaks := len(s.aws.leaks())
	const name = "update under load: one agent on a node at a time, pods are refused in between, and nothing leaks"
	s.check(name, func() (string, error) {
		counted, err := s.countAgents(ctx, func() error { return s.update(ctx, nextImage) })
		if err != nil {
			return "", err
		}
		f, err := s.sumUp(ctx, pods)
		return f.String(), errors.Join(err, counted.oneByOne(len(s.kube.Nodes)), f.onlyRefused(), s.leaksSince(leaks))
	})
	return s.remove(ctx, pods...)
}

// agentCount is how many agents there were.
type agentCount struct {
	all  int // different ones
	most int // on one node at once
}

func (c agentCount) oneByOne(nodes int) error {
	if c.all != 2*nodes || c.most != 1 {
		return fmt.Errorf("there were %d agents in all, and %d on one node at once; want %d, and 1", c.all, c.most, 2*nodes)
	}
	return nil
}

// countAgents counts agents, from before something is done until it is.
func (s *stage) countAgents(ctx context.Context, do func() error) (agentCount, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := s.kube.Admin.CoreV1().Pods(agentNamespace).Watch(ctx, metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=" + agentName,
	})
	if err != nil {
		return agentCount{}, fmt.Errorf("watch agents: %w", err)
	}
	counted := make(chan agentCount)
	go func() { counted <- count(changes.ResultChan()) }()
	err = do()
	changes.Stop()
	return <-counted, err
}

// count counts the pods that changes are about, from when they are on a node until they have ended.
func count(changes <-chan watch.Event) (c agentCount) {
	nodes := map[types.UID]string{}
	seen := map[types.UID]bool{}
	for change := range changes {
		pod, ok := change.Object.(*corev1.Pod)
		if !ok || pod.Spec.NodeName == "" {
			continue
		}
		ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
		if ended || change.Type == watch.Deleted {
			delete(nodes, pod.UID)
			continue
		}
		seen[pod.UID], nodes[pod.UID] = true, pod.Spec.NodeName
		on := 0
		for _, node := range nodes {
			if node == pod.Spec.NodeName {
				on++
			}
		}
		c.most = max(c.most, on)
	}
	c.all = len(seen)
	return c
}
