package cache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/podrole/podrole/pkg/role"
)

// maxSleep is the longest the scheduler goes without looking at every entry. Timers run on the monotonic clock and
// sessions expire by the wall clock: after a jump of the latter, this is how late the scheduler notices.
const maxSleep = time.Minute

// Run mints and refreshes until ctx ends, then abandons the mints under way, waits for them and returns nil. Get
// goes on serving the Sessions there are, and parks no more. Run can be called once.
func (c *Cache) Run(ctx context.Context) error {
	if !c.ran.CompareAndSwap(false, true) {
		return errors.New("run cache: it has run already")
	}
	defer close(c.stopped)
	var flights sync.WaitGroup
	defer flights.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		e, pod, wait := c.next(time.Now())
		if e != nil {
			flights.Go(func() { c.mint(ctx, e, pod) })
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-timer.C:
		}
	}
	return nil
}

// next takes the entry that is to be minted now, with the pod to do it for. If there is none it returns the time to
// sleep, at most. A scan of all entries beats a heap here: a node holds a few hundred pods at most, and what is due,
// and in which order, depends on who is waiting this very moment.
func (c *Cache) next(now time.Time) (*entry, role.Workload, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sleep := maxSleep
	var best, first *entry // of all, and of those that are not retries
	var gone []*entry
	for _, e := range *c.entries.Load() {
		if !e.wanted() {
			switch keep := e.keep(now, c.cfg.Linger); {
			case keep > 0:
				sleep = min(sleep, keep)
			case !e.minting:
				gone = append(gone, e)
			}
			continue
		}
		wait, ok := e.wait(now)
		switch {
		case !ok:
		case wait > 0:
			sleep = min(sleep, wait)
		case !c.hasRoom(e, now): // a mint that ends looks again
		default:
			if e.before(best) {
				best = e
			}
			if e.failure.count == 0 && e.before(first) {
				first = e
			}
		}
	}
	if len(gone) > 0 {
		c.drop(gone...)
	}
	if best == nil {
		return nil, role.Workload{}, sleep
	}
	if delay := c.reserve(now); delay > 0 {
		return nil, role.Workload{}, min(sleep, delay)
	}
	// Every other mint goes to a first try if one is due: Grants that keep failing, with requests parked on them, must
	// not use up the rate that refreshes need.
	if c.retried && first != nil {
		best = first
	}
	c.retried = best.failure.count > 0
	best.minting = true
	c.flights++
	return best, best.sponsor(), 0
}

// hasRoom reports whether e may be minted beside what is under way. Caller holds mu.
func (c *Cache) hasRoom(e *entry, now time.Time) bool {
	room := c.cfg.Concurrency
	if e.failure.count > 0 || e.session.Load().live(now) {
		room -= c.cfg.Concurrency / 4
	}
	return c.flights < room
}

// reserve takes a token of the rate limiter, or returns the time until there is one. Caller holds mu.
func (c *Cache) reserve(now time.Time) time.Duration {
	r := c.limiter.ReserveN(now, 1)
	delay := r.DelayFrom(now)
	if delay > 0 {
		r.CancelAt(now)
	}
	return delay
}

// mint is one flight: one mint for e, on the context of Run and no caller's.
func (c *Cache) mint(ctx context.Context, e *entry, pod role.Workload) {
	session, took, err := c.call(ctx, e.grant, pod)
	stopping := err != nil && ctx.Err() != nil

	c.mu.Lock()
	e.minting = false
	c.flights--
	var outcome Outcome
	if !stopping { // a mint that was abandoned says nothing about its Grant
		outcome = c.record(e, pod, session, err, took)
	}
	e.settle()
	c.look()
	c.mu.Unlock()

	if !stopping {
		c.report(ctx, outcome, session)
	}
}

// call makes the mint and renders its Session.
func (c *Cache) call(ctx context.Context, g role.Grant, pod role.Workload) (*Session, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.MintTimeout)
	defer cancel()
	start := time.Now()
	creds, err := c.cfg.Minter.Mint(ctx, g, pod)
	minted := time.Now()
	took := minted.Sub(start)
	if err != nil {
		return nil, took, err
	}
	s := &Session{Grant: g, Credentials: creds, Minted: minted}
	if !s.live(minted) {
		return nil, took, fmt.Errorf("mint session for %s: it expired at %s, before it came; check the node's clock",
			g.RoleARN, creds.Expiration.UTC().Format(time.RFC3339))
	}
	s.Body = c.cfg.Render(creds, minted)
	return s, took, nil
}

// report logs and observes an Outcome: changes of fortune where an operator looks, the rest for debugging.
func (c *Cache) report(ctx context.Context, o Outcome, s *Session) {
	c.cfg.Observe(o)
	level := slog.LevelDebug
	attrs := []slog.Attr{slog.Any("grant", o.Grant), slog.Any("pod", o.Pod), slog.Duration("took", o.Took)}
	if o.Err != nil {
		if o.Changed {
			level = slog.LevelWarn
		}
		c.cfg.Logger.LogAttrs(ctx, level, "mint failed", append(attrs, slog.Any("error", o.Err))...)
		return
	}
	if o.Changed {
		level = slog.LevelInfo
	}
	c.cfg.Logger.LogAttrs(ctx, level, "session minted",
		append(attrs, slog.Time("expiration", s.Credentials.Expiration))...)
}
