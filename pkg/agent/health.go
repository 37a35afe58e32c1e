package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/podrole/podrole/pkg/telemetry"
)

const (
	// staleAfter is how many sweeps may be missing before what the last one found counts for nothing.
	staleAfter = 3
	// slack is for a sweep that waits for the iptables lock.
	slack = 10 * time.Second
)

// health is whether pods are led here and answered, as far as can be told from inside. It is safe for concurrent use.
type health struct {
	every  time.Duration // between sweeps; required
	logger *slog.Logger
	report func(repaired, intact bool)  // to the metrics
	warn   func(reason, message string) // to the node's owner
	// untrusted is why the agent is not to be taken for ready, though it may serve what it has. Nil where it always is.
	untrusted func() error
	gone      func() bool // whether --state-dir was deleted; nil without one

	mu        sync.Mutex // guards the following
	dead      bool       // it was said that only a restart helps
	installed bool
	standby   bool             // the redirect is another agent's, which looks after it
	halves    map[string]check // what the sweeps of the redirect's halves found
}

// check is the outcome of one sweep of one half.
type check struct {
	at  time.Time
	err error
}

// install says that pods are led here from now on, or no longer.
func (h *health) install(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.installed, h.standby = on, false
	h.begin()
	h.report(false, on)
}

// standBy says that the redirect is another agent's from now on, or this one's again.
func (h *health) standBy(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.standby = on
	h.begin()
	h.report(false, true)
}

// begin forgets what was found. The caller holds mu.
func (h *health) begin() {
	now := time.Now()
	h.halves = map[string]check{"guard": {at: now}, "rules": {at: now}}
}

// checked takes note of a sweep. What is wrong is logged when it begins and when it ends.
func (h *health) checked(half string, repaired bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.halves[half].err
	h.halves[half] = check{time.Now(), err}
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		h.logger.Error("redirect is not whole; pods may be refused", "half", half, "error", err)
		h.warn(telemetry.EventNotWhole, fmt.Sprintf("The redirect (%s) is not whole, and pods may be refused: %v", half, err))
	case err == nil && was != nil:
		h.logger.Info("redirect is whole again", "half", half)
	}
	if repaired {
		h.logger.Warn("redirect was changed by another program and has been repaired", "half", half)
		h.warn(telemetry.EventRepaired, fmt.Sprintf("Another program changed the redirect (%s); it has been repaired.", half))
	}
	h.report(repaired, h.intact())
}

// intact reports whether every half was found right, lately, or is another's. The caller holds mu.
func (h *health) intact() bool {
	if h.standby {
		return true
	}
	for _, c := range h.halves {
		if c.err != nil || time.Since(c.at) > staleAfter*h.every+slack {
			return false
		}
	}
	return true
}

// ready returns nil if pods are led here, the redirect was whole when it was looked at, not long ago, and the agent's
// authority is as told; else why not.
func (h *health) ready() error {
	if h.untrusted != nil {
		if err := h.untrusted(); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.installed:
		return errors.New("pods are not redirected here yet")
	case !h.intact():
		return errors.New("pods are not redirected here as they should be")
	}
	return nil
}

// alive reports whether the agent can do its work without a restart. It cannot when --state-dir was deleted on the node: in a
// container the deleted folder stays mounted, so that it cannot be made anew. Without it agents cannot settle whose the
// redirect is, and rules are not repaired. A container that is restarted gets a new folder.
func (h *health) alive() bool {
	if h.gone == nil || !h.gone() {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.dead {
		h.logger.Error("--state-dir was deleted under this agent: nothing is kept for the next one, and in a container rules are " +
			"not repaired; liveness fails until a restart")
	}
	h.dead = true
	return false
}
