package cache

import (
	"time"

	"github.com/podrole/podrole/pkg/sts"
)

// A session is refreshed when it has between refreshFrom and refreshFrom+refreshSpread of its life left. A little before
// half life, so that half an hour without STS passes unnoticed, with time to come back; a little earlier still at
// random, so that sessions minted together drift apart. That makes 2.1 mints per Grant and hour.
const (
	refreshFrom   = 0.51
	refreshSpread = 0.03
)

// refreshLeft draws the time a session of the given life has left when it is due.
func refreshLeft(life time.Duration, random float64) time.Duration {
	return time.Duration(float64(life) * (refreshFrom + refreshSpread*random))
}

// pressure is how much a Grant's next try matters.
type pressure int

const (
	idle    pressure = iota // no pod wants it
	relaxed                 // the session is above its floor
	low                     // it is below, or there is none
	urgent                  // it is about to expire
	waited                  // a request is parked
)

// pressure returns how much e's next try matters at now.
func (e *entry) pressure(now time.Time) pressure {
	switch s := e.session.Load(); {
	case !e.wanted():
		return idle
	case e.waiting > 0:
		return waited
	case s.live(now) && s.Left(now) < s.Life()/12: // 5 minutes of an hour
		return urgent
	case s == nil || s.Left(now) < Floor(s.Life()):
		return low
	default:
		return relaxed
	}
}

// maxBackoff is the longest delay after a failure. IAM changes spread slowly but within the minute or so, and a
// policy that was repaired should work again about as soon as its author looks.
const maxBackoff = 60 * time.Second

// idleBackoff is the same for a Grant that no pod wants: nobody is waiting, and it is not to be in anybody's way.
const idleBackoff = 5 * time.Minute

// backoff returns the delay after the count-th failure in a row, before jitter. It doubles from a second (two where
// AWS said no or not so fast) to a ceiling that is lower under pressure, unless AWS denied: nobody is helped by
// asking sooner.
func backoff(kind sts.Kind, count int, p pressure) time.Duration {
	base, ceiling := time.Second, 30*time.Second
	switch {
	case p == idle:
		ceiling = idleBackoff
	case kind == sts.Denied:
		base, ceiling = 2*time.Second, maxBackoff
	case kind == sts.Throttled && p >= urgent:
		base, ceiling = 2*time.Second, 5*time.Second
	case kind == sts.Throttled:
		base, ceiling = 2*time.Second, maxBackoff
	case p == waited:
		ceiling = 2 * time.Second
	case p == urgent:
		ceiling = 5 * time.Second
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

// wait returns the time until e is due for a mint, not positive if it is due. It is computed anew each time: nothing has
// to be rescheduled when a request parks, a session sinks below its floor or the clock jumps.
func (e *entry) wait(now time.Time) time.Duration {
	switch s := e.session.Load(); {
	case e.failure.count > 0:
		return e.delay(now) - now.Sub(e.failure.last)
	case s == nil:
		return 0
	default:
		return s.Left(now) - s.RefreshLeft
	}
}

// lingers returns how long e, which no pod wants, is refreshed from now on as if one did; not positive if it is not. A
// Grant that AWS denies does not linger, and one that never had a Session has nothing to keep warm.
func (e *entry) lingers(now time.Time, linger time.Duration) time.Duration {
	s := e.session.Load()
	if s == nil || e.denied() != nil {
		return 0
	}
	if linger == 0 {
		linger = s.Life()
	}
	return linger - now.Sub(e.released)
}

// keep returns how long a released entry is kept from now on; not positive if it is of no more use. A failure is
// remembered until its longest delay is over, or pods that come and go would ask AWS at each coming.
func (e *entry) keep(now time.Time, linger time.Duration) time.Duration {
	left := e.lingers(now, linger)
	if e.failure.count > 0 {
		left = max(left, maxBackoff-now.Sub(e.failure.last))
	}
	if s := e.session.Load(); s != nil {
		left = max(left, s.Left(now))
	}
	return left
}

// before reports whether e, being due, is minted before other: a waiting request first, then what pods want, then the
// earliest expiry, no session being earliest of all, then the earlier entry.
func (e *entry) before(other *entry) bool {
	if other == nil {
		return true
	}
	if w, o := e.waiting > 0, other.waiting > 0; w != o {
		return w
	}
	if w, o := e.wanted(), other.wanted(); w != o {
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
