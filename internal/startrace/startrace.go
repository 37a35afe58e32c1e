// Package startrace is the experiment about a pod's first moment: pods start in bursts, each asks for its credentials as
// its very first instruction, and the API learns their addresses only later, as it does on a real node.
package startrace

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// Config describes a run. The agent runs already, and a pod of each of the roles is there, so that sessions are warm.
type Config struct {
	Bed      *testbed.Bed
	Accounts []Account     // taken in turn by the pods
	Pods     int           // in all
	Burst    int           // pods that start at once
	Late     time.Duration // from a container's start until the API names its pod's address
	// Results is how long before its container starts a pod's CNI result is written; measured on a real node: 0.3 to
	// 3.7 s. Negative: there are none.
	Results time.Duration
}

// Account is a ServiceAccount of namespace "shop" with its role's ARN.
type Account struct{ Name, Role string }

// Outcome is one pod's first request.
type Outcome struct {
	Took   time.Duration
	Status int    // HTTP status; 0 without an answer
	Wrong  string // what is wrong with the credentials it got; empty otherwise
	Err    error
}

// Run starts the pods and returns what became of their first requests.
func Run(ctx context.Context, cfg Config) ([]Outcome, error) {
	outcomes := make([]Outcome, 0, cfg.Pods)
	for first := 0; first < cfg.Pods; first += cfg.Burst {
		burst, err := runBurst(ctx, cfg, first, min(cfg.Burst, cfg.Pods-first))
		if err != nil {
			return nil, err
		}
		outcomes = append(outcomes, burst...)
	}
	return outcomes, nil
}

func runBurst(ctx context.Context, cfg Config, first, count int) ([]Outcome, error) {
	pods := make([]*nodebox.Pod, count)
	for i := range pods {
		n := first + i
		account := cfg.Accounts[n%len(cfg.Accounts)].Name
		uid := fmt.Sprintf("00000000-0000-4000-8000-%012d", n)
		if err := cfg.Bed.Schedule("shop", fmt.Sprintf("race-%d", n), uid, account); err != nil {
			return nil, err
		}
	}
	for i := range pods {
		n := first + i
		pod, err := cfg.Bed.Box.AddPod(nodebox.PodConfig{
			Namespace: "shop", Name: fmt.Sprintf("race-%d", n), UID: fmt.Sprintf("00000000-0000-4000-8000-%012d", n),
			OmitResults: cfg.Results < 0,
		})
		if err != nil {
			return nil, err
		}
		pods[i] = pod
	}
	if !pause(ctx, max(cfg.Results, 0)) {
		return nil, ctx.Err()
	}
	outcomes, errs := make([]Outcome, count), make([]error, count)
	var starting sync.WaitGroup
	for i, pod := range pods {
		account := cfg.Accounts[(first+i)%len(cfg.Accounts)]
		starting.Go(func() { outcomes[i] = ask(ctx, cfg.Bed, pod, account.Role) })
		starting.Go(func() {
			if pause(ctx, cfg.Late) {
				errs[i] = cfg.Bed.Run(pod, account.Name)
			}
		})
	}
	starting.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return outcomes, ctx.Err()
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// ask makes a pod's first request, and checks whose credentials it got.
func ask(ctx context.Context, bed *testbed.Bed, pod *nodebox.Pod, role string) (o Outcome) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: pod.DialContext}}
	name := role[len("arn:aws:iam::"+testbed.Account+":role/"):]
	url := "http://169.254.169.254/latest/meta-data/iam/security-credentials/" + name
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return Outcome{Err: err}
	}
	began := time.Now()
	defer func() { o.Took = time.Since(began) }()
	response, err := client.Do(request)
	if err != nil {
		return Outcome{Err: err}
	}
	defer response.Body.Close()
	o.Status = response.StatusCode
	if o.Status != http.StatusOK {
		return o
	}
	var credentials struct {
		AccessKeyID string `json:"AccessKeyId"`
	}
	if err := json.NewDecoder(response.Body).Decode(&credentials); err != nil {
		o.Err = err
		return o
	}
	if session, ok := bed.AWS.LookupSession(credentials.AccessKeyID); !ok || session.RoleARN != role {
		o.Wrong = fmt.Sprintf("pod %s got credentials of %q, want %q", pod.Config.Name, session.RoleARN, role)
	}
	return o
}

// P99 returns the time within which 99 of 100 first requests were answered.
func P99(outcomes []Outcome) time.Duration {
	took := make([]time.Duration, len(outcomes))
	for i, o := range outcomes {
		took[i] = o.Took
	}
	slices.Sort(took)
	return took[(len(took)-1)*99/100]
}
