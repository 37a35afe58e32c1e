package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/poll"
	"github.com/podrole/podrole/internal/rotation"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	stsLatency      = 1500 * time.Millisecond
	sessionLife     = 10 * time.Second
	rotationRepeats = 12
	rotationPace    = 20 * time.Millisecond
	// Each rotation is looked at from shortly before its call to STS begins until shortly after its credentials are
	// first seen.
	windowBefore = stsLatency + 500*time.Millisecond
	windowAfter  = 500 * time.Millisecond
)

// rotations measures the longest a request waits while sessions rotate, at 1.5 s per call to STS, and the longest in each
// session's life of a client that calls the same STS in-line. Each rotation is a repeat.
func rotations(ctx context.Context, agent string) (_ []figure, err error) {
	bed, pod, err := onePod(ctx, testbed.Config{Agent: agent}, sessionLife)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	role, err := bed.AddRole("inline", "bench", "inline")
	if err != nil {
		return nil, err
	}
	if err := bed.AddServiceAccount("bench", "inline", ""); err != nil {
		return nil, err
	}
	inline, err := bed.AddPod("bench", "inline-0", "inline")
	if err != nil {
		return nil, err
	}
	token, err := bed.WebIdentityToken(inline, "inline")
	if err != nil {
		return nil, err
	}
	return measureRotations(ctx, bed, rotation.Config{
		Bed:       bed,
		Pods:      []rotation.Pod{{Pod: pod, Role: "arn:aws:iam::" + testbed.Account + ":role/bench"}},
		Baseline:  rotation.Pod{Pod: inline, Role: role},
		Token:     token,
		Rotations: rotationRepeats,
		Interval:  rotationPace,
	})
}

func measureRotations(ctx context.Context, bed *testbed.Bed, cfg rotation.Config) ([]figure, error) {
	for _, action := range []string{"AssumeRole", "AssumeRoleWithWebIdentity"} {
		if _, err := bed.AWS.Inject(awstest.Fault{Service: "sts", Action: action, Latency: stsLatency}); err != nil {
			return nil, err
		}
	}
	result, err := rotation.Run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if result.Failures > 0 {
		return nil, fmt.Errorf("%d of %d requests failed: %q", result.Failures, result.Requests, result.Failed)
	}
	var ours, theirs []float64
	for _, at := range firstSeen(result.Samples) {
		ours = append(ours, milliseconds(longestBetween(result.Samples, at.Add(-windowBefore), at.Add(windowAfter))))
	}
	for _, at := range firstSeen(result.Baseline) {
		theirs = append(theirs, milliseconds(longestBetween(result.Baseline, at, at.Add(windowAfter))))
	}
	const atLeast = 5
	if len(ours) < atLeast || len(theirs) < atLeast {
		return nil, fmt.Errorf("%d rotations, %d in-line: want at least %d of each", len(ours), len(theirs), atLeast)
	}
	return []figure{newFigure("rotation_max_ms", "ms", ours), newFigure("inline_rotation_max_ms", "ms", theirs)}, nil
}

// firstSeen returns when credentials were first seen, but for the first ones.
func firstSeen(samples []poll.Sample) []time.Time {
	seen := map[string]bool{}
	var times []time.Time
	for _, s := range samples {
		if !seen[s.Key] {
			if len(seen) > 0 {
				times = append(times, s.At)
			}
			seen[s.Key] = true
		}
	}
	return times
}

func longestBetween(samples []poll.Sample, from, to time.Time) time.Duration {
	var longest time.Duration
	for _, s := range samples {
		if !s.At.Before(from) && s.At.Before(to) {
			longest = max(longest, s.Took)
		}
	}
	return longest
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
