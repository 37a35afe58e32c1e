package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
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
			s.rotates(t, pod, "orders", orders)
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

// TestAgentThatNeverServes: an agent that starts beside another one, reads the state, and is gone before it could serve,
// changes nothing about what outlives the other one.
func TestAgentThatNeverServes(t *testing.T) {
	s := newClusterStage(t, testbed.ClusterConfig{})
	flags := []string{"--state-dir-on-disk", "--state-dir=" + filepath.Join(s.bed.Box.Dir, "state")}
	orders, stock := s.addAccount(t, "orders"), s.addAccount(t, "stock")
	pod := s.addPod(t, "orders-0", "orders")
	first := startAgent(t, s.bed, flags...)
	s.waitServed(t, pod, "orders", orders)

	// Its way to the API server leads nowhere.
	text, err := os.ReadFile(filepath.Join(s.bed.Box.Dir, "kubeconfig"))
	s.must(t, err)
	broken := filepath.Join(s.bed.Box.Dir, "kubeconfig-broken")
	s.must(t, os.WriteFile(broken, []byte(strings.ReplaceAll(string(text), ":6443", ":6444")), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	if _, err := s.bed.StartAgent(ctx, append(flags, "--kubeconfig="+broken)...); err == nil {
		t.Fatal("an agent that knows nothing took the redirect over")
	}

	late := s.addPod(t, "stock-0", "stock")
	s.waitServed(t, late, "stock", stock)
	s.must(t, s.cluster.AddServiceAccount("shop", "orders", ""))
	eventually(t, "revoked", func() string {
		if got := get(t, pod, credentials+"orders"); got.status != http.StatusNotFound {
			return got.String()
		}
		return ""
	})
	eventually(t, "what is decided is kept, and what was taken away is not", func() string {
		var kept strings.Builder
		files, err := filepath.Glob(filepath.Join(s.bed.Box.Dir, "state", "decisions", "*"))
		s.must(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err.Error()
			}
			kept.WriteString(string(text))
		}
		if !strings.Contains(kept.String(), "stock-0") || strings.Contains(kept.String(), "orders-0") {
			return kept.String()
		}
		return ""
	})
	s.must(t, s.cluster.Stop())
	s.must(t, first.Stop())
	startAgent(t, s.bed, flags...)
	if _, problem := s.served(askPatiently(t, late, credentials+"stock", nil), stock); problem != "" {
		t.Errorf("a pod that was decided on: %s", problem)
	}
	if got := askPatiently(t, pod, credentials+"orders", nil); got.status != http.StatusServiceUnavailable {
		t.Errorf("a role that was taken away: got %s, want 503", got)
	}
}

// TestGuardedWhileWaiting: an agent that waits for the API server looks after the guard, and so nothing leaks before there
// are any rules.
func TestGuardedWhileWaiting(t *testing.T) {
	s := newClusterStage(t, testbed.ClusterConfig{})
	s.addAccount(t, "orders")
	pod := s.addPod(t, "orders-0", "orders")
	s.must(t, s.cluster.Stop())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = s.bed.StartAgent(ctx) // never ready
	}()
	defer func() { cancel(); <-ended }()
	guard := func() string {
		out, err := s.bed.Box.Node.Command(t.Context(), "ip", "rule").CombinedOutput()
		s.must(t, err)
		for _, priority := range []string{"1:", "2:", "5:", "6:", "8:"} {
			if !strings.HasPrefix(string(out), priority) && !strings.Contains(string(out), "\n"+priority) {
				return priority + " is missing in\n" + string(out)
			}
		}
		return ""
	}
	eventually(t, "guarded", guard)
	out, err := s.bed.Box.Node.Command(t.Context(), "sh", "-c", "for p in 1 2 5 6 8; do ip rule del priority $p; done").CombinedOutput()
	t.Logf("%s, %v", out, err)
	eventually(t, "guarded again", guard)
	if got := get(t, pod, credentials); got.err == nil {
		t.Errorf("got %s", got)
	}
}

// TestSandboxesFlicker: CNI results that are gone for a moment, while the API server is away, end nothing for good.
func TestSandboxesFlicker(t *testing.T) {
	s := newClusterStage(t, testbed.ClusterConfig{})
	flags := []string{"--state-dir-on-disk", "--state-dir=" + filepath.Join(s.bed.Box.Dir, "state")}
	orders := s.addAccount(t, "orders")
	pod := s.addPod(t, "orders-0", "orders")
	first := startAgent(t, s.bed, flags...)
	s.waitServed(t, pod, "orders", orders)
	s.must(t, s.cluster.Stop())
	s.must(t, first.Stop())
	startAgent(t, s.bed, flags...)
	s.waitServed(t, pod, "orders", orders)
	results := filepath.Join(s.bed.Box.CNIDir, "results")
	s.must(t, os.Rename(results, results+".away"))
	eventually(t, "nobody is served without results", func() string {
		if got := askPatiently(t, pod, credentials+"orders", nil); got.status != http.StatusServiceUnavailable {
			return got.String()
		}
		return ""
	})
	s.must(t, os.Rename(results+".away", results))
	s.waitServed(t, pod, "orders", orders)
}
