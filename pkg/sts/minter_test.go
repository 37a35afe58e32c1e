package sts_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

func TestMintWebIdentity(t *testing.T) {
	w := newWorld(t)
	g := webGrant()
	g.Duration = 8 * time.Hour
	creds, err := w.minter.Mint(t.Context(), g, caller)
	check(t, err)
	if got, want := creds.AssumedRoleARN, "arn:aws:sts::111122223333:assumed-role/irsa/billing.api@n1"; got != want {
		t.Errorf("AssumedRoleARN = %s, want %s", got, want)
	}
	if left := time.Until(creds.Expiration); left < 8*time.Hour-time.Minute || left > 8*time.Hour {
		t.Errorf("session lasts %s, want the 8 h asked for", left)
	}
	if len(creds.SessionToken) != 4096 || creds.SecretAccessKey == "" {
		t.Errorf("session token of %d characters, secret of %d", len(creds.SessionToken), len(creds.SecretAccessKey))
	}
	if s, ok := w.LookupSession(creds.AccessKeyID); !ok || s.RoleARN != irsaRole {
		t.Errorf("access key is of %+v", s)
	}
	calls := w.Calls(awstest.Filter{})
	if len(calls) != 1 || calls[0].Region != region {
		t.Errorf("calls %+v", calls)
	}
	if diff := cmp.Diff([]string{"AssumeRoleWithWebIdentity eu-west-1 OK"}, w.observed.take()); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

func TestMintAssumeRole(t *testing.T) {
	w := newWorld(t)
	creds, err := w.minter.Mint(t.Context(), assumeGrant(kubeRole), caller)
	check(t, err)
	if !strings.HasSuffix(creds.AssumedRoleARN, ":assumed-role/app/billing.api@n1") {
		t.Errorf("AssumedRoleARN = %s", creds.AssumedRoleARN)
	}
	external := assumeGrant(idRole)
	_, err = w.minter.Mint(t.Context(), external, caller)
	wantError(t, err, sts.Denied, "AccessDenied")
	external.ExternalID = "4711"
	_, err = w.minter.Mint(t.Context(), external, caller)
	check(t, err)
	if w.tokens.asked != 0 {
		t.Error("assume-role asked for a ServiceAccount token")
	}
}

func TestMintTags(t *testing.T) {
	w := newWorld(t)
	g := assumeGrant(kubeRole)
	g.Tags = role.Tags{Cluster: "prod", Namespace: "billing", ServiceAccount: "api"}
	_, err := w.minter.Mint(t.Context(), g, caller)
	e := wantError(t, err, sts.Denied, "AccessDenied")
	if !strings.Contains(e.Error(), "trust policy lacks sts:TagSession") {
		t.Errorf("%v: does not say what the trust policy lacks", e)
	}
	check(t, w.PutRole(awstest.Role{ARN: kubeRole, Trust: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
		"Principal":{"AWS":"` + nodeRole + `"},"Action":["sts:AssumeRole","sts:TagSession"]}]}`}))
	creds, err := w.minter.Mint(t.Context(), g, caller)
	check(t, err)
	s, _ := w.LookupSession(creds.AccessKeyID)
	want := map[string]string{
		"eks-cluster-name": "prod", "kubernetes-namespace": "billing", "kubernetes-service-account": "api",
	}
	if diff := cmp.Diff(want, s.Tags); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}
}

// TestFailures drives every class of failure over a real connection.
func TestFailures(t *testing.T) {
	tests := []struct {
		name  string
		grant role.Grant
		setup func(*testing.T, *world)
		kind  sts.Kind
		code  string
		text  string // in the error
		label string // observed
	}{
		{
			name: "throttled", grant: webGrant(), setup: inject(awstest.Fault{Outcome: awstest.Throttled()}),
			kind: sts.Throttled, code: "Throttling", text: "Throttling (throttled)", label: "Throttling",
		},
		{
			name: "internal", grant: webGrant(), setup: inject(awstest.Fault{Outcome: awstest.InternalFailure()}),
			kind: sts.Transient, code: "InternalFailure", label: "InternalFailure",
		},
		{
			name: "unavailable", grant: assumeGrant(kubeRole), setup: inject(awstest.Fault{Outcome: awstest.Unavailable()}),
			kind: sts.Transient, code: "ServiceUnavailable", label: "ServiceUnavailable",
		},
		{
			name: "reset", grant: webGrant(), setup: inject(awstest.Fault{Outcome: awstest.ConnectionReset()}),
			kind: sts.Transient, label: "Unreachable",
		},
		{
			name: "hang", grant: webGrant(),
			setup: func(t *testing.T, w *world) {
				inject(awstest.Fault{Outcome: awstest.TimedOut()})(t, w)
				w.minter = w.newMinter(t, func(cfg *sts.Config) { cfg.Timeout = 50 * time.Millisecond })
			},
			kind: sts.Transient, text: "deadline exceeded", label: "Timeout",
		},
		{
			name: "unknown_code", grant: webGrant(), setup: inject(awstest.Fault{
				Outcome: &awstest.Outcome{Status: 400, Code: "SomethingNew", Message: "what?"},
			}),
			kind: sts.Transient, code: "SomethingNew", text: "what?", label: "Other",
		},
		{
			name: "region_disabled", grant: webGrant(), setup: inject(awstest.Fault{
				Outcome: &awstest.Outcome{Status: 403, Code: "RegionDisabledException", Message: "STS is not activated"},
			}),
			kind: sts.Denied, code: "RegionDisabledException", text: "activate STS in eu-west-1",
			label: "RegionDisabledException",
		},
		{
			name: "trust", grant: webGrant(),
			setup: func(t *testing.T, w *world) {
				check(t, w.PutRole(awstest.Role{
					ARN: irsaRole, Trust: awstest.TrustServiceAccount(w.provider, "billing", "other"),
				}))
			},
			kind: sts.Denied, code: "AccessDenied", text: `sub "system:serviceaccount:billing:api" and aud "sts.amazonaws.com"`,
			label: "AccessDenied",
		},
		{
			name: "no_provider", grant: webGrant(),
			setup: func(_ *testing.T, w *world) { w.DeleteProvider(w.provider) },
			kind:  sts.Denied, code: "InvalidIdentityToken", text: "create the IAM OIDC provider", label: "InvalidIdentityToken",
		},
		{
			name: "wrong_audience", grant: webGrant(),
			setup: func(_ *testing.T, w *world) { w.tokens.audience = "vault" },
			kind:  sts.Denied, code: "InvalidIdentityToken", text: "client IDs", label: "InvalidIdentityToken",
		},
		{
			name: "duration_of_role_by_role",
			grant: func() role.Grant {
				g := assumeGrant(kubeRole)
				g.Duration = 2 * time.Hour
				return g
			}(),
			kind: sts.Denied, code: "ValidationError", text: "one hour for a role that is assumed by a role",
			label: "ValidationError",
		},
		{
			name: "agents_credentials", grant: assumeGrant(kubeRole),
			setup: func(t *testing.T, w *world) {
				expired, err := w.Issue(nodeRole, "i-0", -time.Minute)
				check(t, err)
				expired.CanExpire = false
				w.minter = w.newMinter(t, func(cfg *sts.Config) { cfg.Credentials = static(expired) })
			},
			kind: sts.Transient, code: "ExpiredToken", text: "agent's own AWS credentials", label: "ExpiredToken",
		},
		{
			name: "no_credentials_to_be_had", grant: assumeGrant(kubeRole),
			setup: func(t *testing.T, w *world) {
				w.minter = w.newMinter(t, func(cfg *sts.Config) {
					cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
						return aws.Credentials{}, errors.New("node role: 404")
					})
				})
			},
			kind: sts.Transient, text: "node role: 404", // and no call
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			if tt.setup != nil {
				tt.setup(t, w)
			}
			_, err := w.minter.Mint(t.Context(), tt.grant, caller)
			e := wantError(t, err, tt.kind, tt.code)
			if e.RoleARN != tt.grant.RoleARN || e.Region != region || !strings.HasPrefix(e.Action, "AssumeRole") {
				t.Errorf("error is about %s of %s in %s", e.Action, e.RoleARN, e.Region)
			}
			if !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q, want %q in it", err, tt.text)
			}
			if w.tokens.token != "" && strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, e.Err), w.tokens.token) {
				t.Error("the error contains the token")
			}
			var want []string
			if tt.label != "" {
				want = []string{e.Action + " eu-west-1 " + tt.label}
			}
			if diff := cmp.Diff(want, w.observed.take()); diff != "" {
				t.Errorf("observed (-want +got):\n%s", diff)
			}
		})
	}
}

func inject(f awstest.Fault) func(*testing.T, *world) {
	return func(t *testing.T, w *world) {
		t.Helper()
		_, err := w.Inject(f)
		check(t, err)
	}
}

func TestRefusedTokenIsReplacedOnce(t *testing.T) {
	const hour = time.Hour
	tests := []struct {
		name     string
		lifetime time.Duration
		renewed  time.Duration
		fault    *awstest.Outcome
		asked    int
		calls    int
		code     string // "" is success
		kind     sts.Kind
	}{
		{name: "good", lifetime: hour, asked: 1, calls: 1},
		{name: "expired", lifetime: -hour, renewed: hour, asked: 2, calls: 2},
		{name: "expired_again", lifetime: -hour, renewed: -hour, asked: 2, calls: 2, code: "ExpiredTokenException"},
		{name: "expired_and_no_other", lifetime: -hour, asked: 2, calls: 1, code: "ExpiredTokenException"},
		{
			name: "bad_once", lifetime: hour, renewed: hour, asked: 2, calls: 2,
			fault: &awstest.Outcome{Status: 400, Code: "InvalidIdentityToken", Message: "The ID Token is not a valid JWT."},
		},
		{
			name: "key_retrieval_waits_for_the_next_mint", lifetime: hour, renewed: hour, asked: 1, calls: 1,
			fault: &awstest.Outcome{
				Status: 400, Code: "InvalidIdentityToken",
				Message: "Couldn't retrieve verification key from your identity provider",
			},
			code: "InvalidIdentityToken",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			w.tokens.lifetime, w.tokens.renewed = tt.lifetime, tt.renewed
			if tt.fault != nil {
				inject(awstest.Fault{Outcome: tt.fault, Times: 1})(t, w)
			}
			_, err := w.minter.Mint(t.Context(), webGrant(), caller)
			if tt.code == "" {
				check(t, err)
			} else {
				wantError(t, err, tt.kind, tt.code)
			}
			if n := w.Count(awstest.Filter{}); n != tt.calls || w.tokens.asked != tt.asked {
				t.Errorf("%d calls and %d tokens asked for, want %d and %d", n, w.tokens.asked, tt.calls, tt.asked)
			}
		})
	}
}

func TestErrorsOfTokens(t *testing.T) {
	w := newWorld(t)
	w.tokens.err = errors.New("api server is down")
	_, err := w.minter.Mint(t.Context(), webGrant(), caller)
	e := wantError(t, err, sts.Transient, "")
	if e.Action != "TokenRequest" || e.RoleARN != irsaRole || !errors.Is(err, w.tokens.err) {
		t.Errorf("error %v", err)
	}
	w.tokens.err = &sts.Error{
		Kind: sts.Denied, Action: "TokenRequest", Code: "NotFound", Err: errors.New("x"), Remedy: "y",
	}
	_, err = w.minter.Mint(t.Context(), webGrant(), caller)
	e = wantError(t, err, sts.Denied, "NotFound")
	if e.RoleARN != irsaRole || e.Remedy != "y" {
		t.Errorf("error %v", err)
	}
	if n := w.Count(awstest.Filter{}); n != 0 {
		t.Errorf("%d calls to STS without a token", n)
	}
}

// TestRefusedWithoutCall: what could only mint another session than the Grant says is not tried.
func TestRefusedWithoutCall(t *testing.T) {
	w := newWorld(t)
	tests := []struct {
		name   string
		change func(*role.Grant, *role.Workload)
	}{
		{"pod_of_other_account", func(_ *role.Grant, p *role.Workload) { p.ServiceAccount = "other" }},
		{"pod_of_other_namespace", func(_ *role.Grant, p *role.Workload) { p.Namespace = "other" }},
		{"external_id", func(g *role.Grant, _ *role.Workload) { g.ExternalID = "4711" }},
		{"tags", func(g *role.Grant, _ *role.Workload) { g.Tags.Cluster = "prod" }},
		{"unknown_source", func(g *role.Grant, _ *role.Workload) { g.Source = "" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g, p := webGrant(), caller
			tt.change(&g, &p)
			_, err := w.minter.Mint(t.Context(), g, p)
			wantError(t, err, sts.Denied, "")
		})
	}
	_, err := w.newMinter(t, nil).Mint(t.Context(), assumeGrant(kubeRole), caller)
	wantError(t, err, sts.Denied, "")
	if n := w.Count(awstest.Filter{}); n != 0 || w.tokens.asked != 0 {
		t.Errorf("%d calls, %d tokens", n, w.tokens.asked)
	}
}

func TestCanceled(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := w.minter.Mint(ctx, webGrant(), caller)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the context's", err)
	}
	if diff := cmp.Diff([]string{"AssumeRoleWithWebIdentity eu-west-1 Canceled"}, w.observed.take()); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

// TestForeignAnswers is about what proxies and captive networks say.
func TestForeignAnswers(t *testing.T) {
	const result = "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult>%s" +
		"</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
	tests := []struct {
		name   string
		status int
		body   string
		kind   sts.Kind
	}{
		{"proxy_403", 403, "<html>Forbidden</html>", sts.Transient},
		{"proxy_407", 407, "", sts.Transient},
		{"gateway", 502, "bad gateway", sts.Transient},
		{"too_many", 429, "", sts.Throttled},
		{"redirect", 302, "", sts.Transient},
		{"page", 200, "<html>Please log in</html>", sts.Transient},
		{"empty", 200, "", sts.Transient},
		{"no_credentials", 200, fmt.Sprintf(result, ""), sts.Transient},
		{
			"half_of_them", 200, fmt.Sprintf(result, "<Credentials><AccessKeyId>ASIA</AccessKeyId></Credentials>"),
			sts.Transient,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			calls := 0
			m := w.newMinter(t, func(cfg *sts.Config) {
				cfg.HTTPClient = &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					calls++
					if r.Header.Get("Authorization") != "" {
						t.Error("the call is signed")
					}
					return &http.Response{
						StatusCode: tt.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(tt.body)), Request: r,
					}, nil
				})}
			})
			_, err := m.Mint(t.Context(), webGrant(), caller)
			wantError(t, err, tt.kind, "")
			if calls != 1 {
				t.Errorf("%d attempts, want 1", calls)
			}
		})
	}
}

// TestNoSharedRetryBudget: a hundred failures of one role change nothing for another.
func TestNoSharedRetryBudget(t *testing.T) {
	w := newWorld(t)
	inject(awstest.Fault{RoleARN: irsaRole, Outcome: awstest.InternalFailure()})(t, w)
	for range 100 {
		_, err := w.minter.Mint(t.Context(), webGrant(), caller)
		wantError(t, err, sts.Transient, "InternalFailure")
	}
	if n := w.Count(awstest.Filter{}); n != 100 {
		t.Errorf("%d attempts for 100 mints", n)
	}
	_, err := w.minter.Mint(t.Context(), assumeGrant(kubeRole), caller)
	check(t, err)
}

// TestAgentsCredentials: they are asked for once, and again when AWS refuses them.
func TestAgentsCredentials(t *testing.T) {
	w := newWorld(t)
	stale, err := w.Issue(nodeRole, "i-0", -time.Minute)
	check(t, err)
	fresh, err := w.Issue(nodeRole, "i-0", time.Hour)
	check(t, err)
	stale.Expires, fresh.Expires = time.Now().Add(time.Hour), time.Now().Add(time.Hour) // revoked, not known to be
	stale.CanExpire, fresh.CanExpire = true, true
	var asked atomic.Int32
	m := w.newMinter(t, func(cfg *sts.Config) {
		cfg.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			if asked.Add(1) == 1 {
				return stale, nil
			}
			return fresh, nil
		})
	})
	_, err = m.Mint(t.Context(), assumeGrant(kubeRole), caller)
	wantError(t, err, sts.Transient, "ExpiredToken")
	for range 3 {
		_, err = m.Mint(t.Context(), assumeGrant(kubeRole), caller)
		check(t, err)
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("credentials were asked for %d times, want 2", n)
	}
}

// TestRegionalEndpoint: the endpoints are those of https://docs.aws.amazon.com/general/latest/gr/sts.html and of the
// partitions' own lists.
func TestRegionalEndpoint(t *testing.T) {
	tests := []struct {
		name            string
		region          string
		fips, dualStack bool
		host            string
	}{
		{"aws", "eu-west-1", false, false, "sts.eu-west-1.amazonaws.com"},
		{"aws_classic", "us-east-1", false, false, "sts.us-east-1.amazonaws.com"}, // not the global endpoint
		{"aws_fips", "us-east-1", true, false, "sts-fips.us-east-1.amazonaws.com"},
		{"aws_dual_stack", "eu-west-1", false, true, "sts.eu-west-1.api.aws"},
		{"aws_both", "us-west-2", true, true, "sts-fips.us-west-2.api.aws"},
		{"china", "cn-north-1", false, false, "sts.cn-north-1.amazonaws.com.cn"},
		{"china_dual_stack", "cn-north-1", false, true, "sts.cn-north-1.api.amazonwebservices.com.cn"},
		{"gov", "us-gov-west-1", false, false, "sts.us-gov-west-1.amazonaws.com"},
		{"gov_fips", "us-gov-west-1", true, false, "sts.us-gov-west-1.amazonaws.com"}, // all of it is FIPS
		{"iso", "us-iso-east-1", false, false, "sts.us-iso-east-1.c2s.ic.gov"},
		{"iso_b", "us-isob-east-1", false, false, "sts.us-isob-east-1.sc2s.sgov.gov"},
		{"iso_e", "eu-isoe-west-1", false, false, "sts.eu-isoe-west-1.cloud.adc-e.uk"},
		{"iso_f", "us-isof-south-1", false, false, "sts.us-isof-south-1.csp.hci.ic.gov"},
		{"eusc", "eusc-de-east-1", false, false, "sts.eusc-de-east-1.amazonaws.eu"},
		{"region_of_tomorrow", "eu-north-7", false, false, "sts.eu-north-7.amazonaws.com"},
	}
	tokens := newWorld(t).tokens
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var asked *url.URL
			m, err := sts.New(sts.Config{
				Region: tt.region, FIPS: tt.fips, DualStack: tt.dualStack, Tokens: tokens,
				HTTPClient: &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					asked = r.URL
					return nil, errors.New("not from here")
				})},
			})
			check(t, err)
			_, err = m.Mint(t.Context(), webGrant(), caller)
			wantError(t, err, sts.Transient, "")
			if asked == nil || asked.Scheme != "https" || asked.Host != tt.host {
				t.Errorf("asked %v, want https://%s", asked, tt.host)
			}
		})
	}
}

func TestConfigErrors(t *testing.T) {
	tokens := &issuerTokens{}
	tests := []struct {
		field string
		cfg   sts.Config
	}{
		{"Region", sts.Config{Tokens: tokens}},
		{"Credentials", sts.Config{Region: region}},
		{"Timeout", sts.Config{Region: region, Tokens: tokens, Timeout: -1}},
		{"Endpoint", sts.Config{Region: region, Tokens: tokens, Endpoint: "localhost:4566"}},
		{"Endpoint", sts.Config{Region: region, Tokens: tokens, Endpoint: "http://"}},
		{"Endpoint", sts.Config{Region: region, Tokens: tokens, Endpoint: "http://a b"}},
		{"FIPS", sts.Config{Region: region, Tokens: tokens, Endpoint: "http://a", FIPS: true}},
		{"DualStack", sts.Config{Region: region, Tokens: tokens, Endpoint: "http://a", DualStack: true}},
		{"FailoverRegions", sts.Config{
			Region: region, Tokens: tokens, Endpoint: "http://a", FailoverRegions: []string{"eu-west-2"},
		}},
		{"FailoverRegions", sts.Config{Region: region, Tokens: tokens, FailoverRegions: []string{region}}},
		{"FailoverRegions", sts.Config{Region: region, Tokens: tokens, FailoverRegions: []string{""}}},
		{"AssumeRoleARN", sts.Config{Region: region, Tokens: tokens, AssumeRoleARN: nodeRole}},
	}
	for _, tt := range tests {
		if _, err := sts.New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.field) {
			t.Errorf("New(%+v): %v, want an error that names %s", tt.cfg, err, tt.field)
		}
	}
}
