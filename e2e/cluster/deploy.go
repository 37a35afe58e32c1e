package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/podrole/podrole/e2e/cluster/kube"
	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// deployment is what a user would have in a kustomization.yaml of their own.
type deployment struct {
	resources  []string // folders, as the source tree has them
	components []string
	env        map[string]string // settings of the agent, in its DaemonSet
	secret     []string          // KEY=VALUE, merged into Secret podrole-aws
	settings   []string          // KEY=VALUE, merged into ConfigMap podrole-aws
	namespace  string            // instead of podrole
	followed   bool              // the policies name the agent in its namespace, as docs/security.md says how
}

// overlay is a deployment of a folder of manifests/overlays, with the cluster's AWS in the place of the region's own.
func overlay(name string) deployment {
	return deployment{resources: []string{"manifests/overlays/" + name}, env: map[string]string{
		"PODROLE_STS_ENDPOINT": endpoint(), "PODROLE_LOG_LEVEL": "debug",
	}}
}

// endpoint is the URL of the cluster's AWS.
func endpoint() string { return fmt.Sprintf("http://%s:%d", kube.Outside(), awsPort) }

// apply runs kubectl apply -k.
func (s *stage) apply(ctx context.Context, d deployment) error {
	folder, err := s.write(d)
	if err != nil {
		return err
	}
	_, err = s.kube.Kubectl(ctx, "apply", "-k", folder)
	return err
}

// takeAway runs kubectl delete -k, and holds that what was applied is gone.
func (s *stage) takeAway(ctx context.Context, d deployment) error {
	folder, err := s.write(d)
	if err != nil {
		return err
	}
	if _, err := s.kube.Kubectl(ctx, "delete", "--ignore-not-found", "-k", folder); err != nil {
		return err
	}
	left, err := s.kube.Kubectl(ctx, "get", "--ignore-not-found", "-o", "name", "-k", folder)
	if err == nil && left != "" {
		err = fmt.Errorf("left: %s", strings.Join(strings.Fields(left), ", "))
	}
	return err
}

// write writes the kustomization of a deployment into a folder of its own.
func (s *stage) write(d deployment) (folder string, err error) {
	folder, err = os.MkdirTemp(sandbox.Dir, "deploy-")
	if err != nil {
		return "", fmt.Errorf("write kustomization: %w", err)
	}
	text, err := d.kustomization(folder, s.root)
	if err != nil {
		return "", fmt.Errorf("write kustomization: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), text, 0o600); err != nil {
		return "", fmt.Errorf("write kustomization: %w", err)
	}
	return folder, nil
}

// drop takes away what gives the agents rights that the next manifests do not give: kubectl apply adds and changes only, and an
// agent that may do more than it was told to does not serve.
func (s *stage) drop(ctx context.Context, bindings ...string) error {
	_, err := s.kube.Kubectl(ctx, append([]string{"delete", "--ignore-not-found", "clusterrolebinding"}, bindings...)...)
	return err
}

// deploy applies a deployment and returns when the agents that it is about are Ready.
func (s *stage) deploy(ctx context.Context, d deployment) error {
	if err := s.apply(ctx, d); err != nil {
		return err
	}
	return s.rolledOutAs(ctx, cmp.Or(d.namespace, agentNamespace), agentName)
}

// rolledOut waits until the agents are those of the DaemonSet as it is, and Ready.
func (s *stage) rolledOut(ctx context.Context) error {
	return s.rolledOutAs(ctx, agentNamespace, agentName)
}

// rolledOutAs waits for the pods of a DaemonSet in the same way.
func (s *stage) rolledOutAs(ctx context.Context, namespace, name string) error {
	_, err := s.kube.Kubectl(ctx, "-n", namespace, "rollout", "status", "daemonset/"+name, "--timeout=90s")
	if err == nil {
		return nil
	}
	said, _ := s.kube.Kubectl(ctx, "-n", namespace, "logs",
		"--selector=app.kubernetes.io/name="+name, "--all-containers", "--tail=5", "--prefix")
	return fmt.Errorf("%w\n%s", err, said)
}

// kustomization returns the file for a folder.
func (d deployment) kustomization(folder, root string) ([]byte, error) {
	relative := func(paths []string) ([]string, error) { // kustomize takes no others
		var all []string
		for _, path := range paths {
			r, err := filepath.Rel(folder, filepath.Join(root, path))
			if err != nil {
				return nil, err
			}
			all = append(all, r)
		}
		return all, nil
	}
	resources, err := relative(d.resources)
	if err != nil {
		return nil, err
	}
	components, err := relative(d.components)
	if err != nil {
		return nil, err
	}
	var patch strings.Builder
	for name, value := range d.env {
		fmt.Fprintf(&patch, "- {op: add, path: /spec/template/spec/containers/0/env/-, value: {name: %s, value: %q}}\n", name, value)
	}
	k := map[string]any{
		"resources": resources, "components": components,
		"images": []any{map[string]string{"name": "podrole", "newName": agentRepo, "newTag": "dev"}},
	}
	if patch.Len() > 0 {
		target := map[string]string{"kind": "DaemonSet", "name": agentName}
		k["patches"] = []any{map[string]any{"target": target, "patch": patch.String()}}
	}
	for generator, literals := range map[string][]string{"secretGenerator": d.secret, "configMapGenerator": d.settings} {
		if len(literals) > 0 {
			k[generator] = []any{map[string]any{
				"name": "podrole-aws", "namespace": agentNamespace, "behavior": "merge", "literals": literals,
			}}
		}
	}
	if d.namespace != "" {
		k["namespace"] = d.namespace
	}
	if d.followed {
		// One target for each, as docs/security.md has it: a regular expression matches nothing in kubectl before 1.36.
		var targets []any
		for _, policy := range []string{"podrole-token-shape", "podrole-token-role", "podrole-startup-taint"} {
			targets = append(targets, map[string]any{
				"select":     map[string]string{"kind": "ValidatingAdmissionPolicy", "name": policy},
				"fieldPaths": []string{"spec.matchConditions.[name=agent].expression"},
				"options":    map[string]any{"delimiter": ":", "index": 2},
			})
		}
		k["replacements"] = []any{map[string]any{
			"source":  map[string]string{"kind": "ServiceAccount", "name": agentName, "fieldPath": "metadata.namespace"},
			"targets": targets,
		}}
	}
	return yaml.Marshal(k)
}
