package proxy

import (
	"context"
	"sync"
	"time"
)

// budget is a request's context with a deadline whose timer starts when somebody first waits for it. A request that is
// answered from memory, which is nearly every one, asks at most for Err and pays for no timer.
type budget struct {
	context.Context // the request's own
	deadline        time.Time

	mu    sync.Mutex
	timed context.Context // nil until the timer runs
	stop  context.CancelFunc
}

// Deadline implements context.Context.
func (b *budget) Deadline() (time.Time, bool) { return b.deadline, true }

// Done implements context.Context. It starts the timer.
func (b *budget) Done() <-chan struct{} { return b.start().Done() }

// Err implements context.Context. Once it is not nil it stays the same, as the interface demands.
func (b *budget) Err() error {
	b.mu.Lock()
	timed := b.timed
	b.mu.Unlock()
	if timed == nil && b.Context.Err() == nil && time.Now().Before(b.deadline) {
		return nil
	}
	return b.start().Err()
}

// start returns the context with the running timer.
func (b *budget) start() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed == nil {
		b.timed, b.stop = context.WithDeadline(b.Context, b.deadline)
	}
	return b.timed
}

// release stops the timer, if there is one, and ends the context.
func (b *budget) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		b.stop()
	}
}
