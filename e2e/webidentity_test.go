package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/kubetest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// clusterStage is a node in a box with an API server outside, and an agent that gets sessions by web identity.
type clusterStage struct {
	bed     *testbed.Bed
	cluster *testbed.Cluster
}

// newClusterStage builds one whose API server gives the agent the rights of the manifests, and nothing else but what cfg
// says. Namespace shop is there.
func newClusterStage(t *testing.T, cfg testbed.ClusterConfig) *clusterStage {
	t.Helper()
	s := &clusterStage{bed: newBed(t, testbed.Config{})}
	if len(cfg.Authority.RBAC) == 0 {
		cfg.Authority = testbed.DirectTokens("../manifests")
	}
	var err error
	if s.cluster, err = s.bed.NewCluster(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	s.must(t, s.cluster.AddNamespace("shop"))
	return s
}

// start starts an agent that says all it has to say, and holds it at the end to what is true of every run.
func (s *clusterStage) start(t *testing.T, flags ...string) *testbed.Agent {
	t.Helper()
	agent := startAgent(t, s.bed, append(flags, "--log-level=debug")...)
	t.Cleanup(func() {
		if err := agent.Stop(); err != nil {
			t.Error(err)
		}
		log := agent.Log()
		for _, token := range append(s.cluster.API.Tokens(), s.cluster.BearerToken) {
			// The end of a token is its signature: what is left of it when the log cuts something off.
			if strings.Contains(log, token) || strings.Contains(log, token[len(token)-20:]) {
				t.Error("a token is in the log")
			}
		}
		noLeaks(t, s.bed)
		if n := s.bed.NodeRoleLeaks(); n != 0 {
			t.Errorf("%d leaks of the node's role", n)
		}
		if n := s.bed.AWS.Count(awstest.Filter{Action: "AssumeRole"}); n != 0 {
			t.Errorf("%d calls of AssumeRole: the node's own role was used", n)
		}
		refused := func(r kubetest.Request) bool {
			// The agent tries whether a token for AWS is good for the API server.
			return r.Status == http.StatusForbidden || r.Status == http.StatusUnauthorized && r.Resource != "selfsubjectreviews"
		}
		if n := s.cluster.API.Count(refused); n != 0 {
			t.Errorf("the API server refused %d requests: the manifest's rights are not enough", n)
		}
		whole := func(r kubetest.Request) bool {
			return !r.Metadata && (r.Resource == "serviceaccounts" || r.Resource == "namespaces")
		}
		if n := s.cluster.API.Count(whole); n != 0 {
			t.Errorf("%d requests for more than metadata", n)
		}
		elsewhere := func(r kubetest.Request) bool {
			return r.Resource == "pods" && r.FieldSelector != "spec.nodeName="+testbed.NodeName
		}
		if n := s.cluster.API.Count(elsewhere); n != 0 {
			t.Errorf("%d requests for the pods of other nodes", n)
		}
	})
	return agent
}

func (s *clusterStage) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// addAccount makes a ServiceAccount, and a role of the same name that trusts it.
func (s *clusterStage) addAccount(t *testing.T, name string) (role string) {
	t.Helper()
	role, err := s.cluster.AddRole(name, "shop", name)
	s.must(t, err)
	s.must(t, s.cluster.AddServiceAccount("shop", name, role))
	return role
}

func (s *clusterStage) addPod(t *testing.T, name, account string) *nodebox.Pod {
	t.Helper()
	pod, err := s.cluster.AddPod("shop", name, account)
	s.must(t, err)
	return pod
}

// minted returns how many sessions of the role AWS gave for a web identity.
func (s *clusterStage) minted(role string) int {
	return s.bed.AWS.Count(awstest.Filter{Action: "AssumeRoleWithWebIdentity", RoleARN: role, Code: awstest.CodeOK})
}

// tokens returns how many tokens the agent got for pods: those that it asks for on its own behalf do not count.
func (s *clusterStage) tokens() int {
	return s.cluster.API.Count(func(r kubetest.Request) bool {
		return r.Resource == "serviceaccounts/token" && r.Namespace != testbed.AgentNamespace && r.Status == http.StatusCreated
	})
}

// served returns the session that a credential answer carries, as AWS knows it, or what is wrong with it.
func (s *clusterStage) served(a answer, role string) (awstest.Session, string) {
	var body struct {
		AccessKeyID string `json:"AccessKeyId"`
	}
	if a.err != nil || a.status != http.StatusOK || json.Unmarshal([]byte(a.body), &body) != nil {
		return awstest.Session{}, a.String()
	}
	session, ok := s.bed.AWS.LookupSession(body.AccessKeyID)
	if !ok || session.RoleARN != role || session.Action != "AssumeRoleWithWebIdentity" || !time.Now().Before(session.Expires) {
		return session, fmt.Sprintf("%s is a session of %q by %q until %s",
			body.AccessKeyID, session.RoleARN, session.Action, session.Expires)
	}
	return session, ""
}

// waitServed waits until the pod gets a session of the role.
func (s *clusterStage) waitServed(t *testing.T, pod *nodebox.Pod, name, role string) {
	t.Helper()
	eventually(t, pod.Config.Name+" served", func() string {
		_, problem := s.served(get(t, pod, credentials+name), role)
		return problem
	})
}

// rotates waits until the pod has got three sessions of the role, and fails if it is refused meanwhile.
func (s *clusterStage) rotates(t *testing.T, pod *nodebox.Pod, name, role string) {
	t.Helper()
	var keys []string
	eventually(t, "two rotations", func() string {
		session, problem := s.served(get(t, pod, credentials+name), role)
		if problem != "" {
			t.Fatalf("with the API server down: %s", problem)
		}
		if !slices.Contains(keys, session.AccessKeyID) {
			keys = append(keys, session.AccessKeyID)
		}
		if len(keys) < 3 {
			return fmt.Sprintf("%d sessions", len(keys))
		}
		return ""
	})
}

// askPatiently makes one request and waits longer for its answer than any SDK. wrote, if any, is called when the request is
// on its way.
func askPatiently(t *testing.T, pod *nodebox.Pod, path string, wrote func()) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if wrote != nil {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { wrote() }})
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: pod.DialContext}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, metadataIPv4+path, nil)
	if err != nil {
		return answer{err: err}
	}
	response, err := client.Do(request)
	if err != nil {
		return answer{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return answer{response.StatusCode, response.Header, string(body), err}
}

// TestWebIdentity: pods of a cluster get their ServiceAccount's role, by its token, and nobody has to wait or to guess.
func TestWebIdentity(t *testing.T) {
	s := newClusterStage(t, testbed.ClusterConfig{})
	orders := s.addAccount(t, "orders")
	first := s.addPod(t, "orders-0", "orders")
	agent := s.start(t)

	t.Run("own_role", func(t *testing.T) {
		session, problem := s.served(get(t, first, credentials+"orders"), orders)
		if problem != "" {
			t.Fatal(problem)
		}
		if want := "shop.orders@" + testbed.NodeName; session.SessionName != want {
			t.Errorf("session name %q, want %q", session.SessionName, want)
		}
		lists := s.cluster.API.Count(func(r kubetest.Request) bool { return r.Verb == "list" })
		streams := s.cluster.API.Count(func(r kubetest.Request) bool {
			return r.Streaming && r.Namespace != testbed.AgentNamespace && r.Name != testbed.AgentNamespace
		})
		if lists != 0 || streams != 3 {
			t.Errorf("%d lists and %d streaming lists, want 0 and 3: pods, ServiceAccounts and Namespace", lists, streams)
		}
	})
	t.Run("not_in_trust_policy", func(t *testing.T) {
		s.must(t, s.cluster.AddServiceAccount("shop", "intruder", orders))
		pod := s.addPod(t, "intruder-0", "intruder")
		eventually(t, "refused", func() string {
			got := get(t, pod, credentials+"orders")
			if got.status == http.StatusOK {
				t.Fatalf("got %s", got)
			}
			if got.status != http.StatusNotFound {
				return got.String() // not decided on yet
			}
			return ""
		})
		eventually(t, "reason logged", func() string {
			if want := `sub \"system:serviceaccount:shop:intruder\"`; !strings.Contains(agent.Log(), want) {
				return "the log does not say " + want
			}
			return ""
		})
	})
	t.Run("minted_when_scheduled", func(t *testing.T) {
		role := s.addAccount(t, "early")
		const uid = "7a1c2a5e-0000-4000-8000-000000000001"
		s.must(t, s.cluster.Schedule("shop", "early-0", uid, "early"))
		eventually(t, "minted", func() string {
			if s.minted(role) == 0 {
				return "no session"
			}
			return ""
		})
		pod, err := s.bed.Box.AddPod(nodebox.PodConfig{Namespace: "shop", Name: "early-0", UID: uid})
		s.must(t, err)
		s.must(t, s.cluster.Run(pod, "early"))
		s.waitServed(t, pod, "early", role)
		if n := s.minted(role); n != 1 {
			t.Errorf("%d sessions, want the one from before the pod had an address", n)
		}
	})
	t.Run("late_service_account", func(t *testing.T) {
		role, err := s.cluster.AddRole("late", "shop", "late")
		s.must(t, err)
		pod := s.addPod(t, "late-0", "late")
		began := time.Now()
		got := askPatiently(t, pod, credentials+"late", nil)
		if took := time.Since(began); got.status != http.StatusServiceUnavailable || took < 800*time.Millisecond {
			t.Errorf("without its ServiceAccount: got %s after %s, want 503 after 900 ms", got, took)
		}
		got = askPatiently(t, pod, credentials+"late", func() {
			if err := s.cluster.AddServiceAccount("shop", "late", role); err != nil {
				t.Error(err)
			}
		})
		// 503 only where 900 ms were too short for two calls, on a machine that is very busy.
		if _, problem := s.served(got, role); problem != "" && got.status != http.StatusServiceUnavailable {
			t.Errorf("parked until its ServiceAccount came: %s", problem)
		}
		s.waitServed(t, pod, "late", role)
	})
	t.Run("annotation_removed", func(t *testing.T) {
		role := s.addAccount(t, "fired")
		pod := s.addPod(t, "fired-0", "fired")
		s.waitServed(t, pod, "fired", role)
		removed := time.Now()
		s.must(t, s.cluster.AddServiceAccount("shop", "fired", ""))
		eventually(t, "taken away", func() string {
			got := get(t, pod, credentials+"fired")
			if got.status != http.StatusOK && got.status != http.StatusNotFound {
				t.Errorf("in between: %s", got)
			}
			if got.status != http.StatusNotFound {
				return got.String()
			}
			return ""
		})
		if took := time.Since(removed); took > 5*time.Second {
			t.Errorf("taken away after %s only", took)
		}
	})
	t.Run("others_noticed_nothing", func(t *testing.T) {
		if _, problem := s.served(get(t, first, credentials+"orders"), orders); problem != "" {
			t.Error(problem)
		}
	})
}

// TestAPIServerDown: whoever runs when the API server goes is served for as long as it stays away, new sessions included;
// whoever comes meanwhile is refused, and served when it is back. The API server is one without streaming lists.
func TestAPIServerDown(t *testing.T) {
	s := newClusterStage(t, testbed.ClusterConfig{NoStreamingLists: true})
	// An hour becomes four seconds, of which two are left when the next session is minted.
	s.bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return 4 * time.Second })
	orders, reports := s.addAccount(t, "orders"), s.addAccount(t, "reports")
	pod := s.addPod(t, "orders-0", "orders")
	s.start(t)
	tokens := s.tokens()
	if tokens != 1 {
		t.Errorf("%d tokens for one ServiceAccount", tokens)
	}
	s.must(t, s.cluster.Stop())
	newcomer := s.addPod(t, "reports-0", "reports") // which the agent cannot know

	s.rotates(t, pod, "orders", orders)
	if n := s.tokens(); n != tokens {
		t.Errorf("%d tokens, want the %d of before", n, tokens)
	}
	if got := askPatiently(t, newcomer, credentials+"reports", nil); got.status != http.StatusServiceUnavailable {
		t.Errorf("a pod that came meanwhile: got %s, want 503", got)
	}
	if n := s.minted(reports); n != 0 {
		t.Errorf("%d sessions for a pod that nobody knows", n)
	}

	s.must(t, s.cluster.Start(t.Context()))
	s.waitServed(t, newcomer, "reports", reports)
	if _, problem := s.served(get(t, pod, credentials+"orders"), orders); problem != "" {
		t.Error(problem)
	}
}
