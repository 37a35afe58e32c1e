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
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
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

// TestRightsAreThoseTheAgentUses: list and watch for the informers, and Events; nothing else. The right to tokens comes
// with what bounds it, and that to read Nodes where nothing else tells pods about theirs.
func TestRightsAreThoseTheAgentUses(t *testing.T) {
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods", "serviceaccounts", "namespaces"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	}
	if diff := cmp.Diff(want, decode(t)["ClusterRole"].(*rbacv1.ClusterRole).Rules); diff != "" {
		t.Errorf("rights (-want +got):\n%s", diff)
	}
}

// TestDaemonSetsAreHardened: the agent, and what removes it, have what rules need, and nothing else has anything.
func TestDaemonSetsAreHardened(t *testing.T) {
	daemons := daemonSets(t)
	for _, name := range []string{"podrole", "podrole-uninstall"} {
		pod := daemons[name].Spec.Template.Spec
		if pod.HostPID || pod.HostIPC || !pod.HostNetwork {
			t.Errorf("%s: want the node's network, and neither its processes nor its IPC", name)
		}
		if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
			t.Errorf("%s: a token is mounted that nobody asked for", name)
		}
		rooted := 0
		for _, c := range slices.Concat(pod.InitContainers, pod.Containers) {
			if len(c.Ports) > 0 {
				t.Errorf("%s: a declared port is a port of the node, and keeps a second pod from being scheduled there", c.Name)
			}
			context := c.SecurityContext
			if context == nil || context.Capabilities == nil {
				t.Errorf("%s has all that a container has by itself", c.Name)
				continue
			}
			if isTrue(context.Privileged) || !isFalse(context.AllowPrivilegeEscalation) {
				t.Errorf("%s: it may gain privileges", c.Name)
			}
			if !isTrue(context.ReadOnlyRootFilesystem) {
				t.Errorf("%s: the root file system can be written to", c.Name)
			}
			if context.SeccompProfile == nil || context.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
				t.Errorf("%s: no seccomp profile", c.Name)
			}
			if !slices.Equal(context.Capabilities.Drop, []corev1.Capability{"ALL"}) {
				t.Errorf("%s: capabilities are not dropped", c.Name)
			}
			switch ruling := slices.Contains([]string{"run", "uninstall"}, strings.Join(c.Args, " ")); {
			case ruling:
				rooted++
				if !slices.Equal(context.Capabilities.Add, []corev1.Capability{"NET_ADMIN", "NET_RAW"}) {
					t.Errorf("%s: capabilities added: %v", c.Name, context.Capabilities.Add)
				}
			case len(context.Capabilities.Add) > 0 || len(c.VolumeMounts) > 0 || !isTrue(context.RunAsNonRoot) ||
				context.RunAsUser == nil || *context.RunAsUser == 0:
				t.Errorf("%s has more than nothing: %+v", c.Name, context)
			}
		}
		if rooted != 1 {
			t.Errorf("%s: %d containers write rules", name, rooted)
		}
	}
}

func isTrue(b *bool) bool  { return b != nil && *b }
func isFalse(b *bool) bool { return b != nil && !*b }

// computeType is the label by which EKS says what a node is.
const computeType = "eks.amazonaws.com/compute-type"

// TestDaemonSetsGoWhereTheyCanRun: to every node of Linux that is one, whatever its taints, and to no other.
func TestDaemonSetsGoWhereTheyCanRun(t *testing.T) {
	for name, daemon := range daemonSets(t) {
		pod := daemon.Spec.Template.Spec
		if !slices.ContainsFunc(pod.Tolerations, func(t corev1.Toleration) bool {
			return t.Key == "" && t.Effect == "" && t.Operator == corev1.TolerationOpExists
		}) {
			t.Errorf("%s does not tolerate every taint", name)
		}
		for _, node := range []struct {
			name   string
			labels map[string]string
			want   bool
		}{
			{"linux", map[string]string{corev1.LabelOSStable: "linux"}, true},
			{"eks-auto-mode", map[string]string{corev1.LabelOSStable: "linux", computeType: "auto"}, true},
			{"fargate", map[string]string{corev1.LabelOSStable: "linux", computeType: "fargate"}, false},
			{"windows", map[string]string{corev1.LabelOSStable: "windows"}, false},
		} {
			if got := goesTo(t, pod, node.labels); got != node.want {
				t.Errorf("%s goes to %s: %v", name, node.name, got)
			}
		}
	}
}

// goesTo reports whether the scheduler would put the pod on a node with such labels, if there is room
// (https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/).
func goesTo(t *testing.T, pod corev1.PodSpec, node map[string]string) bool {
	t.Helper()
	if !labels.SelectorFromSet(pod.NodeSelector).Matches(labels.Set(node)) {
		return false
	}
	if pod.Affinity == nil {
		return true
	}
	affinity := pod.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	return slices.ContainsFunc(affinity.NodeSelectorTerms, func(term corev1.NodeSelectorTerm) bool {
		selector := labels.NewSelector()
		for _, e := range term.MatchExpressions {
			r, err := labels.NewRequirement(e.Key, selection.Operator(strings.ToLower(string(e.Operator))), e.Values)
			if err != nil {
				t.Fatal(err)
			}
			selector = selector.Add(*r)
		}
		return selector.Matches(labels.Set(node))
	})
}

// daemonSets returns those of all folders by name.
func daemonSets(t *testing.T) map[string]*appsv1.DaemonSet {
	t.Helper()
	daemons := map[string]*appsv1.DaemonSet{}
	for file, text := range files(t) {
		if filepath.Base(file) != "daemonset.yaml" {
			continue
		}
		var d appsv1.DaemonSet
		if err := yaml.UnmarshalStrict(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		daemons[d.Name] = &d
	}
	if len(daemons) != 2 {
		t.Fatalf("%d DaemonSets", len(daemons))
	}
	return daemons
}

// TestTokenLivesForADay: the agent's own token is none of the year that the API server makes of an hour.
func TestTokenLivesForADay(t *testing.T) {
	pod := decode(t)["DaemonSet"].(*appsv1.DaemonSet).Spec.Template.Spec
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
