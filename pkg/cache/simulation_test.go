package cache_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// TestDay runs a day of an ordinary node: an STS that is slow at times and fails at times, and pods that ask all the
// time.
func TestDay(t *testing.T) {
	for seed := range uint64(2) {
		synctest.Test(t, func(t *testing.T) {
			const grants, hours = 30, 24
			random := rand.New(rand.NewPCG(seed, 7))
			f := &fakeSTS{
				latency: func() time.Duration {
					return 50*time.Millisecond + time.Duration(random.Float64()*float64(2950*time.Millisecond))
				},
				fail: func(role.Grant) error {
					if random.Float64() < 0.02 {
						return failed([]sts.Kind{sts.Transient, sts.Throttled}[random.IntN(2)], "now and then")
					}
					return nil
				},
			}
			c, _ := start(t, config(f))
			begin := time.Now()
			for i := range grants {
				c.Want(grant(i), pod("a"))
			}
			time.Sleep(30 * time.Second)
			lowest := time.Hour
			for time.Since(begin) < hours*time.Hour {
				for i := range grants {
					s := mustGet(t, c, grant(i))
					left := s.Left(time.Now())
					if left < cache.Floor(s.Life()) {
						t.Fatalf("after %s, %s served with %s left", time.Since(begin), s.Grant.ServiceAccount, left)
					}
					lowest = min(lowest, left)
				}
				time.Sleep(30 * time.Second)
			}
			perHour := float64(len(f.seen())) / grants / hours
			if perHour > 2.2 {
				t.Errorf("%.2f mints per grant and hour", perHour)
			}
			t.Logf("%.3f mints per grant and hour, at least %s left", perHour, lowest)
		})
	}
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
