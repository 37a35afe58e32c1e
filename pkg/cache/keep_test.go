package cache_test

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
)

// TestRestart: a hundred Sessions of all ages are served again without a mint, once they are wanted, and are refreshed
// when they would have been.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		store := &fakeStore{}
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Store = store
		c, stop := start(t, cfg)
		for i := range n {
			c.Want(grant(i), pod("a"))
			time.Sleep(40 * time.Second) // over an hour in all: some are in their second session
		}
		stop()
		f.set(func() { f.calls = nil })

		time.Sleep(time.Second)
		c, _ = start(t, cfg)
		for i := range n {
			if _, err := get(t, c, grant(i)); !errors.Is(err, cache.ErrNotWanted) {
				t.Fatalf("served before the decision: %v", err)
			}
			c.Want(grant(i), pod("a"))
			s := mustGet(t, c, grant(i))
			if !bytes.HasPrefix(s.Body, []byte("ASIA")) || s.Grant != grant(i) ||
				s.RefreshLeft != store.kept[grant(i)].RefreshLeft {
				t.Fatalf("session %+v", s)
			}
		}
		synctest.Wait()
		if calls := f.seen(); len(calls) != 0 {
			t.Errorf("%d mints after the restart", len(calls))
		}
		time.Sleep(30 * time.Minute)
		if got := len(f.seen()); got < n || got > n+n/10 {
			t.Errorf("%d mints in the half hour after the restart, want each session refreshed once", got)
		}
		for i := range n {
			s := mustGet(t, c, grant(i))
			if left := s.Left(time.Now()); left < cache.Floor(s.Life()) {
				t.Errorf("%s left after the restart", left)
			}
		}
	})
}

func TestKeptSessionThatIsNotServed(t *testing.T) {
	tests := []struct {
		name   string
		age    time.Duration // of the kept session at the restart
		change func(*cache.Session)
		mints  int // at once
		served bool
	}{
		{"good", 10 * time.Minute, func(*cache.Session) {}, 0, true},
		{"past_its_refresh", 40 * time.Minute, func(*cache.Session) {}, 1, true},
		{"expired", time.Hour, func(*cache.Session) {}, 1, false},
		{"of_another_grant", 10 * time.Minute, func(s *cache.Session) { s.Grant.ExternalID = "other" }, 1, false},
		{"of_the_future", 10 * time.Minute, func(s *cache.Session) {
			s.Minted = s.Minted.Add(2 * time.Hour)
			s.Credentials.Expiration = s.Credentials.Expiration.Add(2 * time.Hour)
		}, 1, false},
		{"without_a_plan", 40 * time.Minute, func(s *cache.Session) { s.RefreshLeft = 0 }, 1, true},
		{"with_a_silly_plan", 10 * time.Minute, func(s *cache.Session) { s.RefreshLeft = 5 * time.Hour }, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &fakeStore{}
				cfg := config(&fakeSTS{})
				cfg.Store = store
				c, stop := start(t, cfg)
				c.Want(grant(1), pod("a"))
				synctest.Wait()
				stop()
				kept := *store.kept[grant(1)]
				tt.change(&kept)
				store.kept[grant(1)] = &kept

				time.Sleep(tt.age)
				f := &fakeSTS{latency: func() time.Duration { return time.Second }}
				cfg.Minter = f
				c, _ = start(t, cfg)
				c.Want(grant(1), pod("a"))
				_, err := c.Get(impatient, grant(1))
				if served := err == nil; served != tt.served {
					t.Errorf("served: %t (%v)", served, err)
				}
				if n := len(slices.Collect(c.Sessions())); (n == 1) != tt.served {
					t.Errorf("%d sessions taken over", n)
				}
				time.Sleep(2 * time.Second)
				if n := len(f.seen()); n != tt.mints {
					t.Errorf("%d mints, want %d", n, tt.mints)
				}
				mustGet(t, c, grant(1))
			})
		})
	}
}

// TestRevoke: what was taken away is gone from memory at once and from the Store soon, and no mint under way brings it
// back; what another pod still has is left alone.
func TestRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &fakeStore{}
		f := &fakeSTS{}
		cfg := config(f)
		cfg.Store = store
		c, stop := start(t, cfg)
		c.Want(grant(1), pod("a"))
		c.Want(grant(1), pod("b"))
		synctest.Wait()
		c.Revoke(grant(1), "uid-a")
		synctest.Wait()
		mustGet(t, c, grant(1))
		if !store.has(grant(1)) {
			t.Error("dropped while a pod has it")
		}
		c.Revoke(grant(1), "uid-b")
		if _, err := get(t, c, grant(1)); !errors.Is(err, cache.ErrNotWanted) {
			t.Errorf("after Revoke: %v", err)
		}
		synctest.Wait()
		if store.has(grant(1)) {
			t.Error("still kept")
		}

		// In the middle of a refresh, with a request parked.
		f.set(func() { f.latency = func() time.Duration { return 10 * time.Second } })
		c.Want(grant(2), pod("a"))
		waiter := make(chan error, 1)
		go func() {
			_, err := c.Get(t.Context(), grant(2))
			waiter <- err
		}()
		time.Sleep(time.Second)
		c.Revoke(grant(2), "uid-a")
		synctest.Wait()
		select {
		case err := <-waiter:
			if !errors.Is(err, cache.ErrNotWanted) {
				t.Errorf("parked Get: %v", err)
			}
		default:
			t.Error("a request is still parked on what was revoked")
		}
		time.Sleep(time.Hour)
		if store.has(grant(2)) {
			t.Error("a mint under way brought it back")
		}
		c.Revoke(grant(3), "uid-a") // never seen
		stop()

		// Revoked in an earlier process: Decide says no, nobody calls Want, nothing is served.
		store.kept[grant(4)] = &cache.Session{Grant: grant(4)}
		c, _ = start(t, cfg)
		c.Revoke(grant(4), "uid-a")
		synctest.Wait()
		if store.has(grant(4)) {
			t.Error("what an earlier process kept is still there")
		}
	})
}

// TestStoreIsInNobodysWay: one that hangs or fails delays no mint and no request.
func TestStoreIsInNobodysWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		store := &fakeStore{hold: make(chan struct{})}
		cfg := config(&fakeSTS{})
		cfg.Store = store
		cfg.Logger = slog.New(slog.NewJSONHandler(&logged, nil))
		c, stop := start(t, cfg)
		for i := range 20 {
			c.Want(grant(i), pod("a"))
		}
		time.Sleep(3 * time.Second)
		for i := range 20 {
			mustGet(t, c, grant(i))
		}
		c.Revoke(grant(0), "uid-a")
		if _, err := get(t, c, grant(0)); !errors.Is(err, cache.ErrNotWanted) {
			t.Errorf("after Revoke: %v", err)
		}
		close(store.hold)
		stop() // writes the rest
		if got := len(store.kept); got != 19 || store.has(grant(0)) {
			t.Errorf("%d sessions kept, want the 19 that are left", got)
		}
		store.fail = errors.New("no space left on device")
		c, stop = start(t, cfg)
		g := role.Grant{RoleARN: "arn:aws:iam::111122223333:role/x", Namespace: "n", ServiceAccount: "s"}
		c.Want(g, pod("a"))
		synctest.Wait()
		mustGet(t, c, g)
		stop()
		if !strings.Contains(logged.String(), "no space left") || strings.Contains(logged.String(), secret) {
			t.Errorf("log:\n%s", &logged)
		}
	})
}
