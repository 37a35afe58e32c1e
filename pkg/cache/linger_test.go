package cache_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// TestLinger: a Grant whose last pod is gone is refreshed for one life of its Session, and its Session is then kept to
// its end.
func TestLinger(t *testing.T) {
	const due = 29*time.Minute + 24*time.Second
	tests := []struct {
		name   string
		linger time.Duration
		mints  []time.Duration // after the first
		gone   time.Duration   // when the last Session is dropped
	}{
		{"one_life", 0, []time.Duration{due, 2 * due}, 2*due + time.Hour},
		{"half_an_hour", 30 * time.Minute, []time.Duration{due}, due + time.Hour},
		{"not_at_all", -1, nil, time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeSTS{}
				cfg := config(f)
				cfg.Linger, cfg.Rand = tt.linger, func() float64 { return 0 }
				c, _ := start(t, cfg)
				begin := time.Now()
				c.Want(grant(1), pod("a"))
				synctest.Wait()
				c.Release(grant(1), "uid-a")
				time.Sleep(tt.gone - time.Second)
				mustGet(t, c, grant(1))
				var at []time.Duration
				for _, call := range f.seen()[1:] {
					at = append(at, call.at.Sub(begin))
					if call.pod != pod("a") {
						t.Errorf("minted for %v, want the pod that was there last", call.pod)
					}
				}
				if diff := cmp.Diff(tt.mints, at); diff != "" {
					t.Errorf("mints after the first (-want +got):\n%s", diff)
				}
				time.Sleep(2 * time.Second)
				if _, err := get(t, c, grant(1)); err == nil {
					t.Error("still served after the end")
				}
				time.Sleep(24 * time.Hour)
				if n := len(f.seen()); n != 1+len(tt.mints) {
					t.Errorf("%d mints in all", n)
				}
			})
		})
	}
}

func TestDeniedGrantDoesNotLinger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{}
		c, _ := start(t, config(f))
		c.Want(grant(1), pod("a"))
		synctest.Wait()
		c.Release(grant(1), "uid-a")
		f.set(func() { f.fail = always(failed(sts.Denied, "AccessDenied")) })
		time.Sleep(3 * time.Hour)
		if n := len(f.seen()); n != 2 {
			t.Errorf("%d mints, want the first and one that was denied", n)
		}
	})
}

// TestLingeringGivesWay: what pods want goes before what lingers, also when that expires earlier.
func TestLingeringGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Rand = func() float64 { return 0 }
		cfg.Rate, cfg.Burst = 0.01, 10
		c, _ := start(t, cfg)
		for i := range 5 {
			c.Want(grant(i), pod("a"))
			synctest.Wait()
			time.Sleep(time.Millisecond)
		}
		for i := range 4 {
			c.Release(grant(i), "uid-a")
		}
		// An outage spends the limiter, and all are due when it ends.
		f.set(func() { f.fail = always(failed(sts.Throttled, "Throttling")) })
		time.Sleep(40 * time.Minute)
		f.set(func() { f.fail, f.calls = nil, nil })
		time.Sleep(2 * time.Minute)
		if calls := f.seen(); len(calls) == 0 || calls[0].grant != grant(4) {
			t.Errorf("calls %v, want the grant that is wanted first", calls)
		}
	})
}

// TestPodThatComesBackPrepares: a Grant that gets a pod again prepares the Minter for the next time without one.
func TestPodThatComesBackPrepares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &preparing{fakeSTS: &fakeSTS{}}
		cfg := config(p.fakeSTS)
		cfg.Minter = p
		c, stop := start(t, cfg)
		c.Want(grant(1), pod("a"))
		synctest.Wait()
		c.Want(grant(1), pod("b"))
		synctest.Wait()
		c.Release(grant(1), "uid-a")
		c.Release(grant(1), "uid-b")
		time.Sleep(time.Minute)
		c.Want(grant(1), pod("c"))
		c.Want(grant(1), pod("d"))
		time.Sleep(time.Minute)
		stop()
		if len(p.prepared) != 1 || p.prepared[0].pod.Namespace != "default" {
			t.Errorf("prepared %v, want once", p.prepared)
		}
		if n := len(p.seen()); n != 1 {
			t.Errorf("%d mints, want no other for the pod that came", n)
		}
	})
}

// TestReleaseInTheMiddleOfAMint: a request that is parked then gets the mint's result, or learns that none is coming.
func TestReleaseInTheMiddleOfAMint(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeSTS{latency: func() time.Duration { return time.Second }}
			if fails {
				f.fail = always(failed(sts.Transient, "503"))
			}
			cfg := config(f)
			cfg.Observe = func(cache.Outcome) { time.Sleep(time.Millisecond) } // the flight ends after its mint
			c, _ := start(t, cfg)
			c.Want(grant(1), pod("a"))
			time.AfterFunc(time.Second/2, func() { c.Release(grant(1), "uid-a") })
			begin := time.Now()
			_, err := c.Get(t.Context(), grant(1))
			if took := time.Since(begin); took > time.Second+time.Millisecond || errors.Is(err, cache.ErrNotWanted) != fails {
				t.Errorf("after %s: %v", took, err)
			}
		})
	}
}

// TestOneMintPerGrant: a Grant that is dropped and wanted again while its mint is under way waits for that one.
func TestOneMintPerGrant(t *testing.T) {
	drop := map[string]func(*cache.Cache){
		"revoked": func(c *cache.Cache) { c.Revoke(grant(1), "uid-a") },
		"evicted": func(c *cache.Cache) {
			c.Release(grant(1), "uid-a")
			c.Release(grant(2), "uid-a")
		},
	}
	for name, drop := range drop {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeSTS{latency: func() time.Duration { return 10 * time.Second }}
				var outcomes []role.Grant
				cfg := config(f)
				cfg.MaxReleased = 1
				cfg.Observe = func(o cache.Outcome) { outcomes = append(outcomes, o.Grant) }
				c, stop := start(t, cfg)
				c.Want(grant(2), pod("a"))
				time.Sleep(time.Minute)
				begin := time.Now()
				c.Want(grant(1), pod("a"))
				time.Sleep(time.Second)
				drop(c)
				time.Sleep(time.Second)
				c.Want(grant(1), pod("b"))
				time.Sleep(time.Second)
				if n := f.mostAtOnce(); n > 1 {
					t.Errorf("%d mints at one time", n)
				}
				if _, err := c.Get(t.Context(), grant(1)); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begin); took != 10*time.Second {
					t.Errorf("served after %s, want when the one mint came", took)
				}
				time.Sleep(time.Minute)
				if n := len(f.seen(grant(1))); n != 1 {
					t.Errorf("%d mints", n)
				}
				stop()
				if diff := cmp.Diff([]role.Grant{grant(2), grant(1)}, outcomes); diff != "" {
					t.Errorf("outcomes (-want +got):\n%s", diff)
				}
			})
		})
	}
}
