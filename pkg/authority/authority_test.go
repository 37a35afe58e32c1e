package authority_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	"github.com/podrole/podrole/pkg/authority"
)

func verify(t *testing.T, s *apiServer, kind authority.Kind, change func(*authority.Config)) error {
	t.Helper()
	c := configure(s, kind)
	if change != nil {
		change(&c)
	}
	return authority.Verify(t.Context(), c)
}

func configure(s *apiServer, kind authority.Kind) authority.Config {
	return authority.Config{
		Kind: kind, Node: "node-1", Own: s.as(""), AsNode: s.as(own), AsAnother: s.as("system:node:elsewhere"), Another: "elsewhere",
		WithToken: func(token string) (kubernetes.Interface, error) { return s.as("bearer " + token), nil },
		Audiences: []string{"sts.amazonaws.com"}, Lifetime: 6 * time.Hour, Logger: slog.New(slog.DiscardHandler),
	}
}

// TestAuthorityAsTold: what the manifests set up passes at the first try, in no time.
func TestAuthorityAsTold(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   authority.Kind
		server *apiServer
		change func(*authority.Config)
	}{
		{"direct", authority.Direct, direct(), nil},
		{"node", authority.Node, node(), nil},
		{"none", authority.None, newAPIServer(), nil},
		{"startup-taint", authority.None, tainting(), func(c *authority.Config) { c.StartupTaint = true }},
		{"shorter-tokens", authority.Direct, direct(), func(c *authority.Config) { c.Lifetime = time.Hour }},
		{"any-account", authority.Direct, anyAccount(), func(c *authority.Config) { c.AnyAccount = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				if err := verify(t, c.server, c.kind, c.change); err != nil || time.Since(began) != 0 {
					t.Errorf("got %v after %s", err, time.Since(began))
				}
			})
		})
	}
	s := newAPIServer()
	s.rights = []string{"everything"}
	if err := verify(t, s, authority.Unverified, nil); err != nil || s.asked != 0 {
		t.Errorf("unverified: got %v after %d questions", err, s.asked)
	}
}

// tainting has the right to patch nodes, and the policy.
func tainting() *apiServer {
	s := newAPIServer()
	s.rights = []string{"patch nodes"}
	return s
}

// anyAccount has no policy that looks at the role of a ServiceAccount.
func anyAccount() *apiServer {
	s := direct()
	s.token = func(_, _ string, spec authenticationv1.TokenRequestSpec) error { return shaped(spec) }
	return s
}

// TestAuthorityNotAsTold: each way in which an authority can be another than told is a Fault that says what and what to do.
func TestAuthorityNotAsTold(t *testing.T) {
	type tokenSpec = authenticationv1.TokenRequestSpec
	// unless grants what the policies would refuse, if it is such a token.
	unless := func(such func(account string, spec tokenSpec) bool) func(*apiServer) {
		return func(s *apiServer) {
			before := s.token
			s.token = func(who, account string, spec tokenSpec) error {
				if such(account, spec) {
					return nil
				}
				return before(who, account, spec)
			}
		}
	}
	all := func(string, tokenSpec) bool { return true }
	holds := func(right string) func(*apiServer) {
		return func(s *apiServer) { s.rights = append(s.rights, right) }
	}
	extra := func(key string, values ...string) func(*apiServer) {
		return func(s *apiServer) { s.user.Extra["authentication.kubernetes.io/"+key] = values }
	}
	taint := func(c *authority.Config) { c.StartupTaint = true }
	for _, c := range []struct {
		name   string
		kind   authority.Kind
		spoil  func(*apiServer)
		change func(*authority.Config)
		want   []string
	}{
		{"direct-policy-matches-nobody", authority.Direct, unless(all), nil, []string{
			"granted what it must be refused", "a token for the API server", "that names no role", "longer",
			"apply the policies of manifests/policies/direct-tokens", "have them name " + agent,
		}},
		{"direct-default-audience", authority.Direct, unless(func(_ string, s tokenSpec) bool { return len(s.Audiences) == 0 }), nil,
			[]string{"refused: a token for the API server;"}},
		{"direct-any-audience", authority.Direct, unless(func(_ string, s tokenSpec) bool { return len(s.Audiences) == 1 }), nil,
			[]string{"an audience that nobody allowed"}},
		{"direct-two-audiences", authority.Direct, unless(func(_ string, s tokenSpec) bool { return len(s.Audiences) == 2 }), nil,
			[]string{"two audiences;"}},
		{"direct-unbound", authority.Direct, unless(func(_ string, s tokenSpec) bool { return s.BoundObjectRef == nil }), nil,
			[]string{"not bound to a pod;"}},
		{"direct-bound-by-name", authority.Direct, unless(func(_ string, s tokenSpec) bool { return s.BoundObjectRef != nil && s.BoundObjectRef.UID == "" }), nil,
			[]string{"by its name alone;"}},
		{"direct-too-long", authority.Direct, unless(func(_ string, s tokenSpec) bool { return *s.ExpirationSeconds > 21600 }), nil,
			[]string{"lives longer;"}},
		{"direct-any-account", authority.Direct, unless(func(account string, _ tokenSpec) bool { return account == "default" }), nil,
			[]string{"names no role;"}},
		// What a request makes no sense for is no refusal: the policies had let it pass.
		{"direct-refused-by-accident", authority.Direct, func(s *apiServer) {
			before := s.token
			s.token = func(who, account string, spec tokenSpec) error {
				if account == "default" {
					return apierrors.NewBadRequest("cannot bind token for serviceaccount to pod of another")
				}
				return before(who, account, spec)
			}
		}, nil, []string{"names no role;"}},
		{"direct-and-node", authority.Direct, holds("impersonate:associated-node nodes.authentication.k8s.io"), nil,
			[]string{"may do more than it was told to: impersonate:associated-node nodes.authentication.k8s.io;"}},
		{"node-and-direct", authority.Node, holds("create serviceaccounts/token"), nil, []string{"create serviceaccounts/token;"}},
		{"node-and-all-pods", authority.Node, holds("list pods"), nil, []string{"list pods;"}},
		{"node-policy-is-missing", authority.Node, unless(func(_ string, s tokenSpec) bool { return len(s.Audiences) == 0 }), nil,
			[]string{"a token for the API server;", "manifests/policies/node-tokens"}},
		{"node-reads-all-pods", authority.Node, func(s *apiServer) {
			s.list = func(who, _ string) error {
				if who != own {
					return forbidden("pods")
				}
				return nil
			}
		}, nil, []string{"reading the pods of all nodes;"}},
		{"node-may-be-another", authority.Node, func(s *apiServer) {
			s.list = func(_, selector string) error {
				if selector == "" {
					return forbidden("pods")
				}
				return nil
			}
		}, nil, []string{"acting as another node;"}},
		{"none-but-tokens", authority.None, holds("create serviceaccounts/token"), nil, []string{"create serviceaccounts/token;"}},
		{"administrator", authority.Direct, holds("everything"), nil, []string{"* *", "get secrets", "--token-authority=unverified"}},
		{"patches-nodes", authority.Direct, holds("patch nodes"), nil, []string{"patch nodes;"}},
		{"tokens-for-aws-are-the-api-servers", authority.Direct, func(s *apiServer) { s.taken = true }, nil,
			[]string{"the API server itself takes tokens for sts.amazonaws.com", "--api-audiences"}},
		{"node-tokens-for-aws-are-the-api-servers", authority.Node, func(s *apiServer) { s.taken = true }, nil,
			[]string{"the API server itself takes tokens for sts.amazonaws.com", "--api-audiences"}},
		{"bound-to-one-namespace", authority.Direct, unless(func(account string, _ tokenSpec) bool { return account == "kube-system/default" }), nil,
			[]string{"refused: a token of another namespace that is not bound to a pod;"}},
		{"taint-policy-is-missing", authority.Direct, func(s *apiServer) {
			s.patch = func(dryRun []string) error {
				if len(dryRun) != 1 || dryRun[0] != "All" {
					panic("a change that is not a dry run")
				}
				return nil
			}
		}, taint, []string{"labelling the Node;", "manifests/options/startup-taint;"}},
		{"no-service-account", authority.Direct, func(s *apiServer) { s.user.Username = "kubernetes-admin" }, nil,
			[]string{"kubernetes-admin, which is no ServiceAccount", "unverified"}},
		{"unbound-token", authority.Direct, extra("pod-uid"), nil, []string{"is not bound to a pod on a node", "1.30"}},
		{"another-node", authority.Direct, extra("node-name", "node-2"), nil, []string{"on node node-2, not node-1", "--node-name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := map[authority.Kind]func() *apiServer{
					authority.Direct: direct, authority.Node: node, authority.None: newAPIServer,
				}[c.kind]()
				if c.spoil != nil {
					c.spoil(s)
				}
				fault := lastingFault(t, s, c.kind, c.change)
				if fault.Lacking {
					t.Errorf("lacking: %v", fault)
				}
				for _, want := range c.want {
					if !strings.Contains(fault.Error(), want) {
						t.Errorf("%q is not in: %v", want, fault)
					}
				}
			})
		})
	}
}

// lastingFault verifies for an hour in vain, and returns the Fault that was found from the first to the last pass and told of
// once.
func lastingFault(t *testing.T, s *apiServer, kind authority.Kind, change func(*authority.Config)) *authority.Fault {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	began := time.Now()
	var warned []*authority.Fault
	var found *authority.Fault
	passes := 0
	cfg := configure(s, kind)
	cfg.Found = func(f *authority.Fault) { found = f; passes++ }
	cfg.Warn = func(f *authority.Fault) {
		if lasted := time.Since(began); lasted < 5*time.Second || lasted > 15*time.Second {
			t.Errorf("told of it after %s", lasted)
		}
		warned = append(warned, f)
	}
	if change != nil {
		change(&cfg)
	}
	if err := authority.Verify(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	if found == nil || len(warned) != 1 || warned[0].Error() != found.Error() {
		t.Fatalf("found %v, having warned of %v", found, warned)
	}
	if passes > 90 {
		t.Errorf("%d passes in an hour", passes)
	}
	return found
}

// TestLackingAuthority: what an agent may not do is said at once, with what to do, ends nothing, and passes when it is mended.
func TestLackingAuthority(t *testing.T) {
	for _, c := range []struct {
		name   string
		server func() *apiServer
		kind   authority.Kind
		spoil  func(*apiServer)
		change func(*authority.Config)
		mend   func(*apiServer)
		want   []string
	}{
		{"direct-no-right", direct, authority.Direct, func(s *apiServer) { s.token = noToken }, nil,
			func(s *apiServer) { s.token = direct().token },
			[]string{"a token for sts.amazonaws.com of 6h0m0s is refused", "apply manifests/policies/direct-tokens"}},
		{"direct-longer-than-the-policy", direct, authority.Direct, nil, func(c *authority.Config) { c.Lifetime = 12 * time.Hour }, nil,
			[]string{"of 12h0m0s is refused", "--token-lifetime"}},
		{"direct-other-audience", direct, authority.Direct, nil, func(c *authority.Config) { c.Audiences = append(c.Audiences, "other") }, nil,
			[]string{"a token for other of", "--audiences"}},
		// The policies that go with the agent's ServiceAccount as it is now come a moment after it.
		{"direct-policies-of-earlier-manifests", direct, authority.Direct, func(s *apiServer) {
			s.token = func(string, string, authenticationv1.TokenRequestSpec) error { return denied("podrole-token-role") }
		}, nil, func(s *apiServer) { s.token = direct().token },
			[]string{"is refused", "podrole-token-role", "for ServiceAccount podrole/podrole, and have its policies allow that one's tokens"}},
		{"node-before-1.36", node, authority.Node, func(s *apiServer) { s.token, s.list = noToken, noPods }, nil,
			func(s *apiServer) { s.token, s.list = node().token, node().list },
			[]string{"is refused", "Kubernetes 1.36"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := c.server()
				if c.spoil != nil {
					c.spoil(s)
				}
				fault := lastingFault(t, s, c.kind, c.change)
				if !fault.Lacking {
					t.Errorf("not lacking: %v", fault)
				}
				for _, want := range c.want {
					if !strings.Contains(fault.Error(), want) {
						t.Errorf("%q is not in: %v", want, fault)
					}
				}
				if c.mend == nil {
					return
				}
				c.mend(s)
				if err := verify(t, s, c.kind, c.change); err != nil {
					t.Errorf("mended, got %v", err)
				}
			})
		})
	}
}

// TestTooMuchCountsMore: an agent that lacks what it needs and is granted what it must not be does not go on trying.
func TestTooMuchCountsMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := direct()
		s.token = func(_, _ string, spec authenticationv1.TokenRequestSpec) error {
			if len(spec.Audiences) == 0 {
				return nil
			}
			return forbidden("serviceaccounts")
		}
		if fault := lastingFault(t, s, authority.Direct, nil); fault.Lacking {
			t.Errorf("got %v, want what is too much", fault)
		}
	})
}

// TestRightsThatAreTooMuch: each by itself is a Fault that names it.
func TestRightsThatAreTooMuch(t *testing.T) {
	const tokens, actAsNode = "create serviceaccounts/token", "impersonate:associated-node nodes.authentication.k8s.io"
	all := []string{
		"* *.*", "get secrets", "list secrets", "watch secrets", "create pods", "create pods/exec", "get nodes/proxy",
		"patch serviceaccounts", "patch daemonsets.apps", "patch deployments.apps", "create jobs.batch",
		"create clusterrolebindings.rbac.authorization.k8s.io", "bind clusterroles.rbac.authorization.k8s.io",
		"escalate clusterroles.rbac.authorization.k8s.io",
		"delete validatingadmissionpolicies.admissionregistration.k8s.io", "patch validatingadmissionpolicies.admissionregistration.k8s.io",
		"delete validatingadmissionpolicybindings.admissionregistration.k8s.io",
		"patch validatingadmissionpolicybindings.admissionregistration.k8s.io",
		"create mutatingwebhookconfigurations.admissionregistration.k8s.io",
		"impersonate users", "impersonate groups", "impersonate serviceaccounts",
		"impersonate:user-info users.authentication.k8s.io", "impersonate:serviceaccount serviceaccounts.authentication.k8s.io",
		"impersonate:arbitrary-node nodes.authentication.k8s.io", "patch nodes", "update nodes", "get secrets in podrole",
		"create pods in podrole",
	}
	for kind, c := range map[authority.Kind]struct {
		server func() *apiServer
		too    []string
	}{
		authority.Direct: {direct, []string{actAsNode}},
		authority.Node:   {node, []string{tokens, tokens + " in podrole", "list pods", "watch pods"}},
		authority.None:   {newAPIServer, []string{tokens, tokens + " in podrole", actAsNode}},
	} {
		for _, right := range slices.Concat(all, c.too) {
			synctest.Test(t, func(t *testing.T) {
				s := c.server()
				s.rights = append(s.rights, right)
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				cfg := configure(s, kind)
				var found *authority.Fault
				cfg.Found = func(f *authority.Fault) { found = f }
				_ = authority.Verify(ctx, cfg)
				name, _, _ := strings.Cut(strings.TrimSuffix(right, ".*"), " in ")
				if found == nil || !strings.Contains(found.Error(), "more than it was told to: "+name+";") {
					t.Errorf("%s with %q: found %v", kind, right, found)
				}
			})
		}
	}
}

// TestNoAnswerProvesNothing: whichever request fails, and however the API server says that it cannot answer now, the pass is
// not finished, and the next one is.
func TestNoAnswerProvesNothing(t *testing.T) {
	for kind, server := range map[authority.Kind]func() *apiServer{authority.Direct: direct, authority.Node: node} {
		whole := server()
		if err := verify(t, whole, kind, nil); err != nil {
			t.Fatal(err)
		}
		for n := range whole.asked {
			failures := []error{
				errors.New("connection refused"), apierrors.NewUnauthorized("expired"), apierrors.NewTooManyRequests("slow down", 1),
				apierrors.NewTimeoutError("too late", 1), apierrors.NewInternalError(errors.New("webhook is away")),
			}
			synctest.Test(t, func(t *testing.T) {
				s := server()
				s.fail, s.failure = n+1, failures[n%len(failures)]
				passes := 0
				err := verify(t, s, kind, func(c *authority.Config) {
					c.Found = func(f *authority.Fault) {
						if passes++; f != nil {
							t.Errorf("%s: request %d failed with %v: found %v", kind, n+1, s.failure, f)
						}
					}
				})
				// A token that is not taken for a credential is answered with the same status as an agent whose own has expired.
				if err != nil || passes != 1 || s.asked <= whole.asked && !apierrors.IsUnauthorized(s.failure) {
					t.Errorf("%s: request %d failed with %v: %v after %d requests", kind, n+1, s.failure, err, s.asked)
				}
			})
		}
	}
}

// TestPassesThatCannotBeFinished are told of, with what is in the way.
func TestPassesThatCannotBeFinished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := direct()
		s.token = func(string, string, authenticationv1.TokenRequestSpec) error {
			return apierrors.NewInternalError(errors.New("failed calling webhook"))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		cfg := configure(s, authority.Direct)
		var warned []string
		cfg.Found = func(f *authority.Fault) { t.Errorf("found %v", f) }
		cfg.Warn = func(f *authority.Fault) { warned = append(warned, f.Error()) }
		_ = authority.Verify(ctx, cfg)
		if len(warned) != 1 || !strings.Contains(warned[0], "failed calling webhook") || !strings.Contains(warned[0], "admission webhooks") {
			t.Errorf("warned of %q", warned)
		}
	})
}

// TestFaultsThatPass: a policy that comes into force after the right, and an API server that is away, even for long, end
// nothing.
func TestFaultsThatPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := direct()
		bounded := s.token
		s.token = func(string, string, authenticationv1.TokenRequestSpec) error { return nil }
		go func() {
			time.Sleep(25 * time.Second)
			s.mu.Lock()
			s.down = apierrors.NewServiceUnavailable("away")
			s.mu.Unlock()
			time.Sleep(time.Hour)
			s.mu.Lock()
			s.down = nil
			s.mu.Unlock()
			time.Sleep(25 * time.Second)
			s.mu.Lock()
			s.token = bounded
			s.mu.Unlock()
		}()
		var log bytes.Buffer
		began := time.Now()
		err := verify(t, s, authority.Direct, func(c *authority.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		if took := time.Since(began); err != nil || took < time.Hour+50*time.Second || took > time.Hour+3*time.Minute {
			t.Errorf("got %v after %s", err, took)
		}
		for _, want := range []string{"does not serve", "cannot be verified", "authority verified"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %q:\n%s", want, &log)
			}
		}
	})
}

// TestVerifyEndsWithItsContext: and that is no Fault.
func TestVerifyEndsWithItsContext(t *testing.T) {
	for _, down := range []error{
		errors.New("connection refused"), apierrors.NewUnauthorized("expired"), apierrors.NewTooManyRequests("slow down", 1),
		apierrors.NewTimeoutError("too late", 1), apierrors.NewInternalError(errors.New("no store")),
	} {
		synctest.Test(t, func(t *testing.T) {
			s := direct()
			s.down = down
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			err := authority.Verify(ctx, authority.Config{
				Kind: authority.Direct, Node: "node-1", Own: s.as(""), Audiences: []string{"a"}, Logger: slog.New(slog.DiscardHandler),
			})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v: got %v", down, err)
			}
			if s.asked > 1000 {
				t.Errorf("%d questions in an hour", s.asked)
			}
		})
	}
}

// TestWatch: what is no longer as told is told of within some hours, and again while it lasts; a moment of it, or an API server
// that is away, is not.
func TestWatch(t *testing.T) {
	noPolicy := func(s *apiServer) {
		s.token = func(string, string, authenticationv1.TokenRequestSpec) error { return nil }
	}
	for _, c := range []struct {
		name        string
		spoil, mend func(*apiServer) // mend comes after half of the time
		atOnce      bool             // or a second after the first pass
		least, most int              // warnings in ten hours
		again       int              // times that it is said to be as told again
	}{
		{name: "as-told"},
		{name: "no-policy", spoil: noPolicy, least: 5, most: 20},
		{name: "no-right", spoil: func(s *apiServer) { s.token = noToken }, least: 5, most: 20},
		{name: "away", spoil: func(s *apiServer) { s.down = errors.New("connection refused") }},
		{name: "mended", spoil: noPolicy, mend: func(s *apiServer) { s.token = direct().token }, least: 2, most: 10, again: 1},
		{name: "away-later", spoil: noPolicy, mend: func(s *apiServer) { s.down = errors.New("connection refused") }, least: 2, most: 10},
		{name: "replaced", spoil: noPolicy, mend: func(s *apiServer) { s.token = direct().token }, atOnce: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const long = 10 * time.Hour
				ctx, cancel := context.WithTimeout(t.Context(), long)
				defer cancel()
				s := direct()
				if c.spoil != nil {
					c.spoil(s)
				}
				mend := time.AfterFunc(long/2, func() {
					s.mu.Lock()
					defer s.mu.Unlock()
					if c.mend != nil {
						c.mend(s)
					}
				})
				defer mend.Stop()
				if token := s.token; c.atOnce {
					s.token = func(who, account string, spec authenticationv1.TokenRequestSpec) error {
						mend.Reset(time.Second)
						return token(who, account, spec)
					}
				}
				var log bytes.Buffer
				var warned []string
				cfg := configure(s, authority.Direct)
				cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
				began := time.Now()
				cfg.Warn = func(f *authority.Fault) {
					if first, after := len(warned) == 0, time.Since(began); first && after > 95*time.Minute {
						t.Errorf("the first warning came after %s", after)
					}
					warned = append(warned, f.Problem)
				}
				authority.Watch(ctx, cfg)
				if n := len(warned); n < c.least || n > c.most || s.asked == 0 {
					t.Errorf("%d warnings after %d questions, want %d to %d: %q", n, s.asked, c.least, c.most, warned)
				}
				if n := strings.Count(log.String(), "as told again"); n != c.again {
					t.Errorf("as told again: %d times, want %d, in\n%s", n, c.again, &log)
				}
			})
		})
	}
	s := direct()
	authority.Watch(t.Context(), configure(s, authority.Unverified)) // returns
	if s.asked != 0 {
		t.Errorf("unverified: %d questions", s.asked)
	}
}
