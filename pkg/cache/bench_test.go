package cache_test

import (
	"context"
	"testing"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
)

// warm returns a Cache with n Sessions, not running any more.
func warm(b *testing.B, n int) *cache.Cache {
	b.Helper()
	cfg := config(&fakeSTS{})
	cfg.Rate, cfg.Burst = 1e6, n
	c, err := cache.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.Run(ctx)
	}()
	for i := range n {
		c.Want(grant(i), pod("a"))
		if _, err := c.Get(ctx, grant(i)); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	<-done
	return c
}

func BenchmarkGet(b *testing.B) {
	c := warm(b, 100)
	g := grant(50)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Get(ctx, g); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGetParallel(b *testing.B) {
	c := warm(b, 100)
	grants := make([]role.Grant, 100)
	for i := range grants {
		grants[i] = grant(i)
	}
	ctx := context.Background()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := c.Get(ctx, grants[i%len(grants)]); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
