package kubetest_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/podrole/podrole/internal/kubetest"
	"github.com/podrole/podrole/pkg/role"
)

const (
	directPolicies = manifests + "policies/direct-tokens/policies.yaml"
	nodePolicies   = manifests + "policies/node-tokens/policies.yaml"
	taintPolicies  = manifests + "options/startup-taint/policies.yaml"
)

// bound makes the agent's token one of a pod on node box.
func bound(c *kubetest.Config) { c.Node, c.Pod, c.PodUID = "box", "podrole-box", "uid-of-podrole-box" }

func policies(t *testing.T, files ...string) *kubetest.Policies {
	t.Helper()
	p, err := kubetest.ReadPolicies(files...)
	check(t, err)
	return p
}

// edited returns a copy of a manifest with one text in the place of another.
func edited(t *testing.T, file, old, new string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	check(t, err)
	if !strings.Contains(string(text), old) {
		t.Fatalf("%s has no %q", file, old)
	}
	edited := filepath.Join(t.TempDir(), filepath.Base(file))
	check(t, os.WriteFile(edited, []byte(strings.ReplaceAll(string(text), old, new)), 0o600))
	return edited
}

type tokenSpec = authenticationv1.TokenRequestSpec

// wanted is a request that every authority grants, for pod a.
func wanted(change func(*tokenSpec)) tokenSpec {
	spec := tokenSpec{
		Audiences:         []string{"sts.amazonaws.com"},
		ExpirationSeconds: new(int64(21600)),
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "a", UID: "uid-of-a"},
	}
	if change != nil {
		change(&spec)
	}
	return spec
}

func requestToken(t *testing.T, client kubernetes.Interface, namespace, account string, spec tokenSpec) error {
	t.Helper()
	_, err := client.CoreV1().ServiceAccounts(namespace).CreateToken(
		t.Context(), account, &authenticationv1.TokenRequest{Spec: spec}, metav1.CreateOptions{})
	return err
}

// expect holds an error against what the API server must say; message is empty for a request that is granted.
func expect(t *testing.T, err error, code int32, message string) {
	t.Helper()
	if message == "" {
		check(t, err)
		return
	}
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Code != code || !strings.Contains(err.Error(), message) {
		t.Fatalf("got %v, want %d with %q", err, code, message)
	}
}

func TestDirectTokens(t *testing.T) {
	const (
		shape = "ValidatingAdmissionPolicy 'podrole-token-shape' with binding 'podrole-token-shape' denied request: "
		role  = "ValidatingAdmissionPolicy 'podrole-token-role' with binding 'podrole-token-role' denied request: "

		audience = shape + "the agent may only request tokens for sts.amazonaws.com"
		life     = shape + "the agent may only request tokens of at most six hours"
		binding  = shape + "the agent may only request tokens that are bound to a pod"
	)
	tests := []struct {
		name, account string
		change        func(*tokenSpec)
		want          string
	}{
		{"granted", "orders", nil, ""},
		{"irsa_annotation", "legacy", func(s *tokenSpec) { s.BoundObjectRef.Name, s.BoundObjectRef.UID = "l", "uid-of-l" }, ""},
		{"for_the_api_server", "orders", func(s *tokenSpec) { s.Audiences = nil }, audience},
		{"another_audience", "orders", func(s *tokenSpec) { s.Audiences[0] = "vault" }, audience},
		{"two_audiences", "orders", func(s *tokenSpec) { s.Audiences = append(s.Audiences, "vault") }, audience},
		{"too_long", "orders", func(s *tokenSpec) { s.ExpirationSeconds = new(int64(21601)) }, life},
		{"unbound", "orders", func(s *tokenSpec) { s.BoundObjectRef = nil }, binding},
		{"bound_without_uid", "orders", func(s *tokenSpec) { s.BoundObjectRef.UID = "" }, binding},
		{"bound_to_a_secret", "orders", func(s *tokenSpec) { s.BoundObjectRef.Kind = "Secret" }, binding},
		// Policies are asked before the pod is looked up, and after the ServiceAccount is.
		{"account_without_role", "plain", nil, role + "the ServiceAccount names no role"},
		{"role_taken_away", "left", nil, role + "the ServiceAccount names no role"},
	}
	f := newFixture(t, func(c *kubetest.Config) { bound(c); c.Policies = policies(t, directPolicies) })
	legacy := pod("l", "box")
	legacy.Spec.ServiceAccountName = "legacy"
	f.put(t, pod("a", "box"), legacy, account("plain", nil),
		account("orders", map[string]string{"podrole.io/role-arn": "arn"}), account("left", map[string]string{"podrole.io/role-arn": ""}),
		account("legacy", map[string]string{"eks.amazonaws.com/role-arn": "arn"}))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			expect(t, requestToken(t, f.client, "shop", tt.account, wanted(tt.change)), http.StatusUnprocessableEntity, tt.want)
		})
	}
	t.Run("as_the_api_server_says_it", func(t *testing.T) {
		err := requestToken(t, f.client, "shop", "orders", wanted(func(s *tokenSpec) { s.Audiences[0] = "vault" }))
		const want = `serviceaccounts "orders" is forbidden: ` + audience
		status := err.(apierrors.APIStatus).Status()
		if err.Error() != want || status.Reason != metav1.StatusReasonInvalid || len(status.Details.Causes) != 1 {
			t.Errorf("got %+v, want %s", status, want)
		}
	})
	t.Run("no_such_account", func(t *testing.T) {
		err := requestToken(t, f.client, "shop", "nobody", wanted(func(s *tokenSpec) { s.Audiences[0] = "vault" }))
		expect(t, err, http.StatusNotFound, `serviceaccounts "nobody" not found`)
	})
	t.Run("no_such_pod", func(t *testing.T) {
		err := requestToken(t, f.client, "shop", "orders", wanted(func(s *tokenSpec) { s.BoundObjectRef.Name = "z" }))
		expect(t, err, http.StatusNotFound, `pods "z" not found`)
	})
}

// TestTokensAreOfAccountsWithARole: the policy finds a role on a ServiceAccount where the agent does, and nowhere else.
func TestTokensAreOfAccountsWithARole(t *testing.T) {
	const own, irsa, arn = "podrole.io/role-arn", "eks.amazonaws.com/role-arn", "arn:aws:iam::111122223333:role/orders"
	agent := role.Policy{
		Keys: role.DefaultKeys(), Source: role.WebIdentity, Duration: time.Hour, Audiences: []string{"sts.amazonaws.com"},
	}
	f := newFixture(t, func(c *kubetest.Config) { bound(c); c.Policies = policies(t, directPolicies) })
	for name, annotations := range map[string]map[string]string{
		"none":                  nil,
		"of_another_kind":       {"example.com/owner": "x"},
		"of_pods":               {"iam.amazonaws.com/role": arn},
		"own":                   {own: arn},
		"own_taken_away":        {own: ""},
		"irsa":                  {irsa: arn},
		"irsa_taken_away":       {irsa: ""},
		"both":                  {own: arn, irsa: arn},
		"own_before_irsa":       {own: "", irsa: arn},
		"irsa_behind_own":       {own: arn, irsa: ""},
		"both_taken_away":       {own: "", irsa: ""},
		"beside_something_else": {own: arn, "example.com/owner": ""},
	} {
		t.Run(name, func(t *testing.T) {
			f.put(t, pod("a", "box"), account("orders", annotations), account("other", map[string]string{own: arn}))
			want := ""
			if _, err := agent.Decide(role.Facts{ServiceAccount: annotations}); err != nil {
				want = "the ServiceAccount names no role"
			}
			expect(t, requestToken(t, f.client, "shop", "orders", wanted(nil)), http.StatusUnprocessableEntity, want)
		})
	}
}

// TestTokensOfTheAgentItself: it tries the policies with its own ServiceAccount, which names no role, in any namespace,
// also while that is as earlier manifests had it.
func TestTokensOfTheAgentItself(t *testing.T) {
	for name, tt := range map[string]struct {
		namespace   string
		annotations map[string]string
	}{
		"as_it_is":             {"podrole", nil},
		"of_earlier_manifests": {"podrole", map[string]string{"podrole.io/role-arn": ""}},
		"elsewhere":            {"aws-roles", nil},
	} {
		t.Run(name, func(t *testing.T) {
			as := "system:serviceaccount:" + tt.namespace + ":podrole"
			file := edited(t, directPolicies, user, as)
			rbac, err := kubetest.ReadRBAC(
				edited(t, manifests+"policies/direct-tokens/rbac.yaml", "namespace: podrole", "namespace: "+tt.namespace))
			check(t, err)
			f := newFixture(t, func(c *kubetest.Config) {
				bound(c)
				c.User, c.RBAC, c.Policies = as, rbac, policies(t, file)
			})
			itself, own := pod("podrole-box", "box"), account("podrole", tt.annotations)
			itself.Namespace, own.Namespace, itself.Spec.ServiceAccountName = tt.namespace, tt.namespace, "podrole"
			namesake, others := account("podrole", nil), pod("a", "box")
			others.Spec.ServiceAccountName = "podrole"
			f.put(t, itself, own, namesake, others)
			spec := wanted(func(s *tokenSpec) { s.BoundObjectRef.Name, s.BoundObjectRef.UID = itself.Name, itself.UID })
			expect(t, requestToken(t, f.client, tt.namespace, "podrole", spec), 0, "")
			err = requestToken(t, f.client, "shop", "podrole", wanted(nil))
			expect(t, err, http.StatusUnprocessableEntity, "names no role")
		})
	}
}

// TestPoliciesAsTheyAreInstalled: what the policies of direct-tokens are worth when something about them is not as it should be.
func TestPoliciesAsTheyAreInstalled(t *testing.T) {
	const denied, elsewhere = "denied request", "system:serviceaccount:elsewhere:podrole"
	without := func(name string) func(*testing.T) string { // a binding of nothing
		return func(t *testing.T) string {
			return edited(t, directPolicies, "policyName: "+name, "policyName: nothing")
		}
	}
	as := func(old, new string) func(*testing.T) string {
		return func(t *testing.T) string { return edited(t, directPolicies, old, new) }
	}
	for name, tt := range map[string]struct {
		file           func(*testing.T) string
		change         func(*kubetest.Config)
		shape, account string // what a request of another shape is told, and one for a ServiceAccount without a role
	}{
		"as_they_are":     {as("podrole", "podrole"), bound, denied, denied},
		"shape_not_bound": {without("podrole-token-shape"), bound, "", denied},
		"role_not_bound":  {without("podrole-token-role"), bound, denied, ""},
		"audit_only":      {as("[Deny, Audit]", "[Warn, Audit]"), bound, "", ""},
		"of_another_namespace": {as("system:serviceaccount:podrole:podrole", elsewhere), bound,
			"", ""},
		"of_another_operation": {as(`["CREATE"]`, `["UPDATE"]`), bound, "", ""},
		"of_another_group":     {as(`apiGroups: [""]`, `apiGroups: ["apps"]`), bound, "", ""},
		"of_another_version":   {as(`["v1"]`, `["v2"]`), bound, "", ""},
		"of_another_resource":  {as("serviceaccounts/token", "serviceaccounts"), bound, "", ""},
		"of_all_subresources":  {as("serviceaccounts/token", "*/token"), bound, denied, denied},
		// There is no ServiceAccount of the agent's here, and so no UID.
		"condition_that_fails": {as("request.userInfo.username ==", "request.userInfo.uid =="), bound,
			`denied request: expression 'request.userInfo.uid == 'system:serviceaccount:podrole:podrole'' resulted in error: no such key: uid`,
			"resulted in error"},
		"validation_that_fails": {as("object.spec.audiences[0] ==", "object.spec.audience =="), bound,
			"denied request: expression 'size(object.spec.audiences) == 1 && object.spec.audience == 'sts.amazonaws.com'' " +
				"resulted in error: no such key: audience",
			"resulted in error"},
		"variable_that_fails": {as("node-name'][?0].orValue('')", "zone'][?0].value()"), bound,
			"the agent may only request tokens for sts", `resulted in error: composited variable "node" fails to evaluate`},
		"unbound_token": {as("podrole", "podrole"), nil,
			"the agent may only request tokens for sts", "the agent's own token is not bound to a pod on a node"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(c *kubetest.Config) {
				c.Policies = policies(t, tt.file(t))
				if tt.change != nil {
					tt.change(c)
				}
			})
			f.put(t, pod("a", "box"), account("orders", map[string]string{"podrole.io/role-arn": "arn"}))
			err := requestToken(t, f.client, "shop", "orders", wanted(func(s *tokenSpec) { s.Audiences = []string{"vault"} }))
			expect(t, err, http.StatusUnprocessableEntity, tt.shape)
			f.put(t, account("orders", nil))
			expect(t, requestToken(t, f.client, "shop", "orders", wanted(nil)), http.StatusUnprocessableEntity, tt.account)
		})
	}
}

func TestPolicyReasons(t *testing.T) {
	for reason, code := range map[metav1.StatusReason]int32{
		metav1.StatusReasonForbidden: 403, metav1.StatusReasonUnauthorized: 401,
		metav1.StatusReasonRequestEntityTooLarge: 413, metav1.StatusReasonInvalid: 422,
	} {
		t.Run(string(reason), func(t *testing.T) {
			const message = `message: "the agent may only request tokens for sts.amazonaws.com"`
			file := edited(t, directPolicies, message, "reason: "+string(reason))
			f := newFixture(t, func(c *kubetest.Config) { bound(c); c.Policies = policies(t, file) })
			f.put(t, account("orders", nil))
			err := requestToken(t, f.client, "shop", "orders", wanted(func(s *tokenSpec) { s.Audiences[0] = "vault" }))
			expect(t, err, code, "denied request: failed expression: size(object.spec.audiences) == 1")
			if apierrors.ReasonForError(err) != reason {
				t.Errorf("got reason %s", apierrors.ReasonForError(err))
			}
		})
	}
}

func TestStartupTaint(t *testing.T) {
	const (
		refused = "ValidatingAdmissionPolicy 'podrole-startup-taint' with binding 'podrole-startup-taint' denied request: "
		change  = refused + "podrole may remove the taint podrole.io/agent-not-ready and change no other"
		meta    = refused + "podrole may not change a node's labels, annotations, finalizers or owners"
		rest    = refused + "podrole may not change the rest of a node's spec"
		off     = `[{"op":"test","path":"/spec/taints/0/key","value":"podrole.io/agent-not-ready"},` +
			`{"op":"remove","path":"/spec/taints/0"}]`
		taints = `"taints":[{"key":"other","effect":"NoSchedule"}]`
	)
	tests := []struct {
		name, node string
		form       types.PatchType
		patch      string
		want       string
	}{
		{"startup_taint", "box", types.JSONPatchType, off, ""},
		{"by_merge_patch", "box", types.MergePatchType, `{"spec":{` + taints + `}}`, ""},
		{"nothing", "box", types.MergePatchType, `{}`, change}, // the policy has every patch take the taint off
		{"status_is_left_alone", "box", types.JSONPatchType,
			off[:len(off)-1] + `,{"op":"add","path":"/status/phase","value":"Terminated"}]`, ""},
		{"another_node", "other", types.JSONPatchType, off, refused + "podrole may change the node that it runs on"},
		{"another_taint", "box", types.JSONPatchType, `[{"op":"remove","path":"/spec/taints/1"}]`, change},
		{"all_taints", "box", types.JSONPatchType, `[{"op":"remove","path":"/spec/taints"}]`, change},
		{"label", "box", types.MergePatchType, `{"metadata":{"labels":{"a":"b"}},"spec":{` + taints + `}}`, meta},
		{"unschedulable", "box", types.MergePatchType, `{"spec":{"unschedulable":true,` + taints + `}}`, rest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newTaintFixture(t, bound)
			nodes := f.client.CoreV1().Nodes()
			patch := func(options metav1.PatchOptions) error {
				_, err := nodes.Patch(t.Context(), tt.node, tt.form, []byte(tt.patch), options)
				return err
			}
			before, err := nodes.Get(t.Context(), tt.node, metav1.GetOptions{})
			check(t, err)
			expect(t, patch(metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}), 422, tt.want)
			dry, err := nodes.Get(t.Context(), tt.node, metav1.GetOptions{})
			check(t, err)
			expect(t, patch(metav1.PatchOptions{}), 422, tt.want)
			after, err := nodes.Get(t.Context(), tt.node, metav1.GetOptions{})
			check(t, err)
			if dry.ResourceVersion != before.ResourceVersion || (after.ResourceVersion != before.ResourceVersion) != (tt.want == "") {
				t.Errorf("versions %s, %s after a dry run, %s after a patch",
					before.ResourceVersion, dry.ResourceVersion, after.ResourceVersion)
			}
			if tt.want == "" && (len(after.Spec.Taints) != 1 || after.Spec.Taints[0].Key != "other" || after.Status.Phase != "") {
				t.Errorf("got %+v", after)
			}
			if n := f.Count(func(r kubetest.Request) bool { return r.Verb == "patch" && r.DryRun }); n != 1 {
				t.Errorf("%d dry runs", n)
			}
		})
	}
	t.Run("unbound_token", func(t *testing.T) {
		f := newTaintFixture(t, nil)
		_, err := f.client.CoreV1().Nodes().Patch(t.Context(), "box", types.JSONPatchType, []byte(off), metav1.PatchOptions{})
		expect(t, err, 422, refused+"podrole may change the node that it runs on, by a token that is bound to its pod")
	})
}

func newTaintFixture(t *testing.T, change func(*kubetest.Config)) *fixture {
	t.Helper()
	rbac, err := kubetest.ReadRBAC(append(rights(), manifests+"options/startup-taint/rbac.yaml")...)
	check(t, err)
	f := newFixture(t, func(c *kubetest.Config) {
		c.RBAC, c.Policies = rbac, policies(t, taintPolicies)
		if change != nil {
			change(c)
		}
	})
	for _, name := range []string{"box", "other"} {
		f.put(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: "podrole.io/agent-not-ready", Effect: corev1.TaintEffectNoSchedule}, {Key: "other", Effect: corev1.TaintEffectNoSchedule},
		}}})
	}
	return f
}

func TestReadPoliciesRefusesWhatItDoesNotModel(t *testing.T) {
	for name, tt := range map[string]struct{ old, new, want string }{
		"failure_policy":    {"failurePolicy: Fail", "failurePolicy: Ignore", "failurePolicy"},
		"match_resources":   {"policyName: podrole-token-shape", "policyName: podrole-token-shape\n  matchResources: {}", "matchResources"},
		"selector":          {"matchConstraints:", "matchConstraints:\n    namespaceSelector: {}", "selector"},
		"exclusion":         {"matchConstraints:", "matchConstraints:\n    excludeResourceRules: [{}]", "excludeResourceRules"},
		"names":             {"apiGroups: [\"\"]", "apiGroups: [\"\"]\n      resourceNames: [a]", "resourceNames"},
		"scope":             {"apiGroups: [\"\"]", "apiGroups: [\"\"]\n      scope: Namespaced", "scope"},
		"param_kind":        {"kind: ServiceAccount", "kind: ConfigMap", "paramKind"},
		"param_selector":    {"selector: {}", "selector: {matchLabels: {a: b}}", "paramRef"},
		"param_name":        {"selector: {}", "name: a", "paramRef"},
		"param_not_found":   {"parameterNotFoundAction: Deny", "parameterNotFoundAction: Allow", "parameterNotFoundAction"},
		"params_of_no_kind": {"  paramKind:\n    apiVersion: v1\n    kind: ServiceAccount\n", "", "undeclared reference to 'params'"},
		"no_param_ref":      {"  paramRef:\n    selector: {}\n    parameterNotFoundAction: Deny\n", "", "paramRef"},
		"message_expression": {`message: "the agent may only request tokens for sts.amazonaws.com"`,
			`messageExpression: "'no'"`, "messageExpression"},
		"reason":              {`message: "the agent may only request tokens for sts.amazonaws.com"`, "reason: NotFound", "reason"},
		"audit_annotations":   {"  variables:", "  auditAnnotations: [{key: a, valueExpression: \"''\"}]\n  variables:", "auditAnnotations"},
		"no_actions":          {"[Deny, Audit]", "[]", "validationActions"},
		"unknown_field":       {"failurePolicy: Fail", "failurePolicies: Fail", "failurePolicies"},
		"another_kind":        {"kind: ValidatingAdmissionPolicyBinding", "kind: MutatingAdmissionPolicyBinding", "MutatingAdmissionPolicyBinding"},
		"syntax":              {"variables.node != ''", "variables.node !=", "compile expression"},
		"field_of_no_request": {"request.userInfo.username", "request.user.username", "undefined field 'user'"},
		"options":             {"request.userInfo.username", "request.options.kind", "undefined field 'options'"},
		"no_boolean":          {"variables.node != ''", "variables.node", "must evaluate to bool"},
		"unknown_variable":    {"variables.node != ''", "variables.home != ''", "undeclared reference"},
		"authorizer":          {"variables.node != ''", "authorizer.path('/').check('get').allowed()", "undeclared reference"},
		"twice":               {"name: podrole-token-role", "name: podrole-token-shape", "already"},
	} {
		t.Run(name, func(t *testing.T) {
			file := edited(t, directPolicies, tt.old, tt.new)
			if _, err := kubetest.ReadPolicies(file); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error about %s", err, tt.want)
			}
		})
	}
	if _, err := kubetest.ReadPolicies(); err == nil {
		t.Error("want an error without files")
	}
	if _, err := kubetest.ReadPolicies(manifests + "none.yaml"); err == nil {
		t.Error("want an error without a file")
	}
}
