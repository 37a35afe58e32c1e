package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

const secret = "wJalrXUtnFEMIsecret"

// call is one mint as the fake saw it.
type call struct {
	grant role.Grant
	pod   role.Workload
	at    time.Time
}

// fakeSTS mints after a latency, unless told to fail. The zero value mints at once, for an hour.
type fakeSTS struct {
	latency func() time.Duration
	life    func(role.Grant) time.Duration
	fail    func(role.Grant) error

	mu    sync.Mutex // guards the following
	calls []call
	busy  int
	peak  int // of mints at one time
}

func (f *fakeSTS) Mint(ctx context.Context, g role.Grant, pod role.Workload) (sts.Credentials, error) {
	f.mu.Lock()
	f.calls = append(f.calls, call{g, pod, time.Now()})
	n := len(f.calls)
	f.busy++
	f.peak = max(f.peak, f.busy)
	var latency time.Duration
	if f.latency != nil {
		latency = f.latency()
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.busy--
		f.mu.Unlock()
	}()
	if latency > 0 {
		select {
		case <-ctx.Done():
			return sts.Credentials{}, failed(sts.Transient, ctx.Err().Error())
		case <-time.After(latency):
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		if err := f.fail(g); err != nil {
			return sts.Credentials{}, err
		}
	}
	life := time.Hour
	if f.life != nil {
		life = f.life(g)
	}
	return sts.Credentials{
		AccessKeyID:     fmt.Sprintf("ASIA%d", n),
		SecretAccessKey: secret,
		SessionToken:    secret,
		Expiration:      time.Now().Add(life),
	}, nil
}

// preparing is a fakeSTS that keeps something which only a live pod can renew.
type preparing struct {
	*fakeSTS
	prepared []call
}

func (p *preparing) Prepare(_ context.Context, g role.Grant, pod role.Workload) {
	p.set(func() { p.prepared = append(p.prepared, call{g, pod, time.Now()}) })
}

// fakeStore keeps Sessions in memory. The zero value is ready.
type fakeStore struct {
	mu    sync.Mutex // guards the following
	kept  map[role.Grant]*cache.Session
	loads int
	fail  error
	hold  chan struct{} // if not nil, Save and Delete wait for it to be closed
}

func (f *fakeStore) Load(g role.Grant) *cache.Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loads++
	if s := f.kept[g]; s != nil {
		kept := *s
		kept.Body = nil
		return &kept
	}
	return nil
}

func (f *fakeStore) Save(s *cache.Session) error {
	return f.change(func() { f.kept[s.Grant] = s })
}

func (f *fakeStore) Delete(g role.Grant) error { return f.change(func() { delete(f.kept, g) }) }

func (f *fakeStore) change(do func()) error {
	if f.hold != nil {
		<-f.hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if f.kept == nil {
		f.kept = make(map[role.Grant]*cache.Session)
	}
	do()
	return nil
}

func (f *fakeStore) has(g role.Grant) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kept[g] != nil
}

// set changes the fake's behaviour while it is in use.
func (f *fakeSTS) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// mostAtOnce returns the largest number of mints under way at one time since it was last called.
func (f *fakeSTS) mostAtOnce() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	peak := f.peak
	f.peak = f.busy
	return peak
}

// seen returns the calls so far; with a Grant given, those for it.
func (f *fakeSTS) seen(of ...role.Grant) []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.calls), func(c call) bool {
		return len(of) > 0 && !slices.Contains(of, c.grant)
	})
}

func failed(kind sts.Kind, text string) error {
	return &sts.Error{Kind: kind, Action: "AssumeRole", Err: errors.New(text)}
}

// always returns a fail function that gives every mint the same answer.
func always(err error) func(role.Grant) error { return func(role.Grant) error { return err } }

// grant returns the i-th Grant of this package's tests; i is below 1000.
func grant(i int) role.Grant { return grants()[i] }

var grants = sync.OnceValue(func() []role.Grant {
	all := make([]role.Grant, 1000)
	for i := range all {
		all[i] = role.Grant{
			Namespace:      "default",
			ServiceAccount: fmt.Sprintf("sa-%d", i),
			RoleARN:        fmt.Sprintf("arn:aws:iam::111122223333:role/app-%d", i),
			Duration:       time.Hour,
			SessionName:    fmt.Sprintf("default.sa-%d@node", i),
			Audience:       "sts.amazonaws.com",
			Source:         role.WebIdentity,
		}
	}
	return all
})

func pod(name string) role.Workload {
	return role.Workload{Namespace: "default", Name: name, UID: "uid-" + name, ServiceAccount: "sa"}
}

func render(c sts.Credentials, _ time.Time) []byte { return []byte(c.AccessKeyID) }

// config is a Config over f with seeded jitter.
func config(f *fakeSTS) cache.Config {
	return cache.Config{Minter: f, Render: render, Rand: rand.New(rand.NewPCG(1, 2)).Float64}
}

// start runs a Cache until the test ends, or until the returned function is called, and fails the test if it cannot
// be stopped.
func start(t *testing.T, cfg cache.Config) (*cache.Cache, func()) {
	t.Helper()
	c, err := cache.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c, run(t, c)
}

// run is start for a Cache that exists already.
func run(t *testing.T, c *cache.Cache) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// get asks with the patience of a request: 900 ms.
func get(t *testing.T, c *cache.Cache, g role.Grant) (*cache.Session, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	s, err := c.Get(ctx, g)
	if err == nil && s.Left(time.Now()) <= 0 {
		t.Fatalf("served a session of %s that expired %s ago", g.RoleARN, -s.Left(time.Now()))
	}
	return s, err
}

// mustGet fails the test if there is no session at once.
func mustGet(t *testing.T, c *cache.Cache, g role.Grant) *cache.Session {
	t.Helper()
	now := time.Now()
	s, err := c.Get(impatient, g)
	if err != nil {
		t.Fatalf("Get of %s at once: %v", g.RoleARN, err)
	}
	if left := s.Left(now); left <= 0 {
		t.Fatalf("served a session of %s that expired %s ago", g.RoleARN, -left)
	}
	return s
}

// impatient is a context that has ended: with it, Get parks for no time at all.
var impatient = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// peakRate returns the largest number of calls that began within any window of the given length.
func peakRate(calls []call, window time.Duration) int {
	var peak, from int
	for to := range calls {
		for calls[to].at.Sub(calls[from].at) >= window {
			from++
		}
		peak = max(peak, to-from+1)
	}
	return peak
}
