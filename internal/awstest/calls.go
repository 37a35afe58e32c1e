package awstest

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Outcomes of calls that got no answer from AWS's vocabulary of error codes.
const (
	// CodeOK is the outcome of a call that succeeded.
	CodeOK = "OK"
	// CodeClientGone is the outcome of a call whose client left before the answer, also after an injected time-out.
	CodeClientGone = "ClientGone"
	// CodeReset is the outcome of a call whose connection was reset by an injected fault.
	CodeReset = "ConnectionReset"
)

// Call is one request to an endpoint and what became of it.
type Call struct {
	Start   time.Time
	Latency time.Duration
	Source  netip.AddrPort // the client, zero when the listener has no IP addresses
	Service string         // sts, s3, kms or secretsmanager; whatever was asked when unknown
	Action  string         // such as AssumeRole
	Region  string
	// RoleARN is the role asked for, with Assume* calls, and else the role whose session called.
	RoleARN string
	// SessionName is the RoleSessionName asked for with Assume* calls.
	SessionName string
	// CallerARN is the verified caller; empty for unsigned calls and for those refused before they were verified.
	CallerARN string
	Code      string // CodeOK, AWS's error code, CodeClientGone or CodeReset
	Status    int    // HTTP status; 0 when there was no answer
}

// Filter selects calls. Empty fields match anything.
type Filter struct {
	Service, Action, Region, RoleARN, Code string
}

func (f Filter) match(k Filter) bool {
	return (f.Service == "" || f.Service == k.Service) &&
		(f.Action == "" || f.Action == k.Action) &&
		(f.Region == "" || f.Region == k.Region) &&
		(f.RoleARN == "" || f.RoleARN == k.RoleARN) &&
		(f.Code == "" || f.Code == k.Code)
}

func (c Call) key() Filter { return Filter{c.Service, c.Action, c.Region, c.RoleARN, c.Code} }

// Calls returns the recorded calls that match, ordered by start. A call is recorded when it ends, before its answer is
// written: a client that has its answer finds its call here.
func (a *AWS) Calls(f Filter) []Call {
	a.calls.mu.Lock()
	defer a.calls.mu.Unlock()
	var found []Call
	for _, c := range a.calls.record {
		if f.match(c.key()) {
			found = append(found, c)
		}
	}
	slices.SortStableFunc(found, func(x, y Call) int { return x.Start.Compare(y.Start) })
	return found
}

// Count returns how many calls matched since New or ResetCalls. It is exact however many there were.
func (a *AWS) Count(f Filter) int {
	a.calls.mu.Lock()
	defer a.calls.mu.Unlock()
	n := 0
	for k, v := range a.calls.counts {
		if f.match(k) {
			n += v
		}
	}
	return n
}

// InFlight returns how many calls have arrived and not ended.
func (a *AWS) InFlight() int {
	a.calls.mu.Lock()
	defer a.calls.mu.Unlock()
	return a.calls.inFlight
}

// ResetCalls forgets all calls that have ended.
func (a *AWS) ResetCalls() {
	a.calls.mu.Lock()
	defer a.calls.mu.Unlock()
	a.calls.record, a.calls.next = nil, 0
	clear(a.calls.counts)
}

// maxCounters bounds the distinct counters, since clients choose some of their labels. Beyond it calls of unseen
// labels are counted with those fields that come from the client replaced by "other".
const maxCounters = 1 << 14

// calls is a ring of the last calls beside exact counters.
type calls struct {
	mu       sync.Mutex // guards the following
	limit    int
	record   []Call
	next     int // where the next call goes once the ring is full
	counts   map[Filter]int
	inFlight int
}

func (c *calls) init(limit int) {
	c.limit = limit
	if c.limit == 0 {
		c.limit = 16384
	}
	c.counts = map[Filter]int{}
}

func (c *calls) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight++
}

func (c *calls) end(call Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight--
	if len(c.record) < c.limit {
		c.record = append(c.record, call)
	} else {
		c.record[c.next] = call
		c.next = (c.next + 1) % c.limit
	}
	k := call.key()
	if _, seen := c.counts[k]; !seen && len(c.counts) >= maxCounters {
		k.Service, k.Action, k.Region, k.RoleARN = "other", "other", "other", "other"
	}
	c.counts[k]++
}
