package e2e_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/startrace"
	"github.com/podrole/podrole/internal/testbed"
)

// TestStartRace: pods that ask for credentials before the API knows their address are served by what the CNI wrote, at
// once; without CNI results they are told to come back, and nobody is ever served as another.
func TestStartRace(t *testing.T) {
	for name, results := range map[string]time.Duration{"cni_results": 300 * time.Millisecond, "no_results": -1} {
		t.Run(name, func(t *testing.T) {
			bed := newBed(t, testbed.Config{})
			cfg := startrace.Config{Bed: bed, Pods: 200, Burst: 40, Late: 2 * time.Second, Results: results}
			for _, account := range []string{"orders", "reports"} {
				addPod(t, bed, account, account)
				cfg.Accounts = append(cfg.Accounts, startrace.Account{
					Name: account, Role: "arn:aws:iam::" + testbed.Account + ":role/" + account,
				})
			}
			startAgent(t, bed)
			outcomes, err := startrace.Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			served := 0
			for i, o := range outcomes {
				switch {
				case o.Wrong != "":
					t.Errorf("pod %d: %s", i, o.Wrong)
				case o.Err != nil:
					t.Errorf("pod %d: %v after %s", i, o.Err, o.Took)
				case o.Status == http.StatusOK:
					served++
				case o.Status != http.StatusServiceUnavailable:
					t.Errorf("pod %d: status %d", i, o.Status)
				}
			}
			t.Logf("%d of %d served at the first try, p99 %s", served, len(outcomes), startrace.P99(outcomes))
			if results >= 0 && served != len(outcomes) {
				t.Errorf("%d of %d pods were served at the first try, want all", served, len(outcomes))
			}
			if results < 0 && served != 0 {
				t.Errorf("%d pods were served before anybody could know them", served)
			}
			noLeaks(t, bed)
		})
	}
}
