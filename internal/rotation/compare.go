package rotation

import (
	"slices"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/poll"
)

// A rotation is taken to begin a little before its call to STS and to end some time after it: the new session has been
// rendered, swapped in and kept by then, the first pods have it, and what all that left behind is cleared away.
const (
	before = 50 * time.Millisecond
	after  = 250 * time.Millisecond
)

// Window is a stretch of time.
type Window struct{ From, To time.Time }

// Length is how long it is.
func (w Window) Length() time.Duration { return w.To.Sub(w.From) }

// has reports whether a request began in the window.
func (w Window) has(s poll.Sample) bool { return !s.At.Before(w.From) && s.At.Before(w.To) }

// Pair is the time of a rotation, or of several at once, and as much of the time to the next one. Beside is shorter
// than During only where the next rotation came too soon.
type Pair struct{ During, Beside Window }

// Pairs returns the times of the rotations that these calls to STS, ordered by their start, were part of. The last
// rotation has no time beside it, and is left out.
func Pairs(calls []awstest.Call) []Pair {
	var rotations []Window
	for _, c := range calls {
		w := Window{c.Start.Add(-before), c.Start.Add(c.Latency + after)}
		if n := len(rotations); n > 0 && w.From.Before(rotations[n-1].To) {
			if w.To.After(rotations[n-1].To) {
				rotations[n-1].To = w.To
			}
			continue
		}
		rotations = append(rotations, w)
	}
	var pairs []Pair
	for i := 1; i < len(rotations); i++ {
		during := rotations[i-1]
		quiet := Window{during.To, rotations[i].From}
		if spare := quiet.Length() - during.Length(); spare > 0 { // the middle
			quiet.From, quiet.To = quiet.From.Add(spare/2), quiet.To.Add(spare/2-spare)
		}
		pairs = append(pairs, Pair{during, quiet})
	}
	return pairs
}

// Side is the requests of one side of a comparison.
type Side struct {
	Length   time.Duration // of its windows together
	Requests int
	P999     time.Duration // 99.9 % of the requests took no longer
	Max      time.Duration
	Slow     int // requests that took longer than the bound
}

// Compare compares the requests that began during rotations with those that began beside them. It counts those as slow
// that took longer than bound.
func Compare(pairs []Pair, samples []poll.Sample, bound time.Duration) (during, beside Side) {
	var duringWindows, besideWindows []Window
	for _, p := range pairs {
		duringWindows, besideWindows = append(duringWindows, p.During), append(besideWindows, p.Beside)
	}
	return sideOf(duringWindows, samples, bound), sideOf(besideWindows, samples, bound)
}

func sideOf(windows []Window, samples []poll.Sample, bound time.Duration) Side {
	var s Side
	for _, w := range windows {
		s.Length += w.Length()
	}
	var took []time.Duration
	for _, sample := range within(windows, samples) {
		took = append(took, sample.Took)
		if sample.Took > bound {
			s.Slow++
		}
	}
	if len(took) == 0 {
		return s
	}
	slices.Sort(took)
	s.Requests = len(took)
	s.P999 = took[(len(took)*999+999)/1000-1] // the nearest rank
	s.Max = took[len(took)-1]
	return s
}

// Near returns those requests that began shortly before or after a call to STS began or was answered: that is when a
// rotation has something to do, and so when requests are slow if they are slow because of it.
func Near(calls []awstest.Call, samples []poll.Sample) []poll.Sample {
	const sooner, later = 10 * time.Millisecond, 50 * time.Millisecond
	var windows []Window
	for _, c := range calls {
		for _, t := range []time.Time{c.Start, c.Start.Add(c.Latency)} {
			windows = append(windows, Window{t.Add(-sooner), t.Add(later)})
		}
	}
	return within(windows, samples)
}

// within returns the samples that began in one of the windows.
func within(windows []Window, samples []poll.Sample) []poll.Sample {
	var found []poll.Sample
	for _, s := range samples {
		if slices.ContainsFunc(windows, func(w Window) bool { return w.has(s) }) {
			found = append(found, s)
		}
	}
	return found
}

// WaitedForSTS returns the requests of Pods that look as if they had waited for a call to STS: they began while one was
// under way, ended after it did, and took bound at least. On a machine that is very busy others may look so too, if
// bound is short.
func (r *Result) WaitedForSTS(bound time.Duration) []poll.Sample {
	var waited []poll.Sample
	for _, s := range r.Samples {
		if s.Took >= bound && slices.ContainsFunc(r.Calls, func(c awstest.Call) bool {
			answered := c.Start.Add(c.Latency)
			// The request that makes an agent call begins a little earlier than the call.
			return s.At.After(c.Start.Add(-before)) && s.At.Before(answered) && s.At.Add(s.Took).After(answered)
		}) {
			waited = append(waited, s)
		}
	}
	return waited
}
