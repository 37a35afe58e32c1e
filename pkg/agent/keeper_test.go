package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// turns are claims that a test decides about.
type turns struct {
	mu     sync.Mutex
	owns   bool
	fault  error
	others bool
	back   chan struct{} // closed when the redirect is this agent's again
	log    []string
}

func (c *turns) Claim(context.Context, func(context.Context) error) error { return nil }

func (c *turns) Do(ctx context.Context, change func(context.Context) error) (bool, error) {
	c.mu.Lock()
	owns, fault := c.owns, c.fault
	c.mu.Unlock()
	if !owns || fault != nil {
		return false, fault
	}
	return true, change(ctx)
}

func (c *turns) Wait(ctx context.Context) error {
	select {
	case <-c.back:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *turns) Others() (bool, error) { return c.others, nil }
func (c *turns) Resign()               { c.log = append(c.log, "resigned") }

func (c *turns) set(owns bool, fault error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owns, c.fault = owns, fault
}

// kernel is a half that can be damaged, and says so.
type kernel struct {
	mu      sync.Mutex
	looks   int
	broken  bool
	changed func()
}

func (k *kernel) half(name string) half {
	return half{
		name: name,
		watch: func(ctx context.Context, changed func()) error {
			k.mu.Lock()
			k.changed = changed
			k.mu.Unlock()
			<-ctx.Done()
			return nil
		},
		ensure: k.look,
		heal:   k.look,
	}
}

func (k *kernel) look(context.Context) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looks++
	was := k.broken
	k.broken = false
	return was, nil
}

func (k *kernel) damage() {
	k.mu.Lock()
	k.broken = true
	changed := k.changed
	k.mu.Unlock()
	changed()
}

func (k *kernel) state() (looks int, broken bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.looks, k.broken
}

// watchOver runs a keeper of two kernels' halves until the returned function is called.
func watchOver(t *testing.T, c *turns, every time.Duration) (k *keeper, rules, guard *kernel, regained *int, end func()) {
	rules, guard, regained = new(kernel), new(kernel), new(int)
	logger := slog.New(slog.DiscardHandler)
	k = &keeper{
		claims: c, rules: rules.half("rules"), guard: guard.half("guard"), every: every, logger: logger,
		health:   &health{every: every, logger: logger, report: func(bool, bool) {}, warn: func(string, string) {}},
		regained: func() { *regained++ },
		owned:    func() {},
	}
	k.health.install(true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); k.run(ctx) }()
	synctest.Wait()
	return k, rules, guard, regained, func() { cancel(); <-ended }
}

func TestRepairedOnEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rules, guard, _, end := watchOver(t, &turns{owns: true}, time.Hour)
		defer end()
		for _, k := range []*kernel{rules, guard} {
			k.damage()
			synctest.Wait()
			if _, broken := k.state(); broken {
				t.Error("an event led to no repair")
			}
		}
	})
}

// TestUndoneAtOnce: a program that undoes every repair gets a few a second, not all of the processor.
func TestUndoneAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, rules, _, _, end := watchOver(t, &turns{owns: true}, time.Hour)
		defer end()
		for range 3000 {
			rules.damage()
			time.Sleep(10 * time.Millisecond)
		}
		if looks, _ := rules.state(); looks < 120 || looks > 150 {
			t.Errorf("%d looks in half a minute, want 20 at once and four a second", looks)
		}
	})
}

// TestStandsBy: what is another agent's is left alone, until it is given back.
func TestStandsBy(t *testing.T) {
	for name, heard := range map[string]bool{"told_by_an_event": true, "told_by_nobody": false} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testStandsBy(t, heard) }) })
	}
}

func testStandsBy(t *testing.T, heard bool) {
	c := &turns{owns: true, back: make(chan struct{})}
	k, rules, guard, regained, end := watchOver(t, c, time.Minute)
	defer end()
	c.set(false, nil)
	if heard {
		rules.damage() // what it looks like when another agent leads pods to itself
		synctest.Wait()
	} else {
		time.Sleep(askEvery)
		synctest.Wait()
		rules.mu.Lock()
		rules.broken = true
		rules.mu.Unlock()
	}
	before := [2]int{}
	before[0], _ = rules.state()
	before[1], _ = guard.state()
	time.Sleep(time.Hour)
	after := [2]int{}
	after[0], _ = rules.state()
	after[1], _ = guard.state()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("another agent's redirect is looked after (-before +after):\n%s", diff)
	}
	if _, broken := rules.state(); !broken {
		t.Error("another agent's rules were changed")
	}
	if k.health.ready() != nil || k.owns.Load() || *regained != 0 {
		t.Errorf("standing by: ready %v, owns %t, regained %d", k.health.ready(), k.owns.Load(), *regained)
	}

	c.set(true, nil)
	close(c.back)
	synctest.Wait()
	if _, broken := rules.state(); broken || !k.owns.Load() || *regained != 1 {
		t.Errorf("given back: broken %t, owns %t, regained %d", broken, k.owns.Load(), *regained)
	}
}

// TestWhoseItIsCannotBeToldOfIt: an agent that cannot find out whose the redirect is changes no rules, is not well, and does
// not give up.
func TestWhoseItIsCannotBeToldOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &turns{owns: true}
		k, rules, _, _, end := watchOver(t, c, time.Minute)
		defer end()
		c.set(true, errors.New("no folder"))
		rules.damage()
		synctest.Wait()
		if _, broken := rules.state(); !broken || k.health.ready() == nil {
			t.Errorf("broken %t, ready %v", broken, k.health.ready())
		}
		c.set(true, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, broken := rules.state(); broken || k.health.ready() != nil {
			t.Errorf("after the folder is back: broken %t, ready %v", broken, k.health.ready())
		}
	})
}

// TestSweepsWithoutEvents: what nobody tells of is found all the same.
func TestSweepsWithoutEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, rules, _, _, end := watchOver(t, &turns{owns: true}, time.Minute)
		end()
		k.rules.watch = func(context.Context, func()) error { return errors.New("no netlink") }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); k.run(ctx) }()
		defer func() { cancel(); <-ended }()
		synctest.Wait()
		rules.mu.Lock()
		rules.broken = true
		rules.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if _, broken := rules.state(); broken {
			t.Error("no sweep found it")
		}
	})
}

// TestLeave: an owner that ends gives another agent the time to take over, if there is one, and nobody waits otherwise.
func TestLeave(t *testing.T) {
	for _, tt := range []struct {
		name         string
		owns, others bool
		want         time.Duration
	}{
		{"last", true, false, 0},
		{"owner_with_an_heir", true, true, handover},
		{"standby", false, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &turns{others: tt.others}
				k := &keeper{claims: c, logger: slog.New(slog.DiscardHandler)}
				k.owns.Store(tt.owns)
				began := time.Now()
				k.leave()
				if took := time.Since(began); took != tt.want || len(c.log) != 1 {
					t.Errorf("took %s, want %s; %q", took, tt.want, c.log)
				}
			})
		})
	}
}

// TestLooksAgainAfterAFault: what could not be repaired at once, as while another program holds a lock, is tried again soon.
func TestLooksAgainAfterAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, rules, _, _, end := watchOver(t, &turns{owns: true}, time.Hour)
		end()
		faults := 3
		healthy := rules.half("rules")
		k.rules = healthy
		k.rules.heal = func(ctx context.Context) (bool, error) {
			return false, errors.New("another program holds the lock")
		}
		k.rules.ensure = func(ctx context.Context) (bool, error) {
			if faults--; faults > 0 {
				return false, errors.New("another program holds the lock")
			}
			return healthy.ensure(ctx)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); k.run(ctx) }()
		defer func() { cancel(); <-ended }()
		synctest.Wait()
		rules.damage()
		time.Sleep(3 * repairAgain)
		synctest.Wait()
		if _, broken := rules.state(); broken || k.health.ready() != nil {
			t.Errorf("after some seconds: broken %t, ready %v", broken, k.health.ready())
		}
	})
}

// TestGuardBeforeTheClaim: an agent that waits, for the API server or for sessions, looks after the guard, unless another
// agent does.
func TestGuardBeforeTheClaim(t *testing.T) {
	for _, others := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			guard := new(kernel)
			k := &keeper{claims: &turns{others: others}, guard: guard.half("guard"), every: time.Hour, logger: slog.New(slog.DiscardHandler)}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); k.guardBefore(ctx) }()
			defer func() { cancel(); <-ended }()
			synctest.Wait()
			guard.damage()
			synctest.Wait()
			if _, broken := guard.state(); broken != others {
				t.Errorf("with another agent %t: broken %t", others, broken)
			}
		})
	}
}
