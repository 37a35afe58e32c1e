package metadata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
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
	// Client reads the node's own metadata service. It makes one try: the Store tries again itself, and what a client
	// spends on retries and pauses of one path is taken from all others. Optional: there is none, and pods are told what
	// is static.
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
// not change in an instance's life; as long as the service has not told what it has there, that is an error, and no 404,
// which SDKs would take for good. What patterns allow beyond that is fetched when it is first asked for, kept while it
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
	loaded chan struct{} // closed after the first try at what every pod may read
	untold []string      // paths that load is to ask for, in that order; load's own

	mu      sync.Mutex // guards the following
	static  Static
	told    map[string]answer              // by path: what the service has said of what every pod may read
	entries *simplelru.LRU[string, *entry] // of the rest, by path
	flying  map[netip.Addr]int             // flights by who asked for them
	landing park.Lot[string]               // of flights, by path
	turns   park.Lot[netip.Addr]           // of those who have all the flights that they can have
}

const (
	// loadTimeout bounds one try at all that every pod may read, and leafTimeout each part of it, so that one that hangs
	// leaves time for others.
	loadTimeout = 5 * time.Second
	leafTimeout = time.Second
	// longestPause is the longest between two tries, of which pods wait for the next one.
	longestPause = time.Minute
)

// errUntold is why something is not known of which the service has not said yet whether it is there.
var errUntold = errors.New("the node's metadata service has not answered so far")

// NewStore returns a Store that answers what is static. Nothing is fetched before Run.
func NewStore(c Config) *Store {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		client: c.Client,
		policy: c.Policy,
		allow:  c.Allow,
		logger: c.Logger,
		static: c.Static,
		queue:  make(chan flight, maxQueued),
		pace:   rate.NewLimiter(flightsPerSecond, flightBurst),
		loaded: make(chan struct{}),
		told:   make(map[string]answer),
		flying: make(map[netip.Addr]int),
	}
	if s.client == nil {
		close(s.loaded)
	}
	s.untold = s.prefetched()
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

// Loaded returns a channel that is closed when Run has tried for the first time to fetch what every pod may read, whether
// or not that went well: after some seconds at most. Where there is no service it is closed from the start.
func (s *Store) Loaded() <-chan struct{} { return s.loaded }

// publish makes what every pod may read of what is known. What the service said wins, for each value by itself: region
// and zone stand in several answers, and have to be the same in all.
//
// Then comes what is static, also while the service has not answered: labels, and flags that are about this node, are not
// less true for that. The region whose STS the agent calls is none of them. It is a guess, and is told only when the
// service has said all that it has, since SDKs keep a region for good: to call the wrong one is worse than to ask again.
//
// Caller holds mu, or is NewStore.
func (s *Store) publish() {
	allowed := s.policy.leaves()
	untold := func(path string) bool { return s.client != nil && s.told[path].asked.IsZero() }
	known := s.said().Or(s.static)
	var unknown []string
	region, guessed := known.region()
	if known.Region = region; guessed && slices.ContainsFunc(allowed, untold) {
		known.Region = ""
		unknown = slices.Collect(maps.Keys(Static{Region: region}.leaves()))
	}
	leaves := s.policy.limit(known).leaves()
	for _, path := range allowed {
		if a := s.told[path]; a.found {
			leaves[path] = a.body
		} else if untold(path) {
			unknown = append(unknown, path)
		}
	}
	s.public.Store(newSnapshot(leaves, unknown, s.listed()...))
}

// listed returns what Allow leads to and the service was seen to have; see newSnapshot. Caller holds mu, or is NewStore.
func (s *Store) listed() (paths []string) {
	for _, p := range s.allow {
		path, listing := p.literal()
		if !s.told[path].found {
			continue
		}
		if listing {
			path += "/"
		}
		paths = append(paths, path)
	}
	return paths
}

// said returns what the service has said of what could be static. Caller holds mu.
func (s *Store) said() Static {
	at := func(path string) string { return string(s.told[path].body) }
	return Static{
		Region: at(pathRegion), Zone: at(pathZone), ZoneID: at(pathZoneID),
		InstanceType: at(pathInstanceType), Hostname: at(pathHostname),
	}
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

// prefetch fetches what every pod may read, until the service has answered all of it.
func (s *Store) prefetch(ctx context.Context) {
	err := s.load(ctx)
	close(s.loaded)
	for pause := time.Second; err != nil && ctx.Err() == nil; pause = min(2*pause, longestPause) {
		s.logger.Warn("the node's metadata cannot be read; pods are told what is known without it, and to ask again for the rest",
			"retry_in", pause, "error", err, "remedy", "--metadata-upstream=false where the node has no metadata service")
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			err = s.load(ctx)
		}
	}
}

// load tries to fetch of what every pod may read what the service has not answered so far. It asks for one after the
// other, which keeps well under the limit of 1024 packets per second that the service shares with the node's resolver.
// What fails takes nothing from the rest: a service that throttles answers the next one. What fails is asked for again
// after all that was not reached, which comes first the next time; else those that hang, each time anew, would use up the
// time of those behind them. The error is the first one.
func (s *Store) load(ctx context.Context) (failure error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	for range len(s.untold) {
		path := s.untold[0]
		bounded, cancel := context.WithTimeout(ctx, leafTimeout)
		a, err := s.ask(bounded, path)
		cancel()
		if err != nil {
			failure = cmp.Or(failure, fmt.Errorf("fetch %s from the node's metadata service: %w", path, err))
			if ctx.Err() != nil {
				return failure // the path had less than its time
			}
			s.untold = append(s.untold[1:], path)
			continue
		}
		s.untold = s.untold[1:]
		s.learn(path, a)
	}
	return failure
}

// prefetched returns what is fetched before anybody asks: what Policy allows by its name, and of what a pattern allows
// the listing that it begins with.
func (s *Store) prefetched() []string {
	paths := s.policy.leaves()
	for _, p := range s.allow {
		path, _ := p.literal()
		if Allowable(path) && !slices.Contains(paths, path) { // the zero Pattern's is not
			paths = append(paths, path)
		}
	}
	return paths
}

// learn notes what the service has said of what every pod may read.
func (s *Store) learn(path string, a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[path] = a
	if Allowable(path) {
		s.entry(path).last = a // in case that a pattern allows it, too
	}
	s.publish()
}

// Request is what a pod asks for.
type Request struct {
	Path    string     // what follows the version prefix, without a slash at either end
	Source  netip.Addr // who asks
	Allowed []Pattern  // what this pod may read besides what every pod may
}

// Read returns what is at r.Path, and whether there is anything there that the pod may read. A listing shows nothing
// else, and one that every pod may read lacks what the service does not tell of, rather than fail. Read returns at once,
// and allocates nothing, for what every pod may read by Policy. What patterns allow it may have to wait for; the error is
// ctx's then, or says why the service did not tell. The caller must not change the body.
func (s *Store) Read(ctx context.Context, r Request) (body []byte, found bool, err error) {
	public := s.public.Load()
	if body, found := public.get(r.Path); found {
		if len(r.Allowed) > 0 && s.Varies(r.Path) {
			body = s.extend(ctx, r, body)
		}
		return body, true, nil
	}
	if public.unknown[r.Path] {
		return nil, false, fmt.Errorf("read %s: %w", r.Path, errUntold)
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
	names := s.filter(r, a.body)
	return []byte(strings.Join(names, "\n")), len(names) > 0, nil
}

// Varies reports whether Read may return more for a Request with Allowed than for one without, of what every pod may read.
// That goes for listings only.
func (s *Store) Varies(path string) bool { return s.client != nil && s.public.Load().varying[path] }

// extend returns a listing that every pod may read with what else r.Allowed allows in it, or leads to, as far as the
// service has it. Who walks from the top down would not find that otherwise. What the service does not tell of is left
// out: it takes nothing from the rest.
func (s *Store) extend(ctx context.Context, r Request, listing []byte) []byte {
	names := lines(listing)
	if !Allowable(r.Path) {
		names = s.extendTree(ctx, r, names)
	} else if _, leads := matchAny(r.Path, r.Allowed); leads {
		if a, err := s.get(ctx, r.Path, r.Source); err == nil {
			for _, name := range s.filter(r, a.body) {
				names = enter(names, name)
			}
		}
	}
	slices.Sort(names)
	return []byte(strings.Join(names, "\n"))
}

// extendTree is extend for a tree itself. No pattern leads to the service's own listing of it, so that each name is asked
// for by itself; whether it is a listing, patterns say as far as they go on below it.
func (s *Store) extendTree(ctx context.Context, r Request, names []string) []string {
	var more []string
	for _, p := range r.Allowed {
		if name, leads := p.below(r.Path); leads {
			more = append(more, name)
		}
	}
	slices.SortFunc(more, func(a, b string) int { return strings.Compare(b, a) }) // network/ before network
	var missing, paths []string
	for _, name := range more {
		if listed(names, name) || listed(missing, name) {
			continue
		}
		missing, paths = append(missing, name), append(paths, r.Path+"/"+strings.TrimSuffix(name, "/"))
	}
	s.ahead(paths, r.Source)
	for i, path := range paths {
		if a, err := s.get(ctx, path, r.Source); err == nil && a.found {
			names = append(names, missing[i])
		}
	}
	return names
}

// filter returns the lines of a listing that name what the pod may read, or what leads there.
func (s *Store) filter(r Request, listing []byte) []string {
	return slices.DeleteFunc(lines(listing), func(name string) bool {
		allowed, leads := matchAny(r.Path+"/"+strings.TrimSuffix(name, "/"), s.allow, r.Allowed)
		return !allowed && !leads
	})
}

// lines returns the names in a listing.
func lines(listing []byte) []string {
	return strings.FieldsFunc(string(listing), func(r rune) bool { return r == '\n' })
}
