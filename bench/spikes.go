package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/podrole/podrole/internal/poll"
	"github.com/podrole/podrole/internal/rotation"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	spikePods = 4
	// spikePace is how often each pod asks: so often that some ten requests of a repeat are beyond the 99.9th percentile,
	// and so rarely that one slow request of each pod in each round moves it, for a pod makes fewer than a thousand
	// requests in a round.
	spikePace = 3 * time.Millisecond
	// spikeRepeats is how many parts a run is cut into, each a repeat with 20 rotations at least.
	spikeRepeats = 4
	// spikeSlow is what a request takes no longer than, whatever rotates.
	spikeSlow = 10 * time.Millisecond
)

// spikeRounds is how often every pod's session rotates in each repeat: the shorter a rotation is, the more of them make
// up as many requests.
func spikeRounds(latency time.Duration) int {
	if latency < time.Second {
		return 8
	}
	return 5
}

// spikes measures what rotations do to the slowest requests of four pods that ask all the time: the 99.9th percentile
// of those made during rotations, over that of those made in equally long times beside them; the worse of the two
// latencies of STS. Well above 1, somebody has to wait for a rotation.
func spikes(progress io.Writer) func(context.Context, string) ([]figure, error) {
	return func(ctx context.Context, agent string) ([]figure, error) {
		var worst *figure
		for _, s := range stsLatencies() {
			ratios, err := spikesAt(ctx, agent, s.latency, progress)
			if err != nil {
				return nil, fmt.Errorf("at %s: %w", s.latency, err)
			}
			f := newFigure("rotation_spike_ratio", "ratio", ratios)
			fmt.Fprintf(progress, "# rotation_spike_ratio at %s: %.3f, %.3g to %.3g in %d repeats\n",
				s.latency, f.Value, slices.Min(ratios), slices.Max(ratios), len(ratios))
			if worst == nil || f.Value > worst.Value {
				worst = &f
			}
		}
		return []figure{*worst}, nil
	}
}

func spikesAt(ctx context.Context, agent string, latency time.Duration, progress io.Writer) (_ []float64, err error) {
	bed, err := testbed.New(ctx, testbed.Config{Agent: agent})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	pods, err := rotation.AddPods(bed, spikePods, latency)
	if err != nil {
		return nil, err
	}
	state, removeState, err := stateDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, removeState()) }()
	if _, err := bed.StartAgent(ctx, state, "--request-rate=0"); err != nil {
		return nil, err
	}
	rounds := spikeRounds(latency)
	rotations := spikeRepeats*rounds + 2 // the first one may have begun before, and the last one has nothing beside it
	result, err := rotation.Run(ctx, rotation.Config{
		Bed: bed, Pods: pods, Interval: spikePace,
		Rotations: rotations,
		Progress: func(seen int) {
			if seen%rounds == 0 {
				fmt.Fprintf(progress, "# rotations at %s: %d of %d\n", latency, seen, rotations)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	if err := served(result); err != nil {
		return nil, err
	}
	pairs := rotation.Pairs(result.Calls)
	if len(pairs) < spikeRepeats*rounds {
		return nil, fmt.Errorf("%d rounds of rotations, want %d", len(pairs), spikeRepeats*rounds)
	}
	pairs = pairs[:spikeRepeats*rounds]
	var ratios []float64
	for part := range slices.Chunk(pairs, rounds) {
		during, beside := rotation.Compare(part, result.Samples, spikeSlow)
		if during.Requests < 1000 || beside.Requests < 1000 {
			return nil, fmt.Errorf("%d requests during rotations, %d beside them: want thousands",
				during.Requests, beside.Requests)
		}
		ratios = append(ratios, float64(during.P999)/float64(beside.P999))
	}
	explainSpikes(progress, latency, pairs, result)
	return ratios, nil
}

// explainSpikes says what a ratio is made of, and whether rotations have to do with the slow requests: those that do
// are near a call to STS more often than requests are.
func explainSpikes(w io.Writer, latency time.Duration, pairs []rotation.Pair, r *rotation.Result) {
	during, beside := rotation.Compare(pairs, r.Samples, spikeSlow)
	for _, side := range []struct {
		what string
		rotation.Side
	}{{"during", during}, {"beside", beside}} {
		fmt.Fprintf(w, "# rotations at %s, requests %s them: %d in %.1f s, p99.9 %.3f ms, longest %.3f ms, %d over %s\n",
			latency, side.what, side.Requests, side.Length.Seconds(),
			milliseconds(side.P999), milliseconds(side.Max), side.Slow, spikeSlow)
	}
	slow := slices.DeleteFunc(slices.Clone(r.Samples), func(s poll.Sample) bool { return s.Took <= spikeSlow })
	nearAll, nearSlow := len(rotation.Near(r.Calls, r.Samples)), len(rotation.Near(r.Calls, slow))
	fmt.Fprintf(w, "# rotations at %s, requests near the beginning or the answer of a call to STS: "+
		"%.1f %% of all, %.1f %% of the %d over %s\n",
		latency, percent(nearAll, len(r.Samples)), percent(nearSlow, len(slow)), len(slow), spikeSlow)
}

// percent is the share of n in all; none of none.
func percent(n, all int) float64 { return 100 * float64(n) / float64(max(all, 1)) }
