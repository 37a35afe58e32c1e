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
	rotationRepeats = 8
	rotationPace    = 20 * time.Millisecond
	// Each rotation is looked at from shortly before its call to STS begins until shortly after its credentials are
	// first seen.
	windowBefore = 500 * time.Millisecond
	windowAfter  = 500 * time.Millisecond
)

// stsLatency is an STS that rotations are measured with: the global endpoint's on a bad day, and a regional one's.
type stsLatency struct {
	latency time.Duration
	suffix  string        // of the figures' names
	life    time.Duration // of sessions, so that rotations come every few seconds
}

func stsLatencies() []stsLatency {
	return []stsLatency{
		{latency: 1500 * time.Millisecond, life: 5 * time.Second},
		{latency: 400 * time.Millisecond, life: 4 * time.Second, suffix: "_at_400ms"},
	}
}

// rotations measures the longest a request waits while sessions rotate, and the longest in each session's life of a
// client that calls the same STS in-line; at each latency of STS. Each rotation is a repeat.
func rotations(ctx context.Context, agent string) ([]figure, error) {
	var all []figure
	for _, s := range stsLatencies() {
		figures, err := rotationsAt(ctx, agent, s)
		if err != nil {
			return nil, fmt.Errorf("at %s: %w", s.latency, err)
		}
		all = append(all, figures...)
	}
	return all, nil
}

func rotationsAt(ctx context.Context, agent string, s stsLatency) (_ []figure, err error) {
	bed, pod, err := onePod(ctx, testbed.Config{Agent: agent}, s.life)
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
	return measureRotations(ctx, s, rotation.Config{
		Bed:       bed,
		Pods:      []rotation.Pod{{Pod: pod, Role: "arn:aws:iam::" + testbed.Account + ":role/bench"}},
		Baseline:  rotation.Pod{Pod: inline, Role: role},
		Token:     token,
		Rotations: rotationRepeats,
		Interval:  rotationPace,
	})
}

func measureRotations(ctx context.Context, s stsLatency, cfg rotation.Config) ([]figure, error) {
	for _, action := range []string{"AssumeRole", "AssumeRoleWithWebIdentity"} {
		if _, err := cfg.Bed.AWS.Inject(awstest.Fault{Service: "sts", Action: action, Latency: s.latency}); err != nil {
			return nil, err
		}
	}
	result, err := rotation.Run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := served(result); err != nil {
		return nil, err
	}
	var ours, theirs []float64
	for _, at := range firstSeen(result.Samples) {
		from := at.Add(-s.latency - windowBefore)
		ours = append(ours, milliseconds(longestBetween(result.Samples, from, at.Add(windowAfter))))
	}
	for _, at := range firstSeen(result.Baseline) {
		theirs = append(theirs, milliseconds(longestBetween(result.Baseline, at, at.Add(windowAfter))))
	}
	const atLeast = 3
	if len(ours) < atLeast || len(theirs) < atLeast {
		return nil, fmt.Errorf("%d rotations, %d in-line: want at least %d of each", len(ours), len(theirs), atLeast)
	}
	return []figure{
		newFigure("rotation_max_ms"+s.suffix, "ms", ours),
		newFigure("inline_rotation_max_ms"+s.suffix, "ms", theirs),
	}, nil
}

// served returns an error if a request of the run was not answered as it should be: what it waited then means nothing.
func served(r *rotation.Result) error {
	if r.Failures > 0 {
		return fmt.Errorf("%d of %d requests failed: %q", r.Failures, r.Requests, r.Failed)
	}
	return nil
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
