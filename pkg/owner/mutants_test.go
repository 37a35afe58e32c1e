package owner

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"
)

// bugs are claimants that lack one thing each.
var bugs = map[string]func(*Claimant) claimant{
	"does_without_looking_who_owns":  func(c *Claimant) claimant { return &blind{c} },
	"does_without_the_lock":          func(c *Claimant) claimant { return &unlocked{c} },
	"claims_without_the_lock":        func(c *Claimant) claimant { return &hasty{c} },
	"looks_who_owns_before_it_locks": func(c *Claimant) claimant { return &early{c} },
	"the_dead_own":                   func(c *Claimant) claimant { return &pious{c} },
	"takes_back_with_a_new_claim":    func(c *Claimant) claimant { return &greedy{c} },
	"resigns_without_saying_so":      func(c *Claimant) claimant { return &silent{c} },
}

func plant(bug string, c *Claimant) claimant {
	if mutate, ok := bugs[bug]; ok {
		return mutate(c)
	}
	return c
}

type blind struct{ *Claimant }

func (b *blind) Do(ctx context.Context, change func(context.Context) error) (bool, error) {
	f, err := b.lock(ctx)
	if err != nil {
		return false, err
	}
	defer f.unlock()
	return true, change(ctx)
}

type unlocked struct{ *Claimant }

func (u *unlocked) Do(ctx context.Context, change func(context.Context) error) (bool, error) {
	newer, err := u.newer()
	if err != nil || newer != nil {
		return false, err
	}
	return true, change(ctx)
}

type early struct{ *Claimant }

func (e *early) Do(ctx context.Context, change func(context.Context) error) (bool, error) {
	newer, err := e.newer()
	if err != nil || newer != nil {
		return false, err
	}
	return (&blind{e.Claimant}).Do(ctx, change)
}

type hasty struct{ *Claimant }

func (h *hasty) Claim(ctx context.Context, change func(context.Context) error) error {
	f, err := openFolder(h.dir)
	if err != nil {
		return err
	}
	defer f.close()
	mine, pipe, err := h.next(f)
	if err != nil {
		return err
	}
	if err := change(ctx); err != nil {
		_ = pipe.Close()
		return err
	}
	return h.keep(mine, pipe)
}

type pious struct{ *Claimant }

func (p *pious) Do(ctx context.Context, change func(context.Context) error) (bool, error) {
	f, err := p.lock(ctx)
	if err != nil {
		return false, err
	}
	defer f.unlock()
	mine, _ := p.current()
	claims, _, err := f.claims()
	if err != nil || len(claims) == 0 || claims[0] != mine {
		return false, err
	}
	return true, change(ctx)
}

type greedy struct{ *Claimant }

func (g *greedy) Do(ctx context.Context, change func(context.Context) error) (bool, error) {
	owns, err := g.Claimant.Do(ctx, change)
	if owns || err != nil {
		return owns, err
	}
	fresh, err := Open(Config{Dir: g.dir})
	if err != nil {
		return false, err
	}
	fresh.patience = g.patience
	if err := fresh.Claim(ctx, change); err != nil {
		return false, err
	}
	g.Resign()
	g.Claimant = fresh
	return true, nil
}

type silent struct{ *Claimant }

func (*silent) Resign() {}

// TestModelCatchesPlantedBugs: a test that finds nothing proves something only if it would have found these.
func TestModelCatchesPlantedBugs(t *testing.T) {
	for _, bug := range slices.Sorted(maps.Keys(bugs)) {
		t.Run(bug, func(t *testing.T) {
			t.Parallel()
			m := newModel(t, bug, time.Second/2)
			for round := range 300 {
				if err := m.round(); err != nil {
					t.Logf("round %d: %v", round, err)
					return
				}
			}
			t.Error("not caught")
		})
	}
}
