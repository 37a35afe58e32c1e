package kubetest

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podrole/podrole/pkg/role"
)

// Kinds of objects, annotations of theirs that the policies of role-annotations are about, and a role.
const (
	accounts, namespaces = "serviceaccounts", "namespaces"

	roleKey, irsaKey         = "podrole.io/role-arn", "eks.amazonaws.com/role-arn"
	durationKey, externalKey = "podrole.io/session-duration", "iam.amazonaws.com/external-id"
	allowedKey, permittedKey = "iam.amazonaws.com/allowed-roles", "iam.amazonaws.com/permitted"

	baseARN = "arn:aws:iam::111122223333:role/"
)

// annotationPolicies are those of role-annotations. They are asked here, for no client can write such objects to an API.
type annotationPolicies struct{ api *API }

func newAnnotationPolicies(t testing.TB) annotationPolicies {
	t.Helper()
	policies, err := ReadPolicies("../../manifests/policies/role-annotations/policies.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return annotationPolicies{&API{cfg: Config{Policies: policies}, store: newStore(1)}}
}

// write is the creation of an object with annotations, or the change of one that had others.
func (a annotationPolicies) write(kind string, before, now map[string]string) error {
	x := &exchange{
		api: a.api, user: authenticationv1.UserInfo{Username: "jane"}, target: target{version: "v1", resource: kind, name: "a"},
	}
	k := kinds()[kind]
	with := func(annotations map[string]string) object {
		return k.bare(metav1.ObjectMeta{Name: "a", Annotations: annotations})
	}
	p := proposal{operation: admissionv1.Create, kind: k.gvk, object: with(now)}
	if before != nil {
		p.operation, p.oldObject = admissionv1.Update, with(before)
	}
	return x.admit(p)
}

// read reports whether there is an agent that can read an annotation, with whichever settings.
func read(kind, key, value string) bool {
	facts := role.Facts{ServiceAccount: map[string]string{roleKey: baseARN + "app"}}
	switch {
	case kind == namespaces:
		facts.Namespace = map[string]string{key: value}
	case key == irsaKey:
		facts.ServiceAccount = map[string]string{key: value}
	default:
		facts.ServiceAccount[key] = value
	}
	for _, source := range []role.Source{role.WebIdentity, role.AssumeRole} {
		for _, base := range []string{"", baseARN, baseARN + "team/"} {
			agent := role.Policy{
				Keys: role.DefaultKeys(), Source: source, BaseARN: base,
				Duration: time.Hour, Audiences: []string{"sts.amazonaws.com"},
			}
			_, err := agent.Decide(facts)
			if denial, ok := errors.AsType[*role.Denial](err); !ok || denial.Reason != role.Malformed {
				return true
			}
		}
	}
	return false
}

// stricter reports whether the policies refuse a value although an agent would read it: it is nothing that anybody means.
func stricter(key, value string) bool {
	switch key {
	case roleKey, irsaKey:
		return strings.Contains(value, ":") && !strings.HasPrefix(value, "arn:")
	case allowedKey:
		var list []*string
		err := json.Unmarshal([]byte(value), &list)
		return err == nil && (list == nil || slices.Contains(list, nil))
	}
	return false
}

// TestRoleAnnotations: what an agent reads can be written, and what none reads cannot.
func TestRoleAnnotations(t *testing.T) {
	policies := newAnnotationPolicies(t)
	a := func(n int) string { return strings.Repeat("a", n) }
	roles := struct{ good, bad []string }{
		[]string{
			"", "app", "/app", "team/app", "/team/app", "//app", "//team/app", a(64), baseARN + "app", baseARN + "team/app",
			"arn:aws-us-gov:iam::111122223333:role/a+b=c,d.e@f-_", baseARN + "a:b/app",
			baseARN + a(511) + "/app", a(511) + "/app", "/" + a(511) + "/app",
		},
		[]string{
			"a b", "app ", "app\n", "/", "app/", a(65), "rôle", a(512) + "/app", baseARN, baseARN + a(512) + "/app", baseARN + "/app",
			"arn:aws:iam::1:role/app", "arn:aws:s3:::bucket", "arn:aws:iam::111122223333:user/app",
			"arn:aws:sts::111122223333:assumed-role/app/x", "a:b/app", "aws:iam::111122223333:role/app",
		},
	}
	for name, tt := range map[string]struct {
		kind, key string
		good, bad []string
	}{
		"role":      {accounts, roleKey, roles.good, roles.bad},
		"irsa_role": {accounts, irsaKey, roles.good, roles.bad},
		"duration": {
			accounts, durationKey,
			[]string{
				"900", "43200", "+900", "0000000900", "15m", "1h30m", "12h", "3600s", "1.5h", "900000ms", ".5h", "1.h", "+1h",
				"900000000µs", "900000000μs", "0.25h30m", "900.5s",
			},
			[]string{
				"", "899", "43201", "13h", "14m", "5m", "soon", "1d", "-1h", "-900", "900.5", "1_000", "0x384", "1h ", " 900", "h",
				".h", "1e3s", "899.9s", "43200.5s", "99999999999999999999", "9999999999999h", "900\n",
			},
		},
		"external_id": {
			accounts, externalKey,
			[]string{"", "ab", "é", a(1224), strings.Repeat("é", 612)},
			[]string{"a", a(1225), strings.Repeat("é", 613)},
		},
		"allowed_roles": {
			namespaces, allowedKey,
			[]string{
				`[]`, " [\t]\r\n", `["a", "b*"]`, `[ "a" , "b*" ]`, `["` + baseARN + `*"]`, `["team-\\d+"]`, `["team\/a"]`,
				`["\u0061"]`, `["\ud800"]`, `["a\tb"]`, `[""]`, "[\"\x7f\"]", `["("]`, `["` + a(32<<10-4) + `"]`,
			},
			[]string{
				"", `["a"`, `a`, `["a",]`, `["a" "b"]`, `[,]`, `{"a": "b"}`, `["a"] x`, `['a']`, `[1]`, `[["a"]]`, `["\d"]`,
				`["\u00g0"]`, `["\"]`, "[\"a\nb\"]", "[\"a\tb\"]", "[\"\x00\"]", "[\f]", "\ufeff[]", `null`, `[null]`,
				`["a",null]`, `["` + a(32<<10-3) + `"]`,
			},
		},
		"permitted": {
			namespaces, permittedKey,
			[]string{"", "app.*", "^team-[a-z]+$", "a|b", "(?i)app", "[" + a(32<<10-2) + "]"},
			[]string{"(", "[", "[a-", "a{2,1}", ")|(", `\Qa`, "(?=a)", "[" + a(32<<10-1) + "]"},
		},
		"another":         {accounts, "example.com/anything", []string{"", "("}, nil},
		"of_another_kind": {accounts, permittedKey, []string{"("}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, value := range slices.Concat(tt.good, tt.bad) {
				good := slices.Contains(tt.good, value)
				if could := read(tt.kind, tt.key, value); could != (good || stricter(tt.key, value)) {
					t.Errorf("%.80q: an agent can read it: %v", value, could)
				}
				now := map[string]string{tt.key: value}
				for _, before := range []map[string]string{nil, {}, {tt.key: "x"}} {
					if err := policies.write(tt.kind, before, now); (err == nil) != good {
						t.Errorf("%.80q after %v: %v", value, before, err)
					} else if err != nil && !strings.Contains(err.Error(), tt.key) {
						t.Errorf("%.80q is refused without a word on %s: %v", value, tt.key, err)
					}
				}
				if err := policies.write(tt.kind, now, map[string]string{tt.key: value, "other": "x"}); err != nil {
					t.Errorf("%.80q as it stands: %v", value, err)
				}
			}
		})
	}
	both := map[string]string{allowedKey: `["` + a(16<<10) + `"]`, permittedKey: "[" + a(16<<10-5) + "]"}
	if err := policies.write(namespaces, nil, both); err == nil || !strings.Contains(err.Error(), "together") {
		t.Errorf("more than an agent reads of a Namespace: %v", err)
	}
}

// FuzzRoleAnnotations holds the policies against what agents can read.
func FuzzRoleAnnotations(f *testing.F) {
	keys := []struct{ kind, key string }{
		{accounts, roleKey}, {accounts, irsaKey}, {accounts, durationKey}, {accounts, externalKey},
		{namespaces, allowedKey}, {namespaces, permittedKey},
	}
	for _, value := range []string{
		"", "app", "//team/app", "a:b/app", baseARN + "team/app", "+0900", "1.5h30m", "é", `["a", "b\\d"]`,
		`[null]`, "[\"a\nb\"]", "[\f]", "a|b", `\Qa`, ")|(",
	} {
		for i := range keys {
			f.Add(uint(i), value)
		}
	}
	policies := newAnnotationPolicies(f)
	f.Fuzz(func(t *testing.T, which uint, value string) {
		of := keys[which%uint(len(keys))]
		if !utf8.ValidString(value) {
			return // no API server has such a string
		}
		err := policies.write(of.kind, nil, map[string]string{of.key: value})
		if want := read(of.kind, of.key, value) && !stricter(of.key, value); (err == nil) != want {
			t.Errorf("%s: %q: an agent can read it: %v; the policies say: %v", of.key, value, want, err)
		}
	})
}
