// Package manifests_test holds what `kubectl apply -k` sends against what the agent needs.
package manifests_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/podrole/podrole/pkg/config"
)

// decode reads every document of the base, strictly: a misspelt field is an error here, while the API server only warns.
func decode(t *testing.T) map[string]any {
	t.Helper()
	files, err := filepath.Glob("base/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	objects := map[string]any{}
	for _, file := range files {
		if filepath.Base(file) == "kustomization.yaml" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
			var kind metav1.TypeMeta
			if err := yaml.Unmarshal(document, &kind); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			object, known := map[string]any{
				"Namespace":          &corev1.Namespace{},
				"ServiceAccount":     &corev1.ServiceAccount{},
				"ClusterRole":        &rbacv1.ClusterRole{},
				"ClusterRoleBinding": &rbacv1.ClusterRoleBinding{},
				"DaemonSet":          &appsv1.DaemonSet{},
			}[kind.Kind]
			if !known || objects[kind.Kind] != nil {
				t.Fatalf("%s: a %s more than the agent uses", file, kind.Kind)
			}
			if err := yaml.UnmarshalStrict(document, object); err != nil {
				t.Errorf("%s: %s: %v", file, kind.Kind, err)
			}
			objects[kind.Kind] = object
		}
	}
	return objects
}

// TestRightsAreThoseTheAgentUses: list and watch for the informers, the node's labels, and Events; nothing else. The right to
// tokens comes with what bounds it.
func TestRightsAreThoseTheAgentUses(t *testing.T) {
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods", "serviceaccounts", "namespaces"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	}
	if diff := cmp.Diff(want, decode(t)["ClusterRole"].(*rbacv1.ClusterRole).Rules); diff != "" {
		t.Errorf("rights (-want +got):\n%s", diff)
	}
}

func TestDaemonSetIsHardened(t *testing.T) {
	pod := decode(t)["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec
	container := pod.Containers[0]
	context := container.SecurityContext
	switch {
	case context == nil || context.Privileged != nil || context.AllowPrivilegeEscalation == nil || *context.AllowPrivilegeEscalation:
		t.Error("the container may gain privileges")
	case !slices.Equal(context.Capabilities.Drop, []corev1.Capability{"ALL"}):
		t.Error("capabilities are not dropped")
	case !slices.Equal(context.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "NET_RAW"}):
		t.Errorf("capabilities added: %v", context.Capabilities.Add)
	case context.ReadOnlyRootFilesystem == nil || !*context.ReadOnlyRootFilesystem:
		t.Error("the root file system can be written to")
	case context.SeccompProfile == nil || context.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
		t.Error("no seccomp profile")
	}
	if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
		t.Error("want the node's network, and neither its processes nor its IPC")
	}
	if len(container.Ports) > 0 {
		t.Error("a declared port is a port of the node, and keeps a second agent from being scheduled beside this one")
	}
}

// TestTokenLivesForADay: the agent's own token is none of the year that the API server makes of an hour.
func TestTokenLivesForADay(t *testing.T) {
	pod := decode(t)["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
		t.Error("a token is mounted that nobody asked for")
	}
	for _, v := range pod.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if token := source.ServiceAccountToken; token != nil && token.ExpirationSeconds != nil && *token.ExpirationSeconds == 24*60*60 {
				return
			}
		}
	}
	t.Error("no volume has a token for a day")
}

// TestUpdatesOverlap: two agents are on a node during an update, and each is probed by itself.
func TestUpdatesOverlap(t *testing.T) {
	daemons := decode(t)["DaemonSet"].(*appsv1.DaemonSet).Spec
	update := daemons.UpdateStrategy.RollingUpdate
	if update == nil || update.MaxSurge.IntValue() != 1 || update.MaxUnavailable == nil || update.MaxUnavailable.IntValue() != 0 {
		t.Errorf("update strategy: %+v", update)
	}
	c := daemons.Template.Spec.Containers[0]
	socket := ""
	for _, v := range c.Env {
		if v.Name == "PODROLE_PROBE_SOCKET" {
			socket = v.Value
		}
	}
	for path, probe := range map[string]*corev1.Probe{"readyz": c.ReadinessProbe, "healthz": c.LivenessProbe} {
		want := []string{"podrole-probe", socket, path}
		if probe == nil || probe.Exec == nil || !slices.Equal(probe.Exec.Command, want) || socket == "" {
			t.Errorf("%s is not asked for over the agent's own socket", path)
		}
	}
	own := slices.ContainsFunc(daemons.Template.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == "probe" && v.EmptyDir != nil
	})
	if !own {
		t.Error("the socket is not in a volume of the pod's own")
	}
}

// TestSettingsExist holds arguments and environment, those of the overlays too, against the flags.
func TestSettingsExist(t *testing.T) {
	var reference bytes.Buffer
	if err := config.WriteReference(&reference); err != nil {
		t.Fatal(err)
	}
	variables := regexp.MustCompile(`(?:name: |- )(PODROLE_[A-Z0-9_]+)`)
	count := 0
	for file, text := range files(t) {
		for _, found := range variables.FindAllStringSubmatch(string(text), -1) {
			count++
			flag := "`--" + strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(found[1], "PODROLE_")), "_", "-")
			if !strings.Contains(reference.String(), flag) {
				t.Errorf("%s: no flag is called %s", file, found[1])
			}
		}
	}
	if count < 10 {
		t.Errorf("%d settings were found in all manifests", count)
	}
	for _, c := range decode(t)["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec.Containers {
		if !slices.Equal(c.Args, []string{"run"}) {
			t.Errorf("arguments are %q; settings belong in the environment, which patches can add to", c.Args)
		}
	}
}

// files returns all YAML files of the manifests.
func files(t *testing.T) map[string][]byte {
	t.Helper()
	texts := map[string][]byte{}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".yaml" {
			texts[path], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil || len(texts) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	return texts
}

// TestObjectsDecode reads every object of every folder strictly.
func TestObjectsDecode(t *testing.T) {
	objects := 0
	for file, text := range files(t) {
		for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
			var kind metav1.TypeMeta
			if err := yaml.Unmarshal(document, &kind); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if strings.HasPrefix(kind.APIVersion, "kustomize.config.k8s.io/") {
				continue
			}
			object, err := scheme.Scheme.New(schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind))
			if err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if err := yaml.UnmarshalStrict(document, object); err != nil {
				t.Errorf("%s: %s: %v", file, kind.Kind, err)
			}
			objects++
		}
	}
	if objects < 20 {
		t.Errorf("%d objects were found in all manifests", objects)
	}
}

// TestPoliciesAreBound: a policy without a binding that denies refuses nothing.
func TestPoliciesAreBound(t *testing.T) {
	for file, text := range files(t) {
		if filepath.Base(file) != "policies.yaml" || strings.Contains(string(text), "MutatingAdmissionPolicy") {
			continue
		}
		bound := map[string]bool{}
		for document := range bytes.SplitSeq(text, []byte("\n---\n")) {
			var b admissionv1.ValidatingAdmissionPolicyBinding
			if err := yaml.Unmarshal(document, &b); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if b.Kind == "ValidatingAdmissionPolicyBinding" {
				bound[b.Spec.PolicyName] = slices.Contains(b.Spec.ValidationActions, admissionv1.Deny)
			} else if _, seen := bound[b.Name]; !seen {
				bound[b.Name] = false
			}
		}
		for policy, denies := range bound {
			if !denies {
				t.Errorf("%s: nothing is refused by %s", file, policy)
			}
		}
	}
}
