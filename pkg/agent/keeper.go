package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// repairBurst and repairEvery bound what is done about a program that undoes every repair at once. Sweeps go on beside
	// it.
	repairBurst = 20
	repairEvery = 250 * time.Millisecond
	// handover is how long an owner of the redirect that ends goes on answering, so that another agent can lead pods
	// to itself. It hears of the end at once, and the change takes 5 to 150 ms.
	handover = time.Second
	// askEvery is how often an agent asks whether the redirect is still its own. It is a few system calls. Another agent's
	// rules are news of it too, but not with iptables-legacy, where they are of the same size.
	askEvery = time.Second
	// retryPause is how long to wait before trying again to listen to the kernel, or to find out who owns the redirect.
	retryPause = 5 * time.Second
	// repairAgain is how long after a look that failed, as for a lock that somebody held, the next one is.
	repairAgain = time.Second
)

// claims settles which of the agents on this node may change the redirect. *owner.Claimant implements it.
type claims interface {
	Claim(ctx context.Context, change func(context.Context) error) error
	Do(ctx context.Context, change func(context.Context) error) (owns bool, err error)
	Wait(ctx context.Context) error
	Others() (bool, error)
	Resign()
}

// alone is for an agent without a folder to share with others: it takes itself for the only one.
type alone struct{}

func (alone) Claim(ctx context.Context, change func(context.Context) error) error { return change(ctx) }
func (alone) Do(ctx context.Context, change func(context.Context) error) (bool, error) {
	return true, change(ctx)
}
func (alone) Wait(context.Context) error { return nil }
func (alone) Others() (bool, error)      { return false, nil }
func (alone) Resign()                    {}

// half is one half of the redirect, as its keeper sees it.
type half struct {
	name string
	// watch calls changed when it is time to look, until ctx ends.
	watch func(ctx context.Context, changed func()) error
	// ensure puts right what is not, and reports whether anything was. heal is a quick look for the usual damage, which
	// may miss what ensure finds.
	ensure, heal func(ctx context.Context) (repaired bool, err error)
}

// keeper looks after the redirect while it is this agent's, and stands by while it is another's. The halves do not wait for
// each other: whatever holds up iptables, the guard is looked after.
type keeper struct {
	claims claims
	// rules is the half by which agents take the redirect from each other, so that every change of it is preceded by the
	// question whose it is. guard is looked after as long as the answer was "ours".
	rules, guard half
	every        time.Duration // between looks for which there is no occasion
	health       *health
	regained     func() // the redirect has become this agent's again, if only after a claim that was void
	owned        func() // called every askEvery while the redirect is this agent's
	logger       *slog.Logger

	owns atomic.Bool
}

// run begins when the redirect has been claimed and installed, and ends with ctx.
func (k *keeper) run(ctx context.Context) {
	k.owns.Store(true)
	for {
		k.look(ctx)
		if ctx.Err() != nil {
			return
		}
		k.owns.Store(false)
		k.health.standBy(true)
		for err := k.claims.Wait(ctx); err != nil; err = k.claims.Wait(ctx) {
			if !pause(ctx, retryPause) {
				return
			}
			k.logger.Error("cannot tell whether another agent owns the redirect", "error", err)
		}
		k.health.standBy(false)
		k.owns.Store(true)
		k.regained()
	}
}

// leave gives the redirect up. If another agent is there to take it, leave gives it the time to.
func (k *keeper) leave() {
	others, err := k.claims.Others()
	if err != nil {
		k.logger.Warn("cannot tell whether another agent takes the redirect over", "error", err)
	}
	k.claims.Resign()
	if k.owns.Load() && (others || err != nil) {
		time.Sleep(handover)
	}
}

// look keeps both halves whole until ctx ends, or until the redirect is another agent's.
func (k *keeper) look(ctx context.Context) {
	ctx, superseded := context.WithCancel(ctx)
	defer superseded()
	var halves sync.WaitGroup
	defer halves.Wait()
	halves.Go(func() {
		k.follow(ctx, k.guard, func(look func(context.Context) (bool, error)) (bool, error) {
			repaired, err := look(ctx)
			k.health.checked(k.guard.name, repaired, err)
			return repaired, err
		})
	})
	halves.Go(func() {
		k.follow(ctx, k.rules, func(look func(context.Context) (bool, error)) (repaired bool, err error) {
			owns, err := k.claims.Do(ctx, func(ctx context.Context) error {
				var err error
				repaired, err = look(ctx)
				return err
			})
			switch {
			case ctx.Err() != nil: // the end is no fault
			case !owns && err == nil:
				superseded()
			default:
				k.health.checked(k.rules.name, repaired, err)
			}
			return repaired, err
		})
	})
	halves.Go(func() {
		repeat(ctx, askEvery, func() {
			switch owns, err := k.claims.Do(ctx, func(context.Context) error { return nil }); {
			case owns:
				k.owned()
			case err == nil:
				superseded()
			}
		})
	})
}

// guardBefore looks after the guard while no agent owns the redirect yet, until ctx ends. Where another agent does, it is that
// one's.
func (k *keeper) guardBefore(ctx context.Context) {
	k.follow(ctx, k.guard, func(look func(context.Context) (bool, error)) (bool, error) {
		if others, err := k.claims.Others(); err == nil && others {
			return false, nil
		}
		repaired, err := look(ctx)
		if err != nil && ctx.Err() == nil {
			k.logger.Error("guard is not whole; pods may reach the node's metadata", "error", err)
		}
		return repaired, err
	})
}

// follow looks at once, on events, every interval, and again soon after a look that failed, until ctx ends: with do, which
// reports whether it repaired anything.
func (k *keeper) follow(ctx context.Context, h half, do func(look func(context.Context) (bool, error)) (bool, error)) {
	occasion := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() {
		k.watch(ctx, h, func() {
			select {
			case occasion <- struct{}{}:
			default:
			}
		})
	})
	limit := rate.NewLimiter(rate.Every(repairEvery), repairBurst)
	ticker := time.NewTicker(k.every)
	defer ticker.Stop()
	var again <-chan time.Time
	look := func(how func(context.Context) (bool, error)) (repaired bool) {
		repaired, err := do(how)
		if again = nil; err != nil {
			again = time.After(repairAgain)
		}
		return repaired
	}
	look(h.ensure)
	for {
		select {
		case <-ticker.C:
			look(h.ensure)
		case <-again:
			look(h.ensure)
		case <-occasion:
			if look(h.heal) && limit.Wait(ctx) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// watch listens for h until ctx ends. Without it there are still the sweeps.
func (k *keeper) watch(ctx context.Context, h half, changed func()) {
	var said error
	for {
		err := h.watch(ctx, changed)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("it ended")
		}
		if said == nil || said.Error() != err.Error() {
			k.logger.Error("changes of the redirect are not heard of; they are found by sweeps alone",
				"half", h.name, "every", k.every, "error", err)
			said = err
		}
		if !pause(ctx, retryPause) {
			return
		}
	}
}

// pause returns false if ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// retry calls try until it is done, with pauses that double from shortest to longest; try is told how long the next one is.
// It returns false if ctx ends before.
func retry(ctx context.Context, shortest, longest time.Duration, try func(next time.Duration) (done bool)) bool {
	for wait := shortest; !try(wait); wait = min(2*wait, longest) {
		if !pause(ctx, wait) {
			return false
		}
	}
	return true
}
