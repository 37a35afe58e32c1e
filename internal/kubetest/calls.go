package kubetest

import "sync"

// Request is what a request was and how it was answered. A watch is counted when it begins.
type Request struct {
	Verb     string // list, watch, create, …
	Resource string // with its subresource: pods, serviceaccounts/token
	// Namespace and Name are those of the request; Name also that of a field selector that leaves one name.
	Namespace, Name string
	FieldSelector   string
	Metadata        bool // asked for PartialObjectMetadata instead of whole objects
	Streaming       bool // a watch that began with what there was, instead of a list before it
	AsNode          bool // made by impersonating the own node
	DryRun          bool
	Status          int
}

// calls counts requests.
type calls struct {
	mu     sync.Mutex // guards the following
	counts map[Request]int
}

func (c *calls) add(r Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = make(map[Request]int)
	}
	c.counts[r]++
}

// Count returns how many requests matched so far.
func (a *API) Count(match func(Request) bool) int {
	a.calls.mu.Lock()
	defer a.calls.mu.Unlock()
	n := 0
	for r, count := range a.calls.counts {
		if match(r) {
			n += count
		}
	}
	return n
}

// request describes the exchange.
func (x *exchange) request(status int) Request {
	return Request{
		Verb: x.target.verb, Resource: x.target.fullResource(), Namespace: x.target.namespace, Name: x.target.name,
		FieldSelector: x.r.URL.Query().Get("fieldSelector"), Metadata: x.metadata, Streaming: x.streaming,
		AsNode: x.asNode, DryRun: x.dryRun, Status: status,
	}
}
