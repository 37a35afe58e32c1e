package role_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/role"
)

var validName = regexp.MustCompile(`^[\w+=,.@-]{2,64}$`)

func TestSessionName(t *testing.T) {
	tests := []struct {
		name                            string
		namespace, serviceAccount, node string
		want                            string
	}{
		{"plain", "billing", "api", "ip-10-0-1-7.ec2.internal", "billing.api@ip-10-0-1-7.ec2.internal"},
		{"dots_in_account", "billing", "api.v2", "n1", "billing.api.v2@n1"},
		{"longest_plain", "n", "s", strings.Repeat("x", 60), "n.s@" + strings.Repeat("x", 60)},
		{
			"shortened", "n", "s", strings.Repeat("x", 61),
			"n.s@" + strings.Repeat("x", 49) + "=fe987f427f",
		},
		{"shortened_else", "n", "s", strings.Repeat("x", 61) + "y", "n.s@" + strings.Repeat("x", 49) + "=?"},
		{"changed", "team a", "api", "n1", "team-a.api@n1=?"},
		{"not_ascii", "größe", "api", "n1", "gr--e.api@n1=?"},
		{"not_utf8", "a\xff", "api", "n1", "a-.api@n1=?"},
		{"separator_in_part", "a", "b@c", "n1", "a.b@c@n1=?"},
		{"hash_mark_in_part", "a", "b=c", "n1", "a.b-c@n1=?"},
		{"dot_in_namespace", "a.b", "c", "n1", "a.b.c@n1=?"},
		{"empty", "", "", "", ".@"},
	}
	seen := make(map[string]string)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := role.SessionName(tt.namespace, tt.serviceAccount, tt.node)
			want, hashed := strings.CutSuffix(tt.want, "?")
			if got != want && !(hashed && strings.HasPrefix(got, want) && len(got) == len(want)+10) {
				t.Errorf("SessionName = %q, want %q", got, tt.want)
			}
			if !validName.MatchString(got) {
				t.Errorf("%q is not valid for STS", got)
			}
			if other, ok := seen[got]; ok {
				t.Errorf("%q is also the name of %s", got, other)
			}
			seen[got] = tt.name
		})
	}
}

func FuzzSessionName(f *testing.F) {
	f.Add("default", "app", "ip-10-0-1-7.ec2.internal", "default", "app", "n2")
	f.Add("a.b", "c", "n", "a", "b.c", "n")
	f.Add("a", "b@c", "d", "a", "b", "c@d")
	f.Add("", "\x00", "é", "", "", "\x00é")
	f.Fuzz(func(t *testing.T, namespace, account, node, namespace2, account2, node2 string) {
		name := role.SessionName(namespace, account, node)
		if !validName.MatchString(name) {
			t.Errorf("SessionName(%q, %q, %q) = %q is not valid for STS", namespace, account, node, name)
		}
		if name != role.SessionName(namespace, account, node) {
			t.Error("not deterministic")
		}
		equal := namespace == namespace2 && account == account2 && node == node2
		if strings.ContainsRune(namespace+account+node, 0) {
			return // the separator of what is hashed; no Kubernetes name contains it
		}
		if !equal && name == role.SessionName(namespace2, account2, node2) {
			t.Errorf("(%q, %q, %q) and (%q, %q, %q) are both %q",
				namespace, account, node, namespace2, account2, node2, name)
		}
	})
}

func TestCustomSessionNameIsNobodyElses(t *testing.T) {
	seen := map[string]bool{role.SessionName("shop", "orders", "n1"): true}
	for _, args := range [][2]string{
		{"shop", "nightly"},
		{"evil", role.SessionName("shop", "orders", "n1")},
		{"a", "b.c"},
		{"a-b", "c"},
		{"a", "b-c"},
		{"a", strings.Repeat("x", 100)},
		{"a", strings.Repeat("é", 100)},
		{"a", ""},
	} {
		name := role.CustomSessionName(args[0], args[1])
		if !validName.MatchString(name) || !strings.HasPrefix(name, "podrole-"+args[0]+".") {
			t.Errorf("%q: %q is not valid, or without its prefix", args, name)
		}
		if seen[name] {
			t.Errorf("%q: %q is another's name", args, name)
		}
		seen[name] = true
	}
}
