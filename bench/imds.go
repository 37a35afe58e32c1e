package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	pairs       = 9
	perRun      = 4000
	workers     = 4
	credentials = "/latest/meta-data/iam/security-credentials/bench"
)

// imds compares the credential request, one connection each, with a bare handler that writes the same bytes and closes
// too. The two take turns, and which one begins alternates. The agent is reached as pods reach it, through the redirect;
// the bare server directly.
func imds(ctx context.Context, agent string) (_ []figure, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bed, pod, err := onePod(ctx, testbed.Config{Agent: agent, Under: onCPU(serverCPU)}, time.Hour)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	body, err := get(ctx, pod, "http://169.254.169.254"+credentials)
	if err != nil {
		return nil, err
	}
	bare, err := bareServer(ctx, bed.Box.Node, bed.Box.NodeIP.String(), body)
	if err != nil {
		return nil, err
	}
	l := load{Path: credentials, Requests: perRun, Workers: workers, Body: len(body)}
	ours, theirs := l, l
	ours.Address, theirs.Address = "169.254.169.254:80", bare
	for _, warmUp := range []load{ours, theirs} {
		if _, err := warmUp.run(ctx, pod); err != nil {
			return nil, err
		}
	}
	var throughput, p99 []float64
	for i := range pairs {
		var result [2]loadResult // ours, theirs
		for turn := range 2 {
			which := (i + turn) % 2
			if result[which], err = []load{ours, theirs}[which].run(ctx, pod); err != nil {
				return nil, err
			}
		}
		throughput = append(throughput, result[0].PerSecond/result[1].PerSecond)
		p99 = append(p99, float64(result[0].P99)/float64(result[1].P99))
	}
	return []figure{
		newFigure("imds_throughput_ratio", "ratio", throughput),
		newFigure("imds_p99_ratio", "ratio", p99),
	}, nil
}

// onePod builds a stage with an agent and one pod that has the role "bench". Sessions live as long as life says.
func onePod(ctx context.Context, cfg testbed.Config, life time.Duration) (_ *testbed.Bed, _ *nodebox.Pod, err error) {
	bed, err := testbed.New(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, bed.Close())
		}
	}()
	bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return life })
	role, err := bed.AddRole("bench", "bench", "bench")
	if err != nil {
		return nil, nil, err
	}
	if err := bed.AddServiceAccount("bench", "bench", role); err != nil {
		return nil, nil, err
	}
	pod, err := bed.AddPod("bench", "bench-0", "bench")
	if err != nil {
		return nil, nil, err
	}
	if _, err := bed.StartAgent(ctx); err != nil {
		return nil, nil, err
	}
	return bed, pod, nil
}

// get fetches url from inside a pod.
func get(ctx context.Context, pod *nodebox.Pod, url string) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return pod.DialContext(ctx, network, address)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("get %s: %s: %s", url, response.Status, body)
	}
	return body, nil
}
