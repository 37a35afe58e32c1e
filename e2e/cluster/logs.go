package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// keepLogs writes what an operator would look at after a suite beside the logs of the cluster's programs: the agents' logs,
// which go with their pods, Events and objects.
func (s *stage) keepLogs(ctx context.Context, suite string) error {
	for file, args := range map[string][]string{
		"agents.log":  {"-n", agentNamespace, "logs", "--selector=app.kubernetes.io/name=" + agentName, "--prefix", "--tail=-1"},
		"events.log":  {"get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"},
		"objects.log": {"get", "pods,daemonsets,jobs,nodes", "--all-namespaces", "-o", "wide"},
	} {
		out, err := s.kube.Kubectl(ctx, args...)
		if err != nil {
			out += err.Error() + "\n"
		}
		if err := os.WriteFile(filepath.Join(s.logs, suite+"-"+file), []byte(out), 0o600); err != nil {
			return fmt.Errorf("keep logs: %w", err)
		}
	}
	return nil
}
