package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

func TestRefreshAtHalfLife(t *testing.T) {
	tests := []struct {
		name   string
		life   time.Duration // as AWS gives it, whatever was asked
		random float64
		want   time.Duration // from mint to refresh
	}{
		{"hour_latest", time.Hour, 0, 29*time.Minute + 24*time.Second},
		{"hour_middle", time.Hour, 0.5, 28*time.Minute + 30*time.Second},
		{"hour_earliest", time.Hour, 1, 27*time.Minute + 36*time.Second},
		{"shortest", 15 * time.Minute, 0, 7*time.Minute + 21*time.Second},
		{"longest", 12 * time.Hour, 0, 5*time.Hour + 52*time.Minute + 48*time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeSTS{life: func(role.Grant) time.Duration { return tt.life }}
				cfg := config(f)
				cfg.Rand = func() float64 { return tt.random }
				c, _ := start(t, cfg)
				begin := time.Now()
				c.Want(grant(1), pod("a"))
				synctest.Wait()
				first := mustGet(t, c, grant(1))
				time.Sleep(2*tt.want + time.Second)
				var at []time.Duration
				for _, call := range f.seen() {
					at = append(at, call.at.Sub(begin))
				}
				if diff := cmp.Diff([]time.Duration{0, tt.want, 2 * tt.want}, at); diff != "" {
					t.Errorf("mints (-want +got):\n%s", diff)
				}
				second := mustGet(t, c, grant(1))
				if second == first || string(second.Body) != "ASIA3" || second.Grant != grant(1) {
					t.Errorf("session after two refreshes has body %q", second.Body)
				}
			})
		})
	}
}

func TestOneFlightForAllWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{latency: func() time.Duration { return 2500 * time.Millisecond }}
		c, _ := start(t, config(f))
		begin := time.Now()
		c.Want(grant(1), pod("a"))

		impatient, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c.Get(impatient, grant(1))
			if !errors.Is(err, context.DeadlineExceeded) || sts.KindOf(err) != sts.Transient {
				t.Errorf("first waiter got %v, want its own deadline", err)
			}
			if took := time.Since(begin); took != 100*time.Millisecond {
				t.Errorf("first waiter left after %s", took)
			}
		})
		synctest.Wait()
		for range 199 {
			wg.Go(func() {
				s, err := c.Get(t.Context(), grant(1))
				if err != nil || string(s.Body) != "ASIA1" {
					t.Errorf("Get: %v", err)
				}
				if took := time.Since(begin); took != 2500*time.Millisecond {
					t.Errorf("served after %s, want the moment of the mint", took)
				}
			})
		}
		wg.Wait()
		if n := len(f.seen()); n != 1 {
			t.Errorf("%d mints for 200 waiters", n)
		}
	})
}

func TestWaitingGrantGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Rate, cfg.Burst = 1, 1
		c, _ := start(t, cfg)
		for i := range 20 {
			c.Want(grant(i), pod("a"))
		}
		synctest.Wait() // the first has used up the burst
		begin := time.Now()
		if _, err := c.Get(t.Context(), grant(19)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("waited %s behind grants that nobody waits for", took)
		}
		time.Sleep(30 * time.Second)
		var order []string
		for _, call := range f.seen() {
			order = append(order, call.grant.ServiceAccount)
		}
		want := []string{"sa-0", "sa-19"}
		for i := range 18 {
			want = append(want, fmt.Sprintf("sa-%d", i+1)) // then in the order they came
		}
		if diff := cmp.Diff(want, order); diff != "" {
			t.Errorf("order of mints (-want +got):\n%s", diff)
		}
	})
}

func TestEarliestExpiryFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lives := map[role.Grant]time.Duration{
			grant(0): 50 * time.Minute, grant(1): 40 * time.Minute, grant(2): 60 * time.Minute, grant(3): 30 * time.Minute,
		}
		f := &fakeSTS{life: func(g role.Grant) time.Duration { return lives[g] }}
		cfg := config(f)
		cfg.Concurrency, cfg.MintTimeout = 1, 20*time.Minute
		c, _ := start(t, cfg)
		for i := range len(lives) {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(time.Minute)
		// One slow refresh holds the only slot until all others are due.
		f.set(func() { f.latency = func() time.Duration { return 18 * time.Minute }; f.calls = nil })
		time.Sleep(19 * time.Minute)
		f.set(func() { f.latency = nil })
		time.Sleep(13 * time.Minute)
		var order []string
		for _, call := range f.seen() {
			order = append(order, call.grant.ServiceAccount)
		}
		if diff := cmp.Diff([]string{"sa-3", "sa-1", "sa-0", "sa-2"}, order); diff != "" {
			t.Errorf("order of refreshes (-want +got):\n%s", diff)
		}
	})
}

func TestManyDueAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const grants, rate, burst = 500, 10, 10
		due := time.Now().Add(30 * time.Minute)
		f := &fakeSTS{latency: func() time.Duration { return 1500 * time.Millisecond }}
		f.life = func(role.Grant) time.Duration {
			if left := time.Until(due); left > time.Second {
				return time.Duration(float64(left) / 0.49) // 51 % are left at due, for all
			}
			return time.Hour
		}
		cfg := config(f)
		cfg.Rate, cfg.Burst, cfg.Rand = rate, burst, func() float64 { return 0 }
		c, _ := start(t, cfg)
		for i := range grants {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(time.Until(due) - time.Second)
		f.set(func() { f.calls = nil })
		for time.Since(due) < 3*time.Minute {
			for i := range grants {
				s := mustGet(t, c, grant(i))
				if left := s.Left(time.Now()); left < cache.Floor(s.Life()) {
					t.Fatalf("%s served with %s left of %s", s.Grant.ServiceAccount, left, s.Life())
				}
			}
			time.Sleep(10 * time.Second)
		}
		calls := f.seen()
		if len(calls) != grants {
			t.Errorf("%d mints, want %d", len(calls), grants)
		}
		if peak := peakRate(calls, time.Second); peak > rate+burst {
			t.Errorf("%d mints within a second", peak)
		}
		if peak := peakRate(calls, 10*time.Second); peak > 10*rate+burst {
			t.Errorf("%d mints within ten seconds", peak)
		}
		if last := calls[len(calls)-1].at.Sub(due); last > 55*time.Second {
			t.Errorf("the last refresh began %s after it was due: the limiter allows all in 50s", last)
		}
	})
}

func TestConcurrencyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{latency: func() time.Duration { return 5 * time.Second }}
		cfg := config(f)
		cfg.Concurrency, cfg.Rate, cfg.Burst, cfg.Rand = 8, 100, 100, func() float64 { return 0 }
		c, _ := start(t, cfg)
		for i := range 40 {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(time.Minute)
		if n := f.mostAtOnce(); n != 8 {
			t.Errorf("%d first mints at one time, want 8", n)
		}
		time.Sleep(35 * time.Minute)
		if n := f.mostAtOnce(); n != 6 {
			t.Errorf("%d refreshes at one time, want 6: a quarter is for first mints", n)
		}
	})
}

func TestDeniedFirstMint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		denial := failed(sts.Denied, "AccessDenied")
		f := &fakeSTS{latency: func() time.Duration { return 400 * time.Millisecond }}
		f.fail = func(g role.Grant) error {
			if g == grant(1) {
				return denial
			}
			return nil
		}
		c, _ := start(t, config(f))
		begin := time.Now()
		c.Want(grant(1), pod("a"))
		c.Want(grant(2), pod("b"))

		if _, err := get(t, c, grant(1)); !errors.Is(err, denial) || sts.KindOf(err) != sts.Denied {
			t.Fatalf("Get: %v, want the denial", err)
		}
		if took := time.Since(begin); took != 400*time.Millisecond {
			t.Errorf("the first waiter learnt of it after %s, want with the answer", took)
		}
		synctest.Wait() // the other grant's answer comes in the same moment
		for time.Since(begin) < 30*time.Minute {
			before := time.Now()
			if _, err := get(t, c, grant(1)); sts.KindOf(err) != sts.Denied || time.Since(before) != 0 {
				t.Fatalf("Get after %s: %v", time.Since(before), err)
			}
			mustGet(t, c, grant(2))
			// Pods that come and go do not make AWS be asked sooner.
			c.Release(grant(1), "uid-a")
			time.Sleep(500 * time.Millisecond)
			c.Want(grant(1), pod("a"))
			time.Sleep(500 * time.Millisecond)
		}
		calls := f.seen(grant(1))
		for i := range calls[1:] {
			gap := calls[i+1].at.Sub(calls[i].at)
			step := min(2*time.Second<<min(i, 10), time.Minute)
			if gap < step/2 || gap > step+time.Second {
				t.Errorf("try %d came %s after the one before, want %s to %s", i+2, gap, step/2, step)
			}
		}
		f.set(func() { f.fail = nil }) // the policy is repaired
		time.Sleep(61 * time.Second)
		mustGet(t, c, grant(1))
	})
}

func TestDeniedGrantThatChangesIsTriedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{fail: func(g role.Grant) error {
			if g.ExternalID == "" {
				return failed(sts.Denied, "AccessDenied")
			}
			return nil
		}}
		c, _ := start(t, config(f))
		c.Want(grant(1), pod("a"))
		time.Sleep(10 * time.Minute)
		changed := grant(1)
		changed.ExternalID = "42"
		c.Want(changed, pod("a"))
		c.Release(grant(1), "uid-a")
		synctest.Wait()
		mustGet(t, c, changed)
	})
}

func TestDeniedRefreshServesToExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		var mu sync.Mutex
		var outcomes []cache.Outcome
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Logger = slog.New(slog.NewJSONHandler(&logged, nil))
		cfg.Observe = func(o cache.Outcome) {
			mu.Lock()
			defer mu.Unlock()
			outcomes = append(outcomes, o)
		}
		c, stop := start(t, cfg)
		begin := time.Now()
		c.Want(grant(1), pod("a"))
		synctest.Wait()
		f.set(func() { f.fail = always(failed(sts.Denied, "AccessDenied")) })
		for time.Since(begin) < time.Hour {
			mustGet(t, c, grant(1))
			time.Sleep(10 * time.Second)
		}
		if _, err := get(t, c, grant(1)); sts.KindOf(err) != sts.Denied {
			t.Errorf("after expiry: %v, want the denial", err)
		}
		stop()
		var changes []string
		for _, o := range outcomes {
			if o.Changed {
				changes = append(changes, fmt.Sprint(o.Err))
			}
		}
		if len(outcomes) < 20 || len(changes) != 2 || changes[0] != "<nil>" {
			t.Errorf("%d outcomes with changes %q, want many with 2: minted, denied", len(outcomes), changes)
		}
		if lines := strings.Count(logged.String(), "\n"); lines != 2 {
			t.Errorf("%d log lines, want one per change of fortune:\n%s", lines, &logged)
		}
		if strings.Contains(logged.String(), secret) {
			t.Error("a secret was logged")
		}
	})
}

func TestOutageAndRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const grants, rate, burst = 12, 3, 3
		f := &fakeSTS{latency: func() time.Duration { return 300 * time.Millisecond }}
		cfg := config(f)
		cfg.Rate, cfg.Burst = rate, burst
		c, _ := start(t, cfg)
		for i := range grants {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(25 * time.Minute)

		f.set(func() { f.fail = always(failed(sts.Transient, "503")) })
		down := time.Now()
		for time.Since(down) < 30*time.Minute { // shorter than what is left of every session: nobody notices
			for i := range grants {
				mustGet(t, c, grant(i))
			}
			time.Sleep(10 * time.Second)
		}
		for time.Since(down) < 70*time.Minute {
			sessions := slices.Collect(c.Sessions())
			if len(sessions) != grants {
				t.Fatalf("%d sessions", len(sessions))
			}
			for _, s := range sessions {
				if s.Left(time.Now()) > 0 {
					mustGet(t, c, s.Grant) // served to its end
				}
			}
			time.Sleep(time.Minute)
		}
		// The last three are waited for, with a client's patience and persistence.
		var wg sync.WaitGroup
		var mu sync.Mutex
		var served []time.Time
		for i := grants - 3; i < grants; i++ {
			wg.Go(func() {
				for {
					_, err := get(t, c, grant(i))
					if err == nil {
						break
					}
					if e, ok := errors.AsType[*sts.Error](err); !ok || e.Kind != sts.Transient ||
						!errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("while down: %v, want the deadline and the last failure", err)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				served = append(served, time.Now())
			})
		}
		time.Sleep(time.Minute)
		f.set(func() { f.fail = nil; f.calls = nil })
		up := time.Now()
		wg.Wait()
		for _, at := range served {
			if after := at.Sub(up); after > 4*time.Second {
				t.Errorf("a waiting grant recovered %s after STS did", after)
			}
		}
		time.Sleep(40 * time.Second)
		for i := range grants {
			mustGet(t, c, grant(i))
		}
		if peak := peakRate(f.seen(), time.Second); peak > rate+burst {
			t.Errorf("%d mints within a second of the recovery", peak)
		}
	})
}

func TestFailingGrantsLeaveRateForRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const broken, healthy = 8, 10
		f := &fakeSTS{}
		f.fail = func(g role.Grant) error {
			if g.Namespace == "broken" {
				return failed(sts.Transient, "IDPCommunicationError")
			}
			return nil
		}
		cfg := config(f)
		cfg.Rate, cfg.Burst = 1, 1 // less than the parked requests would use up
		c, _ := start(t, cfg)
		for i := range healthy {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(time.Minute)
		for i := range broken {
			g := grant(100 + i)
			g.Namespace = "broken"
			c.Want(g, pod("b"))
			go func() {
				for t.Context().Err() == nil {
					get(t, c, g)
				}
			}()
		}
		for range 40 {
			time.Sleep(time.Minute)
			for i := range healthy {
				s := mustGet(t, c, grant(i))
				if left := s.Left(time.Now()); left < cache.Floor(s.Life()) {
					t.Fatalf("%s has %s left because other grants fail", s.Grant.ServiceAccount, left)
				}
			}
		}
	})
}

// TestEveryonesTurnComes: a Grant whose refresh failed for a while is minted again soon after STS answers for it, however
// many others keep failing with requests parked on them.
func TestEveryonesTurnComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const failing = 40
		good := grant(failing)
		began := time.Now()
		down := func() bool { // for the good one
			since := time.Since(began)
			return since > 20*time.Minute && since < 40*time.Minute
		}
		f := &fakeSTS{fail: func(g role.Grant) error {
			if g != good || down() {
				return failed(sts.Transient, "unavailable")
			}
			return nil
		}}
		c, _ := start(t, config(f))
		for i := range failing + 1 {
			c.Want(grant(i), pod(grant(i).ServiceAccount))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var polling sync.WaitGroup
		for i := range failing {
			polling.Go(func() {
				for ctx.Err() == nil {
					once, done := context.WithTimeout(ctx, 900*time.Millisecond)
					_, _ = c.Get(once, grant(i))
					done()
				}
			})
		}
		time.Sleep(40*time.Minute + 2*time.Minute)
		s, err := c.Get(t.Context(), good)
		if err != nil || s.Minted.Sub(began) < 40*time.Minute {
			t.Errorf("two minutes after STS answers again: %v, %v", s, err)
		}
		cancel()
		polling.Wait()
	})
}

func TestReleaseStopsRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Linger = -1
		c, _ := start(t, cfg)
		c.Want(grant(1), pod("a"))
		c.Want(grant(1), pod("a")) // once, however often it is said
		c.Want(grant(1), pod("b"))
		time.Sleep(20 * time.Minute)
		c.Release(grant(1), "uid-a")
		c.Release(grant(1), "uid-a")
		c.Release(grant(2), "uid-a")
		time.Sleep(30 * time.Minute)
		if n := len(f.seen()); n != 2 {
			t.Fatalf("%d mints, want a refresh for the pod that is left", n)
		}
		c.Release(grant(1), "uid-b")
		time.Sleep(15 * time.Minute)
		s := mustGet(t, c, grant(1)) // kept for who comes back
		if got := slices.Collect(c.Sessions()); len(got) != 0 {
			t.Errorf("a released session is still reported: %v", got)
		}
		c.Want(grant(1), pod("c"))
		synctest.Wait()
		if n := len(f.seen()); n != 3 {
			t.Errorf("%d mints, want a refresh at once for the pod that came back past half life", n)
		}
		if mustGet(t, c, grant(1)) == s {
			t.Error("still the old session")
		}
		c.Release(grant(1), "uid-c")
		time.Sleep(24 * time.Hour)
		if n := len(f.seen()); n != 3 {
			t.Errorf("%d mints, want none for a grant that no pod wants", n)
		}
		if _, err := get(t, c, grant(1)); !errors.Is(err, cache.ErrNotWanted) {
			t.Errorf("a day after the release: %v", err)
		}
	})
}

func TestBoundIsOnReleasedGrantsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(&fakeSTS{})
		cfg.MaxReleased, cfg.Rate = 3, 1000
		c, _ := start(t, cfg)
		for i := range 100 {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(time.Second)
		for i := range 10 {
			c.Release(grant(i), "uid-a")
		}
		c.Want(grant(7), pod("b")) // wanted again: not evicted by the following
		for i := 10; i < 13; i++ {
			c.Release(grant(i), "uid-a")
		}
		for i := range 100 {
			_, err := get(t, c, grant(i))
			if gone := i < 10 && i != 7; gone != errors.Is(err, cache.ErrNotWanted) {
				t.Errorf("grant %d: %v", i, err)
			}
		}
	})
}

func TestReleaseWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{fail: always(failed(sts.Transient, "503"))}
		c, _ := start(t, config(f))
		c.Want(grant(1), pod("a"))
		synctest.Wait()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Get(t.Context(), grant(1)); !errors.Is(err, cache.ErrNotWanted) {
				t.Errorf("Get: %v", err)
			}
		})
		synctest.Wait()
		c.Release(grant(1), "uid-a")
		wg.Wait()
	})
}

func TestAnotherPodAfterFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{fail: always(failed(sts.Transient, "pod is gone"))}
		c, err := cache.New(config(f))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b", "c"} {
			c.Want(grant(1), pod(name))
		}
		run(t, c)
		time.Sleep(10 * time.Second)
		var pods []string
		for _, call := range f.seen()[:4] {
			pods = append(pods, call.pod.Name)
		}
		if diff := cmp.Diff([]string{"c", "b", "a", "c"}, pods); diff != "" {
			t.Errorf("pods minted for (-want +got):\n%s", diff)
		}
	})
}

func TestSessionExpiredAtMint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{life: func(role.Grant) time.Duration { return -time.Minute }}
		c, _ := start(t, config(f))
		c.Want(grant(1), pod("a"))
		_, err := get(t, c, grant(1))
		if err == nil || !strings.Contains(err.Error(), "clock") {
			t.Errorf("Get: %v, want a hint at the clock", err)
		}
	})
}

func TestHangingMintIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{latency: func() time.Duration { return time.Hour }}
		c, _ := start(t, config(f))
		begin := time.Now()
		c.Want(grant(1), pod("a"))
		time.Sleep(29 * time.Second)
		f.set(func() { f.latency = nil })
		if _, err := c.Get(t.Context(), grant(1)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 32*time.Second {
			t.Errorf("served after %s, want soon after the time-out of 30s", took)
		}
	})
}

func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var outcomes atomic.Int32
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Observe = func(cache.Outcome) { outcomes.Add(1) }
		c, stop := start(t, cfg)
		c.Want(grant(1), pod("a"))
		synctest.Wait()
		f.set(func() { f.latency = func() time.Duration { return time.Minute } })
		c.Want(grant(2), pod("b"))
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Get(t.Context(), grant(2)); err == nil || sts.KindOf(err) == sts.Denied {
				t.Errorf("parked Get: %v", err)
			}
		})
		synctest.Wait()
		begin := time.Now()
		stop()
		wg.Wait()
		if took := time.Since(begin); took != 0 {
			t.Errorf("shutdown took %s", took)
		}
		mustGet(t, c, grant(1)) // what is in memory is served to the last
		if n := outcomes.Load(); n != 1 {
			t.Errorf("%d outcomes, want 1: an abandoned mint is no failure", n)
		}
		if err := c.Run(t.Context()); err == nil {
			t.Error("a second Run did not fail")
		}
	})
}

func TestGetBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{}
		c, err := cache.New(config(f))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := get(t, c, grant(1)); !errors.Is(err, cache.ErrNotWanted) {
			t.Errorf("Get: %v", err)
		}
		c.Want(grant(1), pod("a"))
		if _, err := get(t, c, grant(1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Get: %v", err)
		}
		if n := len(f.seen()); n != 0 {
			t.Errorf("%d mints before Run", n)
		}
	})
}

func TestConfigErrors(t *testing.T) {
	valid := config(&fakeSTS{})
	tests := []struct {
		field  string
		change func(*cache.Config)
	}{
		{"Minter", func(c *cache.Config) { c.Minter = nil }},
		{"Render", func(c *cache.Config) { c.Render = nil }},
		{"Rate", func(c *cache.Config) { c.Rate = -1 }},
		{"Burst", func(c *cache.Config) { c.Burst = -1 }},
		{"Concurrency", func(c *cache.Config) { c.Concurrency = -1 }},
		{"MintTimeout", func(c *cache.Config) { c.MintTimeout = -1 }},
		{"MaxReleased", func(c *cache.Config) { c.MaxReleased = -1 }},
	}
	for _, tt := range tests {
		t.Run(tt.field, func(t *testing.T) {
			cfg := valid
			tt.change(&cfg)
			if _, err := cache.New(cfg); err == nil || !strings.Contains(err.Error(), tt.field) {
				t.Errorf("New: %v, want an error that names %s", err, tt.field)
			}
		})
	}
}
