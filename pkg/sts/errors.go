package sts

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is what a caller should do about a failed mint.
type Kind int

const (
	// Transient: try again after a delay (5xx, time-outs, connection failures, IDPCommunicationError, key retrieval).
	Transient Kind = iota
	// Throttled: AWS asks for fewer calls. STS says so with HTTP 400 and code Throttling, not 429.
	Throttled
	// Denied: AWS refuses; only a change of policy, provider or annotation helps.
	Denied
)

// String returns the lower-case name of the kind.
func (k Kind) String() string {
	switch k {
	case Throttled:
		return "throttled"
	case Denied:
		return "denied"
	default:
		return "transient"
	}
}

// Error is a failed mint: which call, for which role, where, what AWS said, and what kind of failure that is.
type Error struct {
	Kind    Kind
	Action  string // AssumeRole, AssumeRoleWithWebIdentity or TokenRequest
	RoleARN string
	Region  string
	Code    string // AWS's or Kubernetes' error code; empty when no answer came
	Err     error
	Remedy  string // what the operator can do about it; empty when waiting is all there is to do
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Action)
	if e.RoleARN != "" {
		fmt.Fprintf(&b, " for %s", e.RoleARN)
	}
	if e.Region != "" {
		fmt.Fprintf(&b, " in %s", e.Region)
	}
	b.WriteString(": ")
	if e.Code != "" {
		b.WriteString(e.Code + " ")
	}
	fmt.Fprintf(&b, "(%s): %v", e.Kind, e.Err)
	if e.Remedy != "" {
		b.WriteString("; " + e.Remedy)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of err; what is not an *Error is Transient.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Transient
}
