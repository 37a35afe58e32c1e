package role_test

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/role"
)

const (
	base   = "arn:aws:iam::111122223333:role/"
	orders = base + "orders"
)

type annotations = map[string]string

func workload() role.Workload {
	return role.Workload{Namespace: "shop", Name: "orders-0", UID: "u1", ServiceAccount: "orders"}
}

func policy(edit func(*role.Policy)) *role.Policy {
	p := &role.Policy{
		Keys:              role.DefaultKeys(),
		Source:            role.AssumeRole,
		BaseARN:           base,
		PodAnnotations:    true,
		RequirePermission: true,
		Duration:          time.Hour,
		Audiences:         []string{"sts.amazonaws.com", "second"},
		Node:              "n1",
	}
	if edit != nil {
		edit(p)
	}
	return p
}

func webIdentity(p *role.Policy) { p.Source = role.WebIdentity }

// anyRole is a Namespace that permits every role of the base account.
var anyRole = annotations{"iam.amazonaws.com/allowed-roles": `["*"]`}

func TestDecideFindsTheFirstSource(t *testing.T) {
	tests := []struct {
		name   string
		policy func(*role.Policy)
		facts  role.Facts
		want   string // role ARN, or
		denied role.Reason
	}{
		{name: "own_key", facts: role.Facts{ServiceAccount: annotations{"podrole.io/role-arn": orders}}, want: orders},
		{name: "irsa_key", facts: role.Facts{ServiceAccount: annotations{"eks.amazonaws.com/role-arn": orders}}, want: orders},
		{
			name: "own_key_before_irsa_key",
			facts: role.Facts{ServiceAccount: annotations{
				"podrole.io/role-arn": orders, "eks.amazonaws.com/role-arn": base + "other",
			}},
			want: orders,
		},
		{name: "pod_annotation", facts: role.Facts{Pod: annotations{"iam.amazonaws.com/role": "orders"}}, want: orders},
		{
			name:   "pod_annotation_switched_off",
			policy: func(p *role.Policy) { p.PodAnnotations = false },
			facts:  role.Facts{Pod: annotations{"iam.amazonaws.com/role": "orders"}},
			denied: role.NoRole,
		},
		{
			name: "service_account_before_pod",
			facts: role.Facts{
				ServiceAccount: annotations{"podrole.io/role-arn": orders},
				Pod:            annotations{"iam.amazonaws.com/role": "other"},
			},
			want: orders,
		},
		{name: "default_role", policy: func(p *role.Policy) { p.DefaultRole = "fallback" }, want: base + "fallback"},
		{name: "nothing", denied: role.NoRole},
		{
			name:   "empty_does_not_fall_through",
			policy: func(p *role.Policy) { p.DefaultRole = "fallback" },
			facts: role.Facts{
				ServiceAccount: annotations{"podrole.io/role-arn": "", "eks.amazonaws.com/role-arn": orders},
				Pod:            annotations{"iam.amazonaws.com/role": "other"},
			},
			denied: role.Revoked,
		},
		{name: "path", facts: role.Facts{ServiceAccount: annotations{"podrole.io/role-arn": "/team/orders"}}, want: base + "team/orders"},
		{
			name:  "other_partition",
			facts: role.Facts{ServiceAccount: annotations{"podrole.io/role-arn": "arn:aws-cn:iam::111122223333:role/orders"}},
			// The base ARN of the permission is another partition's.
			denied: role.NotPermitted,
		},
		{
			name:   "bare_name_without_base",
			policy: func(p *role.Policy) { p.BaseARN = "" },
			facts:  role.Facts{ServiceAccount: annotations{"podrole.io/role-arn": "orders"}},
			denied: role.Malformed,
		},
		{name: "path_too_long", facts: role.Facts{ServiceAccount: annotations{"podrole.io/role-arn": base + strings.Repeat("p", 512) + "/x"}}, denied: role.Malformed},
		{name: "not_an_arn", facts: role.Facts{ServiceAccount: annotations{"podrole.io/role-arn": "arn:aws:s3:::bucket"}}, denied: role.Malformed},
		{
			name: "deleted_service_account",
			facts: role.Facts{
				ServiceAccountWasDeleted: true,
				Pod:                      annotations{"iam.amazonaws.com/role": "orders"},
			},
			denied: role.ServiceAccountDeleted,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.facts.Workload = workload()
			tt.facts.Namespace = anyRole
			g, err := policy(tt.policy).Decide(tt.facts)
			check(t, g, err, tt.want, tt.denied)
		})
	}
}

func check(t *testing.T, g role.Grant, err error, want string, reason role.Reason) {
	t.Helper()
	if reason == "" {
		if err != nil || g.RoleARN != want {
			t.Errorf("got %q, %v; want %q", g.RoleARN, err, want)
		}
		return
	}
	d, ok := errors.AsType[*role.Denial](err)
	if !ok || d.Reason != reason {
		t.Errorf("got %q, %v; want a denial for %q", g.RoleARN, err, reason)
	}
	if g != (role.Grant{}) {
		t.Errorf("a denial came with the grant %v", g)
	}
}

func TestNamespacePermissions(t *testing.T) {
	const allowed, permitted = "iam.amazonaws.com/allowed-roles", "iam.amazonaws.com/permitted"
	noneRequired := func(p *role.Policy) { p.RequirePermission = false }
	regexps := func(p *role.Policy) { p.AllowedAsRegexps = true }
	tests := []struct {
		name      string
		policy    func(*role.Policy)
		namespace annotations
		role      string
		denied    role.Reason
	}{
		{name: "none_where_one_is_required", denied: role.NotPermitted},
		{name: "none_required", policy: noneRequired},
		{name: "none_with_web_identity", policy: webIdentity},
		{name: "present_binds_web_identity", policy: webIdentity, namespace: annotations{allowed: `["other"]`}, denied: role.NotPermitted},
		{name: "present_binds_where_none_is_required", policy: noneRequired, namespace: annotations{allowed: `["other"]`}, denied: role.NotPermitted},
		{name: "empty_list_permits_nothing", policy: noneRequired, namespace: annotations{allowed: `[]`}, denied: role.NotPermitted},
		{name: "null_permits_nothing", policy: noneRequired, namespace: annotations{allowed: `null`}, denied: role.NotPermitted},
		{name: "glob_relative_to_base", namespace: annotations{allowed: `["ord*"]`}},
		{name: "glob_full_arn", namespace: annotations{allowed: `["arn:aws:iam::*:role/orders"]`}},
		{name: "glob_is_anchored", namespace: annotations{allowed: `["order"]`}, denied: role.NotPermitted},
		{name: "glob_crosses_slashes", role: "a/b/orders", namespace: annotations{allowed: `["a/*orders"]`}},
		{name: "glob_quotes_other_characters", role: "orderss", namespace: annotations{allowed: `["orders."]`}, denied: role.NotPermitted},
		{name: "star_is_this_account_only", role: "arn:aws:iam::999900001111:role/x", namespace: annotations{allowed: `["*"]`}, denied: role.NotPermitted},
		{name: "list_regexp", policy: regexps, role: "team-a", namespace: annotations{allowed: `["x", "team-[ab]"]`}},
		{name: "list_regexp_is_anchored", policy: regexps, role: "orders-admin", namespace: annotations{allowed: `["orders"]`}, denied: role.NotPermitted},
		{name: "list_regexp_alternatives_are_anchored", policy: regexps, role: "orders-admin", namespace: annotations{allowed: `["x|orders"]`}, denied: role.NotPermitted},
		{name: "list_regexp_is_this_account_only", policy: regexps, role: "arn:aws:iam::999900001111:role/x", namespace: annotations{allowed: `[".*"]`}, denied: role.NotPermitted},
		{name: "list_regexp_full_arn", policy: regexps, namespace: annotations{allowed: `["arn:aws:iam::[0-9]+:role/ord.*"]`}},
		{name: "list_regexp_full_arn_anchored", policy: regexps, namespace: annotations{allowed: `["^arn:.*:role/orders$"]`}},
		{name: "list_regexp_anchor_cannot_be_closed", policy: regexps, role: "orders-admin", namespace: annotations{allowed: `["x)|(?:.*"]`}, denied: role.Malformed},
		{name: "list_bad_regexp", policy: regexps, namespace: annotations{allowed: `["orders", "("]`}, denied: role.Malformed},
		{name: "list_regexp_is_no_glob", policy: regexps, role: "teams", namespace: annotations{allowed: `["team*"]`}, denied: role.NotPermitted},
		{name: "regexp_full_arn", namespace: annotations{permitted: `arn:.*:role/orders`}},
		{name: "regexp_is_anchored", role: "orders-admin", namespace: annotations{permitted: `arn:.*:role/orders`}, denied: role.NotPermitted},
		{name: "alternatives_are_anchored", role: "orders-admin", namespace: annotations{permitted: `x|arn:.*:role/orders`}, denied: role.NotPermitted},
		{name: "anchor_cannot_be_closed", role: "orders-admin", namespace: annotations{permitted: `x)|(?:.*`}, denied: role.Malformed},
		{name: "both_must_allow", namespace: annotations{allowed: `["orders"]`, permitted: `.*other`}, denied: role.NotPermitted},
		{name: "both_allow", namespace: annotations{allowed: `["orders"]`, permitted: `.*orders`}},
		{name: "bad_json", namespace: annotations{allowed: `["orders"`}, denied: role.Malformed},
		{name: "too_long", namespace: annotations{permitted: strings.Repeat("x|", 1<<14) + ".*"}, denied: role.Malformed},
		{name: "bad_regexp", namespace: annotations{permitted: `(`}, denied: role.Malformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := tt.role
			if name == "" {
				name = "orders"
			}
			want := name
			if !strings.HasPrefix(name, "arn:") {
				want = base + name
			}
			g, err := policy(tt.policy).Decide(role.Facts{
				Workload:       workload(),
				ServiceAccount: annotations{"podrole.io/role-arn": name},
				Namespace:      tt.namespace,
			})
			check(t, g, err, want, tt.denied)
		})
	}
	t.Run("default_role_is_exempt", func(t *testing.T) {
		p := policy(func(p *role.Policy) { p.DefaultRole = "orders" })
		g, err := p.Decide(role.Facts{Workload: workload(), Namespace: annotations{allowed: `[]`}})
		check(t, g, err, orders, "")
	})
}

func TestAnnotationsShapeTheSession(t *testing.T) {
	plain := role.Grant{
		Namespace: "shop", ServiceAccount: "orders", RoleARN: orders, Duration: time.Hour,
		SessionName: "shop.orders@n1", Source: role.AssumeRole,
	}
	with := func(edit func(*role.Grant)) *role.Grant {
		g := plain
		edit(&g)
		return &g
	}
	tests := []struct {
		name    string
		policy  func(*role.Policy)
		account annotations
		want    *role.Grant
		denied  role.Reason
	}{
		{name: "nothing", want: &plain},
		{name: "seconds", account: annotations{"podrole.io/session-duration": "900"},
			want: with(func(g *role.Grant) { g.Duration = 15 * time.Minute })},
		{name: "duration", account: annotations{"podrole.io/session-duration": "45m"},
			want: with(func(g *role.Grant) { g.Duration = 45 * time.Minute })},
		{name: "too_short", account: annotations{"podrole.io/session-duration": "899"}, denied: role.Malformed},
		{name: "chained_too_long", account: annotations{"podrole.io/session-duration": "2h"}, denied: role.Malformed},
		{name: "web_identity_may_be_longer", policy: webIdentity, account: annotations{"podrole.io/session-duration": "2h"},
			want: with(func(g *role.Grant) {
				g.Duration, g.Source, g.Audience = 2*time.Hour, role.WebIdentity, "sts.amazonaws.com"
			})},
		{name: "no_duration", account: annotations{"podrole.io/session-duration": "soon"}, denied: role.Malformed},
		{name: "external_id", account: annotations{"iam.amazonaws.com/external-id": "x7"},
			want: with(func(g *role.Grant) { g.ExternalID = "x7" })},
		{name: "external_id_with_web_identity", policy: webIdentity, account: annotations{"iam.amazonaws.com/external-id": "x7"},
			denied: role.Unsupported},
		{name: "external_id_too_long", account: annotations{"iam.amazonaws.com/external-id": strings.Repeat("x", 1225)}, denied: role.Malformed},
		{name: "session_name", account: annotations{"iam.amazonaws.com/session-name": "nightly"},
			want: with(func(g *role.Grant) { g.SessionName = "podrole-shop.nightly" })},
		{name: "audience", policy: webIdentity, account: annotations{"eks.amazonaws.com/audience": "second"},
			want: with(func(g *role.Grant) { g.Source, g.Audience = role.WebIdentity, "second" })},
		{name: "unknown_audience", policy: webIdentity, account: annotations{"eks.amazonaws.com/audience": "third"}, denied: role.Unsupported},
		{name: "tags", policy: func(p *role.Policy) { p.SessionTags, p.Cluster = true, "c1" },
			want: with(func(g *role.Grant) { g.Tags = role.Tags{Cluster: "c1", Namespace: "shop", ServiceAccount: "orders"} })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			account := annotations{"podrole.io/role-arn": orders}
			maps.Copy(account, tt.account)
			g, err := policy(tt.policy).Decide(role.Facts{Workload: workload(), ServiceAccount: account, Namespace: anyRole})
			if tt.denied != "" {
				check(t, g, err, "", tt.denied)
				return
			}
			if diff := cmp.Diff(*tt.want, g); err != nil || diff != "" {
				t.Errorf("err %v, grant (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestPodDoesNotShapeTheServiceAccountsSession: who may write a pod must not choose the external ID of a role that the
// ServiceAccount names.
func TestPodDoesNotShapeTheServiceAccountsSession(t *testing.T) {
	g, err := policy(nil).Decide(role.Facts{
		Workload:       workload(),
		ServiceAccount: annotations{"podrole.io/role-arn": orders},
		Pod:            annotations{"iam.amazonaws.com/external-id": "stolen", "iam.amazonaws.com/session-name": "admin"},
		Namespace:      anyRole,
	})
	if err != nil || g.ExternalID != "" || g.SessionName != "shop.orders@n1" {
		t.Errorf("got external ID %q, session name %q, %v", g.ExternalID, g.SessionName, err)
	}
}

func TestParseBaseARN(t *testing.T) {
	for in, want := range map[string]string{
		"arn:aws:iam::111122223333:role":            base,
		"arn:aws:iam::111122223333:role/":           base,
		"arn:aws-us-gov:iam::111122223333:role/a/b": "arn:aws-us-gov:iam::111122223333:role/a/b/",
		"arn:aws:iam::1:role/":                      "",
		"orders":                                    "",
		"":                                          "",
	} {
		if got, err := role.ParseBaseARN(in); got != want || (err == nil) != (want != "") {
			t.Errorf("ParseBaseARN(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func FuzzDecide(f *testing.F) {
	f.Add("orders", `["*"]`, ".*", "900", "x")
	f.Add(orders, `["arn:aws:iam::*:role/*"]`, "", "1h", "")
	f.Add("/a/../b", `[""]`, "a)|(?:b", "-1", "\x00")
	f.Fuzz(func(t *testing.T, name, allowed, permitted, duration, session string) {
		p := policy(func(p *role.Policy) { p.AllowedAsRegexps = len(session)%2 == 1 })
		g, err := p.Decide(role.Facts{
			Workload: workload(),
			ServiceAccount: annotations{
				"podrole.io/role-arn":            name,
				"podrole.io/session-duration":    duration,
				"iam.amazonaws.com/session-name": session,
			},
			Namespace: annotations{"iam.amazonaws.com/allowed-roles": allowed, "iam.amazonaws.com/permitted": permitted},
		})
		if err != nil {
			if _, ok := errors.AsType[*role.Denial](err); !ok {
				t.Fatalf("error %T is no Denial", err)
			}
			return
		}
		if err := role.ParseARN(g.RoleARN); err != nil {
			t.Errorf("granted %v", err)
		}
		if g.Duration < role.MinDuration || g.Duration > role.MaxChainedDuration {
			t.Errorf("granted %s", g.Duration)
		}
		if len(g.SessionName) > 64 {
			t.Errorf("session name %q has %d bytes", g.SessionName, len(g.SessionName))
		}
	})
}

func TestForbidsReadsWhatCanBeRead(t *testing.T) {
	grant := role.Grant{RoleARN: orders}
	tests := []struct {
		name      string
		policy    func(*role.Policy)
		namespace annotations
		want      bool
	}{
		{name: "permitted", namespace: annotations{"iam.amazonaws.com/allowed-roles": `["orders"]`}},
		{name: "another_only", namespace: annotations{"iam.amazonaws.com/allowed-roles": `["other"]`}, want: true},
		{name: "none_where_one_is_required", want: true},
		{name: "cannot_be_read", namespace: annotations{"iam.amazonaws.com/allowed-roles": `[`}},
		{name: "default_role", policy: func(p *role.Policy) { p.DefaultRole = "orders" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := policy(tt.policy).Forbids(role.Facts{Workload: workload(), Namespace: tt.namespace}, grant)
			if (err != nil) != tt.want {
				t.Errorf("got %v", err)
			}
		})
	}
}

// What the pod may read of the node's metadata is for the ServiceAccount to say, and for nobody else.
func TestMetadataAllow(t *testing.T) {
	allow := annotations{"podrole.io/metadata-allow": "spot/*"}
	for name, tt := range map[string]struct {
		facts role.Facts
		want  string
	}{
		"service_account": {role.Facts{ServiceAccount: allow}, "spot/*"},
		"deleted":         {role.Facts{ServiceAccount: allow, ServiceAccountWasDeleted: true}, ""},
		"pod":             {role.Facts{Pod: allow}, ""},
		"namespace":       {role.Facts{Namespace: allow}, ""},
		"nobody":          {role.Facts{}, ""},
	} {
		if got := policy(nil).MetadataAllow(tt.facts); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
