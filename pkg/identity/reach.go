package identity

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Reach is whether the API server can be reached, as far as lists and watches have found out. It is safe for concurrent
// use; the zero value has found out nothing yet.
type Reach struct{ last atomic.Int32 }

const (
	unasked int32 = iota
	answered
	failed
)

// Answered reports whether the API server answered when it was last asked for something. A refusal is an answer too.
func (r *Reach) Answered() bool { return r.last.Load() == answered }

// note takes note of how a request ended. One that ended with its own context tells nothing. r may be nil.
func (r *Reach) note(ctx context.Context, err error) {
	switch {
	case r == nil || ctx.Err() != nil:
	case isAnswer(err):
		r.last.Store(answered)
	default:
		r.last.Store(failed)
	}
}

// isAnswer tells what an API server that works says, be it no, from silence and from what a load balancer or an API server
// without its store says. An agent whose own token has expired, as after a long outage, has not been told anything either.
func isAnswer(err error) bool {
	if err == nil {
		return true
	}
	status, ok := errors.AsType[*apierrors.StatusError](err)
	return ok && status.ErrStatus.Code < 500 && status.ErrStatus.Code != http.StatusUnauthorized
}
