package state_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/state"
	"github.com/podrole/podrole/pkg/sts"
)

// mints is a Minter that counts.
type mints struct{ n atomic.Int32 }

func (m *mints) Mint(context.Context, role.Grant, role.Workload) (sts.Credentials, error) {
	return sts.Credentials{
		AccessKeyID: fmt.Sprintf("ASIA%d", m.n.Add(1)), SecretAccessKey: secret, SessionToken: strings.Repeat("t", 4096),
		Expiration: time.Now().Add(time.Hour),
	}, nil
}

// agent runs a Cache over the folder until stop is called.
func agent(t *testing.T, path string, m *mints) (c *cache.Cache, stop func()) {
	t.Helper()
	l := new(log)
	logger := slog.New(slog.NewJSONHandler(l, nil))
	d, err := state.Open(state.Config{Path: path, AllowDisk: true, Logger: logger})
	check(t, err)
	c, err = cache.New(cache.Config{
		Minter: m, Store: d.Sessions(), Logger: logger, Rate: 1000, Burst: 1000, Concurrency: 200,
		Render: func(c sts.Credentials, _ time.Time) []byte { return []byte(c.AccessKeyID) },
	})
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { check(t, c.Run(ctx)) })
	return c, func() {
		cancel()
		wg.Wait()
		check(t, d.Close())
		if strings.Contains(l.String(), secret) || strings.Contains(l.String(), "WARN") {
			t.Errorf("log:\n%s", l)
		}
	}
}

// TestRestart: the agent comes back with a hundred sessions to serve and no call to STS, serves none before it is wanted,
// and what was revoked meanwhile never; nor does it when a session was changed to another grant's on disk.
func TestRestart(t *testing.T) {
	path := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		const n = 100
		m := new(mints)
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		pod := decision(0).Workload
		c, stop := agent(t, path, m)
		for i := range n {
			c.Want(grant(i), pod)
		}
		synctest.Wait()
		time.Sleep(20 * time.Minute)
		stop()
		if got := m.n.Load(); got != n {
			t.Fatalf("%d mints at first", got)
		}

		begin := time.Now()
		c, stop = agent(t, path, m)
		const revoked = 7
		for i := range n {
			if _, err := c.Get(ended, grant(i)); !errors.Is(err, cache.ErrNotWanted) {
				t.Fatalf("served before the decision: %v", err)
			}
			if i == revoked {
				continue
			}
			c.Want(grant(i), pod)
			if s, err := c.Get(ended, grant(i)); err != nil || s.Credentials.SecretAccessKey != secret || len(s.Body) == 0 {
				t.Fatalf("session %d: %v", i, err)
			}
		}
		if took := time.Since(begin); took > 200*time.Millisecond {
			t.Errorf("took %s of the bubble's time", took)
		}
		c.Revoke(grant(0), pod.UID)
		if _, err := c.Get(ended, grant(revoked)); !errors.Is(err, cache.ErrNotWanted) {
			t.Errorf("revoked while down: %v", err)
		}
		synctest.Wait()
		stop()
		if got := m.n.Load(); got != n {
			t.Errorf("%d mints after the restart", got-n)
		}
		if got := len(files(t, filepath.Join(path, "sessions"))); got != n-1 {
			t.Errorf("%d sessions kept, want all but the revoked one", got)
		}
	})
}

func BenchmarkSave(b *testing.B) {
	d := benchDir(b)
	s := session(0)
	s.Credentials.SessionToken = strings.Repeat("t", 4096)
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Sessions().Save(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	d := benchDir(b)
	if err := d.Sessions().Save(session(0)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if d.Sessions().Load(grant(0)) == nil {
			b.Fatal("no session")
		}
	}
}

// benchDir is in memory where there is such a place.
func benchDir(b *testing.B) *state.Dir {
	b.Helper()
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = b.TempDir()
	}
	path, err := os.MkdirTemp(parent, "podrole-bench-")
	if err != nil {
		b.Fatal(err)
	}
	d, err := state.Open(state.Config{Path: path, AllowDisk: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _, _ = d.Close(), os.RemoveAll(path) })
	return d
}
