package e2e_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/rotation"
	"github.com/podrole/podrole/internal/testbed"
)

// TestRotationUnderLoad: while four pods ask all the time and their sessions rotate twenty times, every request is
// answered with the pod's own role, each new session is served as soon as STS has given it, and nobody waits for STS.
// How long requests take is for the benchmarks to say: here, the machine may be busy.
func TestRotationUnderLoad(t *testing.T) {
	const pods, rounds = 4, 5
	for _, latency := range []time.Duration{1500 * time.Millisecond, 400 * time.Millisecond} {
		t.Run(latency.String(), func(t *testing.T) {
			t.Parallel()
			bed := newBed(t, testbed.Config{Flags: []string{"--state-dir-on-disk"}})
			polled, err := rotation.AddPods(bed, pods, latency)
			if err != nil {
				t.Fatal(err)
			}
			startAgent(t, bed, "--request-rate=0", "--state-dir="+filepath.Join(bed.Box.Dir, "state"))
			r, err := rotation.Run(t.Context(), rotation.Config{
				Bed: bed, Pods: polled, Rotations: rounds, Interval: 20 * time.Millisecond,
			})
			if err != nil {
				t.Fatal(err)
			}
			if r.Failures > 0 {
				t.Errorf("%d of %d requests failed: %q", r.Failures, r.Requests, r.Failed)
			}
			if r.Rotations < rounds {
				t.Errorf("every pod saw %d rotations, want %d", r.Rotations, rounds)
			}
			// At the end, some pods are a rotation ahead of the others.
			if n := len(r.Calls); n < pods*rounds || n > pods*(rounds+1) {
				t.Errorf("%d calls to STS for %d rotations of %d pods", n, r.Rotations, pods)
			}
			for _, c := range r.Calls {
				if c.Code != awstest.CodeOK {
					t.Errorf("a call for %s ended with %s", c.RoleARN, c.Code)
				}
			}
			if r.Late > time.Second {
				t.Errorf("a session was still served %s after STS had given the next one", r.Late)
			}
			if waited := r.WaitedForSTS(latency / 2); len(waited) > 0 {
				t.Errorf("%d requests waited for STS, the first one %s", len(waited), waited[0].Took)
			}
			noLeaks(t, bed)
			t.Logf("%d requests, the longest %s, beside %d calls of %s; the latest change came after %s",
				r.Requests, rotation.Max(r.Samples), len(r.Calls), latency, r.Late)
		})
	}
}
