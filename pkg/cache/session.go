package cache

import (
	"time"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// Session is the credentials minted for a Grant, ready to be served. It is immutable.
type Session struct {
	Grant       role.Grant
	Credentials sts.Credentials
	Minted      time.Time
	// RefreshLeft is what Session has left when it is due for a refresh. It is drawn at mint and kept with it, so that a
	// restart refreshes nothing early.
	RefreshLeft time.Duration
	// Body is the metadata service's answer, rendered once when the session was minted.
	Body []byte
}

// Life is the time from mint to expiry: what AWS gave, whatever the Grant asked for.
func (s *Session) Life() time.Duration { return s.Credentials.Expiration.Sub(s.Minted) }

// Left is the time to expiry at now; not positive once expired. It goes by the wall clock and, where Minted and now
// carry a monotonic reading, by the time since the mint as well, whichever leaves less: a clock that is set back
// does not make a session last longer.
func (s *Session) Left(now time.Time) time.Duration {
	return min(s.Credentials.Expiration.Sub(now), s.Life()-now.Sub(s.Minted))
}

// live reports whether s may be served at now. A nil Session may not.
func (s *Session) live(now time.Time) bool { return s != nil && s.Left(now) > 0 }

// Floor is what a served Session should have left at least, for a session of the given life: 25 minutes of an hour,
// the same share of a shorter one, 25 minutes of a longer one. With less, botocore stretches the expiry on its own;
// with less than 15, the first SDKs for Java and Ruby fetch again at every call.
func Floor(life time.Duration) time.Duration { return min(25*time.Minute, life*25/60) }
