package cache

import (
	"time"

	"github.com/podrole/podrole/pkg/sts"
)

// A session is refreshed when it has between refreshFrom and refreshFrom+refreshSpread of its life left: never later
// than half life, so that the way down to Floor (5 minutes of an hour) is all there for a slow or failing STS; a
// little earlier at random, so that sessions minted together drift apart. That makes 2.1 mints per Grant and hour.
const (
	refreshFrom   = 0.50
	refreshSpread = 0.04
)

// refreshLeft draws the time a session of the given life has left when it is due.
func refreshLeft(life time.Duration, random float64) time.Duration {
	return time.Duration(float64(life) * (refreshFrom + refreshSpread*random))
}

// pressure is how much a Grant's next try matters.
type pressure int

const (
	relaxed pressure = iota // the session is above its floor
	low                     // it is below, or there is none
	waited                  // a request is parked
)

// pressure returns how much e's next try matters at now.
func (e *entry) pressure(now time.Time) pressure {
	switch s := e.session.Load(); {
	case e.waiting > 0:
		return waited
	case s == nil || s.Left(now) < Floor(s.Life()):
		return low
	default:
		return relaxed
	}
}

// maxBackoff is the longest delay after any failure. IAM changes spread slowly but within the minute or so, and a
// policy that was repaired should work again about as soon as its author looks.
const maxBackoff = 60 * time.Second

// backoff returns the delay after the count-th failure in a row, before jitter. It doubles from a second (two where
// AWS said no or not so fast) to a ceiling that is lower under pressure, unless AWS denied: nobody is helped by
// asking sooner.
func backoff(kind sts.Kind, count int, p pressure) time.Duration {
	base, ceiling := time.Second, 30*time.Second
	switch {
	case kind == sts.Denied:
		base, ceiling = 2*time.Second, maxBackoff
	case kind == sts.Throttled && p == waited:
		base, ceiling = 2*time.Second, 5*time.Second
	case kind == sts.Throttled:
		base, ceiling = 2*time.Second, maxBackoff
	case p == waited:
		ceiling = 2 * time.Second
	case p == low:
		ceiling = 10 * time.Second
	}
	return min(base<<min(count-1, 10), ceiling)
}

// delay is the time from the last failure to the next try: at least half of backoff, the rest at random.
func (e *entry) delay(now time.Time) time.Duration {
	f := e.failure
	return time.Duration(float64(backoff(f.kind, f.count, e.pressure(now))) * (0.5 + f.jitter/2))
}

// wait returns the time until e is due for a mint, not positive if it is due; false if it is not to be minted, being
// under way or not wanted. It is computed anew each time: nothing has to be rescheduled when a request parks, a
// session sinks below its floor or the clock jumps.
func (e *entry) wait(now time.Time) (time.Duration, bool) {
	switch s := e.session.Load(); {
	case e.minting || !e.wanted():
		return 0, false
	case e.failure.count > 0:
		return e.delay(now) - now.Sub(e.failure.last), true
	case s == nil:
		return 0, true
	default:
		return s.Left(now) - e.refreshLeft, true
	}
}

// keep returns how long a released entry is kept from now on; not positive if it is of no more use. A failure is
// remembered until its longest delay is over, or pods that come and go would ask AWS at each coming.
func (e *entry) keep(now time.Time, linger time.Duration) time.Duration {
	var left time.Duration
	if e.failure.count > 0 {
		left = maxBackoff - now.Sub(e.failure.last)
	}
	if s := e.session.Load(); s != nil {
		kept := s.Left(now)
		if linger > 0 {
			kept = min(kept, linger-now.Sub(e.released))
		}
		left = max(left, kept)
	}
	return left
}

// before reports whether e, being due, is minted before other: a waiting request first, then the earliest expiry, no
// session being earliest of all, then the earlier entry.
func (e *entry) before(other *entry) bool {
	if other == nil {
		return true
	}
	if w, o := e.waiting > 0, other.waiting > 0; w != o {
		return w
	}
	if c := e.expiry().Compare(other.expiry()); c != 0 {
		return c < 0
	}
	return e.order < other.order
}

func (e *entry) expiry() time.Time {
	if s := e.session.Load(); s != nil {
		return s.Credentials.Expiration
	}
	return time.Time{}
}
