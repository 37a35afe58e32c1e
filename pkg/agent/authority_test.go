package agent

import (
	"errors"
	"testing"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/podrole/podrole/pkg/authority"
	"github.com/podrole/podrole/pkg/config"
	"github.com/podrole/podrole/pkg/identity"
	"github.com/podrole/podrole/pkg/role"
)

func TestServesUnverified(t *testing.T) {
	lacking, tooMuch := &authority.Fault{Lacking: true}, &authority.Fault{}
	for _, c := range []struct {
		name                              string
		fault                             *authority.Fault
		answers, othersServe, holds, want bool
	}{
		{"nothing_known_yet", nil, true, false, false, false},
		{"no_answer_but_sessions", nil, true, false, true, true},
		{"api_server_is_away", nil, false, false, false, true},
		{"others_serve", nil, false, true, true, false},
		{"lacking_with_sessions", lacking, true, false, true, true},
		{"lacking_without", lacking, true, false, false, false},
		{"lacking_while_others_serve", lacking, true, true, true, false},
		{"too_much_with_sessions", tooMuch, true, false, true, false},
		{"too_much_before_the_api_server_went_away", tooMuch, false, false, true, false},
	} {
		if got := servesUnverified(c.fault, c.answers, c.othersServe, c.holds); got != c.want {
			t.Errorf("%s: got %t", c.name, got)
		}
	}
}

// TestUntrusted: what readiness goes by.
func TestUntrusted(t *testing.T) {
	a := &agent{verified: make(chan struct{}), kube: kube{reach: new(identity.Reach)}}
	if err := a.untrusted(); err != nil {
		t.Errorf("nothing answers: %v", err)
	}
	fault := &authority.Fault{Problem: "too much"}
	a.fault.Store(fault)
	if err := a.untrusted(); !errors.Is(err, fault) {
		t.Errorf("with a fault: %v", err)
	}
	a.fault.Store(nil)
	a.kube.reach = nil
	if err := a.untrusted(); !errors.Is(err, errUnverified) {
		t.Errorf("before it is verified: %v", err)
	}
	close(a.verified)
	if err := a.untrusted(); err != nil {
		t.Errorf("verified: %v", err)
	}
}

func TestTokenAuthority(t *testing.T) {
	for _, c := range []struct {
		source role.Source
		told   authority.Kind
		want   authority.Kind
	}{
		{role.WebIdentity, authority.Direct, authority.Direct},
		{role.WebIdentity, authority.Node, authority.Node},
		{role.WebIdentity, authority.Unverified, authority.Unverified},
		{role.AssumeRole, authority.Direct, authority.None},
		{role.AssumeRole, authority.Unverified, authority.Unverified},
	} {
		cfg := config.Config{STS: config.STS{CredentialSource: c.source, TokenAuthority: c.told}}
		a := &agent{cfg: cfg, kube: kube{client: fake.NewClientset()}}
		if got := a.tokenAuthority(); got != c.want {
			t.Errorf("%s told %s: got %s", c.source, c.told, got)
		}
		a.kube.client = nil
		if got := a.tokenAuthority(); got != authority.Unverified {
			t.Errorf("without an API server: got %s", got)
		}
	}
}
