package sts_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// apiServer answers TokenRequests with numbered tokens, unless told to fail.
type apiServer struct {
	mu       sync.Mutex // guards the following
	latency  time.Duration
	fail     error
	granted  time.Duration // instead of what is asked for
	requests []authenticationv1.TokenRequest
	accounts []string
}

// requester returns a TokenRequester that asks s.
func (s *apiServer) requester(t *testing.T, cfg sts.TokenConfig) *sts.TokenRequester {
	t.Helper()
	clientset := fake.NewClientset()
	clientset.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		create := action.(clienttesting.CreateActionImpl)
		if create.Subresource != "token" {
			return false, nil, nil
		}
		s.mu.Lock()
		in := create.Object.(*authenticationv1.TokenRequest).DeepCopy()
		s.requests = append(s.requests, *in)
		s.accounts = append(s.accounts, create.Namespace+"/"+create.Name)
		n, latency, granted := len(s.requests), s.latency, s.granted
		s.mu.Unlock()
		time.Sleep(latency) // 0 outside a bubble
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.fail != nil {
			return true, nil, s.fail
		}
		if granted == 0 {
			granted = time.Duration(*in.Spec.ExpirationSeconds) * time.Second
		}
		in.Status = authenticationv1.TokenRequestStatus{
			Token: fmt.Sprintf("token-%d", n), ExpirationTimestamp: metav1.NewTime(time.Now().Add(granted)),
		}
		return true, in, nil
	})
	cfg.Client = clientset.CoreV1()
	r, err := sts.NewTokenRequester(cfg)
	check(t, err)
	return r
}

func (s *apiServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *apiServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

func wantToken(t *testing.T, r *sts.TokenRequester, want string) {
	t.Helper()
	got, err := r.Token(t.Context(), caller, audience)
	if err != nil || got != want {
		t.Fatalf("Token = %q, %v, want %q", got, err, want)
	}
}

func TestTokenRequest(t *testing.T) {
	var s apiServer
	observed := new(observer)
	r := s.requester(t, sts.TokenConfig{Observe: observed.observe})
	wantToken(t, r, "token-1")
	want := authenticationv1.TokenRequestSpec{
		Audiences:         []string{audience},
		ExpirationSeconds: new(int64(6 * 60 * 60)),
		BoundObjectRef: &authenticationv1.BoundObjectReference{
			Kind: "Pod", APIVersion: "v1", Name: "api-0", UID: "6f1d",
		},
	}
	if diff := cmp.Diff(want, s.requests[0].Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if s.accounts[0] != "billing/api" {
		t.Errorf("asked for a token of %s", s.accounts[0])
	}
	if diff := cmp.Diff([]string{"TokenRequest  OK"}, observed.take()); diff != "" {
		t.Errorf("observed (-want +got):\n%s", diff)
	}
}

func TestTokensAreReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s apiServer
		r := s.requester(t, sts.TokenConfig{})
		wantToken(t, r, "token-1")
		time.Sleep(2*time.Hour - time.Second)
		wantToken(t, r, "token-1")
		other := caller
		other.Name, other.UID = "api-1", "77aa"
		if got, err := r.Token(t.Context(), other, audience); err != nil || got != "token-1" {
			t.Errorf("another pod of the ServiceAccount got %q, %v", got, err)
		}
		for i, change := range []func(*role.Workload, *string){
			func(p *role.Workload, _ *string) { p.ServiceAccount = "worker" },
			func(p *role.Workload, _ *string) { p.Namespace = "other" },
			func(_ *role.Workload, a *string) { *a = "sts.example.com" },
		} {
			p, a := caller, audience
			change(&p, &a)
			if got, err := r.Token(t.Context(), p, a); err != nil || got != fmt.Sprintf("token-%d", i+2) {
				t.Errorf("%s/%s for %s got %q, %v", p.Namespace, p.ServiceAccount, a, got, err)
			}
		}
		time.Sleep(2 * time.Second) // past a third of the first
		wantToken(t, r, "token-5")
	})
}

func TestTokenThroughAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s apiServer
		r := s.requester(t, sts.TokenConfig{})
		wantToken(t, r, "token-1")
		time.Sleep(2*time.Hour + time.Minute) // a third
		s.set(func() { s.fail = apierrors.NewServiceUnavailable("down"); s.requests = nil })
		for range 237 {
			wantToken(t, r, "token-1")
			wantToken(t, r, "token-1")
			time.Sleep(time.Minute)
		}
		if n := s.count(); n != 237 {
			t.Errorf("%d requests in 237 minutes of outage, want one a minute", n)
		}
		wantToken(t, r, "token-1")
		time.Sleep(time.Minute) // less than the margin left
		_, err := r.Token(t.Context(), caller, audience)
		wantError(t, err, sts.Transient, "ServiceUnavailable")
		s.set(func() { s.fail = nil; s.requests = nil })
		wantToken(t, r, "token-1")
	})
}

func TestRenew(t *testing.T) {
	var s apiServer
	r := s.requester(t, sts.TokenConfig{})
	r.Renew(caller, audience, "never-seen")
	wantToken(t, r, "token-1")
	r.Renew(caller, audience, "older")
	r.Renew(caller, "other", "token-1")
	wantToken(t, r, "token-1")
	r.Renew(caller, audience, "token-1")
	wantToken(t, r, "token-2")
	s.set(func() { s.fail = errors.New("connection refused") })
	r.Renew(caller, audience, "token-2")
	wantToken(t, r, "token-2") // better a suspect token than none
}

func TestTokenOfDeletedServiceAccountIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s apiServer
		r := s.requester(t, sts.TokenConfig{})
		wantToken(t, r, "token-1")
		time.Sleep(4 * time.Hour)
		s.set(func() { s.fail = apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, "api") })
		for range 2 {
			_, err := r.Token(t.Context(), caller, audience)
			wantError(t, err, sts.Denied, "NotFound")
		}
	})
}

// fakeTokens is a TokenStore. The zero value is ready.
type fakeTokens struct {
	kept map[sts.TokenKey]sts.Token
	fail error
}

func (f *fakeTokens) Load(k sts.TokenKey) (sts.Token, bool) {
	t, ok := f.kept[k]
	return t, ok
}

func (f *fakeTokens) Save(k sts.TokenKey, t sts.Token) error {
	if f.kept == nil {
		f.kept = make(map[sts.TokenKey]sts.Token)
	}
	f.kept[k] = t
	return f.fail
}

func (f *fakeTokens) Delete(k sts.TokenKey) error {
	delete(f.kept, k)
	return f.fail
}

// TestTokensOutliveTheirProcess: what was kept serves while the API server is down, is replaced when it would have been,
// and goes with its ServiceAccount.
func TestTokensOutliveTheirProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s apiServer
		var log bytes.Buffer
		store := &fakeTokens{fail: errors.New("no space")}
		cfg := sts.TokenConfig{Store: store, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		wantToken(t, s.requester(t, cfg), "token-1")
		if !strings.Contains(log.String(), "no space") || strings.Contains(log.String(), "token-1") {
			t.Errorf("log: %s", &log)
		}
		time.Sleep(time.Hour)
		r := s.requester(t, cfg)
		wantToken(t, r, "token-1")
		time.Sleep(time.Hour)
		wantToken(t, r, "token-2")
		s.set(func() { s.fail = errors.New("connection refused") })
		time.Sleep(5 * time.Hour)
		r = s.requester(t, cfg)
		wantToken(t, r, "token-2")
		time.Sleep(time.Hour)
		if got, err := s.requester(t, cfg).Token(t.Context(), caller, audience); err == nil {
			t.Errorf("an expired token came back: %q", got)
		}
		s.set(func() { s.fail = apierrors.NewNotFound(schema.GroupResource{Resource: "serviceaccounts"}, "api") })
		_, err := r.Token(t.Context(), caller, audience)
		wantError(t, err, sts.Denied, "NotFound")
		if len(store.kept) != 0 {
			t.Errorf("kept %v", store.kept)
		}
	})
}

func TestTokenErrors(t *testing.T) {
	pods, accounts := schema.GroupResource{Resource: "pods"}, schema.GroupResource{Resource: "serviceaccounts"}
	kind := schema.GroupKind{Group: "authentication.k8s.io", Kind: "TokenRequest"}
	tests := []struct {
		name  string
		err   error
		kind  sts.Kind
		code  string
		text  string
		label string
	}{
		{
			"account_gone", apierrors.NewNotFound(accounts, "api"), sts.Denied, "NotFound",
			"create ServiceAccount billing/api", "NotFound",
		},
		{"pod_gone", apierrors.NewNotFound(pods, "api-0"), sts.Transient, "NotFound", "", "NotFound"},
		{"pod_replaced", apierrors.NewConflict(pods, "api-0", errors.New("uid")), sts.Transient, "Conflict", "", "Conflict"},
		{
			"forbidden", apierrors.NewForbidden(accounts, "api", errors.New("rbac")), sts.Transient, "Forbidden",
			`allow the agent to create serviceaccounts/token of billing/api for audience "sts.amazonaws.com"`, "Forbidden",
		},
		{"policy", apierrors.NewInvalid(kind, "api", nil), sts.Transient, "Invalid", "admission policies", "Invalid"},
		{"throttled", apierrors.NewTooManyRequests("slow", 1), sts.Throttled, "TooManyRequests", "", "TooManyRequests"},
		{"down", apierrors.NewServiceUnavailable("x"), sts.Transient, "ServiceUnavailable", "", "ServiceUnavailable"},
		{"refused", errors.New("connection refused"), sts.Transient, "", "connection refused", "Unreachable"},
		{"timeout", context.DeadlineExceeded, sts.Transient, "", "", "Timeout"},
		{
			"odd", apierrors.NewResourceExpired("x"), sts.Transient, "Expired", "", "Other",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := apiServer{fail: tt.err}
			observed := new(observer)
			r := s.requester(t, sts.TokenConfig{Observe: observed.observe})
			_, err := r.Token(t.Context(), caller, audience)
			e := wantError(t, err, tt.kind, tt.code)
			if e.Action != "TokenRequest" || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %q, want %q in it", err, tt.text)
			}
			if diff := cmp.Diff([]string{"TokenRequest  " + tt.label}, observed.take()); diff != "" {
				t.Errorf("observed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTokenThatExpiredIsNotUsed(t *testing.T) {
	s := apiServer{granted: -time.Minute}
	_, err := s.requester(t, sts.TokenConfig{}).Token(t.Context(), caller, audience)
	if err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("error %v, want a hint at the clock", err)
	}
}

func TestOneTokenRequestForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apiServer{latency: time.Second}
		r := s.requester(t, sts.TokenConfig{})
		impatient, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { wantToken(t, r, "token-1") })
		}
		synctest.Wait()
		wg.Go(func() {
			begin := time.Now()
			if _, err := r.Token(impatient, caller, audience); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error %v", err)
			}
			if took := time.Since(begin); took != 100*time.Millisecond {
				t.Errorf("gave up after %s", took)
			}
		})
		wg.Wait()
		if n := s.count(); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

func TestTokensAreBounded(t *testing.T) {
	var s apiServer
	r := s.requester(t, sts.TokenConfig{Size: 2})
	for _, account := range []string{"a", "b", "c", "c", "b", "a"} {
		p := caller
		p.ServiceAccount = account
		_, err := r.Token(t.Context(), p, audience)
		check(t, err)
	}
	if n := s.count(); n != 4 {
		t.Errorf("%d requests, want 4: the first was dropped for the third", n)
	}
}

func TestTokenConfigErrors(t *testing.T) {
	client := fake.NewClientset().CoreV1()
	tests := []struct {
		field string
		cfg   sts.TokenConfig
	}{
		{"Client", sts.TokenConfig{}},
		{"Lifetime", sts.TokenConfig{Client: client, Lifetime: time.Minute}},
		{"Size", sts.TokenConfig{Client: client, Size: -1}},
		{"Timeout", sts.TokenConfig{Client: client, Timeout: -1}},
	}
	for _, tt := range tests {
		if _, err := sts.NewTokenRequester(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.field) {
			t.Errorf("NewTokenRequester(%s): %v", tt.field, err)
		}
	}
}

// TestTokensWaitUntilTheyMayBeRequested: no TokenRequest is made before, whoever waits gives up after the time that one may
// take, and a token in hand is used meanwhile.
func TestTokensWaitUntilTheyMayBeRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready := make(chan struct{})
		var s apiServer
		store := &fakeTokens{}
		r := s.requester(t, sts.TokenConfig{Ready: ready, Store: store})
		began := time.Now()
		_, err := r.Token(t.Context(), caller, audience)
		if took := time.Since(began); sts.KindOf(err) != sts.Transient || took != 5*time.Second {
			t.Errorf("got %v after %s, want a transient error after 5s", err, took)
		}
		other := sts.TokenKey{Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount, Audience: "other"}
		now := time.Now()
		check(t, store.Save(other, sts.Token{Value: "kept", Issued: now.Add(-3 * time.Hour), Expires: now.Add(3 * time.Hour)}))
		if value, err := r.Token(t.Context(), caller, "other"); value != "kept" {
			t.Errorf("got %q, %v, want the token in hand", value, err)
		}
		if n := s.count(); n != 0 {
			t.Errorf("%d requests were made before they may be", n)
		}
		close(ready)
		wantToken(t, r, "token-1")
	})
}
