package kubefiles

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const podYAML = `apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: web
    image: web:1
`

func TestParse(t *testing.T) {
	got, err := parse([]byte(`# a comment before everything
---
` + podYAML + `---
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ServiceAccount
  metadata:
    name: app
    namespace: shop
    annotations:
      since: 2026-11-21
      podrole.io/role-arn: arn:aws:iam::111122223333:role/app
- {apiVersion: v1, kind: ConfigMap, metadata: {name: ignored}}
---
apiVersion: v1
kind: NamespaceList
items:
- metadata:
    name: shop
---
apiVersion: v2
kind: Pod
metadata: {name: of-another-version}
`))
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, d := range got.objects {
		ids = append(ids, fmt.Sprintf("%s %d", d.id, d.line))
	}
	if want := "Pod default/web 3, ServiceAccount shop/app 16, Namespace shop 29"; strings.Join(ids, ", ") != want {
		t.Errorf("objects %v, want %s", ids, want)
	}
	if len(got.ignored) != 2 || got.ignored[0].kind != "ConfigMap" || got.ignored[1].apiVersion != "v2" {
		t.Errorf("ignored %+v", got.ignored)
	}
	pod := got.objects[0].object.(*corev1.Pod)
	if pod.Spec.ServiceAccountName != "default" || pod.Namespace != "default" || len(pod.UID) != 36 {
		t.Errorf("pod not completed: %+v", pod)
	}
	if since := got.objects[1].object.GetAnnotations()["since"]; since != "2026-11-21" {
		t.Errorf("a date became %q", since)
	}
	if label := got.objects[2].object.GetLabels()["kubernetes.io/metadata.name"]; label != "shop" {
		t.Errorf("namespace label %q", label)
	}
}

func TestParseFaults(t *testing.T) {
	deep := strings.Repeat("[", 500) + strings.Repeat("]", 500)
	for name, c := range map[string]struct {
		yaml string
		line int
		text string
	}{
		"syntax":            {"apiVersion: v1\nkind: Pod\n\tmetadata: {}\n", 3, "not YAML"},
		"unclosed":          {"apiVersion: v1\nkind: [\n\n\n", 4, "not YAML"},
		"far_into_a_block":  {podYAML + "  dnsPolicy: Default\n hostname: a\n", 10, "not YAML"},
		"second_document":   {podYAML + "---\nkind: 'Pod\n", 10, "not YAML"},
		"unknown_field":     {strings.Replace(podYAML, "image:", "imgae:", 1), 8, `unknown field "spec.containers[0].imgae"`},
		"unknown_top_field": {podYAML + "sepc: {}\n", 9, `unknown field "sepc"`},
		"wrong_type":        {podYAML + "  hostNetwork: eth0\n", 9, "spec.hostNetwork cannot be of type string"},
		"number_as_string":  {strings.Replace(podYAML, "name: web\n", "name: web\n  annotations: {a: 1}\n", 1), 5, "metadata.annotations cannot be of type number"},
		"object_as_string":  {strings.Replace(podYAML, "image: web:1", "image: {}", 1), 8, "image cannot be of type object"},
		"key_twice":         {podYAML + "kind: Pod\n", 9, `"kind" stands in line 2 already`},
		"object_twice":      {podYAML + "---\n" + podYAML, 10, "Pod default/web is declared in line 1 already"},
		"no_kind":           {"apiVersion: v1\nmetadata: {}\n", 1, "an object without kind"},
		"kind_no_string":    {"apiVersion: v1\nkind: 1\n", 2, "kind is not a string"},
		"no_name":           {"\n\napiVersion: v1\nkind: Pod\n", 3, "Pod without metadata.name"},
		"bad_name":          {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n", 1, `"a.b" is not a valid name`},
		"bad_namespace":     {"apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: A}\n", 1, `"A" is not a valid name`},
		"namespaced":        {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n", 1, "has a metadata.namespace"},
		"no_object":         {"- a\n- b\n", 1, "not a Kubernetes object"},
		"scalar":            {"---\nhello\n", 2, "not a Kubernetes object"},
		"items_no_list":     {"apiVersion: v1\nkind: List\nitems: {}\n", 3, "items is not a list"},
		"list_in_list":      {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List}\n", 4, "a List inside a List"},
		"merge":             {"apiVersion: v1\nkind: Pod\nmetadata:\n  <<: {name: a}\n", 4, "merge keys"},
		"tag":               {"apiVersion: v1\nkind: Pod\nmetadata: {name: !secret a}\n", 3, "the tag !secret"},
		"infinity":          {"apiVersion: v1\nkind: Pod\nmetadata: {generation: .inf}\n", 3, "cannot be written as JSON"},
		"key_no_string":     {"apiVersion: v1\nkind: Pod\nmetadata:\n  [a]: b\n", 4, "a key that is no string"},
		"deep":              {"apiVersion: v1\nkind: Pod\nmetadata: " + deep + "\n", 3, "nested too deeply"},
		"circle":            {"apiVersion: v1\nkind: Pod\nmetadata: &m\n  x: *m\n", 3, "nested too deeply"},
		"bomb":              {bomb(), 3, "repeated too often"},
		"quantity":          {podYAML + "    resources: {limits: {cpu: 1x}}\n", 1, "quantities must match"},
		"bad_ip":            {podYAML + "status: {podIP: here}\n", 1, `"here" is not an address`},
		"ips_differ":        {podYAML + "status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.2}]}\n", 1, "not the first of"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse([]byte(c.yaml))
			e, ok := errors.AsType[*lineError](err)
			if !ok {
				t.Fatalf("not a lineError: %v", err)
			}
			if c.line != 0 && e.Line != c.line || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want line %d and %q", err, c.line, c.text)
			}
		})
	}
}

// bomb is a small document of a large object.
func bomb() string {
	var b strings.Builder
	b.WriteString("apiVersion: v1\nx0: &x0 [")
	b.WriteString(strings.Repeat("lol", 1000) + "]\n")
	for i := range 9 {
		fmt.Fprintf(&b, "x%d: &x%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*x%d,", i), 10), ","))
	}
	return b.String() + "kind: Pod\n"
}

func TestDerivedUID(t *testing.T) {
	uid := func(yaml string) string {
		t.Helper()
		c, err := parse([]byte(yaml))
		if err != nil {
			t.Fatal(err)
		}
		return string(c.objects[0].object.GetUID())
	}
	first := uid(podYAML)
	if first != uid(podYAML+"  hostNetwork: true\n") {
		t.Error("an edit that a cluster allows made another pod")
	}
	if first == uid(podYAML+"  serviceAccountName: app\n") {
		t.Error("another ServiceAccount, same pod")
	}
	if first == uid(strings.Replace(podYAML, "name: web", "name: web2", 1)) {
		t.Error("another name, same pod")
	}
	if got := uid(strings.Replace(podYAML, "name: web", "name: web\n  uid: mine", 1)); got != "mine" {
		t.Errorf("uid %s", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(podYAML))
	f.Add([]byte(podYAML + "---\n" + podYAML))
	f.Add([]byte("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod, metadata: {name: a}}]"))
	f.Add([]byte("apiVersion: v1\nkind: PodList\nitems: [{metadata: {name: a, uid: b}, status: {podIPs: [{ip: '::1'}]}}]"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"a","annotations":{"a":"b"}}}`))
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: &m\n  x: *m\n"))
	f.Add([]byte("&a [*a]"))
	f.Add([]byte("? [a]\n: b"))
	f.Add([]byte("!!binary aGk="))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err != nil {
			if e, ok := errors.AsType[*lineError](err); !ok || e.Line < 0 || e.Line > strings.Count(string(data), "\n")+strings.Count(string(data), "\r")+2 {
				t.Fatalf("no line, or none of the file: %v", err)
			}
			return
		}
		seen := make(map[id]bool)
		for _, d := range c.objects {
			if seen[d.id] || d.id.name == "" || d.object.GetUID() == "" || d.object.GetResourceVersion() != "" {
				t.Fatalf("not complete or not unique: %+v", d)
			}
			seen[d.id] = true
			if pod, ok := d.object.(*corev1.Pod); ok && (pod.Namespace == "" || pod.Spec.ServiceAccountName == "") {
				t.Fatalf("not complete: %+v", pod)
			}
		}
	})
}
