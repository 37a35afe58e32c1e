package metadata

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/park"
)

// Limits of what is fetched because pods ask for it. The service shares 1024 packets a second with the node's resolver
// (https://docs.aws.amazon.com/vpc/latest/userguide/AmazonDNS-concepts.html, quotas), and takes about ten for a request.
const (
	flightsPerSecond = 20
	flightBurst      = 40
	flightTimeout    = 2 * time.Second
	// pilots is how many flights there are at once.
	pilots = 4
	// maxFlying is how many flights one source can have, those that wait to start included, so that it does not keep
	// others from theirs.
	maxFlying  = 4
	maxQueued  = 256
	maxEntries = 512
)

// How old an answer may be. It is fetched again when it is asked for at half that age, which makes it new for the next
// one to ask, and waited for only when it is older.
const (
	// lifecycleAge is for what announces the end of the instance.
	lifecycleAge = 5 * time.Second
	// steadyAge is for the rest.
	steadyAge = time.Minute
	// staleAge is for the rest while the service does not answer.
	staleAge = time.Hour
	// failureAge is for that the service did not answer. Nothing is fetched meanwhile, so that who asks for one path again
	// and again, as clients do when they get an error, does not take all flights for it. It is short against lifecycleAge.
	failureAge = time.Second
)

// ages returns how old what is at path may be, and how old while the service does not answer.
func ages(path string) (fresh, stale time.Duration) {
	for _, tree := range []string{"meta-data/spot", "meta-data/events", "meta-data/autoscaling"} {
		if path == tree || strings.HasPrefix(path, tree) && path[len(tree)] == '/' {
			return lifecycleAge, lifecycleAge
		}
	}
	return steadyAge, staleAge
}

// answer is what the service said.
type answer struct {
	body  []byte
	found bool      // else it said that there is nothing
	asked time.Time // what it said was true then, or later
}

// within reports whether a is no older than age. The zero answer is of any age.
func (a *answer) within(age time.Duration) bool {
	return !a.asked.IsZero() && time.Since(a.asked) <= age
}

// entry is what is known of a path.
type entry struct {
	last   answer
	failed time.Time // when a flight brought an error rather than an answer
	err    error     // that error
	flying bool
}

// hasFailed reports whether err is the answer to who came then: it was brought since, or not long ago.
func (e *entry) hasFailed(came time.Time) bool {
	return !e.failed.Before(came) || time.Since(e.failed) < failureAge
}

// flight is one fetch, for all who wait for it.
type flight struct {
	path   string
	source netip.Addr // who asked first
}

// get returns what the service has at path: from memory, or as soon as a flight has brought it. While the service does
// not answer, what it said before is good for some time, if it is about nothing that is pressing; that it did not, nobody
// waits to find out right after another did.
func (s *Store) get(ctx context.Context, path string, source netip.Addr) (answer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh, stale := ages(path)
	came := time.Now()
	for {
		e := s.refresh(path, source, came)
		if e.last.within(fresh) {
			return e.last, nil
		}
		err := e.err
		if !e.hasFailed(came) {
			if e.flying {
				err = wait(ctx, &s.mu, &s.landing, path)
			} else {
				err = wait(ctx, &s.mu, &s.turns, source)
			}
		}
		if err == nil {
			continue
		}
		if e.last.within(stale) {
			return e.last, nil
		}
		return answer{}, fmt.Errorf("fetch %s from the node's metadata service: %w", path, err)
	}
}

// ahead has fetched, all at once, what get is about to be called for one by one: a path that hangs takes no time from
// others.
func (s *Store) ahead(paths []string, source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, path := range paths {
		s.refresh(path, source, time.Now())
	}
}

// refresh returns the entry of path, and has it fetched if it is time for that, for who came then. Caller holds mu.
func (s *Store) refresh(path string, source netip.Addr, came time.Time) *entry {
	e := s.entry(path)
	if fresh, _ := ages(path); !e.last.within(fresh/2) && !e.hasFailed(came) {
		s.launch(path, source, e)
	}
	return e
}

// entry returns the entry of path. Caller holds mu.
func (s *Store) entry(path string) *entry {
	e, known := s.entries.Get(path)
	if !known {
		e = new(entry)
		s.entries.Add(path, e)
	}
	return e
}

// launch has path fetched, unless it is already, or source has as many flights as it can have. Caller holds mu.
func (s *Store) launch(path string, source netip.Addr, e *entry) {
	if e.flying || s.flying[source] >= maxFlying {
		return
	}
	select {
	case s.queue <- flight{path, source}:
		e.flying = true
		s.flying[source]++
	default: // hundreds are before it
	}
}

// pilot flies what is launched, until ctx ends.
func (s *Store) pilot(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-s.queue:
			if s.pace.Wait(ctx) != nil { // ctx has ended
				return
			}
			bounded, cancel := context.WithTimeout(ctx, flightTimeout)
			a, err := s.ask(bounded, f.path)
			cancel()
			s.land(f, a, err)
		}
	}
}

// land notes what a flight has brought.
func (s *Store) land(f flight, a answer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entry(f.path)
	e.flying = false
	if err == nil {
		*e = entry{last: a}
	} else {
		e.failed, e.err = time.Now(), err
	}
	s.landing.Wake(f.path)
	if s.flying[f.source]--; s.flying[f.source] == 0 {
		delete(s.flying, f.source)
	}
	s.turns.Wake(f.source)
}

// ask fetches what is at path now.
func (s *Store) ask(ctx context.Context, path string) (answer, error) {
	began := time.Now()
	body, err := get(ctx, s.client, path)
	if isNotFound(err) {
		return answer{asked: began}, nil
	}
	return answer{body: body, found: err == nil, asked: began}, err
}

// wait parks the caller on key until it is woken or ctx ends. The caller holds mu, before and after.
func wait[K comparable](ctx context.Context, mu *sync.Mutex, lot *park.Lot[K], key K) error {
	ticket := lot.Join(key)
	mu.Unlock()
	defer mu.Lock()
	select {
	case <-ticket.Woken():
		return nil
	case <-ctx.Done():
		mu.Lock()
		lot.Leave(ticket)
		mu.Unlock()
		return context.Cause(ctx)
	}
}
