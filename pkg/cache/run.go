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

// maxOverdue is how long a mint that is due may be passed over for more urgent ones.
const maxOverdue = 5 * time.Second

// Run mints and refreshes until ctx ends, then abandons the mints under way, waits for them and returns nil. Get
// goes on serving the Sessions there are, and parks no more. Run can be called once.
func (c *Cache) Run(ctx context.Context) error {
	if !c.ran.CompareAndSwap(false, true) {
		return errors.New("run cache: it has run already")
	}
	defer close(c.stopped)
	var flights, keeper sync.WaitGroup
	done := make(chan struct{})
	keeper.Go(func() { c.keep(done) })
	defer func() {
		flights.Wait()
		close(done)
		keeper.Wait()
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		f, wait := c.next(time.Now())
		if f != nil {
			flights.Go(func() { c.fly(ctx, f) })
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

// flight is one call of the Minter for a Grant. A Grant has one under way at most, also when its entry is dropped and
// made anew meanwhile.
type flight struct {
	grant   role.Grant
	pod     role.Workload
	prepare bool // only that, no mint
}

// next takes the flight that is to start now. If there is none it returns the time to sleep, at most. A scan of all
// entries beats a heap here: a node holds a few hundred pods at most, and what is due, and in which order, depends on
// who is waiting this very moment.
func (c *Cache) next(now time.Time) (*flight, time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	sleep := maxSleep
	var best, first *entry // of all, and of those that are not retries
	var starving *entry    // overdue for longest, and for too long
	longest := maxOverdue
	var unready *entry
	var gone []*entry
	for g, e := range *c.entries.Load() {
		if !e.wanted() {
			keep := e.keep(now, c.cfg.Linger)
			if keep <= 0 {
				if !c.flying[g] { // else somebody may be parked on what that brings
					gone = append(gone, e)
				}
				continue
			}
			sleep = min(sleep, keep)
			if e.lingers(now, c.cfg.Linger) <= 0 {
				continue
			}
		}
		wait := e.wait(now)
		switch {
		case c.flying[g] || !c.hasRoom(e, now): // a flight that ends looks again
		case wait > 0:
			sleep = min(sleep, wait)
			if e.unready && e.before(unready) {
				unready = e
			}
		default:
			if e.before(best) {
				best = e
			}
			if e.failure.count == 0 && e.before(first) {
				first = e
			}
			if e.wanted() && -wait > longest {
				starving, longest = e, -wait
			}
		}
	}
	if len(gone) > 0 {
		c.drop(gone...)
	}
	if best != nil {
		if delay := c.reserve(now); delay > 0 {
			best, sleep = nil, min(sleep, delay)
		}
	}
	switch {
	case best != nil:
		// Every other mint goes to a first try if one is due: Grants that keep failing, with requests parked on them, must
		// not use up the rate that refreshes need.
		if c.retried && first != nil {
			best = first
		}
		// Every other one goes to whoever is overdue for longest, if that is too long: whatever keeps others in front, be it
		// requests parked on Grants that fail or a pod whose Grant changes all the time, everyone's turn comes.
		if c.fair = !c.fair && starving != nil; c.fair {
			best = starving
		}
		c.retried = best.failure.count > 0
		return c.start(best, false), 0
	case unready != nil:
		return c.start(unready, true), 0
	}
	return nil, sleep
}

// start makes the flight for e. Caller holds mu.
func (c *Cache) start(e *entry, prepare bool) *flight {
	c.flying[e.grant] = true
	e.unready = false
	return &flight{grant: e.grant, pod: e.sponsor(), prepare: prepare}
}

// hasRoom reports whether e may be minted beside what is under way. Caller holds mu.
func (c *Cache) hasRoom(e *entry, now time.Time) bool {
	room := c.cfg.Concurrency
	if e.failure.count > 0 || e.session.Load().live(now) {
		room -= c.cfg.Concurrency / 4
	}
	return len(c.flying) < room
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

// fly carries out f, on the context of Run and no caller's. Until it has returned there is no other flight for its
// Grant: a Grant's Outcomes are observed in their order.
func (c *Cache) fly(ctx context.Context, f *flight) {
	if f.prepare {
		ctx, cancel := context.WithTimeout(ctx, c.cfg.MintTimeout)
		defer cancel()
		c.cfg.Minter.(Preparer).Prepare(ctx, f.grant, f.pod)
	} else {
		c.mint(ctx, f)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.flying, f.grant)
	if e := (*c.entries.Load())[f.grant]; e != nil && !e.wanted() {
		e.settle() // who is parked there waits for this flight and no other
	}
	c.look()
}

// mint makes one mint and lets everybody know. Its result belongs to the entry that the Grant has when it comes, which
// need not be the one it started for; without any, it is nobody's.
func (c *Cache) mint(ctx context.Context, f *flight) {
	session, took, err := c.call(ctx, f.grant, f.pod)
	if err != nil && ctx.Err() != nil {
		return // a mint that was abandoned says nothing about its Grant
	}
	outcome := Outcome{Grant: f.grant, Pod: f.pod, Err: err, Took: took}
	c.mu.Lock()
	e := (*c.entries.Load())[f.grant]
	if e != nil {
		outcome.Changed = c.record(e, session, err)
		e.settle()
	}
	c.mu.Unlock()
	c.report(ctx, outcome, session)
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
