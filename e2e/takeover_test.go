package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// crowd is pods that ask for their credentials and for facts of the node all the time, over each address family.
type crowd struct {
	cancel context.CancelFunc
	asking sync.WaitGroup

	mu       sync.Mutex // guards the following
	requests int
	slowest  time.Duration
	failed   []string
}

// startCrowd has a crowd begin to ask.
func startCrowd(t *testing.T, bed *testbed.Bed, pods map[string]*nodebox.Pod) *crowd {
	t.Helper()
	services := []string{metadataIPv4}
	if bed.Box.HasIPv6() {
		services = append(services, metadataIPv6)
	}
	c := &crowd{}
	ctx, cancel := context.WithCancel(t.Context())
	c.cancel = cancel
	for role, pod := range pods {
		questions := []struct{ path, want string }{
			{credentials + role, "AccessKeyId"},
			{"/latest/meta-data/placement/availability-zone", testbed.Region},
			{"/latest/meta-data/instance-id", "i-"},
		}
		for _, service := range services {
			c.asking.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					q := questions[n%len(questions)]
					began := time.Now()
					got := ask(context.WithoutCancel(ctx), pod.Namespace, http.MethodGet, service+q.path)
					c.note(service+q.path, q.want, got, time.Since(began))
				}
			})
		}
	}
	t.Cleanup(func() { c.stop() })
	return c
}

func (c *crowd) note(url, want string, got answer, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	c.slowest = max(c.slowest, took)
	if got.err != nil || got.status != http.StatusOK || !strings.Contains(got.body, want) {
		c.failed = append(c.failed, fmt.Sprintf("%s: %s after %s", url, got, took.Round(time.Millisecond)))
	}
}

// stop ends the crowd and returns what it saw.
func (c *crowd) stop() (requests int, slowest time.Duration, failed []string) {
	c.cancel()
	c.asking.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests, c.slowest, c.failed
}

// takeoverStage is a bed with pods, and what agents that share a node are started with.
func takeoverStage(t *testing.T, backend string) (bed *testbed.Bed, pods map[string]*nodebox.Pod, flags []string) {
	t.Helper()
	bed = newBed(t, testbed.Config{})
	pods = map[string]*nodebox.Pod{"orders": addPod(t, bed, "orders", "orders"), "reports": addPod(t, bed, "reports", "reports")}
	return bed, pods, []string{
		"--state-dir-on-disk", "--state-dir=" + filepath.Join(bed.Box.Dir, "state"), "--iptables-backend=" + backend,
	}
}

// TestTakeover: an update of the agent is nothing that a pod notices.
func TestTakeover(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			bed, pods, flags := takeoverStage(t, backend)
			old := startAgent(t, bed, flags...)
			load := startCrowd(t, bed, pods)
			const takeovers = 10
			for range takeovers {
				fresh := startAgent(t, bed, flags...)
				eventually(t, "the old agent stands by", func() string {
					if !strings.Contains(old.Log(), "stands by") {
						return "it does not say so"
					}
					return ""
				})
				if err := old.Stop(); err != nil {
					t.Fatal(err)
				}
				if log := old.Log(); strings.Contains(log, "has been repaired") || strings.Contains(log, "owns the redirect again") {
					t.Errorf("the old agent took the redirect back:\n%s", log)
				}
				old = fresh
			}
			requests, slowest, failed := load.stop()
			t.Logf("%d takeovers: %d of %d requests failed, the slowest took %s", takeovers, len(failed), requests, slowest)
			for _, f := range failed {
				t.Error(f)
			}
			if requests < 1000 {
				t.Errorf("only %d requests", requests)
			}
			noLeaks(t, bed)
		})
	}
}

// TestOwnerLeavesOrDies: the agent that stands by takes the redirect back, at once.
func TestOwnerLeavesOrDies(t *testing.T) {
	bed, pods, flags := takeoverStage(t, "auto")
	old := startAgent(t, bed, flags...)
	load := startCrowd(t, bed, pods)
	fresh := startAgent(t, bed, flags...)
	eventually(t, "the old agent stands by", func() string {
		if !strings.Contains(old.Log(), "stands by") {
			return "it does not say so"
		}
		return ""
	})
	if err := fresh.Stop(); err != nil { // told to end, it waits for its heir
		t.Fatal(err)
	}
	if !strings.Contains(old.Log(), "owns the redirect again") {
		t.Errorf("the agent that stood by did not take over:\n%s", old.Log())
	}
	if requests, slowest, failed := load.stop(); len(failed) > 0 || requests == 0 {
		t.Errorf("%d of %d requests failed when the owner ended, the slowest took %s: %q", len(failed), requests, slowest, failed)
	}

	fresh = startAgent(t, bed, flags...)
	if err := fresh.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, "served after the owner was killed", func() string {
		if got := get(t, pods["orders"], credentials+"orders"); got.status != http.StatusOK {
			return got.String()
		}
		return ""
	})
	t.Logf("served %s after the owner was killed", time.Since(began).Round(time.Millisecond))
	noLeaks(t, bed)
}

// TestBackendsDiffer: an agent that wrote to the other iptables backend, and is gone, leaves nothing that leads pods astray.
func TestBackendsDiffer(t *testing.T) {
	for _, pair := range [][2]string{{"nft", "legacy"}, {"legacy", "nft"}} {
		t.Run(pair[0]+"_then_"+pair[1], func(t *testing.T) {
			bed, pods, flags := takeoverStage(t, pair[0])
			old := startAgent(t, bed, flags...)
			fresh := startAgent(t, bed, append(flags, "--iptables-backend="+pair[1])...)
			eventually(t, "the old agent stands by", func() string {
				if !strings.Contains(old.Log(), "stands by") {
					return "it does not say so"
				}
				return ""
			})
			if err := fresh.Kill(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "served by the old agent", func() string {
				if got := get(t, pods["orders"], credentials+"orders"); got.status != http.StatusOK {
					return got.String()
				}
				return ""
			})
			noLeaks(t, bed)
		})
	}
}
