package proxy

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// Limits on connections, so that one pod cannot take time, memory or descriptors from the others. A credential request is
// over in a millisecond, and in Config.Wait at most.
const (
	// maxServed is how many connections of one source are served at once.
	maxServed = 256
	// maxOpen is how many connections of one source there may be, those that wait for their turn included. What is
	// beyond is closed at once.
	maxOpen = 2 * maxServed
	// minOpen is how many connections of one source there may be, however many others have.
	minOpen = 8
	// crowded is how many connections there are in all when sources get no more than minOpen each.
	crowded = 4096
	// maxTotal is how many connections there may be in all.
	maxTotal = 2 * crowded
	// maxOrigins is how many sources are remembered, so that reconnecting does not fill a bucket again. It is more than
	// can be connected at once.
	maxOrigins = 2 * maxTotal
	// turnTimeout is how long a connection may wait for its turn before it is closed.
	turnTimeout = time.Second
	// burstTime is how long a source may have been silent for all that it saves up meanwhile to be there at once.
	burstTime = 5 * time.Second
	// leastPause is the least between two looks at those who wait.
	leastPause = time.Millisecond
)

// limiter says which connection is served and when. One that waits is a few words here and a descriptor: nobody reads from
// it, and no goroutine knows of it. A limiter is safe for concurrent use.
type limiter struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex // guards the following, origins too
	origins *simplelru.LRU[netip.Addr, *origin]
	total   int
}

// origin is the connections of one address.
type origin struct {
	open    int           // connections
	served  int           // of them, how many are served
	waiting []waiter      // the others, in the order in which they came
	bucket  *rate.Limiter // one token for each request; every connection is one
	timer   *time.Timer   // to look at those who wait; nil before the first one
}

// waiter is a connection that waits for its turn.
type waiter struct {
	conn  net.Conn
	peer  netip.AddrPort
	until time.Time
	room  *waitingRoom // where it goes
}

// newLimiter returns a limiter that lets each source make perSecond requests in the long run; 0 means any number.
func newLimiter(perSecond float64) *limiter {
	l := &limiter{rate: rate.Inf}
	if perSecond > 0 {
		l.rate = rate.Limit(perSecond)
		l.burst = max(1, int(perSecond*burstTime.Seconds()))
	}
	l.origins, _ = simplelru.NewLRU[netip.Addr, *origin](maxOrigins, nil) // fails for sizes below one only
	return l
}

// enter takes in a connection. It returns the connection if it is to be served now, and nil if it waits, for room, or was
// one too many and is closed.
func (l *limiter) enter(conn net.Conn, room *waitingRoom) *connection {
	peer := peerOf(conn.RemoteAddr())
	now := time.Now()
	l.mu.Lock()
	o := l.origin(peer.Addr())
	if room.closed || l.total >= maxTotal || o.open >= l.share() {
		l.mu.Unlock()
		_ = conn.Close() // there is nothing more to do for it
		return nil
	}
	o.open++
	l.total++
	if len(o.waiting) == 0 && o.serves(now) {
		l.mu.Unlock()
		return newConnection(conn, peer, l, o)
	}
	o.waiting = append(o.waiting, waiter{conn, peer, now.Add(turnTimeout), room})
	if len(o.waiting) == 1 {
		l.schedule(o, now)
	}
	l.mu.Unlock()
	return nil
}

// serves counts one more connection that is served, if there may be one more now. Caller holds the limiter's mu.
func (o *origin) serves(now time.Time) bool {
	if o.served >= maxServed || !o.bucket.AllowN(now, 1) {
		return false
	}
	o.served++
	return true
}

// origin returns the one with an address. Caller holds mu.
func (l *limiter) origin(address netip.Addr) *origin {
	o, known := l.origins.Get(address)
	if !known {
		o = &origin{bucket: rate.NewLimiter(l.rate, l.burst)}
		l.origins.Add(address, o)
	}
	return o
}

// share returns how many connections one source may have. As it gets crowded, it is no more than are left for all others
// together, so that those who have many make room for those who have few. Caller holds mu.
func (l *limiter) share() int { return max(minOpen, min(maxOpen, crowded-l.total)) }

// leave says that a connection is no longer served.
func (l *limiter) leave(o *origin) {
	l.mu.Lock()
	l.total--
	o.open--
	o.served--
	var late []waiter
	if len(o.waiting) > 0 {
		late = l.next(o)
	}
	l.mu.Unlock()
	closeAll(late)
}

// look sees to those who wait.
func (l *limiter) look(o *origin) {
	l.mu.Lock()
	late := l.next(o)
	l.mu.Unlock()
	closeAll(late)
}

// next lets those in whose turn has come, and returns those for whom it has not come in time. Caller holds mu.
func (l *limiter) next(o *origin) (late []waiter) {
	now := time.Now()
	for len(o.waiting) > 0 {
		w := o.waiting[0]
		switch {
		case !now.Before(w.until) || w.room.closed:
			late = append(late, w)
			o.open--
			l.total--
		case o.serves(now):
			w.room.ready <- newConnection(w.conn, w.peer, l, o) // never full
		default:
			l.schedule(o, now)
			return late
		}
		o.waiting[0] = waiter{}
		o.waiting = o.waiting[1:]
	}
	o.waiting = nil
	return late
}

// schedule sets the timer for when the first one who waits has waited long enough, or may be served. Caller holds mu.
func (l *limiter) schedule(o *origin, now time.Time) {
	pause := o.waiting[0].until.Sub(now)
	if o.served < maxServed { // else it is for leave to see to
		missing := 1 - o.bucket.TokensAt(now)
		pause = min(pause, max(leastPause, time.Duration(missing/float64(l.rate)*float64(time.Second))))
	}
	if o.timer == nil {
		o.timer = time.AfterFunc(pause, func() { l.look(o) })
		return
	}
	o.timer.Reset(pause)
}

// empty closes the connections that wait for room, and lets no more wait.
func (l *limiter) empty(room *waitingRoom) {
	var gone []waiter
	l.mu.Lock()
	room.closed = true
	for _, o := range l.origins.Values() {
		kept := o.waiting[:0]
		for _, w := range o.waiting {
			if w.room != room {
				kept = append(kept, w)
				continue
			}
			gone = append(gone, w)
			o.open--
			l.total--
		}
		clear(o.waiting[len(kept):])
		if o.waiting = kept; len(kept) == 0 && o.timer != nil {
			o.timer.Stop()
		}
	}
	l.mu.Unlock()
	closeAll(gone)
}

func closeAll(waiters []waiter) {
	for _, w := range waiters {
		_ = w.conn.Close() // without an answer; there is nobody to tell
	}
}
