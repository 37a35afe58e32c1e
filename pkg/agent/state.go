package agent

import (
	"crypto/rand"
	"fmt"

	"github.com/podrole/podrole/pkg/cache"
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

// openState opens the state folder and takes it over: an agent that had it open writes no more. It comes late in the
// start, so that an agent that cannot start leaves the one that runs alone.
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
	a.state = dir
	keys, err := dir.TokenKeys()
	if err != nil {
		a.logger.Error("keys of IMDSv2 tokens cannot be kept; SDKs fetch new tokens after a restart", "error", err)
	}
	a.decisions = dir.Decisions()
	earlier := a.decisions.Recent(max(cfg.MaxAge, a.cfg.Roles.LastValidGrant))
	return kept{sessions: dir.Sessions(), tokens: dir.Tokens(), keys: keys, earlier: earlier}, nil
}
