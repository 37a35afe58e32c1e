// Package rotation is the experiment that podrole exists for: pods ask for credentials at a steady pace while their
// sessions rotate, and beside them, in the same minutes, a pod gets its credentials in-line from the same STS. How long
// each request had to wait is the result (Run), and whether it had to wait longer because of a rotation (Compare).
package rotation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/poll"
	"github.com/podrole/podrole/internal/testbed"
)

// Pod is one that asks the metadata service.
type Pod struct {
	Pod  *nodebox.Pod
	Role string // ARN of the role it must get
}

// Config describes a run.
type Config struct {
	Bed       *testbed.Bed
	Pods      []Pod
	Baseline  Pod           // asks STS itself, as IRSA has it; optional
	Token     string        // Baseline's web identity token, a file
	Rotations int           // how many each of Pods must see
	Interval  time.Duration // between a pod's requests
	// Progress is told now and then how many rotations every pod has seen. Optional.
	Progress func(rotations int)
}

// Result is what a run measured.
type Result struct {
	Requests  int           // of Pods
	Failures  int           // requests of Pods without credentials, with those of another role, or with earlier ones again
	Failed    []string      // the first few of them
	Rotations int           // seen by every one of Pods
	Samples   []poll.Sample // of Pods, by time
	Baseline  []poll.Sample // by time
	// Calls are those to STS for the roles of Pods that began after the first of Samples, by time.
	Calls []awstest.Call
	// Late is the longest that a pod was still given a session after STS had answered with the next one.
	Late time.Duration
}

// Max returns the longest a request had to wait.
func Max(samples []poll.Sample) time.Duration {
	var longest time.Duration
	for _, s := range samples {
		longest = max(longest, s.Took)
	}
	return longest
}

// maxFailed bounds Result.Failed.
const maxFailed = 10

// Run polls until every pod has seen the rotations asked for. An error means that nothing was measured, not that a
// request failed.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	polling, stop := context.WithCancel(ctx)
	defer stop()
	r := &run{cfg: cfg, seen: make([]int, len(cfg.Pods)), held: make([]held, len(cfg.Pods)), stop: stop}
	var following sync.WaitGroup
	defer following.Wait()

	follow := func(p Pod, c poll.Config, note func(poll.Sample)) error {
		c.Interval = cfg.Interval
		poller, err := poll.Start(polling, p.Pod, c)
		if err != nil {
			stop()
			return err
		}
		following.Go(func() {
			for s := range poller.Samples() {
				note(s)
			}
			r.fail(poller.Err())
		})
		return nil
	}
	for i, p := range cfg.Pods {
		note := func(s poll.Sample) { r.note(i, s) }
		if err := follow(p, poll.Config{Method: poll.IMDS, Role: roleName(p.Role)}, note); err != nil {
			return nil, err
		}
	}
	if cfg.Baseline.Pod != nil {
		inline := poll.Config{
			Method: poll.Inline, Role: cfg.Baseline.Role, STS: cfg.Bed.STS(), Region: testbed.Region, Token: cfg.Token,
		}
		if err := follow(cfg.Baseline, inline, r.noteBaseline); err != nil {
			return nil, err
		}
	}
	following.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("rotations seen: %v of %d: %w", r.seen, cfg.Rotations, context.Cause(ctx))
	}
	byTime := func(a, b poll.Sample) int { return a.At.Compare(b.At) }
	slices.SortFunc(r.result.Samples, byTime)
	slices.SortFunc(r.result.Baseline, byTime)
	r.result.Calls = r.calls()
	return &r.result, errors.Join(r.errs...)
}

// run is a Result in the making.
type run struct {
	cfg  Config
	stop context.CancelFunc

	mu     sync.Mutex // guards the following
	result Result
	seen   []int  // rotations, by pod
	held   []held // by pod
	errs   []error
}

// held is the session that a pod was given last, and when it asked for it last.
type held struct {
	session awstest.Session
	at      time.Time
}

// note takes one of pod i's samples.
func (r *run) note(i int, s poll.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Requests++
	r.result.Samples = append(r.result.Samples, s)
	session, problem := r.judge(s, r.cfg.Pods[i].Role, r.held[i])
	if problem != "" {
		r.result.Failures++
		if len(r.result.Failed) < maxFailed {
			r.result.Failed = append(r.result.Failed, problem)
		}
		return
	}
	before := r.held[i]
	r.held[i] = held{session, s.At}
	if before.session.AccessKeyID == "" || before.session.AccessKeyID == s.Key {
		return
	}
	r.result.Late = max(r.result.Late, before.at.Sub(session.Issued))
	r.seen[i]++
	if all := slices.Min(r.seen); all > r.result.Rotations {
		r.result.Rotations = all
		if r.cfg.Progress != nil {
			r.cfg.Progress(all)
		}
		if all >= r.cfg.Rotations {
			r.stop()
		}
	}
}

// judge returns the session that a pod which must get role was given, or what is wrong with it. before is what the pod
// was given before.
func (r *run) judge(s poll.Sample, role string, before held) (_ awstest.Session, problem string) {
	if s.Error != "" {
		return awstest.Session{}, s.Error
	}
	session, ok := r.cfg.Bed.AWS.LookupSession(s.Key)
	switch {
	case !ok || session.RoleARN != role:
		return session, fmt.Sprintf("credentials %s are of %q, want %q", s.Key, session.RoleARN, role)
	case session.Issued.Before(before.session.Issued):
		return session, fmt.Sprintf("credentials %s are older than %s, which were served before", s.Key,
			before.session.AccessKeyID)
	}
	return session, ""
}

// calls returns the calls to STS for the pods' roles since the first sample.
func (r *run) calls() []awstest.Call {
	if len(r.result.Samples) == 0 {
		return nil
	}
	first := r.result.Samples[0].At
	return slices.DeleteFunc(r.cfg.Bed.AWS.Calls(awstest.Filter{Service: "sts"}), func(c awstest.Call) bool {
		return c.Start.Before(first) ||
			!slices.ContainsFunc(r.cfg.Pods, func(p Pod) bool { return p.Role == c.RoleARN })
	})
}

func (r *run) noteBaseline(s poll.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Baseline = append(r.result.Baseline, s)
	if s.Error != "" {
		r.errs = append(r.errs, fmt.Errorf("baseline: %s", s.Error))
	}
}

func (r *run) fail(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
	r.stop()
}

func roleName(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }
