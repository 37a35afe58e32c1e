package role_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/role"
)

func TestSessionName(t *testing.T) {
	long := strings.Repeat("n", 63)
	seen := map[string]bool{}
	for _, args := range [][3]string{
		{"shop", "orders", "n1"},
		{"shop", "orders.v2", "n1"},
		{"shop", "orders", "n1.internal"},
		{long, "orders", "n1"},
		{long, "orders", "n2"},
		{long, strings.Repeat("a.", 126), "n2"},
		{"shop", "order s", "n1"},
		{"shop", "order-s", "n1"},
	} {
		name := role.SessionName(args[0], args[1], args[2])
		if again := role.SessionName(args[0], args[1], args[2]); again != name {
			t.Errorf("%q: %q, then %q", args, name, again)
		}
		if seen[name] {
			t.Errorf("%q: %q is another workload's name", args, name)
		}
		seen[name] = true
		checkName(t, name)
	}
	if got := role.SessionName("shop", "orders", "n1"); got != "shop.orders@n1" {
		t.Errorf("short name is %q", got)
	}
}

func TestCustomSessionNameCannotBeAnothersName(t *testing.T) {
	ours := role.SessionName("shop", "orders", "n1")
	if got := role.CustomSessionName("evil", ours); got == ours || !strings.HasPrefix(got, "podrole-evil-") {
		t.Errorf("got %q", got)
	}
	checkName(t, role.CustomSessionName("evil", strings.Repeat("é", 200)))
}

// checkName holds a name against the pattern in the STS API reference.
func checkName(t *testing.T, name string) {
	t.Helper()
	if !regexp.MustCompile(`^[\w+=,.@-]{2,64}$`).MatchString(name) {
		t.Errorf("AWS would refuse the session name %q", name)
	}
}
