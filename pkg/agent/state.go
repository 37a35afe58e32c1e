package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/podrole/podrole/pkg/cache"
	"github.com/podrole/podrole/pkg/owner"
	"github.com/podrole/podrole/pkg/proxy"
	"github.com/podrole/podrole/pkg/state"
	"github.com/podrole/podrole/pkg/sts"
)

// kept is what outlives an agent. The stores are nil where there is no --state-dir.
type kept struct {
	sessions cache.Store
	tokens   sts.TokenStore
	keys     [][]byte // of IMDSv2 tokens
	earlier  []state.Decision
}

// openClaims finds the folder in which the agents of this node settle who owns the redirect, and makes the keeper. It changes
// nothing.
func (a *agent) openClaims() error {
	a.claims = alone{}
	if dir := a.cfg.State.Dir; dir != "" {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make --state-dir: %w", err)
		}
		claimant, err := owner.Open(owner.Config{Dir: claimsOf(dir), Logger: a.logger})
		if err != nil {
			return fmt.Errorf("use --state-dir: %w", err)
		}
		a.claims = claimant
	}
	a.keeper = &keeper{
		claims: a.claims, every: a.cfg.Redirect.Sweep, health: a.health, owned: a.follow(),
		regained: a.regained, logger: a.logger,
	}
	return nil
}

// claimsOf is the folder of claims in --state-dir.
func claimsOf(dir string) string { return filepath.Join(dir, "claims") }

// noAgent returns an error if an agent serves this node, or is about to, as far as --state-dir tells.
func noAgent(dir string) error {
	if dir == "" {
		return nil // none that says so
	}
	if living, err := owner.Living(claimsOf(dir)); err != nil {
		return fmt.Errorf("find out whether an agent runs: %w", err)
	} else if living {
		return errors.New("an agent serves this node, and would put back what is removed: delete its DaemonSet, or stop it, first")
	}
	return nil
}

// removeState removes what agents kept. It is the end of an uninstall, and fails if an agent has started meanwhile.
func removeState(dir string) error {
	if dir == "" {
		return nil
	}
	if err := noAgent(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(claimsOf(dir)); err != nil {
		return fmt.Errorf("remove state: %w", err)
	}
	return state.Remove(dir)
}

// rotateKeys has the keys of IMDSv2 tokens be those of the state folder, where a new one begins each day.
func (a *agent) rotateKeys() {
	keys, err := a.state.TokenKeys()
	if err == nil {
		err = a.proxy.SetKeys(keys)
	}
	if err != nil {
		a.logger.Warn("keys of IMDSv2 tokens are not replaced; the ones before stay", "error", err)
	}
}

// regained has the next look at the rules begin with what the agent that owned the redirect meanwhile, or failed to, left in
// the other iptables backend: its rules would lead pods to a port where nobody listens any more.
func (a *agent) regained() { a.redirect.unsure = true }

// follow returns what has the state follow the redirect: who owns that writes, and makes up for what it could not write
// meanwhile. An agent that starts takes the state to read it, and may never come to own the redirect; nor may it be able to
// write from the start, where there is no room.
func (a *agent) follow() func() {
	said := false
	return func() {
		if a.state == nil || !a.state.Superseded() {
			return
		}
		if err := a.state.Take(); err != nil {
			if !said {
				a.logger.Warn("--state-dir cannot be written to yet; sessions are not kept for the next agent", "error", err)
			}
			said = true
			return
		}
		said = false
		a.logger.Info("--state-dir is this agent's again")
		a.rotateKeys() // the agent that had it may have begun a new one
		a.cache.KeepAll()
		if granted, all := a.assignments.granted(); all {
			a.decisions.Retain(granted)
		}
		a.assignments.retell(a.seen()) // last: Retain does not know of pods that were decided on meanwhile
	}
}

// recall reads what the agent before decided anew: it may have gone on for long after this one started.
func (a *agent) recall() {
	if a.state == nil {
		return
	}
	if err := a.state.Take(); err != nil {
		a.logger.Warn("decisions of the agent before cannot be read again", "error", err)
		return
	}
	a.assignments.remember(a.decisions.Recent(max(a.cfg.State.MaxAge, a.cfg.Roles.LastValidGrant)))
}

// openState opens the state folder and takes it over: an agent that had it open writes no more. Where there is no room it
// is only read, until there is. It comes late in the start, so that an agent that cannot start leaves the one that runs
// alone.
func (a *agent) openState() (kept, error) {
	cfg := a.cfg.State
	if cfg.Dir == "" {
		key := make([]byte, proxy.MinKeySize)
		if _, err := rand.Read(key); err != nil {
			return kept{}, fmt.Errorf("make token key: %w", err)
		}
		return kept{keys: [][]byte{key}}, nil
	}
	dir, err := state.Open(state.Config{Path: cfg.Dir, AllowDisk: cfg.OnDisk, Logger: a.logger})
	if err != nil {
		return kept{}, fmt.Errorf("open --state-dir: %w", err)
	}
	a.state, a.health.gone = dir, dir.Gone
	keys, err := dir.TokenKeys()
	if err != nil {
		a.logger.Error("keys of IMDSv2 tokens cannot be kept; SDKs fetch new tokens after a restart", "error", err)
	}
	a.decisions = dir.Decisions()
	earlier := a.decisions.Recent(max(cfg.MaxAge, a.cfg.Roles.LastValidGrant))
	return kept{sessions: dir.Sessions(), tokens: dir.Tokens(), keys: keys, earlier: earlier}, nil
}
