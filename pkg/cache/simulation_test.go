package cache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// node is a simulated one: pods that come and go, an API server that gives tokens to those that are there, and an STS
// that takes them while they are valid. It is the Minter of its Cache.
type node struct {
	sts    *fakeSTS
	tokens *sts.TokenRequester
	events *rand.Rand // of pods; for the test's own goroutine
	random *rand.Rand // of STS; held by its lock

	mu       sync.Mutex // guards the following
	pods     map[string]bool
	apiDown  bool
	requests int // for tokens
	sessions map[role.Grant]time.Time
	gaps     []string // sessions that ended before the next one came, while a pod wanted one
	users    map[role.Grant]int
}

func newNode(t *testing.T, seed uint64) *node {
	t.Helper()
	n := &node{
		sts: &fakeSTS{}, events: rand.New(rand.NewPCG(seed, 6)), random: rand.New(rand.NewPCG(seed, 7)),
		pods: make(map[string]bool), sessions: make(map[role.Grant]time.Time), users: make(map[role.Grant]int),
	}
	n.sts.latency = func() time.Duration {
		return 50*time.Millisecond + time.Duration(n.random.Float64()*float64(2950*time.Millisecond))
	}
	var err error
	if n.tokens, err = sts.NewTokenRequester(sts.TokenConfig{Client: n}); err != nil {
		t.Fatal(err)
	}
	return n
}

// Mint implements cache.Minter as sts.Minter does.
func (n *node) Mint(ctx context.Context, g role.Grant, pod role.Workload) (sts.Credentials, error) {
	token, err := n.tokens.Token(ctx, pod, g.Audience)
	if err != nil {
		return sts.Credentials{}, err
	}
	if expires, err := strconv.ParseInt(token, 10, 64); err != nil || !time.Now().Before(time.Unix(expires, 0)) {
		return sts.Credentials{}, failed(sts.Denied, "the token has expired")
	}
	creds, err := n.sts.Mint(ctx, g, pod)
	if err == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if end, ok := n.sessions[g]; ok && n.users[g] > 0 && time.Now().After(end) {
			n.gaps = append(n.gaps, fmt.Sprintf("%s at %s for %s", g.ServiceAccount, end, time.Since(end)))
		}
		n.sessions[g] = creds.Expiration
	}
	return creds, err
}

// Prepare implements cache.Preparer as sts.Minter does.
func (n *node) Prepare(ctx context.Context, g role.Grant, pod role.Workload) {
	_, _ = n.tokens.Token(ctx, pod, g.Audience)
}

// ServiceAccounts implements corev1.ServiceAccountsGetter.
func (n *node) ServiceAccounts(string) corev1.ServiceAccountInterface { return accounts{node: n} }

type accounts struct {
	corev1.ServiceAccountInterface
	node *node
}

func (a accounts) CreateToken(_ context.Context, _ string, in *authenticationv1.TokenRequest, _ metav1.CreateOptions,
) (*authenticationv1.TokenRequest, error) {
	a.node.mu.Lock()
	defer a.node.mu.Unlock()
	a.node.requests++
	switch {
	case a.node.apiDown:
		return nil, errors.New("dial tcp: connection refused")
	case !a.node.pods[string(in.Spec.BoundObjectRef.UID)]:
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, in.Spec.BoundObjectRef.Name)
	}
	expires := time.Now().Add(time.Duration(*in.Spec.ExpirationSeconds) * time.Second)
	in.Status = authenticationv1.TokenRequestStatus{
		Token: strconv.FormatInt(expires.Unix(), 10), ExpirationTimestamp: metav1.NewTime(expires),
	}
	return in, nil
}

// app is a ServiceAccount with its pods, one at a time: always one, or for two minutes of every hour.
type app struct {
	node   *node
	cache  *cache.Cache
	grant  role.Grant
	cron   time.Duration // into the hour; negative: always
	pod    *role.Workload
	pods   int // so far
	wanted time.Time
}

func (a *app) start() {
	a.pods++
	p := role.Workload{
		Namespace: a.grant.Namespace, ServiceAccount: a.grant.ServiceAccount,
		Name: fmt.Sprintf("%s-%d", a.grant.ServiceAccount, a.pods),
	}
	p.UID = p.Name
	a.node.mu.Lock()
	a.node.pods[p.UID] = true
	a.node.users[a.grant]++
	a.node.mu.Unlock()
	if a.pods == 1 {
		a.wanted = time.Now()
	}
	a.cache.Want(a.grant, p)
	a.pod = &p
}

func (a *app) stop(p *role.Workload) {
	a.node.mu.Lock()
	delete(a.node.pods, p.UID)
	a.node.users[a.grant]--
	a.node.mu.Unlock()
	a.cache.Release(a.grant, p.UID)
	if a.pod == p {
		a.pod = nil
	}
}

// step lets pods come and go: a rolling update every two hours or so, now and then one that stops before it starts.
func (a *app) step(sinceBegin time.Duration) {
	if a.cron >= 0 {
		into := (sinceBegin - a.cron) % time.Hour
		switch running := into >= 0 && into < 2*time.Minute; {
		case running && a.pod == nil:
			a.start()
		case !running && a.pod != nil:
			a.stop(a.pod)
		}
		return
	}
	old := a.pod
	switch dice := a.node.events.IntN(240); {
	case old == nil:
		a.start()
	case dice == 0:
		a.start()
		a.stop(old)
	case dice == 1:
		a.stop(old) // and starts in the next step
	}
}

// newApps returns the pods of a node: fifty that run and ten that run hourly.
func newApps(n *node, c *cache.Cache) []*app {
	var apps []*app
	for i := range 60 {
		a := &app{node: n, cache: c, grant: grant(i), cron: -1}
		if i >= 50 {
			a.cron = time.Duration(i-50)*6*time.Minute + 17*time.Second
		}
		apps = append(apps, a)
	}
	return apps
}

// fault is a time in which STS does not answer as it should.
type fault struct {
	from, to time.Duration
	fail     func(*rand.Rand) error
}

// TestTwoDays runs two days of an ordinary node with all that may happen to it, and expects that nobody notices: no
// request waits, except for the first session of its ServiceAccount, and while STS answers every session served has its
// floor.
func TestTwoDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			length = 48 * time.Hour
			step   = 30 * time.Second
			// first is one round trip of STS and the limiter's wait for 60 grants.
			first = 3*time.Second + 60/10*time.Second
			// recovery is the longest delay after a failure, a round trip, and the limiter's wait.
			recovery = time.Minute + first
		)
		throttled, down := failed(sts.Throttled, "Throttling"), failed(sts.Transient, "503")
		faults := []fault{
			{6 * time.Hour, 6*time.Hour + 20*time.Minute, func(r *rand.Rand) error {
				if r.Float64() < 0.9 {
					return throttled
				}
				return nil
			}},
			{14*time.Hour + 10*time.Minute, 14*time.Hour + 25*time.Minute, func(*rand.Rand) error { return throttled }},
			{22 * time.Hour, 22*time.Hour + 30*time.Minute, func(*rand.Rand) error { return down }},
		}
		const apiFrom, apiTo = 30 * time.Hour, 33 * time.Hour

		n := newNode(t, 1)
		begin := time.Now()
		current := func() *fault {
			for i, f := range faults {
				if now := time.Since(begin); f.from <= now && now < f.to {
					return &faults[i]
				}
			}
			return nil
		}
		n.sts.fail = func(role.Grant) error {
			if f := current(); f != nil {
				return f.fail(n.random)
			}
			if time.Since(begin) > first && n.random.Float64() < 0.02 {
				return []error{throttled, down}[n.random.IntN(2)]
			}
			return nil
		}
		cfg := config(n.sts)
		cfg.Minter = n
		c, stop := start(t, cfg)
		apps := newApps(n, c)

		var served, young, low int
		lowest := time.Hour
		ended := time.Duration(-time.Hour) // when STS last began to answer again
		calm := make(map[int]bool)         // hours
		for time.Since(begin) < length {
			now := time.Since(begin)
			if f := current(); f != nil {
				ended = f.to
			}
			n.mu.Lock()
			n.apiDown = apiFrom <= now && now < apiTo
			n.mu.Unlock()
			calm[int(now/time.Hour)] = true
			for _, a := range apps {
				a.step(now)
			}
			// Pods ask in the moment they start, and go on asking.
			for _, a := range apps {
				if a.pod == nil {
					continue
				}
				s, err := c.Get(impatient, a.grant)
				if err != nil {
					if age := time.Since(a.wanted); age > first {
						t.Fatalf("after %s: a request of %s, %s old, waits: %v", now, a.pod, age, err)
					}
					young++
					continue
				}
				served++
				left := s.Left(time.Now())
				if left <= 0 {
					t.Fatalf("after %s: %s served a session that expired", now, a.pod)
				}
				if left < cache.Floor(s.Life()) {
					low++
					if now-ended > recovery {
						t.Fatalf("after %s: %s served with %s left", now, a.pod, left)
					}
				}
				lowest = min(lowest, left)
			}
			time.Sleep(step)
		}
		stop()

		if len(n.gaps) > 0 {
			t.Errorf("%d sessions ended before the next one came: %v", len(n.gaps), n.gaps)
		}
		calls := n.sts.seen()
		if peak := peakRate(calls, time.Second); peak > 20 {
			t.Errorf("%d calls within a second", peak)
		}
		// An hour is calm if neither it nor the one before it, whose sessions it refreshes, had a fault.
		for _, f := range faults {
			for h := int(f.from / time.Hour); h <= int((f.to-1)/time.Hour)+1; h++ {
				delete(calm, h)
			}
		}
		delete(calm, 0) // everything starts
		inCalm := 0
		for _, call := range calls {
			if calm[int(call.at.Sub(begin)/time.Hour)] {
				inCalm++
			}
		}
		perHour := float64(inCalm) / float64(len(apps)) / float64(len(calm))
		if perHour > 2.2 || perHour < 1.8 {
			t.Errorf("%.3f calls per wanted grant and calm hour", perHour)
		}
		t.Logf("%d requests, %d of them of young grants without a session, %d below the floor while STS did not answer; "+
			"least left %s; %d calls, %.3f per wanted grant and hour in %d calm hours; %d token requests",
			served+young, young, low, lowest, len(calls), perHour, len(calm), n.requests)
	})
}

// TestLongOutage is longer than any session: what is valid is served to its end, and the recovery is within the rate
// limit, with the pods first that wait.
func TestLongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, burst, waiting = 2, 2, 5
		n := newNode(t, 3)
		cfg := config(n.sts)
		cfg.Minter, cfg.Rate, cfg.Burst = n, rate, burst
		c, _ := start(t, cfg)
		apps := newApps(n, c)[:50]
		begin := time.Now()
		ends := make(map[role.Grant]time.Time)
		for time.Since(begin) < 90*time.Minute {
			for _, a := range apps {
				a.step(time.Since(begin))
			}
			time.Sleep(30 * time.Second)
		}
		for _, a := range apps {
			if a.pod == nil {
				a.start()
			}
			ends[a.grant] = mustGet(t, c, a.grant).Credentials.Expiration
		}
		n.sts.set(func() { n.sts.fail = always(failed(sts.Transient, "503")) })
		down := time.Now()
		for time.Since(down) < 69*time.Minute {
			for _, a := range apps {
				_, err := c.Get(impatient, a.grant)
				if valid := time.Now().Before(ends[a.grant]); valid != (err == nil) {
					t.Fatalf("%s into the outage, %s, valid until %s: %v", time.Since(down), a.pod, ends[a.grant], err)
				}
			}
			time.Sleep(15 * time.Second)
		}
		// All have expired. Some have requests, which park as long as a client does, again and again.
		var wg sync.WaitGroup
		for _, a := range apps[len(apps)-waiting:] {
			wg.Go(func() {
				for {
					if _, err := get(t, c, a.grant); err == nil {
						return
					} else if !errors.Is(err, context.DeadlineExceeded) || sts.KindOf(err) != sts.Transient {
						t.Errorf("while down: %v, want the deadline and the last failure", err)
						return
					}
				}
			})
		}
		time.Sleep(time.Minute)
		n.sts.set(func() { n.sts.fail, n.sts.calls = nil, nil })
		up := time.Now()
		wg.Wait()
		if took := time.Since(up); took > 2*time.Second+waiting*2/rate*time.Second+3*time.Second {
			t.Errorf("those that wait had to wait %s after STS was back", took)
		}
		time.Sleep(time.Minute)
		for _, a := range apps {
			mustGet(t, c, a.grant)
		}
		calls := n.sts.seen()
		if peak := peakRate(calls, 10*time.Second); peak > 10*rate+burst {
			t.Errorf("%d calls within ten seconds of the recovery", peak)
		}
		var last int // of those that waited
		for i, call := range calls {
			waited := slices.ContainsFunc(apps[len(apps)-waiting:], func(a *app) bool { return a.grant == call.grant })
			if waited && call.at.Sub(up) < 30*time.Second {
				last = i
			}
		}
		// Every other mint is for those that have not failed; here all have.
		if last > 3*waiting {
			t.Errorf("%d others were minted for before the last that waited", last+1-waiting)
		}
	})
}

// TestJitterSpreadsRefreshes starts all sessions in one moment and expects that they part.
func TestJitterSpreadsRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const grants = 50
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Rate, cfg.Burst, cfg.Concurrency = 1000, 1000, 1000
		c, _ := start(t, cfg)
		for i := range grants {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(10 * time.Hour)
		calls := f.seen()
		last := slices.Clone(calls[len(calls)-grants:])
		if peak := peakRate(last, 10*time.Second); peak > grants/5 {
			t.Errorf("%d of %d refreshes within ten seconds, ten hours after a common start", peak, grants)
		}
	})
}
