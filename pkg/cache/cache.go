package cache

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/podrole/podrole/pkg/role"
	"github.com/podrole/podrole/pkg/sts"
)

// ErrNotWanted is the error of Get for a Grant that no pod wants: nothing is going to mint a Session for it.
var ErrNotWanted = errors.New("no pod wants this grant")

var errStopped = errors.New("cache has stopped")

// index finds the entry of a Grant. One that was published is never written to again.
type index map[role.Grant]*entry

// Cache holds Sessions by Grant. All methods are safe for concurrent use; none but Get with a cold Grant, and Run,
// blocks for longer than a moment.
type Cache struct {
	cfg     Config
	ran     atomic.Bool
	stopped chan struct{} // closed when Run returns
	wake    chan struct{} // holds one element when the scheduler should look again

	// entries is replaced, under mu, when a Grant comes or goes. Readers take no lock, so that no bookkeeping, however
	// long, delays a request.
	entries atomic.Pointer[index]

	mu       sync.Mutex // guards the following and what entry says
	made     uint64     // entries, ever
	released *simplelru.LRU[role.Grant, *entry]
	limiter  *rate.Limiter
	flying   map[role.Grant]bool // Grants with a flight under way, which may outlive their entry
	retried  bool                // the last mint started was a retry
	fair     bool                // the last mint started went to the one that was overdue for longest

	unkept   map[role.Grant]bool // Grants of which the Store may not know the latest
	keepWake chan struct{}       // holds one element when there are some
}

// New returns a Cache, or an error that names the field at fault. Nothing is minted before Run.
func New(cfg Config) (*Cache, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	released, err := simplelru.NewLRU[role.Grant, *entry](cfg.MaxReleased, nil)
	if err != nil {
		return nil, fmt.Errorf("new cache: MaxReleased: %w", err)
	}
	c := &Cache{
		cfg:      cfg,
		stopped:  make(chan struct{}),
		wake:     make(chan struct{}, 1),
		released: released,
		flying:   make(map[role.Grant]bool),
		unkept:   make(map[role.Grant]bool),
		keepWake: make(chan struct{}, 1),
		limiter:  rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Burst),
	}
	c.entries.Store(new(index))
	return c, nil
}

// Want says that pod uses g from now on: a Session is minted, if there is none in memory nor in the Store, and kept
// fresh until every pod that wants g was released. Call it once it is decided that pod has g, and before a request can
// be told so. Idempotent by the pod's UID.
func (c *Cache) Want(g role.Grant, pod role.Workload) {
	kept := c.load(g)
	c.mu.Lock()
	defer c.mu.Unlock()
	e := (*c.entries.Load())[g]
	if e == nil {
		e = &entry{grant: g, order: c.made, settled: make(chan struct{})}
		e.session.Store(kept)
		c.made++
		c.publish(func(entries index) { entries[g] = e })
	}
	c.released.Remove(g)
	if _, ok := c.cfg.Minter.(Preparer); ok && !e.wanted() && e.session.Load() != nil {
		e.unready = true
	}
	e.want(pod)
	c.look()
}

// Release says that the pod with this UID is gone and no longer uses g. The Session stays for the next pod, see
// Config.Linger. Idempotent; unknown pods and Grants are ignored.
func (c *Cache) Release(g role.Grant, uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := (*c.entries.Load())[g]
	if e == nil || !e.release(uid) || e.wanted() {
		return
	}
	e.released = time.Now()
	if c.released.Len() >= c.cfg.MaxReleased {
		if _, oldest, ok := c.released.RemoveOldest(); ok {
			c.drop(oldest)
		}
	}
	c.released.Add(g, e)
	e.settle() // whoever is parked is to learn that nothing is coming
	c.look()   // it may not be worth keeping
}

// Revoke says that g was taken away from the pod with this UID, or replaced by another Grant. Unlike after Release,
// nothing lingers: if no other pod wants g, its Session is gone from memory when Revoke returns, and from the Store soon
// after. A mint under way does not bring it back.
func (c *Cache) Revoke(g role.Grant, uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := (*c.entries.Load())[g]; e != nil {
		e.release(uid)
		if e.wanted() {
			return
		}
		c.drop(e)
	}
	c.changed(g)
}

// Get returns a Session of g that has not expired. With one in memory, which is the rule, it takes no lock, makes no
// allocation and no call. Without, it parks until there is one or ctx ends, whose error it then returns together with
// the last failure's. It returns at once, with an *sts.Error of kind Denied, where AWS's last answer was a refusal,
// and with ErrNotWanted where no pod wants g.
//
// The Session belongs to all callers: do not change it.
func (c *Cache) Get(ctx context.Context, g role.Grant) (*Session, error) {
	if e := (*c.entries.Load())[g]; e != nil {
		if s := e.session.Load(); s.live(time.Now()) {
			return s, nil
		}
	}
	return c.park(ctx, g)
}

// park is Get for a Grant without a live Session.
func (c *Cache) park(ctx context.Context, g role.Grant) (*Session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := (*c.entries.Load())[g]
	if e == nil {
		return nil, fmt.Errorf("get session for %s: %w", g.RoleARN, ErrNotWanted)
	}
	e.waiting++
	defer func() { e.waiting-- }()
	if e.waiting == 1 {
		c.look() // it goes before all others now
	}
	var left error // why the caller waits no longer
	for {
		// A session that came in the caller's last moment is served.
		if s := e.session.Load(); s.live(time.Now()) {
			return s, nil
		}
		if err := e.denied(); err != nil {
			return nil, err
		}
		if e.dropped || !e.wanted() && !c.flying[g] {
			return nil, fmt.Errorf("get session for %s: %w", g.RoleARN, ErrNotWanted)
		}
		if left != nil {
			return nil, e.unserved(left)
		}
		settled := e.settled
		c.mu.Unlock()
		select {
		case <-settled:
		case <-c.stopped:
			left = errStopped
		case <-ctx.Done():
			left = context.Cause(ctx)
		}
		c.mu.Lock()
	}
}

// unserved is the error of a caller that leaves without a Session because of cause.
func (e *entry) unserved(cause error) error {
	if e.failure.count > 0 {
		return fmt.Errorf("wait for session for %s: %w; last try: %w", e.grant.RoleARN, cause, e.failure.err)
	}
	return fmt.Errorf("wait for session for %s: %w", e.grant.RoleARN, cause)
}

// Sessions returns the latest Session of every wanted Grant that has had one, expired ones included, in no
// particular order. It is a snapshot.
func (c *Cache) Sessions() iter.Seq[*Session] {
	return func(yield func(*Session) bool) {
		c.mu.Lock()
		sessions := make([]*Session, 0, len(*c.entries.Load()))
		for _, e := range *c.entries.Load() {
			if s := e.session.Load(); s != nil && e.wanted() {
				sessions = append(sessions, s)
			}
		}
		c.mu.Unlock()
		for s := range slices.Values(sessions) {
			if !yield(s) {
				return
			}
		}
	}
}

// publish replaces the index by a changed copy. Caller holds mu.
func (c *Cache) publish(change func(index)) {
	entries := make(index, len(*c.entries.Load())+1)
	maps.Copy(entries, *c.entries.Load())
	change(entries)
	c.entries.Store(&entries)
}

// drop forgets released entries. Caller holds mu.
func (c *Cache) drop(gone ...*entry) {
	c.publish(func(entries index) {
		for _, e := range gone {
			delete(entries, e.grant)
			c.released.Remove(e.grant)
			e.dropped = true
			e.settle()
		}
	})
}

// look tells the scheduler that something changed. It never blocks.
func (c *Cache) look() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// record writes down how a mint of e ended, and reports whether that is news. Caller holds mu.
func (c *Cache) record(e *entry, s *Session, err error) (changed bool) {
	before := e.failure
	if err == nil {
		changed = before.count > 0 || e.session.Load() == nil
		s.RefreshLeft = refreshLeft(s.Life(), c.cfg.Rand())
		e.session.Store(s)
		e.failure = failure{}
		c.changed(e.grant)
		return changed
	}
	e.failure = failure{
		count:  before.count + 1,
		last:   time.Now(),
		err:    err,
		kind:   sts.KindOf(err),
		jitter: c.cfg.Rand(),
	}
	return before.count == 0 || before.kind != e.failure.kind
}
