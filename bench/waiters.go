package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	waiterRepeats = 3
	waiterCount   = 200
	waiterPods    = 4
	waiterLatency = 2500 * time.Millisecond // of STS
	// waiterLeaves is when the first client gives up, while the others wait.
	waiterLeaves = 400 * time.Millisecond
	// waiterPatience is how long the others go on asking.
	waiterPatience = 15 * time.Second
)

// waiters measures how many calls to STS it takes to serve 200 requests that come at once, for a role that nobody on
// the node had before, while STS is slow. The client that asked first leaves. The others are told to come back, for a
// request parks a second at most, and do so until they have credentials.
func waiters(ctx context.Context, agent string) (_ []figure, err error) {
	bed, err := testbed.New(ctx, testbed.Config{Agent: agent})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	_, err = bed.AWS.Inject(awstest.Fault{Service: "sts", Action: "AssumeRole", Latency: waiterLatency})
	if err != nil {
		return nil, err
	}
	if _, err := bed.StartAgent(ctx); err != nil {
		return nil, err
	}
	var calls []float64
	for i := range waiterRepeats {
		n, err := waitersOf(ctx, bed, fmt.Sprintf("waiters-%d", i))
		if err != nil {
			return nil, err
		}
		calls = append(calls, float64(n))
	}
	return []figure{newWorst("waiters_sts_calls", "calls", calls)}, nil
}

// waitersOf has pods of a new ServiceAccount ask for its role, and returns how often STS was called for it.
func waitersOf(ctx context.Context, bed *testbed.Bed, name string) (int, error) {
	role, err := bed.AddRole(name, "bench", name)
	if err != nil {
		return 0, err
	}
	if err := bed.AddServiceAccount("bench", name, role); err != nil {
		return 0, err
	}
	var pods []*nodebox.Pod
	for p := range waiterPods {
		pod, err := bed.Box.AddPod(nodebox.PodConfig{Namespace: "bench", Name: fmt.Sprintf("%s-%d", name, p)})
		if err != nil {
			return 0, err
		}
		pods = append(pods, pod)
	}
	for _, pod := range pods { // from here on the agent knows of them
		if err := bed.Run(pod, name); err != nil {
			return 0, err
		}
	}
	url := "http://169.254.169.254/latest/meta-data/iam/security-credentials/" + name
	var waiting sync.WaitGroup
	asked, left := make(chan struct{}), make(chan error, 1)
	waiting.Go(func() { left <- leaveEarly(ctx, pods[0], url, sync.OnceFunc(func() { close(asked) })) })
	select {
	case <-asked:
	case err := <-left:
		return 0, fmt.Errorf("the first client: %w", err)
	}
	patient, stop := context.WithTimeout(ctx, waiterPatience)
	defer stop()
	parked := make([]bool, waiterCount)
	errs := make([]error, waiterCount)
	for i := range waiterCount {
		waiting.Go(func() { parked[i], errs[i] = waitUntilServed(patient, pods[i%waiterPods], url) })
	}
	waiting.Wait()
	if err := errors.Join(append(errs, <-left)...); err != nil {
		return 0, err
	}
	atOnce := 0
	for _, p := range parked {
		if !p {
			atOnce++
		}
	}
	if atOnce > waiterCount/10 {
		return 0, fmt.Errorf("%d of %d clients came after STS had answered: the machine is too busy to measure this", atOnce,
			waiterCount)
	}
	return bed.AWS.Count(awstest.Filter{Service: "sts", RoleARN: role}), nil
}

// leaveEarly asks and does not wait for the answer. asked is called when the request is on its way.
func leaveEarly(ctx context.Context, pod *nodebox.Pod, url string, asked func()) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) {
			time.AfterFunc(waiterLeaves, leave)
			asked()
		},
	})
	if status, err := statusOf(ctx, pod, url); !errors.Is(err, context.Canceled) {
		return fmt.Errorf("it was to leave before it had an answer, and got %d, %w", status, err)
	}
	return nil
}

// waitUntilServed asks until there are credentials, and reports whether it was told to come back before.
func waitUntilServed(ctx context.Context, pod *nodebox.Pod, url string) (parked bool, err error) {
	for {
		switch status, err := statusOf(ctx, pod, url); {
		case err != nil:
			return parked, err
		case status == http.StatusOK:
			return parked, nil
		case status != http.StatusServiceUnavailable:
			return parked, fmt.Errorf("get %s: status %d, want 503 until there are credentials", url, status)
		}
		parked = true
	}
}

// statusOf fetches url from inside a pod and returns the status of the answer.
func statusOf(ctx context.Context, pod *nodebox.Pod, url string) (int, error) {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: pod.DialContext}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", url, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err // names method and URL
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}
