package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/podrole/podrole/e2e/cluster/kube"
	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// errFailed says that a check failed, which has been printed.
var errFailed = errors.New("failed")

// suite is a group of checks.
type suite struct {
	name, about string
	play        func(*stage, context.Context) error
}

// suites are played in this order. The first one deploys the agent; each leaves it as it found it.
func suites() []suite {
	return []suite{
		{"serve", "the agent as its users deploy it, and pods on both nodes", (*stage).serve},
		{"policies", "annotations that cannot be read are refused when they are written", (*stage).policies},
		{"pod-security", "what the API server says of the agent's pod", (*stage).podSecurity},
		{"jobs", "pods that ask as their first instruction, in bursts", (*stage).jobs},
		{"authority", "what the agent's own credentials are refused, with policies/direct-tokens", (*stage).directAuthority},
		{"irsa", "AWS verifies tokens against this API server's own issuer and keys", (*stage).irsa},
		{"misconfigured", "what operators are told of what they got wrong", (*stage).misconfigured},
		{"resources", "what the agents use, against what their manifests ask for", (*stage).resources},
		{"rolling", "the agent is replaced, deleted, and loses its node", (*stage).rolling},
		{"no-surge", "the overlay for nodes without room for a second agent", (*stage).noSurge},
		{"taint", "nodes that register with the startup taint, and what else the right to patch nodes is good for", (*stage).taint},
		{"outage", "the API server is away", (*stage).outage},
		{"overlays", "the other overlays, each applied and served from", (*stage).overlays},
		{"moved", "agents in another namespace than their policies know", (*stage).moved},
		{"node-authority", "the same authority, with policies/node-tokens", (*stage).nodeAuthority},
		{"uninstall", "the agent is removed, from the cluster and from its nodes", (*stage).uninstall},
	}
}

// inside plays all suites in the sandbox.
func inside(ctx context.Context, cfg settings, w io.Writer) error {
	began := time.Now()
	if err := sandbox.Settle(); err != nil {
		return err
	}
	if !cfg.hold {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, playWithin)
		defer cancel()
	}
	s, err := newStage(ctx, cfg, w)
	if err != nil {
		return err
	}
	for i, u := range suites() {
		if match, err := path.Match(cfg.only, u.name); err != nil || !match && i > 0 {
			continue
		}
		s.suite(u.name, u.about)
		if err := u.play(s, ctx); err != nil {
			s.check("suite "+u.name, func() (string, error) { return "", err })
			if i == 0 {
				break // nothing else can be played
			}
		}
		if err := s.keepLogs(ctx, u.name); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if cfg.hold {
		s.waitForUser(ctx)
	}
	s.check("nobody but the nodes reached the nodes' metadata service", s.noLeaks)
	return s.end(time.Since(began))
}

// newStage builds images and cluster.
func newStage(ctx context.Context, cfg settings, w io.Writer) (*stage, error) {
	built, err := cfg.buildImages(ctx, w)
	if err != nil {
		return nil, err
	}
	binaries, err := cfg.kubernetesDir()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	fmt.Fprintln(w, "== a cluster of two nodes")
	c, err := kube.New(ctx, kube.Config{
		Binaries: binaries, Logs: cfg.logs, Nodes: []string{"node1", "node2"}, Pause: built.pause, PauseName: pauseImage,
	})
	if err != nil {
		return nil, err
	}
	err = all(len(c.Nodes), func(i int) error { return c.Nodes[i].Import(ctx, built.agent, built.client) })
	if err != nil {
		return nil, err
	}
	a, err := newAWS(c)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(w, "   up in %s\n", time.Since(began).Round(time.Second))
	return &stage{settings: cfg, report: &report{w: w, nodes: len(c.Nodes)}, kube: c, aws: a}, nil
}

// waitForUser says how to look at the cluster, and waits for Ctrl-C.
func (s *stage) waitForUser(ctx context.Context) {
	fmt.Fprintln(s.w, "\n== the cluster stays until Ctrl-C; from another terminal:")
	fmt.Fprintf(s.w, "   sandbox=$(pgrep --newest --full '%s.*-hold')   # the outside of the nodes: API server, AWS\n",
		filepath.Base(os.Args[0]))
	fmt.Fprintf(s.w, "   nsenter --target $sandbox --mount --net --pid env KUBECONFIG=%s %s get pods -A\n",
		s.kube.Kubeconfig(), s.kube.Binary("kubectl"))
	for _, n := range s.kube.Nodes {
		fmt.Fprintf(s.w, "   nsenter --target $(pgrep --parent $sandbox --full '^%s') --all   # %s\n", n.Name, n.Name)
	}
	<-ctx.Done()
}
