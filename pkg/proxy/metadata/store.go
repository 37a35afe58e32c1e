package metadata

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/podrole/podrole/internal/park"
)

// Config is what a Store is made of.
type Config struct {
	// Client reads the node's own metadata service. Optional: there is none, and pods are told what is static.
	Client Client
	// Policy and Allow are what every pod may read. Optional: the least that SDKs need, and no more.
	Policy Policy
	Allow  []Pattern
	// Static is what is known without the service. Optional; SetStatic replaces it.
	Static Static
	// Logger is told when the service cannot be read. Optional: nothing is logged.
	Logger *slog.Logger
}

// Store answers what pods read of the node's metadata. What every pod reads is fetched before it is asked for, and does
// not change in an instance's life. What patterns allow beyond that is fetched when it is first asked for, kept while it
// is asked for, and fetched again before it is too old. Pods wait for the Store, never for the service: a request that
// leaves takes nothing away from another. It is safe for concurrent use.
type Store struct {
	client Client
	policy Policy
	allow  []Pattern
	logger *slog.Logger
	public atomic.Pointer[snapshot]
	queue  chan flight
	pace   *rate.Limiter // of flights

	mu      sync.Mutex // guards the following
	static  Static
	fetched map[string][]byte              // of what Policy allows
	listed  []string                       // what Allow leads to and the service was seen to have; see newSnapshot
	entries *simplelru.LRU[string, *entry] // of the rest, by path
	flying  map[netip.Addr]int             // flights by who asked for them
	landing park.Lot[string]               // of flights, by path
	turns   park.Lot[netip.Addr]           // of those who have all the flights that they can have
}

// loadTimeout bounds one try at all that every pod may read.
const loadTimeout = 5 * time.Second

// NewStore returns a Store that answers what is static. Nothing is fetched before Run.
func NewStore(c Config) *Store {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		client:  c.Client,
		policy:  c.Policy,
		allow:   c.Allow,
		logger:  c.Logger,
		static:  c.Static,
		queue:   make(chan flight, maxQueued),
		pace:    rate.NewLimiter(flightsPerSecond, flightBurst),
		fetched: make(map[string][]byte),
		flying:  make(map[netip.Addr]int),
	}
	s.entries, _ = simplelru.NewLRU[string, *entry](maxEntries, nil) // fails for sizes below one only
	s.publish()
	return s
}

// SetStatic replaces what is known without the service, from the next request on.
func (s *Store) SetStatic(static Static) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.static = static
	s.publish()
}

// publish makes what every pod may read of what is known. What the service said wins. Caller holds mu, or is NewStore.
func (s *Store) publish() {
	leaves := s.policy.limit(s.static).leaves()
	maps.Copy(leaves, s.fetched)
	s.public.Store(newSnapshot(leaves, s.listed...))
}

// Run fetches from the service, until ctx ends. It returns nil, once all that it started has ended. Call it once.
func (s *Store) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	if s.client != nil {
		workers.Go(func() { s.prefetch(ctx) })
		for range pilots {
			workers.Go(func() { s.pilot(ctx) })
		}
	}
	workers.Wait()
	<-ctx.Done()
	return nil
}

// prefetch fetches what every pod may read, until one try succeeds.
func (s *Store) prefetch(ctx context.Context) {
	const longest = 5 * time.Minute
	for pause := time.Second; ; pause = min(2*pause, longest) {
		err := s.load(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.logger.Warn("the node's metadata cannot be read; pods are told what is known without it",
			"retry_in", pause, "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// load tries to fetch what every pod may read: all of it by its name, and of what a pattern allows the listing that it
// begins with. The first failure ends it: a service that does not answer once would only cost more time-outs.
func (s *Store) load(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	fetched, err := fetch(ctx, s.client, s.policy.leaves())
	var listed []string
	for _, p := range s.allow {
		if err != nil {
			break
		}
		path, listing := p.literal()
		if !Allowable(path) { // the zero Pattern's
			continue
		}
		var a answer
		if a, err = s.ask(ctx, path); err != nil || !a.found {
			continue
		}
		s.keep(path, a)
		if listing {
			path += "/"
		}
		listed = append(listed, path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.fetched, fetched)
	if err == nil {
		s.listed = listed
	}
	s.publish()
	return err
}

// Request is what a pod asks for.
type Request struct {
	Path    string     // what follows the version prefix, without a slash at either end
	Source  netip.Addr // who asks
	Allowed []Pattern  // what this pod may read besides what every pod may
}

// Read returns what is at r.Path, and whether there is anything there that the pod may read. A listing shows nothing
// else. It returns at once, and allocates nothing, for what every pod may read by Policy. What patterns allow it may have
// to wait for; the error is ctx's then, or says why the service did not tell. The caller must not change the body.
func (s *Store) Read(ctx context.Context, r Request) (body []byte, found bool, err error) {
	if body, found := s.public.Load().get(r.Path); found {
		return body, true, nil
	}
	if s.client == nil || !Allowable(r.Path) {
		return nil, false, nil
	}
	allowed, leads := matchAny(r.Path, s.allow, r.Allowed)
	if !allowed && !leads {
		return nil, false, nil
	}
	a, err := s.get(ctx, r.Path, r.Source)
	if err != nil {
		return nil, false, err
	}
	if !a.found || allowed {
		return a.body, a.found, nil
	}
	body = s.filter(r, a.body)
	return body, len(body) > 0, nil
}

// filter returns the lines of a listing that name what the pod may read, or what leads there.
func (s *Store) filter(r Request, listing []byte) []byte {
	var kept []string
	for name := range strings.SplitSeq(string(listing), "\n") {
		allowed, leads := matchAny(r.Path+"/"+strings.TrimSuffix(name, "/"), s.allow, r.Allowed)
		if allowed || leads {
			kept = append(kept, name)
		}
	}
	return []byte(strings.Join(kept, "\n"))
}
