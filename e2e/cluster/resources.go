package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/e2e/cluster/kube"
)

const (
	// idle is how long agents are watched that nobody asks.
	idle = 10 * time.Second
	// usageEvery is how often their memory is looked at meanwhile.
	usageEvery = 100 * time.Millisecond
)

// resources measures what the agents use, idle and under load, against what their manifests ask for.
func (s *stage) resources(ctx context.Context) error {
	daemons, err := s.kube.Admin.AppsV1().DaemonSets(agentNamespace).Get(ctx, agentName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	asked := daemons.Spec.Template.Spec.Containers[0].Resources
	s.check("nobody asks: the agents use less CPU than they request", func() (string, error) {
		return s.uses(ctx, func(ctx context.Context) error { return pause(ctx, idle) }, func(m usage) error {
			if request := asked.Requests.Cpu().MilliValue(); m.milliCPU() >= request {
				return fmt.Errorf("want less than %dm", request)
			}
			return nil
		})
	})
	const name = "four pods ask 25 times a second each, and 50 Jobs come and go: the agents need no more memory than they request"
	s.check(name, func() (string, error) {
		return s.uses(ctx, s.strain, func(m usage) error {
			if request := asked.Requests.Memory().Value(); m.workingSet > request {
				return fmt.Errorf("want at most %s", mebibytes(request))
			}
			return nil
		})
	})
	return nil
}

// strain has four pods ask all the time while Jobs come and go.
func (s *stage) strain(ctx context.Context) error {
	pods, err := s.askingPods(ctx, every)
	if err != nil {
		return err
	}
	accounts := []string{"strain-0", "strain-1", "strain-2", "strain-3", "strain-4"}
	if err := s.addRole(ctx, accounts...); err != nil {
		return err
	}
	for begin := 0; begin < jobCount; begin += jobBurst {
		if _, err := s.burst(ctx, accounts, begin); err != nil {
			return err
		}
	}
	said, err := s.sinceStart(ctx, pods)
	s.note("%s", said)
	return errors.Join(err, s.remove(ctx, pods...))
}

// usage is what an agent used over some time.
type usage struct {
	took               time.Duration
	cpu                time.Duration
	memory, workingSet int64 // bytes, at most
}

// milliCPU is in thousandths of a CPU, as Kubernetes has it.
func (u usage) milliCPU() int64 { return int64(1000 * u.cpu / u.took) }

func (u usage) String() string {
	return fmt.Sprintf("%dm CPU over %s, working set %s at most, %s with all cached files",
		u.milliCPU(), u.took.Round(time.Second), mebibytes(u.workingSet), mebibytes(u.memory))
}

func mebibytes(bytes int64) string { return fmt.Sprintf("%.1fMi", float64(bytes)/(1<<20)) }

// uses measures the agents of all nodes while something is done, and holds that each is within bounds.
func (s *stage) uses(ctx context.Context, do func(context.Context) error, within func(usage) error) (string, error) {
	working, done := context.WithCancel(ctx)
	defer done()
	nodes := s.kube.Nodes
	found := make([]usage, len(nodes))
	err := all(len(nodes)+1, func(i int) (err error) {
		if i == len(nodes) {
			defer done()
			return do(ctx)
		}
		found[i], err = follow(working, nodes[i])
		return err
	})
	if err != nil {
		return "", err
	}
	var said []string
	for i, u := range found {
		said = append(said, nodes[i].Name+": "+u.String())
		err = errors.Join(err, within(u))
	}
	text := strings.Join(said, "; ")
	if err != nil {
		err = fmt.Errorf("%s: %w", text, err)
	}
	return text, err
}

// follow measures the agent of a node until ctx ends. An agent that ends before is an error.
func follow(ctx context.Context, n *kube.Node) (u usage, err error) {
	pid, err := agentPID(ctx, n)
	if err != nil {
		return u, err
	}
	began := time.Now()
	before, err := n.Machine.Usage(pid)
	if err != nil {
		return u, err
	}
	ticker := time.NewTicker(usageEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return u, nil
		case <-ticker.C:
		}
		now, err := n.Machine.Usage(pid)
		if err != nil {
			return u, err
		}
		u.took, u.cpu = time.Since(began), now.CPU-before.CPU
		u.memory, u.workingSet = max(u.memory, now.Memory), max(u.workingSet, now.WorkingSet)
	}
}

// agentPID returns the ID of the agent's process, as its node sees it.
func agentPID(ctx context.Context, n *kube.Node) (int, error) {
	out, err := n.Machine.Command(ctx, "pgrep", "--exact", "podrole").Output()
	if err != nil {
		return 0, fmt.Errorf("find the agent's process: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}
