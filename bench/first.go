package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/podrole/podrole/internal/startrace"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	raceRepeats = 5
	racePods    = 200
	raceBurst   = 40
	// Measured on a real node: the CNI result is there 0.3 s and more before the container, the API up to 1.6 s after.
	raceResults = 300 * time.Millisecond
	raceLate    = 2 * time.Second
)

// firstCredential measures how long pods wait for their first credentials when they ask at their first instruction, and how many
// do not get them at that try. The session is warm.
func firstCredential(ctx context.Context, agent string) (_ []figure, err error) {
	var p99, failures []float64
	for range raceRepeats {
		outcomes, err := race(ctx, agent)
		if err != nil {
			return nil, err
		}
		failed := 0
		for _, o := range outcomes {
			if o.Wrong != "" {
				return nil, errors.New(o.Wrong)
			}
			if o.Status != http.StatusOK {
				failed++
			}
		}
		p99 = append(p99, milliseconds(startrace.P99(outcomes)))
		failures = append(failures, float64(failed))
	}
	return []figure{
		newFigure("first_credential_p99_ms", "ms", p99),
		newFigure("first_credential_failures", "requests", failures),
	}, nil
}

func race(ctx context.Context, agent string) (_ []startrace.Outcome, err error) {
	bed, _, err := onePod(ctx, testbed.Config{Agent: agent}, time.Hour)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	role := "arn:aws:iam::" + testbed.Account + ":role/bench"
	if err := bed.AddServiceAccount("shop", "bench", role); err != nil {
		return nil, err
	}
	// A ServiceAccount that had a pod on this node before: its session is warm.
	before, err := bed.AddPod("shop", "before-0", "bench")
	if err != nil {
		return nil, err
	}
	if _, err := get(ctx, before, "http://169.254.169.254"+credentials); err != nil {
		return nil, err
	}
	return startrace.Run(ctx, startrace.Config{
		Bed: bed, Accounts: []startrace.Account{{Name: "bench", Role: role}},
		Pods: racePods, Burst: raceBurst, Late: raceLate, Results: raceResults,
	})
}
