package awstest

import (
	"strings"
	"testing"
	"time"

	"errors"
	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
)

func TestAssumeRoleIssuesWorkingSession(t *testing.T) {
	w := newWorld(t, Config{})
	before := time.Now()
	out, err := w.client(w.node).AssumeRole(t.Context(), &sts.AssumeRoleInput{
		RoleArn: new(appRole), RoleSessionName: new("pod"), DurationSeconds: new(int32(900)),
	})
	wantCode(t, err, "")
	if got, want := *out.AssumedRoleUser.Arn, "arn:aws:sts::111122223333:assumed-role/app/pod"; got != want {
		t.Errorf("got ARN %s, want %s", got, want)
	}
	if life := out.Credentials.Expiration.Sub(before); life < 898*time.Second || life > 901*time.Second {
		t.Errorf("got a life of %v, want 900 s", life)
	}
	if n := len(*out.Credentials.SessionToken); n != 1024 {
		t.Errorf("got a token of %d characters, want 1024", n)
	}
	keys := aws.Credentials{AccessKeyID: *out.Credentials.AccessKeyId,
		SecretAccessKey: *out.Credentials.SecretAccessKey, SessionToken: *out.Credentials.SessionToken}
	who, err := w.client(keys).GetCallerIdentity(t.Context(), nil)
	wantCode(t, err, "")
	if *who.Arn != *out.AssumedRoleUser.Arn || *who.Account != account ||
		*who.UserId != *out.AssumedRoleUser.AssumedRoleId {
		t.Errorf("got %s in %s as %s", *who.Arn, *who.Account, *who.UserId)
	}
	session, ok := w.LookupSession(keys.AccessKeyID)
	if !ok || session.RoleARN != appRole || session.SessionName != "pod" || session.Action != "AssumeRole" ||
		!session.Expires.Equal(*out.Credentials.Expiration) {
		t.Errorf("got session %+v, told it expires %v", session, *out.Credentials.Expiration)
	}
	w.put(t, Role{ARN: appRole, Trust: TrustPrincipals(nodeRole)})
	again, err := w.client(w.node).AssumeRole(t.Context(), asPod(appRole))
	wantCode(t, err, "")
	if *again.AssumedRoleUser.AssumedRoleId != *out.AssumedRoleUser.AssumedRoleId {
		t.Error("a role that was replaced got another ID")
	}
}

// https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
func TestAssumeRoleRefusals(t *testing.T) {
	const external = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"sts:AssumeRole",
		"Principal":{"AWS":"` + nodeRole + `"},"Condition":{"StringEquals":{"sts:ExternalId":"secret-7"}}}}`
	const tagging = `{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":["sts:AssumeRole","sts:TagSession"],
		"Principal":{"AWS":"` + nodeRole + `"},"Condition":{"StringLike":{"aws:RequestTag/namespace":"prod-*"}}}}`
	const denying = `{"Version":"2012-10-17","Statement":[
		{"Effect":"Allow","Action":"sts:AssumeRole","Principal":{"AWS":"*"}},
		{"Effect":"Deny","Action":"sts:*","Principal":{"AWS":"` + nodeRole + `"}}]}`
	tag := func(value string) []types.Tag { return []types.Tag{{Key: new("namespace"), Value: &value}} }
	tests := map[string]struct {
		trust    string // of appRole; that of newWorld when empty
		role     string // appRole when empty
		asUser   bool
		in       sts.AssumeRoleInput
		code     string
		contains string
	}{
		"plain": {},
		"unknown-role": {
			role: "arn:aws:iam::111122223333:role/none", code: "AccessDenied",
			contains: "not authorized to perform: sts:AssumeRole on resource: arn:aws:iam::111122223333:role/none",
		},
		"principal-not-trusted": {trust: TrustPrincipals(farRole), code: "AccessDenied"},
		"other-account-trusted": {trust: TrustPrincipals(other), code: "AccessDenied"},
		"root-trusted":          {trust: TrustPrincipals("arn:aws:iam::111122223333:root")},
		"account-trusted":       {trust: TrustPrincipals(account)},
		"session-trusted":       {trust: TrustPrincipals("arn:aws:sts::111122223333:assumed-role/node/i-0123456789abcdef0")},
		"other-session-trusted": {
			trust: TrustPrincipals("arn:aws:sts::111122223333:assumed-role/node/i-1"), code: "AccessDenied",
		},
		"user-trusted":        {trust: TrustPrincipals("arn:aws:iam::111122223333:user/ops"), asUser: true},
		"cross-account":       {role: farRole},
		"explicit-deny":       {trust: denying, code: "AccessDenied", contains: "explicit deny in a resource-based policy"},
		"external-id":         {trust: external, in: sts.AssumeRoleInput{ExternalId: new("secret-7")}},
		"external-id-missing": {trust: external, code: "AccessDenied"},
		"external-id-wrong": {
			trust: external, in: sts.AssumeRoleInput{ExternalId: new("secret-8")}, code: "AccessDenied",
		},
		"external-id-malformed": {trust: external, in: sts.AssumeRoleInput{ExternalId: new("a b")}, code: "ValidationError"},
		"tags-without-tagging": {
			in: sts.AssumeRoleInput{Tags: tag("prod-a")}, code: "AccessDenied", contains: "sts:TagSession",
		},
		"tags":           {trust: tagging, in: sts.AssumeRoleInput{Tags: tag("prod-a")}},
		"tags-condition": {trust: tagging, in: sts.AssumeRoleInput{Tags: tag("dev")}, code: "AccessDenied"},
		"tags-twice": {
			trust: tagging, in: sts.AssumeRoleInput{Tags: append(tag("prod-a"), tag("prod-b")...)},
			code: "InvalidParameterValue", contains: "Duplicate tag keys",
		},
		"name-short": {
			in: sts.AssumeRoleInput{RoleSessionName: new("a")}, code: "ValidationError",
			contains: "length greater than or equal to 2",
		},
		"name-long": {
			in: sts.AssumeRoleInput{RoleSessionName: new(strings.Repeat("a", 65))}, code: "ValidationError",
			contains: "length less than or equal to 64",
		},
		"name-alphabet": {
			in: sts.AssumeRoleInput{RoleSessionName: new("a/b")}, code: "ValidationError", contains: `[\w+=,.@-]*`,
		},
		"name-longest": {in: sts.AssumeRoleInput{RoleSessionName: new(strings.Repeat("a", 64))}},
		"duration-short": {
			in: sts.AssumeRoleInput{DurationSeconds: new(int32(899))}, code: "ValidationError",
			contains: "Value '899' at 'durationSeconds'",
		},
		"duration-absurd": {
			in: sts.AssumeRoleInput{DurationSeconds: new(int32(43201))}, code: "ValidationError",
			contains: "less than or equal to 43200",
		},
		"chained-hour": {in: sts.AssumeRoleInput{DurationSeconds: new(int32(3600))}},
		"chained-longer": {
			in: sts.AssumeRoleInput{DurationSeconds: new(int32(3601))}, code: "ValidationError",
			contains: "exceeds the 1 hour session limit for roles assumed by role chaining",
		},
		"user-two-hours": {asUser: true, in: sts.AssumeRoleInput{DurationSeconds: new(int32(7200))}},
		"user-beyond-role": {
			asUser: true, in: sts.AssumeRoleInput{DurationSeconds: new(int32(7201))}, code: "ValidationError",
			contains: "exceeds the MaxSessionDuration set for this role",
		},
		"session-policy": {
			in: sts.AssumeRoleInput{Policy: new(Permit("*"))}, code: "ValidationError", contains: "does not model",
		},
		"other-partition": {role: "arn:aws-cn:iam::111122223333:role/team/app", code: "AccessDenied"},
		"no-arn":          {role: "this-is-no-role-at-all", code: "ValidationError", contains: "is invalid"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			if test.trust != "" {
				w.put(t, Role{ARN: appRole, Trust: test.trust, MaxSessionDuration: 2 * time.Hour})
			}
			in, keys := test.in, w.node
			if test.asUser {
				keys = w.user
			}
			if in.RoleArn = &test.role; test.role == "" {
				in.RoleArn = new(appRole)
			}
			if in.RoleSessionName == nil {
				in.RoleSessionName = new("pod")
			}
			_, err := w.client(keys).AssumeRole(t.Context(), &in)
			wantCode(t, err, test.code)
			if !strings.Contains(message(err), test.contains) {
				t.Errorf("got message %q, want it to contain %q", message(err), test.contains)
			}
			code := test.code
			if code == "" {
				code = CodeOK
			}
			if n := w.Count(Filter{Action: "AssumeRole", RoleARN: *in.RoleArn, Region: region, Code: code}); n != 1 {
				t.Errorf("got %d calls counted, want 1 of %d", n, w.Count(Filter{}))
			}
		})
	}
}

// A trust policy that names the account leaves the choice to the caller's own permissions, and so does another account.
func TestAssumeRoleNeedsOwnPermissionWhenDelegated(t *testing.T) {
	tests := map[string]struct {
		trust, role, permissions, code string
	}{
		"same-account-named":    {TrustPrincipals(nodeRole), appRole, "", ""},
		"same-account-root":     {TrustPrincipals(account), appRole, "", "AccessDenied"},
		"other-account-named":   {TrustPrincipals(nodeRole), farRole, "", "AccessDenied"},
		"other-account-permits": {TrustPrincipals(nodeRole), farRole, Permit("sts:AssumeRole"), ""},
		"other-account-resource": {
			TrustPrincipals(nodeRole), farRole,
			strings.ReplaceAll(Permit("sts:AssumeRole"), `"*"`, `"arn:aws:iam::*:role/f*"`), "",
		},
		"own-deny": {
			TrustPrincipals(nodeRole), appRole, strings.ReplaceAll(Permit("sts:*"), "Allow", "Deny"), "AccessDenied",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Config{})
			w.put(t, Role{ARN: nodeRole, Trust: TrustService("ec2.amazonaws.com"), Permissions: test.permissions})
			w.put(t, Role{ARN: test.role, Trust: test.trust})
			_, err := w.client(w.node).AssumeRole(t.Context(), asPod(test.role))
			wantCode(t, err, test.code)
		})
	}
}

func TestErrorCarriesStatusAndRequestID(t *testing.T) {
	w := newWorld(t, Config{})
	_, err := w.client(w.node).AssumeRole(t.Context(), asPod(farRole+"-not"))
	wantCode(t, err, "AccessDenied")
	response, ok := errors.AsType[*awshttp.ResponseError](err)
	if !ok || response.HTTPStatusCode() != 403 || len(response.ServiceRequestID()) != 36 {
		t.Errorf("got %v, want status 403 and a request ID", err)
	}
}

func TestTransitiveTagsPassAlongTheChain(t *testing.T) {
	w := newWorld(t, Config{})
	trust := strings.ReplaceAll(TrustPrincipals(account), `"sts:AssumeRole"`, `["sts:AssumeRole","sts:TagSession"]`)
	w.put(t, Role{ARN: appRole, Trust: trust, Permissions: Permit("*")})
	second := "arn:aws:iam::111122223333:role/second"
	w.put(t, Role{ARN: second, Trust: trust})
	first, err := w.client(w.node).AssumeRole(t.Context(), &sts.AssumeRoleInput{
		RoleArn: new(appRole), RoleSessionName: new("one"), TransitiveTagKeys: []string{"cluster"},
		Tags: []types.Tag{{Key: new("cluster"), Value: new("blue")}, {Key: new("pod"), Value: new("p")}},
	})
	wantCode(t, err, "")
	keys := aws.Credentials{AccessKeyID: *first.Credentials.AccessKeyId,
		SecretAccessKey: *first.Credentials.SecretAccessKey, SessionToken: *first.Credentials.SessionToken}
	last, err := w.client(keys).AssumeRole(t.Context(), asPod(second))
	wantCode(t, err, "")
	session, _ := w.LookupSession(*last.Credentials.AccessKeyId)
	if len(session.Tags) != 1 || session.Tags["cluster"] != "blue" {
		t.Errorf("got tags %v, want cluster only", session.Tags)
	}
}

func TestSessionLifetimeCanBeCompressedWhileRunning(t *testing.T) {
	w := newWorld(t, Config{})
	life := func() time.Duration {
		out, err := w.client(w.node).AssumeRole(t.Context(), asPod(appRole))
		wantCode(t, err, "")
		return time.Until(*out.Credentials.Expiration).Round(10 * time.Second)
	}
	if got := life(); got != time.Hour {
		t.Errorf("got %v, want an hour", got)
	}
	w.SetSessionLifetime(ScaleLifetime(180))
	if got := life(); got != 20*time.Second {
		t.Errorf("got %v, want 20s", got)
	}
}
