package e2e_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/testbed"
)

// TestRestartWithoutTheAPIServer: an agent that starts while the API server is away serves the pods that the one before
// had decided on, new sessions included, and nobody else. When the API server is back, it alone counts.
func TestRestartWithoutTheAPIServer(t *testing.T) {
	for _, streaming := range []bool{true, false} {
		t.Run(fmt.Sprintf("streaming_lists=%t", streaming), func(t *testing.T) {
			s := newClusterStage(t, testbed.ClusterConfig{NoStreamingLists: !streaming})
			// An hour becomes six seconds.
			s.bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return 6 * time.Second })
			flags := []string{"--state-dir-on-disk", "--state-dir=" + filepath.Join(s.bed.Box.Dir, "state")}
			orders, reports, stock := s.addAccount(t, "orders"), s.addAccount(t, "reports"), s.addAccount(t, "stock")
			pod, other := s.addPod(t, "orders-0", "orders"), s.addPod(t, "reports-0", "reports")
			plain := s.addPod(t, "plain-0", "default")
			first := startAgent(t, s.bed, flags...)
			_, problem := s.served(get(t, pod, credentials+"orders"), orders)
			if problem != "" {
				t.Fatal(problem)
			}
			s.must(t, s.cluster.Stop())
			s.must(t, first.Stop())
			newcomer := s.addPod(t, "stock-0", "stock")                   // which no agent ever saw
			s.must(t, s.cluster.AddServiceAccount("shop", "reports", "")) // and of this no agent can know yet

			began := time.Now()
			second := s.start(t, flags...)
			t.Logf("ready %s after its start without an API server", time.Since(began).Round(time.Millisecond))
			if !strings.Contains(second.Log(), "the API server cannot be reached: pods are served by what was decided of them before") {
				t.Error("the agent does not say what it goes by")
			}
			var keys []string
			eventually(t, "two rotations", func() string {
				session, problem := s.served(get(t, pod, credentials+"orders"), orders)
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
			if _, problem := s.served(get(t, other, credentials+"reports"), reports); problem != "" {
				t.Errorf("with the API server down: %s", problem)
			}
			for what, who := range map[string]answer{
				"a pod that nobody decided on":  askPatiently(t, newcomer, credentials+"stock", nil),
				"a pod of which it is not kept": askPatiently(t, plain, credentials, nil),
			} {
				if who.status != http.StatusServiceUnavailable {
					t.Errorf("%s: got %s, want 503", what, who)
				}
			}

			s.must(t, s.cluster.Start(t.Context()))
			s.waitServed(t, newcomer, "stock", stock)
			if got := get(t, other, credentials+"reports"); got.status != http.StatusNotFound {
				t.Errorf("a role taken away meanwhile: got %s, want 404", got)
			}
			if _, problem := s.served(get(t, pod, credentials+"orders"), orders); problem != "" {
				t.Error(problem)
			}
			if text, err := second.Metrics(t.Context()); err != nil || !strings.Contains(text, "podrole_pods_adopted 0") {
				t.Errorf("pods are still adopted: %v", err)
			}
		})
	}
}
