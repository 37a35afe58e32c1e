package rotation

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/poll"
)

// at is a time of these tests.
func at(d time.Duration) time.Time { return time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(d) }

func window(from, to time.Duration) Window { return Window{at(from), at(to)} }

// span is a window between milliseconds.
func span(from, to time.Duration) Window { return window(from*time.Millisecond, to*time.Millisecond) }

func TestPairs(t *testing.T) {
	type calls []time.Duration // their starts
	const latency = 700 * time.Millisecond
	tests := map[string]struct {
		calls calls
		want  []Pair
	}{
		"none":           {},
		"one_alone":      {calls: calls{time.Second}},
		"time_in_excess": {calls: calls{time.Second, 6 * time.Second}, want: []Pair{{span(950, 1950), span(3450, 4450)}}},
		"as_much":        {calls: calls{time.Second, 3 * time.Second}, want: []Pair{{span(950, 1950), span(1950, 2950)}}},
		"too_soon": {
			calls: calls{time.Second, 2500 * time.Millisecond},
			want:  []Pair{{span(950, 1950), span(1950, 2450)}},
		},
		"several_at_once": {
			calls: calls{time.Second, 1100 * time.Millisecond, 1500 * time.Millisecond, 5 * time.Second},
			want:  []Pair{{span(950, 2450), span(2950, 4450)}},
		},
		"three": {
			calls: calls{time.Second, 3 * time.Second, 6 * time.Second},
			want:  []Pair{{span(950, 1950), span(1950, 2950)}, {span(2950, 3950), span(4450, 5450)}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log []awstest.Call
			for _, start := range tt.calls {
				log = append(log, awstest.Call{Start: at(start), Latency: latency})
			}
			if diff := cmp.Diff(tt.want, Pairs(log)); diff != "" {
				t.Errorf("Pairs (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("short_call_within_a_long_one", func(t *testing.T) {
		got := Pairs([]awstest.Call{
			{Start: at(time.Second), Latency: 3 * time.Second},
			{Start: at(2 * time.Second), Latency: time.Second},
			{Start: at(20 * time.Second), Latency: time.Second},
		})
		if diff := cmp.Diff(span(950, 4250), got[0].During); diff != "" || len(got) != 1 {
			t.Errorf("%d pairs, the first (-want +got):\n%s", len(got), diff)
		}
	})
}

func TestCompare(t *testing.T) {
	pairs := []Pair{
		{window(0, time.Second), window(2*time.Second, 3*time.Second)},
		{window(10*time.Second, 11*time.Second), window(12*time.Second, 12500*time.Millisecond)},
	}
	var samples []poll.Sample
	add := func(n int, began, took time.Duration) {
		for range n {
			samples = append(samples, poll.Sample{At: at(began), Took: took})
		}
	}
	// A thousandth may be slower than the 99.9th percentile, and no more.
	add(997, 500*time.Millisecond, time.Millisecond)
	add(1000, 10*time.Second, 2*time.Millisecond)
	add(1, 10900*time.Millisecond, 3*time.Millisecond)
	add(2, 999*time.Millisecond, 30*time.Millisecond)
	add(500, 2*time.Second, time.Millisecond)
	add(1, 12499*time.Millisecond, 4*time.Millisecond)
	// Neither during nor beside.
	add(1, time.Second, time.Second)
	add(1, 3*time.Second, time.Second)
	add(1, -time.Millisecond, time.Second)
	during, beside := Compare(pairs, samples, 10*time.Millisecond)
	if diff := cmp.Diff(Side{
		Length: 2 * time.Second, Requests: 2000, P999: 3 * time.Millisecond, Max: 30 * time.Millisecond, Slow: 2,
	}, during); diff != "" {
		t.Errorf("during (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Side{
		Length: 1500 * time.Millisecond, Requests: 501, P999: 4 * time.Millisecond, Max: 4 * time.Millisecond,
	}, beside); diff != "" {
		t.Errorf("beside (-want +got):\n%s", diff)
	}
}

func TestNear(t *testing.T) {
	calls := []awstest.Call{
		{Start: at(time.Second), Latency: time.Second},
		{Start: at(1980 * time.Millisecond), Latency: time.Second},
	}
	for name, tt := range map[string]struct {
		began time.Duration
		want  int
	}{
		"long_before_a_call":    {989 * time.Millisecond, 0},
		"before_a_call":         {990 * time.Millisecond, 1},
		"after_it_began":        {1049 * time.Millisecond, 1},
		"long_after_it_began":   {1050 * time.Millisecond, 0},
		"during_it":             {1900 * time.Millisecond, 0},
		"near_two_counted_once": {1990 * time.Millisecond, 1},
		"after_its_answer":      {2980 * time.Millisecond, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := len(Near(calls, []poll.Sample{{At: at(tt.began)}})); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}

func TestWaitedForSTS(t *testing.T) {
	r := Result{Calls: []awstest.Call{{Start: at(time.Second), Latency: 400 * time.Millisecond}}}
	for name, tt := range map[string]struct {
		began, took time.Duration
		want        bool
	}{
		"before_the_call":           {500 * time.Millisecond, 400 * time.Millisecond, false},
		"makes_the_call":            {999 * time.Millisecond, 402 * time.Millisecond, true},
		"joins_it":                  {1100 * time.Millisecond, 301 * time.Millisecond, true},
		"joins_it_late":             {1300 * time.Millisecond, 101 * time.Millisecond, false},
		"served_during_it":          {1100 * time.Millisecond, 2 * time.Millisecond, false},
		"slow_but_done_before_it":   {1050 * time.Millisecond, 250 * time.Millisecond, false},
		"slow_after_it":             {1500 * time.Millisecond, 300 * time.Millisecond, false},
		"slow_since_long_before_it": {700 * time.Millisecond, time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := r
			r.Samples = []poll.Sample{{At: at(tt.began), Took: tt.took}}
			if got := len(r.WaitedForSTS(200*time.Millisecond)) > 0; got != tt.want {
				t.Errorf("got %t", got)
			}
		})
	}
}

// TestRounds follows sessions through their refreshes: however they start, they are soon refreshed together.
func TestRounds(t *testing.T) {
	for _, latency := range []time.Duration{400 * time.Millisecond, 1500 * time.Millisecond} {
		t.Run(latency.String(), func(t *testing.T) {
			period := Period(latency)
			for offset := time.Duration(0); offset < period; offset += 10 * time.Millisecond {
				minted := at(offset)
				for round := range 10 {
					expires := minted.Add(lifeFrom(minted, latency)).Truncate(time.Second)
					life := expires.Sub(minted)
					// Of the range that the agent draws from, one end and the other.
					due := expires.Add(-time.Duration(float64(life) * []float64{0.51, 0.54}[round%2]))
					minted = due.Add(latency)
					if !minted.Before(expires) {
						t.Fatalf("offset %s, round %d: the session ends %s before the next one is there", offset, round,
							minted.Sub(expires))
					}
					off := due.Sub(due.Round(period)).Abs()
					if off > 500*time.Millisecond {
						t.Fatalf("offset %s, round %d: due %s beside the beginning of a round", offset, round, off)
					}
				}
			}
		})
	}
}
