package sts_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/pkg/sts"
)

const (
	betweenRole = "arn:aws:iam::111122223333:role/server"
	kiamRole    = "arn:aws:iam::111122223333:role/kiam-app" // trusts the role between only
)

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// newKiam returns a world with kiam's two hops, and a Minter inside the bubble.
func newKiam(t *testing.T) (*world, *sts.Minter) {
	t.Helper()
	w := newAWS(t)
	check(t, w.PutRole(awstest.Role{
		ARN: betweenRole, Trust: awstest.TrustPrincipals(nodeRole), Permissions: awstest.Permit("sts:AssumeRole"),
	}))
	check(t, w.PutRole(awstest.Role{
		ARN: kiamRole, Trust: awstest.TrustPrincipals(betweenRole), MaxSessionDuration: 12 * time.Hour,
	}))
	cfg := sts.Config{
		Region: region, Credentials: static(w.node), Observe: w.observed.observe,
		HTTPClient: &http.Client{Transport: inProcess(w.Endpoint(region))},
	}
	var err error
	w.minter, err = sts.New(cfg) // in one hop
	check(t, err)
	cfg.AssumeRoleARN = betweenRole
	m, err := sts.New(cfg)
	check(t, err)
	return w, m
}

// TestTwoHops is kiam's --assume-role-arn: its roles trust the one between, unchanged.
func TestTwoHops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newKiam(t)
		g := assumeGrant(kiamRole)
		g.Duration = 4 * time.Hour // more than AWS allows here
		_, err := w.minter.Mint(t.Context(), assumeGrant(kiamRole), caller)
		wantError(t, err, sts.Denied, "AccessDenied") // in one hop
		begin := time.Now()
		for time.Since(begin) < 3*time.Hour {
			creds, err := m.Mint(t.Context(), g, caller)
			check(t, err)
			if left := time.Until(creds.Expiration); left != time.Hour {
				t.Errorf("session lasts %s, want the hour that role chaining allows", left)
			}
			time.Sleep(5 * time.Minute)
		}
		between := w.Calls(awstest.Filter{RoleARN: betweenRole})
		if len(between) != 4 || between[0].SessionName != "podrole" {
			t.Errorf("the role between was assumed %d times in three hours", len(between))
		}
		if n := w.Count(awstest.Filter{RoleARN: kiamRole, Code: awstest.CodeOK}); n != 36 {
			t.Errorf("the pod's role was assumed %d times", n)
		}
	})
}

// TestRoleBetweenFails: that is never the fault of the pods' roles, and what there is does for as long as it lasts.
func TestRoleBetweenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newKiam(t)
		mint := func() error {
			_, err := m.Mint(t.Context(), assumeGrant(kiamRole), caller)
			return err
		}
		denied := &awstest.Outcome{Status: 403, Code: "AccessDenied", Message: "no"}
		clear, err := w.Inject(awstest.Fault{RoleARN: betweenRole, Outcome: denied})
		check(t, err)
		e := wantError(t, mint(), sts.Transient, "AccessDenied")
		if !strings.Contains(e.Error(), betweenRole) || !strings.Contains(e.Error(), "trust policy") || e.RoleARN != kiamRole {
			t.Errorf("error %v", e)
		}
		clear()
		check(t, mint())
		clear, err = w.Inject(awstest.Fault{RoleARN: betweenRole, Outcome: awstest.Throttled()})
		check(t, err)
		time.Sleep(56 * time.Minute) // to be replaced, which fails
		w.ResetCalls()
		for range 20 {
			check(t, mint())
			time.Sleep(5 * time.Second)
		}
		if n := w.Count(awstest.Filter{RoleARN: betweenRole}); n < 3 || n > 5 {
			t.Errorf("the role between was asked for %d times in 100 s", n)
		}
		time.Sleep(3 * time.Minute)
		e = wantError(t, mint(), sts.Throttled, "Throttling")
		if e.RoleARN != kiamRole {
			t.Errorf("error %v", e)
		}
		clear()
		check(t, mint())
	})
}

// TestRoleBetweenIsRefused: its session is not used again, and a new one is.
func TestRoleBetweenIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newKiam(t)
		mint := func() error {
			_, err := m.Mint(t.Context(), assumeGrant(kiamRole), caller)
			return err
		}
		check(t, mint())
		inject(awstest.Fault{RoleARN: kiamRole, Times: 1, Outcome: &awstest.Outcome{
			Status: 403, Code: "ExpiredToken", Message: "The security token included in the request is expired",
		}})(t, w)
		wantError(t, mint(), sts.Transient, "ExpiredToken")
		check(t, mint())
		if n := w.Count(awstest.Filter{RoleARN: betweenRole}); n != 2 {
			t.Errorf("the role between was assumed %d times", n)
		}
		inject(awstest.Fault{RoleARN: kiamRole, Times: 1, Outcome: &awstest.Outcome{Status: 403, Code: "ExpiredToken"}})(t, w)
		wantError(t, mint(), sts.Transient, "ExpiredToken")
		inject(awstest.Fault{RoleARN: betweenRole, Outcome: awstest.Throttled()})(t, w)
		wantError(t, mint(), sts.Throttled, "Throttling") // and not with what was refused
	})
}

// TestPrepare gets a token and calls STS for nothing.
func TestPrepare(t *testing.T) {
	w := newWorld(t)
	w.minter.Prepare(t.Context(), webGrant(), caller)
	w.minter.Prepare(t.Context(), assumeGrant(kubeRole), caller)
	w.tokens.err = errors.New("down")
	w.minter.Prepare(t.Context(), webGrant(), caller)
	if w.tokens.asked != 2 || w.Count(awstest.Filter{}) != 0 {
		t.Errorf("%d tokens, %d calls", w.tokens.asked, w.Count(awstest.Filter{}))
	}
}

// TestTagsWithoutPermission says exactly what is missing; the same trust policy, kube2iam's, works without tags.
func TestTagsWithoutPermission(t *testing.T) {
	w := newWorld(t)
	g := assumeGrant(kubeRole)
	_, err := w.minter.Mint(t.Context(), g, caller)
	check(t, err)
	g.Tags.Namespace = "billing"
	_, err = w.minter.Mint(t.Context(), g, caller)
	wantError(t, err, sts.Denied, "AccessDenied")
	const want = "the role's trust policy lacks sts:TagSession: add it beside sts:AssumeRole, or switch session tags off"
	if !strings.Contains(err.Error(), want) {
		t.Errorf("error %q", err)
	}
	if i := slices.Index(strings.Fields(err.Error()), "external"); i >= 0 {
		t.Errorf("the error guesses at something else: %v", err)
	}
}
