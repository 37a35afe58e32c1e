package awstest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// ServiceIMDS names the instance metadata service in a [Fault]; the action is then the normalised path, such as
// /latest/api/token.
const ServiceIMDS = "imds"

// Fault makes matching calls slow or fail. Every fault that matches a call adds its latency, in the order of injection,
// up to and including the first that has an Outcome.
type Fault struct {
	// Service, Action, RoleARN and Region select calls; empty matches any, except that the metadata service must be
	// named. RoleARN and Region are those of [Call].
	Service, Action, RoleARN, Region string

	// Latency is added before the call is carried out. A client that leaves meanwhile gets nothing minted.
	Latency time.Duration
	// LatencyFunc, if set, is asked per call and its result added to Latency. It must be safe for concurrent use.
	LatencyFunc func() time.Duration
	// Outcome ends the call; nil lets it go on to its normal answer.
	Outcome *Outcome

	// Times is how many calls the fault hits before it is spent; 0 means until it is cleared.
	Times int
	// Probability is the chance, in (0, 1], that a matching call is hit; 0 means always.
	Probability float64
}

// Outcome is how a fault ends a call: with an error code and status, with silence, or with a reset.
type Outcome struct {
	Status  int // HTTP status of the error; required unless Hang or Reset
	Code    string
	Message string
	Hang    bool // accept and never answer, until the client leaves
	Reset   bool // close the connection with a TCP RST
}

// Throttled is what STS says when asked too often: HTTP 400, not 429.
func Throttled() *Outcome {
	return &Outcome{Status: http.StatusBadRequest, Code: codeThrottling, Message: "Rate exceeded"}
}

// Unavailable is AWS's 503.
func Unavailable() *Outcome {
	return &Outcome{Status: http.StatusServiceUnavailable, Code: "ServiceUnavailable",
		Message: "The request has failed due to a temporary failure of the server."}
}

// InternalFailure is AWS's 500.
func InternalFailure() *Outcome {
	return &Outcome{Status: http.StatusInternalServerError, Code: "InternalFailure",
		Message: "The request processing has failed because of an unknown error, exception or failure."}
}

// TimedOut accepts the call and never answers it.
func TimedOut() *Outcome { return &Outcome{Hang: true} }

// ConnectionReset resets the connection instead of answering.
func ConnectionReset() *Outcome { return &Outcome{Reset: true} }

// Inject adds a fault, which takes effect for calls that arrive from now on, and returns what removes it again; calling
// that twice, or after the fault was spent or cleared, does nothing. A fault with a negative number, a probability
// above 1 or an Outcome that is no error is refused.
func (a *AWS) Inject(f Fault) (remove func(), err error) {
	switch o := f.Outcome; {
	case f.Times < 0 || f.Probability < 0 || f.Probability > 1 || f.Latency < 0:
		return nil, fmt.Errorf("inject fault: times %d, probability %v, latency %v: want none negative, probability at "+
			"most 1", f.Times, f.Probability, f.Latency)
	case o != nil && !o.Hang && !o.Reset && (o.Status < 400 || o.Status > 599):
		return nil, fmt.Errorf("inject fault: status %d of outcome %q: want 400 to 599", o.Status, o.Code)
	}
	return a.faults.add(f), nil
}

// ClearFaults removes all faults. Calls that are already waiting wait on.
func (a *AWS) ClearFaults() {
	a.faults.mu.Lock()
	defer a.faults.mu.Unlock()
	a.faults.list = nil
}

type fault struct {
	Fault
	left int // with Times: hits before it is spent
}

type faults struct {
	mu   sync.Mutex // guards the following
	list []*fault
	dice *rand.Rand
}

func (fs *faults) init(seed uint64) { fs.dice = rand.New(rand.NewPCG(seed, 0)) }

func (fs *faults) add(f Fault) (remove func()) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	entry := &fault{Fault: f, left: f.Times}
	fs.list = append(fs.list, entry)
	return func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		fs.list = slices.DeleteFunc(fs.list, func(x *fault) bool { return x == entry })
	}
}

// hit returns what the faults do to a call.
func (fs *faults) hit(call Call) (latency time.Duration, outcome *Outcome) {
	var ask []func() time.Duration // called without the lock, for they are the caller's
	fs.mu.Lock()
	for _, f := range slices.Clone(fs.list) {
		if !f.matches(call) || f.Probability > 0 && fs.dice.Float64() >= f.Probability {
			continue
		}
		if f.Times > 0 {
			if f.left--; f.left == 0 {
				fs.list = slices.DeleteFunc(fs.list, func(x *fault) bool { return x == f })
			}
		}
		latency += f.Latency
		if f.LatencyFunc != nil {
			ask = append(ask, f.LatencyFunc)
		}
		if f.Outcome != nil {
			outcome = f.Outcome
			break
		}
	}
	fs.mu.Unlock()
	for _, f := range ask {
		latency += f()
	}
	return latency, outcome
}

func (f *fault) matches(c Call) bool {
	if c.Service == ServiceIMDS && f.Service != ServiceIMDS {
		return false
	}
	return Filter{Service: f.Service, Action: f.Action, Region: f.Region, RoleARN: f.RoleARN}.match(c.key())
}

// pause waits for d; false when the client left first.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reset ends the client's connection with a TCP RST where there is one to reset, and else aborts the response.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if wrapped, ok := conn.(interface{ NetConn() net.Conn }); ok { // *tls.Conn would send a close_notify first
		conn = wrapped.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		// Unsent data is discarded and the peer is sent a RST; the close below reports what matters.
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
