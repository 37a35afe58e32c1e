package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podrole/podrole/internal/awstest"
)

const (
	// compressed is how many times shorter sessions live than they were asked for: an hour becomes twenty seconds.
	compressed = 180
	// stopped is how long there is no API server: three lives of a session.
	stopped = 3 * time.Hour / compressed
)

// outage stops the API server for several lives of a session, and restarts an agent meanwhile.
func (s *stage) outage(ctx context.Context) (err error) {
	s.aws.SetSessionLifetime(awstest.ScaleLifetime(compressed))
	defer s.aws.SetSessionLifetime(nil)
	if err := s.addRole(ctx, "lasting"); err != nil {
		return err
	}
	var pods []*corev1.Pod
	for _, n := range s.kube.Nodes {
		pod, err := s.podOf(ctx, shop, "lasting-"+n.Name, "lasting", n.Name, "250ms")
		if err != nil {
			return err
		}
		if err := s.gets(ctx, pod, "lasting", byWebIdentity); err != nil {
			return err
		}
		pods = append(pods, pod)
	}
	before, err := s.keys(ctx, pods)
	if err != nil {
		return err
	}
	if err := s.kube.StopAPI(); err != nil {
		return err
	}
	name := fmt.Sprintf("no API server for %s, three lives of a session: pods keep getting fresh ones", stopped)
	s.check(name, func() (string, error) { return s.endure(ctx, pods, before) })
	s.check("an agent that is restarted meanwhile serves them, too", func() (string, error) {
		return s.restartAgent(ctx, pods[0])
	})
	if err := s.kube.StartAPI(ctx); err != nil {
		return err
	}
	s.check("the API server is back: new pods are served", func() (string, error) {
		pod, err := s.podOf(ctx, shop, "afterwards", "lasting", s.kube.Nodes[0].Name)
		if err != nil {
			return "", err
		}
		return "", errors.Join(s.gets(ctx, pod, "lasting", byWebIdentity), s.remove(ctx, pod))
	})
	return s.remove(ctx, pods...)
}

// keys returns the sessions that pods have seen.
func (s *stage) keys(ctx context.Context, pods []*corev1.Pod) (map[string][]string, error) {
	all := map[string][]string{}
	for _, p := range pods {
		l, err := s.load(ctx, p)
		if err != nil {
			return nil, err
		}
		all[p.Name] = l.Keys
	}
	return all, nil
}

// endure waits for as long as the API server is to be away, and holds that no request failed and that sessions changed.
func (s *stage) endure(ctx context.Context, pods []*corev1.Pod, before map[string][]string) (string, error) {
	if err := pause(ctx, stopped); err != nil {
		return "", err
	}
	said, err := s.sinceStart(ctx, pods)
	if err != nil {
		return "", err
	}
	after, err := s.keys(ctx, pods)
	if err != nil {
		return "", err
	}
	fewest := -1
	for _, name := range slices.Sorted(maps.Keys(after)) {
		fresh := len(after[name]) - len(before[name])
		if fewest < 0 || fresh < fewest {
			fewest = fresh
		}
	}
	if fewest < 3 {
		return "", fmt.Errorf("only %d fresh sessions: %s", fewest, said)
	}
	return fmt.Sprintf("%s, %d fresh sessions each at least", said, fewest), nil
}

// restartAgent kills the agent of the first node, which the kubelet starts again by itself, and holds that it serves what
// the one before had decided.
func (s *stage) restartAgent(ctx context.Context, pod *corev1.Pod) (string, error) {
	n := s.kube.Nodes[0]
	old, err := agentPID(ctx, n)
	if err != nil {
		return "", err
	}
	began := time.Now()
	// The machine's own process IDs: nothing else is seen in it.
	if err := n.Machine.Command(ctx, "kill", "-KILL", strconv.Itoa(old)).Run(); err != nil {
		return "", fmt.Errorf("kill the agent: %w", err)
	}
	if err := s.leaksSince(s.before); err != nil {
		return "", err
	}
	err = eventually(ctx, time.Minute, func(ctx context.Context) error {
		now, err := agentPID(ctx, n)
		if err != nil || now == old {
			return errors.New("the agent has not started again")
		}
		o, err := s.credentials(ctx, pod)
		if err != nil {
			return err
		}
		return s.holds(o, "lasting", byWebIdentity)
	})
	return fmt.Sprintf("after %s", time.Since(began).Round(100*time.Millisecond)), err
}
