package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/poll"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	restartRepeats  = 7
	restartSessions = 100
	restartPace     = 2 * time.Millisecond
)

// restart measures what an agent that finds 100 sessions in its state folder does with them: how long after its
// informers have synced a pod has its first answer, and how many calls to STS it makes until all pods have theirs. An
// answer from before the pod was decided on is an error.
func restart(ctx context.Context, agent string) (_ []figure, err error) {
	bed, err := testbed.New(ctx, testbed.Config{Agent: agent})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	cluster, err := bed.NewCluster(ctx, testbed.ClusterConfig{Authority: testbed.DirectTokens("manifests")})
	if err != nil {
		return nil, err
	}
	state, removeState, err := stateDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeState()) }()
	r := restarts{bed: bed, flags: []string{state, "--log-level=debug", "--request-rate=0"}}
	if r.pods, err = addRestartPods(cluster); err != nil {
		return nil, err
	}
	if r.agent, err = bed.StartAgent(ctx, append(r.flags, "--sts-rate=100")...); err != nil {
		return nil, err
	}
	var took, calls []float64
	for range restartRepeats {
		first, n, err := r.once(ctx)
		if err != nil {
			return nil, err
		}
		took, calls = append(took, milliseconds(first)), append(calls, float64(n))
	}
	return []figure{
		newFigure("restart_first_answer_ms", "ms", took),
		newWorst("restart_sts_calls", "calls", calls),
	}, nil
}

// addRestartPods adds the pods, each with a role of its own that has its name.
func addRestartPods(cluster *testbed.Cluster) ([]*nodebox.Pod, error) {
	const namespace = "restart"
	if err := cluster.AddNamespace(namespace); err != nil {
		return nil, err
	}
	var pods []*nodebox.Pod
	for i := range restartSessions {
		name := fmt.Sprintf("app-%d", i)
		role, err := cluster.AddRole(name, namespace, name)
		if err != nil {
			return nil, err
		}
		if err := cluster.AddServiceAccount(namespace, name, role); err != nil {
			return nil, err
		}
		pod, err := cluster.AddPod(namespace, name, name)
		if err != nil {
			return nil, err
		}
		pods = append(pods, pod)
	}
	return pods, nil
}

// restarts is a stage on which one agent follows another.
type restarts struct {
	bed   *testbed.Bed
	flags []string
	pods  []*nodebox.Pod
	agent *testbed.Agent
}

// once replaces the agent while a pod asks without a pause, and returns how long after the informers' sync it had its
// first answer, and how often STS was called until all pods had one.
func (r *restarts) once(ctx context.Context) (first time.Duration, calls int, err error) {
	if err := r.agent.Stop(); err != nil {
		return 0, 0, err
	}
	r.bed.AWS.ResetCalls()
	polling, stop := context.WithCancel(ctx)
	defer stop()
	pod := r.pods[len(r.pods)/2]
	poller, err := poll.Start(polling, pod, poll.Config{Method: poll.IMDS, Role: pod.Config.Name, Interval: restartPace})
	if err != nil {
		return 0, 0, err
	}
	answered := make(chan time.Time, 1)
	go func() { // ends with the poller
		for s := range poller.Samples() {
			if s.Error == "" {
				select {
				case answered <- s.At.Add(s.Took):
				default: // not the first one
				}
			}
		}
		close(answered)
	}()
	if r.agent, err = r.bed.StartAgent(ctx, r.flags...); err != nil {
		return 0, 0, err
	}
	answer, ok := <-answered
	if !ok {
		return 0, 0, errors.Join(errors.New("the poller ended without an answer"), poller.Err())
	}
	stop()
	for range answered { // until the poller has ended
	}
	for _, p := range r.pods {
		status, err := statusOf(ctx, p, "http://169.254.169.254/latest/meta-data/iam/security-credentials/"+p.Config.Name)
		if err != nil || status != http.StatusOK {
			return 0, 0, fmt.Errorf("%s after a restart: status %d, %w", p.Config.Name, status, err)
		}
	}
	synced, decided, err := startOf(r.agent.Log(), pod.Config.Name)
	if err != nil {
		return 0, 0, err
	}
	if answer.Before(decided) {
		return 0, 0, fmt.Errorf("%s was answered %s before it was decided on", pod.Config.Name, decided.Sub(answer))
	}
	return answer.Sub(synced), r.bed.AWS.Count(awstest.Filter{Service: "sts"}), nil
}

// startOf finds out of an agent's log when the last of its informers had synced, in client-go's own words, and when the
// pod was decided on.
func startOf(log, pod string) (synced, decided time.Time, err error) {
	lines := bufio.NewScanner(strings.NewReader(log))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct {
			Time time.Time
			Msg  string
			Pod  json.RawMessage
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return time.Time{}, time.Time{}, fmt.Errorf("read the agent's log: %w: %.200s", err, lines.Bytes())
		}
		switch {
		case line.Msg == "Caches populated":
			synced = line.Time
		case line.Msg == "pod granted a role" && strings.Contains(string(line.Pod), `"name":"`+pod+`"`):
			decided = line.Time
		}
	}
	if synced.IsZero() || decided.IsZero() {
		return synced, decided, fmt.Errorf("the agent's log lacks when its informers had synced or %s was decided on", pod)
	}
	return synced, decided, lines.Err()
}
