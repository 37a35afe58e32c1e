package sts_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

const (
	region   = "eu-west-1"
	account  = "111122223333"
	audience = "sts.amazonaws.com"
	irsaRole = "arn:aws:iam::111122223333:role/irsa"
	nodeRole = "arn:aws:iam::111122223333:role/node"
	kubeRole = "arn:aws:iam::111122223333:role/team/app" // trusts the node role, as kube2iam's roles do
	idRole   = "arn:aws:iam::111122223333:role/external" // and asks for an external ID
)

var caller = role.Workload{Namespace: "billing", Name: "api-0", UID: "6f1d", ServiceAccount: "api"}

// world is an AWS with one OIDC provider and a few roles, and a Minter that calls it.
type world struct {
	*awstest.AWS
	issuer   *awstest.Issuer
	provider string
	tokens   *issuerTokens
	node     aws.Credentials // of the node's role
	minter   *sts.Minter
	observed *observer
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := newAWS(t)
	w.minter = w.newMinter(t, func(cfg *sts.Config) { cfg.Credentials = static(w.node) })
	return w
}

// newAWS returns a world without a Minter: what can stand in a bubble, where no listener can.
func newAWS(t *testing.T) *world {
	t.Helper()
	w := &world{observed: new(observer)}
	var err error
	w.AWS, err = awstest.New(awstest.Config{SessionTokenSize: 4096})
	check(t, err)
	w.issuer, err = awstest.NewIssuer(awstest.IssuerConfig{URL: "https://oidc.example.com/id/1"})
	check(t, err)
	w.provider, err = w.PutProvider(awstest.Provider{Account: account, Issuer: w.issuer.URL(), Keys: w.issuer.Keys})
	check(t, err)
	check(t, w.PutRole(awstest.Role{
		ARN: irsaRole, Trust: awstest.TrustServiceAccount(w.provider, caller.Namespace, caller.ServiceAccount),
		MaxSessionDuration: 12 * time.Hour,
	}))
	check(t, w.PutRole(awstest.Role{
		ARN: nodeRole, Trust: awstest.TrustService("ec2.amazonaws.com"), Permissions: awstest.Permit("sts:*"),
	}))
	check(t, w.PutRole(awstest.Role{
		ARN: kubeRole, Trust: awstest.TrustPrincipals(nodeRole), MaxSessionDuration: 12 * time.Hour,
	}))
	check(t, w.PutRole(awstest.Role{ARN: idRole, Trust: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow",
		"Principal":{"AWS":"` + nodeRole + `"},"Action":"sts:AssumeRole",
		"Condition":{"StringEquals":{"sts:ExternalId":"4711"}}}]}`}))
	w.node, err = w.Issue(nodeRole, "i-0123456789abcdef0", 24*time.Hour)
	check(t, err)
	w.tokens = &issuerTokens{issuer: w.issuer, lifetime: 24 * time.Hour}
	return w
}

// newMinter returns a Minter that calls w, without credentials of its own unless change adds some.
func (w *world) newMinter(t *testing.T, change func(*sts.Config)) *sts.Minter {
	t.Helper()
	server := httptest.NewServer(w.Endpoint(region))
	t.Cleanup(server.Close)
	cfg := sts.Config{
		Region: region, Endpoint: server.URL, HTTPClient: server.Client(), Tokens: w.tokens, Observe: w.observed.observe,
	}
	if change != nil {
		change(&cfg)
	}
	m, err := sts.New(cfg)
	check(t, err)
	return m
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func webGrant() role.Grant {
	return role.Grant{
		Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount, RoleARN: irsaRole, Duration: time.Hour,
		SessionName: role.SessionName(caller.Namespace, caller.ServiceAccount, "n1"), Audience: audience,
		Source: role.WebIdentity,
	}
}

func assumeGrant(arn string) role.Grant {
	g := webGrant()
	g.RoleARN, g.Source, g.Audience = arn, role.AssumeRole, ""
	return g
}

// issuerTokens gives tokens straight from the issuer, the same one until told otherwise.
type issuerTokens struct {
	issuer *awstest.Issuer

	mu       sync.Mutex // guards the following
	lifetime time.Duration
	renewed  time.Duration // lifetime of tokens after Renew; 0: Renew changes nothing
	audience string        // instead of the one asked for
	token    string
	err      error
	asked    int
}

func (s *issuerTokens) Token(_ context.Context, pod role.Workload, audience string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if s.err != nil {
		return "", s.err
	}
	if s.audience != "" {
		audience = s.audience
	}
	if s.token == "" {
		var err error
		s.token, err = s.issuer.Token(awstest.TokenRequest{
			Namespace: pod.Namespace, ServiceAccount: pod.ServiceAccount, Pod: pod.Name, PodUID: pod.UID,
			Audiences: []string{audience}, Lifetime: s.lifetime,
		})
		if err != nil {
			return "", err
		}
	}
	return s.token, nil
}

func (s *issuerTokens) Renew(_ role.Workload, _, token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.renewed != 0 && token == s.token {
		s.token, s.lifetime = "", s.renewed
	}
}

// observer records what Config.Observe is told.
type observer struct {
	mu    sync.Mutex
	calls []string
}

func (o *observer) observe(action, region, code string, _ time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.calls = append(o.calls, strings.TrimSpace(fmt.Sprintf("%s %s %s", action, region, code)))
}

func (o *observer) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	calls := slices.Clone(o.calls)
	o.calls = nil
	return calls
}

// wantError fails the test unless err is an *sts.Error of this kind and code.
func wantError(t *testing.T, err error, kind sts.Kind, code string) *sts.Error {
	t.Helper()
	e, ok := errors.AsType[*sts.Error](err)
	if !ok {
		t.Fatalf("got error %v, want an *sts.Error", err)
	}
	if e.Kind != kind || e.Code != code {
		t.Fatalf("got %s %q, want %s %q: %v", e.Kind, e.Code, kind, code, err)
	}
	return e
}

// roundTripper is a function as http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func static(keys aws.Credentials) aws.CredentialsProvider {
	return credentials.StaticCredentialsProvider{Value: keys}
}
