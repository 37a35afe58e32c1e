package manifests_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// agentUser is whom policies know the agent as.
const agentUser = "system:serviceaccount:podrole:podrole"

// kustomization is a user's, in a folder of its own.
type kustomization struct {
	Namespace    string           `json:"namespace,omitempty"`
	Resources    []string         `json:"resources"`
	Components   []string         `json:"components,omitempty"`
	Patches      []map[string]any `json:"patches,omitempty"`
	Replacements []map[string]any `json:"replacements,omitempty"`
}

// renderer is the tool of make manifests, which does what kubectl apply -k does.
type renderer string

func newRenderer(t *testing.T) renderer {
	t.Helper()
	// Where it is in the build cache, once it is built.
	path, err := exec.CommandContext(t.Context(), "go", "tool", "-n", "-modfile=../tools/go.mod", "kustomize").Output()
	if err != nil {
		t.Fatalf("build kustomize: %v", err)
	}
	return renderer(strings.TrimSpace(string(path)))
}

// rendered is what kubectl apply -k sends, by kind and name.
type rendered map[string]metav1.Object

// object returns one that must be there.
func object[T metav1.Object](t *testing.T, r rendered, kindAndName string) T {
	t.Helper()
	o, ok := r[kindAndName].(T)
	if !ok {
		t.Fatalf("there is no %s", kindAndName)
	}
	return o
}

// render renders k, whose paths are seen from manifests, and reads the objects strictly.
func (program renderer) render(t *testing.T, k kustomization) rendered {
	t.Helper()
	folder, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, paths := range [][]string{k.Resources, k.Components} {
		for i, path := range paths {
			if paths[i], err = filepath.Rel(folder, filepath.Join(here, path)); err != nil { // kustomize takes no others
				t.Fatal(err)
			}
		}
	}
	text, err := yaml.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "kustomization.yaml"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	var problems bytes.Buffer
	build := exec.CommandContext(t.Context(), string(program), "build", folder)
	build.Stderr = &problems
	if text, err = build.Output(); err != nil || problems.Len() > 0 {
		t.Fatalf("render %+v: %v\n%s", k, err, &problems)
	}
	r := rendered{}
	for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal(document, &kind); err != nil {
			t.Fatal(err)
		}
		o, err := scheme.Scheme.New(schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(document, o); err != nil {
			t.Fatalf("%s: %v\n%s", kind.Kind, err, document)
		}
		r[kind.Kind+" "+o.(metav1.Object).GetName()] = o.(metav1.Object)
	}
	return r
}

// overlays are those that say where credentials come from; options go with each of them, and with each other.
var overlays = []string{"assume-role", "eks-web-identity", "node-web-identity", "vanilla-localstack", "webhook-skip"}

// TestOverlaysWithOptions renders each overlay with each set of options, and looks at what these are for.
func TestOverlaysWithOptions(t *testing.T) {
	program := newRenderer(t)
	const taint, noSurge, nodeLabels = "options/startup-taint", "options/no-surge", "options/node-labels"
	for _, overlay := range overlays {
		for _, options := range [][]string{{}, {taint}, {noSurge}, {nodeLabels}, {taint, noSurge}, {noSurge, taint}} {
			if overlay == "vanilla-localstack" && slices.Contains(options, nodeLabels) {
				continue // has it
			}
			k := kustomization{Resources: []string{"overlays/" + overlay}, Components: slices.Clone(options)}
			t.Run(strings.ReplaceAll(strings.Join(append(options, overlay), "+"), "options/", ""), func(t *testing.T) {
				t.Parallel()
				r := program.render(t, k)
				r.holdsTogether(t)
				r.tainting(t, slices.Contains(options, taint))
				r.surging(t, !slices.Contains(options, noSurge))
				r.readsNodes(t, slices.Contains(options, nodeLabels) || overlay == "vanilla-localstack")
			})
		}
	}
	for name, k := range map[string]kustomization{
		"startup-taint": {Resources: []string{"overlays/startup-taint"}, Components: []string{noSurge}},
		"no-surge":      {Resources: []string{"overlays/no-surge"}, Components: []string{taint}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := program.render(t, k)
			r.holdsTogether(t)
			r.tainting(t, true)
			r.surging(t, false)
		})
	}
}

// holdsTogether: all objects are found by one label, and rights and policies are the agent's.
func (r rendered) holdsTogether(t *testing.T) {
	t.Helper()
	for name, o := range r {
		if o.GetLabels()["app.kubernetes.io/name"] != "podrole" {
			t.Errorf("%s is not found by the label app.kubernetes.io/name=podrole", name)
		}
		switch o := o.(type) {
		case *rbacv1.ClusterRoleBinding:
			if r[o.RoleRef.Kind+" "+o.RoleRef.Name] == nil {
				t.Errorf("%s binds %s, which is not there", name, o.RoleRef.Name)
			}
			for _, s := range o.Subjects {
				agent := s.Kind == "ServiceAccount" && s.Namespace == "podrole" && s.Name == "podrole"
				nodes := s.Kind == "Group" && s.Name == "system:nodes" && o.Name == "podrole-node-audience"
				if !agent && !nodes {
					t.Errorf("%s gives rights to %+v", name, s)
				}
			}
		case *admissionv1.ValidatingAdmissionPolicy:
			for _, c := range o.Spec.MatchConditions {
				if c.Name == "agent" && !strings.Contains(c.Expression, "'"+agentUser+"'") {
					t.Errorf("%s does not name the agent: %s", name, c.Expression)
				}
			}
			const kind = "ValidatingAdmissionPolicyBinding "
			if b := object[*admissionv1.ValidatingAdmissionPolicyBinding](t, r, kind+o.Name); b.Spec.PolicyName != o.Name {
				t.Errorf("%s is not bound", name)
			}
		}
	}
	if o := object[*corev1.ServiceAccount](t, r, "ServiceAccount podrole"); o.Namespace != "podrole" {
		t.Errorf("the agent's ServiceAccount is in namespace %q", o.Namespace)
	}
	tokens := r["ClusterRole podrole-tokens"] != nil
	for _, policy := range []string{"podrole-token-shape", "podrole-token-role"} {
		if r["ValidatingAdmissionPolicy "+policy] != nil != tokens {
			t.Errorf("right to tokens: %v, which %s bounds", tokens, policy)
		}
	}
}

// tainting: the agent takes the startup taint away, may do so, and nothing more.
func (r rendered) tainting(t *testing.T, want bool) {
	t.Helper()
	if got := r.env(t)["PODROLE_STARTUP_TAINT"] == "podrole.io/agent-not-ready"; got != want {
		t.Errorf("the agent takes the taint off: %v", got)
	}
	if got := r.grants("nodes", "patch"); got != want {
		t.Errorf("right to patch nodes: %v", got)
	}
	if !want {
		return
	}
	policy := object[*admissionv1.ValidatingAdmissionPolicy](t, r, "ValidatingAdmissionPolicy podrole-startup-taint")
	if c := policy.Spec.MatchConditions; len(c) != 1 || c[0].Expression != "request.userInfo.username == '"+agentUser+"'" {
		t.Errorf("the policy is about %+v", c)
	}
}

// surging: an update puts the next agent beside the last one; else in its place.
func (r rendered) surging(t *testing.T, want bool) {
	t.Helper()
	update := object[*appsv1.DaemonSet](t, r, "DaemonSet podrole").Spec.UpdateStrategy.RollingUpdate
	surge, unavailable := update.MaxSurge.IntValue(), update.MaxUnavailable.IntValue()
	if want && (surge != 1 || unavailable != 0) || !want && (surge != 0 || unavailable != 1) {
		t.Errorf("update: %d more, %d less", surge, unavailable)
	}
}

// readsNodes: all Nodes can be read only where they tell pods what nothing else does.
func (r rendered) readsNodes(t *testing.T, want bool) {
	t.Helper()
	if got := r.grants("nodes", "get"); got != (want || r.grants("nodes", "patch")) {
		t.Errorf("right to read Nodes: %v", got)
	}
	if got := r.env(t)["PODROLE_METADATA_UPSTREAM"] == "false"; got != want { // labels are read there alone
		t.Errorf("without a metadata service of the node: %v", got)
	}
}

// grants reports whether a ClusterRole has a right.
func (r rendered) grants(resource, verb string) bool {
	for _, o := range r {
		role, ok := o.(*rbacv1.ClusterRole)
		if ok && slices.ContainsFunc(role.Rules, func(p rbacv1.PolicyRule) bool {
			return slices.Contains(p.Resources, resource) && slices.Contains(p.Verbs, verb)
		}) {
			return true
		}
	}
	return false
}

// env returns the agent's settings, which must differ.
func (r rendered) env(t *testing.T) map[string]string {
	t.Helper()
	env := map[string]string{}
	for _, v := range object[*appsv1.DaemonSet](t, r, "DaemonSet podrole").Spec.Template.Spec.Containers[0].Env {
		if _, twice := env[v.Name]; twice {
			t.Errorf("%s is there twice", v.Name)
		}
		env[v.Name] = v.Value
	}
	return env
}

// TestUsersPatches: what a user adds to where agents run keeps them from where they cannot.
func TestUsersPatches(t *testing.T) {
	program := newRenderer(t)
	for name, patch := range map[string]string{
		"json": "- {op: add, path: /spec/template/spec/nodeSelector/example.com~1pool, value: apps}",
		"merge": "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: podrole}, " +
			"spec: {template: {spec: {nodeSelector: {example.com/pool: apps}}}}}",
	} {
		t.Run(name, func(t *testing.T) {
			r := program.render(t, kustomization{
				Resources: []string{"overlays/eks-web-identity"},
				Patches:   []map[string]any{{"target": map[string]string{"kind": "DaemonSet", "name": "podrole"}, "patch": patch}},
			})
			pod := object[*appsv1.DaemonSet](t, r, "DaemonSet podrole").Spec.Template.Spec
			for _, node := range []struct {
				pool, os, compute string
				want              bool
			}{
				{"apps", "linux", "ec2", true},
				{"other", "linux", "ec2", false},
				{"apps", "windows", "ec2", false},
				{"apps", "linux", "fargate", false},
			} {
				if got := goesTo(t, pod, map[string]string{
					"example.com/pool": node.pool, corev1.LabelOSStable: node.os, computeType: node.compute,
				}); got != node.want {
					t.Errorf("goes to %+v: %v", node, got)
				}
			}
		})
	}
}

// TestAnotherNamespace: policies follow the agent to another namespace by what docs/security.md says, in each overlay.
func TestAnotherNamespace(t *testing.T) {
	program := newRenderer(t)
	const elsewhere = "aws-roles"
	const follows = "request.userInfo.username == 'system:serviceaccount:" + elsewhere + ":podrole'"
	source := map[string]string{"kind": "ServiceAccount", "name": "podrole", "fieldPath": "metadata.namespace"}
	var targets []map[string]any
	for _, policy := range []string{"podrole-token-shape", "podrole-token-role", "podrole-startup-taint"} {
		targets = append(targets, map[string]any{
			"select":     map[string]string{"kind": "ValidatingAdmissionPolicy", "name": policy},
			"fieldPaths": []string{"spec.matchConditions.[name=agent].expression"},
			"options":    map[string]any{"delimiter": ":", "index": 2},
		})
	}
	for _, overlay := range append(slices.Clone(overlays), "startup-taint", "no-surge") {
		t.Run(overlay, func(t *testing.T) {
			t.Parallel()
			r := program.render(t, kustomization{
				Namespace: elsewhere, Resources: []string{"overlays/" + overlay},
				Replacements: []map[string]any{{"source": source, "targets": targets}},
			})
			for name, o := range r {
				switch o := o.(type) {
				case *rbacv1.ClusterRoleBinding:
					for _, s := range o.Subjects {
						if s.Kind == "ServiceAccount" && s.Namespace != elsewhere {
							t.Errorf("%s is of namespace %s", name, s.Namespace)
						}
					}
				case *admissionv1.ValidatingAdmissionPolicy:
					for _, c := range o.Spec.MatchConditions {
						if c.Name == "agent" && c.Expression != follows {
							t.Errorf("%s is about %s", name, c.Expression)
						}
					}
				}
			}
		})
	}
}
