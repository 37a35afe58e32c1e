package owner

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// patience is how long a change waits for another agent's. That takes 150 ms at most by itself, but each of its
// programs may have to wait some seconds for the xtables lock.
const patience = 10 * time.Second

// ErrResigned is the error of [Claimant.Claim] and [Claimant.Wait] after [Claimant.Resign].
var ErrResigned = errors.New("this agent has resigned from the redirect")

// Config configures [Open].
type Config struct {
	// Dir is the folder that the agents of the node share, an absolute path. Required. It is made if it is not there;
	// its parent must be. It is for this user alone, on a local file system, best a tmpfs, and for nothing else.
	Dir string
	// Logger is told when the Redirect becomes this agent's, or another's. Optional.
	Logger *slog.Logger
}

// Claimant is an agent that wants to own the Redirect. It is safe for concurrent use.
type Claimant struct {
	dir      string
	patience time.Duration
	logger   *slog.Logger
	presence *os.File // nil if it could not be made; see presence.go

	mu       sync.Mutex // guards the following
	mine     claim      // zero until claimed
	pipe     *os.File   // holds mine
	seen     claim      // the newest there was when nobody was found to live above mine; never below mine
	standby  bool       // the last Do was refused
	resigned bool
}

// Open returns a Claimant that claims nothing yet, and has [Living] know of it until [Claimant.Resign]. An error means
// that nothing can be claimed in the folder.
func Open(cfg Config) (*Claimant, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("open folder of claims %q: not an absolute path", cfg.Dir)
	}
	f, err := openFolder(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open folder of claims: %w", err)
	}
	defer f.unlock()
	if _, err := f.tryLock(); err != nil { // whether it can be locked, not whether it is
		return nil, fmt.Errorf("open folder of claims: %w", err)
	}
	c := &Claimant{dir: cfg.Dir, patience: patience, logger: cfg.Logger}
	if c.presence, err = f.arrive(); err != nil {
		c.logger.Warn("nobody can tell that this agent is there before it owns the redirect", "error", err)
	}
	return c, nil
}

// Claim takes the Redirect over from whoever owns it and runs change, which leads pods to this agent. It is for an
// agent that is ready to serve, and succeeds once: from then on [Claimant.Do] finds out who owns. If change fails, its
// error is returned and nothing is claimed: the former owner repairs what was changed, and Claim may be tried again.
// Another error is that of an agent that has been at a change for ten seconds; it says which.
//
// No other agent of the node runs a change meanwhile. Programs that change starts must have ended when it returns.
func (c *Claimant) Claim(ctx context.Context, change func(context.Context) error) error {
	f, err := c.lock(ctx)
	if err != nil {
		return fmt.Errorf("claim redirect: %w", err)
	}
	defer f.unlock()
	mine, err := c.current()
	if err != nil {
		return fmt.Errorf("claim redirect: %w", err)
	}
	if mine != (claim{}) {
		return fmt.Errorf("claim redirect: %s has been made before: another would take from a newer agent", mine)
	}
	mine, pipe, err := c.next(f)
	if err != nil {
		return fmt.Errorf("claim redirect: %w", err)
	}
	if err := change(ctx); err != nil {
		_ = pipe.Close() // ends the claim
		return err
	}
	if err := c.keep(mine, pipe); err != nil {
		return fmt.Errorf("claim redirect: %w", err)
	}
	c.logger.Info("this agent owns the redirect", "generation", mine.generation)
	return nil
}

// Do runs change if this agent still owns the Redirect, or does again because the newer ones are gone. All that is done
// to the Redirect after Claim is done by it. An error with owns is that of change; without, it could not be found out
// who owns, and change did not run. Before Claim and after Resign nothing is owned.
//
// Nor is anything owned between a newer claim and the next [Claimant.Wait], though that claim may have been void and
// gone before anybody could see it alive: whoever made it may have left what a change would not find.
//
// No other agent of the node runs a change meanwhile. Programs that change starts must have ended when it returns.
func (c *Claimant) Do(ctx context.Context, change func(context.Context) error) (owns bool, err error) {
	f, err := c.lock(ctx)
	if err != nil {
		return false, fmt.Errorf("change redirect: %w", err)
	}
	defer f.unlock()
	mine, err := c.current()
	if err != nil || mine == (claim{}) {
		return false, nil
	}
	newest, err := c.restore(f, mine)
	if err != nil {
		return false, fmt.Errorf("change redirect: %w", err)
	}
	newer, err := f.newestAbove(mine)
	if err != nil {
		return false, fmt.Errorf("change redirect: %w", err)
	}
	if newer != nil {
		newer.close()
		c.note(mine, newer.claim)
		return false, nil
	}
	if !c.hasSeen(newest) {
		return false, nil
	}
	c.note(mine, claim{})
	return true, change(ctx)
}

// Wait returns when no living claim is above this agent's: the owner has died or resigned, and [Claimant.Do] is the
// thing to do, which decides. An agent that has not claimed waits until no claim is left. At the end of ctx Wait
// returns its error.
func (c *Claimant) Wait(ctx context.Context) error {
	for {
		newer, err := c.newer()
		if err != nil {
			return fmt.Errorf("wait for the end of the redirect's owner: %w", err)
		}
		if newer == nil {
			return nil
		}
		err = newer.awaitEnd(ctx)
		newer.close()
		if err != nil {
			return fmt.Errorf("wait for the end of the redirect's owner: %w", err)
		}
	}
}

// Resign ends the claim, for good: whoever waits takes over at once, or after the change that is being made. It waits
// for nobody. It is the end of c; one that has not claimed needs none.
func (c *Claimant) Resign() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resigned = true
	for _, pipe := range []*os.File{c.pipe, c.presence} {
		if pipe != nil {
			_ = pipe.Close()
		}
	}
}

// lock opens the folder and waits for its lock. The caller must unlock it.
func (c *Claimant) lock(ctx context.Context) (*folder, error) {
	for {
		f, err := openFolder(c.dir)
		if errors.Is(err, fs.ErrNotExist) && os.Mkdir(filepath.Dir(c.dir), 0o700) == nil {
			continue // it was there when c was opened, and was removed with all that is in it
		}
		if err != nil {
			return nil, err
		}
		if err := f.lock(ctx, c.patience, c.claimed()); err != nil {
			f.close()
			return nil, err
		}
		if f.is(c.dir) {
			return f, nil
		}
		f.unlock() // it was removed while this agent waited
	}
}

// next makes and holds the claim that is above all others.
func (c *Claimant) next(f *folder) (claim, *os.File, error) {
	before, foreign, err := f.claims()
	if err != nil {
		return claim{}, nil, err
	}
	if len(foreign) > 0 {
		c.logger.Warn("files that are no claims do not belong here, and are ignored", "folder", c.dir, "files", foreign)
	}
	next := claim{1, rand.Text()}
	if len(before) > 0 {
		if before[0].generation == math.MaxUint64 {
			return claim{}, nil, fmt.Errorf("no generation is above %s in %s: remove it", before[0], c.dir)
		}
		next.generation = before[0].generation + 1
	}
	f.bury(before)
	pipe, err := f.hold(next)
	return next, pipe, err
}

// restore puts the claim back if somebody has emptied the folder, and returns the newest of those that are there.
func (c *Claimant) restore(f *folder, mine claim) (newest claim, err error) {
	claims, _, err := f.claims()
	if err != nil {
		return claim{}, err
	}
	if slices.Contains(claims, mine) {
		return claims[0], nil
	}
	pipe, err := f.hold(mine)
	if err != nil {
		return claim{}, err
	}
	c.logger.Warn("the claim to the redirect was removed, and has been put back", "folder", c.dir)
	return slices.MaxFunc(append(claims, mine), claim.compare), c.keep(mine, pipe)
}

// current returns what this agent has claimed, which is nothing at first.
func (c *Claimant) current() (claim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resigned {
		return claim{}, ErrResigned
	}
	return c.mine, nil
}

// keep holds pipe until Resign.
func (c *Claimant) keep(mine claim, pipe *os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.resigned {
		_ = pipe.Close()
		return ErrResigned
	}
	if c.pipe != nil {
		_ = c.pipe.Close()
	}
	c.mine, c.pipe = mine, pipe
	if c.seen.compare(mine) < 0 {
		c.seen = mine
	}
	return nil
}

// claimed returns what this agent has claimed, resigned or not.
func (c *Claimant) claimed() claim {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mine
}

// newer returns the newest claim above this agent's, or nil, when all that have been made until now are seen.
func (c *Claimant) newer() (*living, error) {
	mine, err := c.current()
	if err != nil {
		return nil, err
	}
	f, err := openFolder(c.dir)
	if err != nil {
		return nil, err
	}
	defer f.close()
	newest, err := f.newest() // first: one that is made from here on is not seen
	if err != nil {
		return nil, err
	}
	above, err := f.newestAbove(mine)
	if above == nil && err == nil {
		c.see(newest)
	}
	return above, err
}

// hasSeen reports whether the claim is one that this agent has seen the end of, or its own.
func (c *Claimant) hasSeen(newest claim) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return newest.compare(c.seen) <= 0
}

// see takes note that nobody holds the newest claim, nor one between it and this agent's.
func (c *Claimant) see(newest claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if newest.compare(c.seen) <= 0 {
		return
	}
	c.seen = newest
	if c.mine != (claim{}) && !c.standby {
		c.logger.Info("a newer claim to the redirect has come and gone; this agent owns it still",
			"generation", c.mine.generation, "newer_generation", newest.generation)
	}
}

// note remembers whether a newer claim stands above this agent's, and says so when that changes.
func (c *Claimant) note(mine, newer claim) {
	c.mu.Lock()
	defer c.mu.Unlock()
	standby := newer != claim{}
	switch {
	case standby && !c.standby:
		c.logger.Info("another agent owns the redirect; this one stands by",
			"generation", mine.generation, "newer_generation", newer.generation)
	case !standby && c.standby:
		c.logger.Info("the newer agents are gone; this one owns the redirect again", "generation", mine.generation)
	}
	c.standby = standby
}
