package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"
)

// lockWait is how long iptables-restore waits for other users of the legacy backend's lock, in whole seconds.
const lockWait = 5 * time.Second

// attempts bounds how often Ensure and Remove start over because the table changed between reading and writing, or
// is not as written afterwards.
const attempts = 3

// Config is what a [Redirect] needs.
type Config struct {
	// Backend is the one to write to: [NFT] or [Legacy], as [Detect] found it. Required.
	Backend Backend
	// Runner runs the programs. Required; [Exec] outside tests.
	Runner Runner
	// Logger is told of every change and its reasons. Required.
	Logger *slog.Logger
}

// Redirect keeps the nat and filter rules of one backend, in the network namespace in which its Runner runs
// programs. It holds no state of its own: every call starts from what the kernel has. Its methods are safe for
// concurrent use, and wait for each other.
type Redirect struct {
	cfg Config
	mu  sync.Mutex // guards nothing but the order of transactions
}

// NewRedirect returns a Redirect. It runs nothing.
func NewRedirect(cfg Config) (*Redirect, error) {
	if cfg.Backend != NFT && cfg.Backend != Legacy {
		return nil, fmt.Errorf("iptables backend %q is not one to write to: choose %s or %s", cfg.Backend, NFT, Legacy)
	}
	return &Redirect{cfg: cfg}, nil
}

// Ensure makes the kernel's rules those of r and reports whether they were not. Every table that differs is changed
// in one transaction; one that does not is not written to. To move the redirect to another port is such a change: at
// every moment either the old port is the target or the new one.
//
// A change is read back before Ensure returns. A table that another program changed at the same time is read again
// and retried, a few times. On an error the rules of one family may be in place and those of the other not; calling
// Ensure again is always right.
func (d *Redirect) Ensure(ctx context.Context, r Rules) (changed bool, err error) {
	return d.ensure(ctx, r, func(ctx context.Context, f familyRules) (ruleset, error) {
		return save(ctx, d.cfg.Runner, d.cfg.Backend, f.family)
	})
}

// Heal is Ensure for when Watch has told of a change. With the nft backend it reads no more than our chains and those
// that lead to them, as long as that is enough to judge, so that it takes tens of milliseconds however many rules
// others have. What an earlier version of podrole left elsewhere, it does not find; Ensure must have been called
// before.
func (d *Redirect) Heal(ctx context.Context, r Rules) (changed bool, err error) {
	if d.cfg.Backend == Legacy {
		return d.Ensure(ctx, r) // the kernel has tables as a whole, and so the programs read them as a whole
	}
	return d.ensure(ctx, r, d.peek)
}

func (d *Redirect) ensure(
	ctx context.Context, r Rules, read func(context.Context, familyRules) (ruleset, error),
) (changed bool, err error) {
	if err := r.Validate(); err != nil {
		return false, fmt.Errorf("ensure iptables rules: %w", err)
	}
	var goals []*goal
	for _, f := range r.byFamily() {
		goals = append(goals, &goal{
			family: f.family,
			read:   func() (ruleset, error) { return read(ctx, f) },
			plan:   func(saved ruleset) (plan, error) { return planEnsure(saved, f.tables()) },
		})
	}
	return d.settle(ctx, "ensure", goals)
}

// Check says, one line each, in what the kernel's rules differ from r. It changes nothing.
func (d *Redirect) Check(ctx context.Context, r Rules) (differences []string, err error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("check iptables rules: %w", err)
	}
	for _, f := range r.byFamily() {
		saved, err := save(ctx, d.cfg.Runner, d.cfg.Backend, f.family)
		if err != nil {
			return nil, fmt.Errorf("check %s rules: %w", f.family, err)
		}
		p, err := planEnsure(saved, f.tables())
		if err != nil {
			return nil, fmt.Errorf("check %s rules: %w", f.family, err)
		}
		for _, reason := range p.reasons {
			differences = append(differences, f.family.String()+" "+reason)
		}
	}
	return differences, nil
}

// Remove takes our chains and the jumps to them out of both families, of whatever version they are, and touches
// nothing else. Where there are none, it changes nothing.
func (d *Redirect) Remove(ctx context.Context) (changed bool, err error) {
	var goals []*goal
	for _, f := range []family{ipv4, ipv6} {
		goals = append(goals, &goal{
			family: f,
			read:   func() (ruleset, error) { return save(ctx, d.cfg.Runner, d.cfg.Backend, f) },
			plan:   planRemove,
		})
	}
	return d.settle(ctx, "remove", goals)
}

// goal is how the tables of a family are to be.
type goal struct {
	family family
	read   func() (ruleset, error)
	plan   func(ruleset) (plan, error)

	written int // how often
	failed  error
}

// settle reads, plans and writes until what it reads needs no change. All families are written to before the first
// is read back.
func (d *Redirect) settle(ctx context.Context, verb string, goals []*goal) (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for len(goals) > 0 {
		goals = slices.DeleteFunc(goals, func(g *goal) bool {
			wrote, done, err := d.approach(ctx, g)
			changed = changed || wrote
			if err != nil {
				errs = append(errs, fmt.Errorf("%s %s rules: %w", verb, g.family, err))
			}
			return done
		})
	}
	return changed, errors.Join(errs...)
}

// approach reads a family once and writes what differs. It is done when nothing does, or when there is no more hope.
func (d *Redirect) approach(ctx context.Context, g *goal) (wrote, done bool, err error) {
	saved, err := g.read()
	if err != nil {
		return false, true, err
	}
	p, err := g.plan(saved)
	switch {
	case err != nil:
		return false, true, err
	case p.restore == "":
		return false, true, nil
	case g.written == attempts && g.failed != nil:
		return false, true, g.failed
	case g.written == attempts:
		return false, true, fmt.Errorf("rules do not stay as written: %q: find what else writes these chains "+
			"(nft monitor shows it, for the nft backend)", p.reasons)
	}
	g.written++
	if g.failed = d.restore(ctx, g.family, p.restore); g.failed != nil {
		if ctx.Err() != nil {
			return false, true, g.failed
		}
		return false, false, nil
	}
	d.cfg.Logger.Info("iptables rules changed",
		"family", g.family.String(), "backend", string(d.cfg.Backend), "reasons", p.reasons)
	return true, false, nil
}

// restore hands text to iptables-restore. Tables that it does not mention, and chains that it does not declare, stay
// as they are.
func (d *Redirect) restore(ctx context.Context, f family, text string) error {
	_, err := d.cfg.Runner.Run(ctx, text, program(f, d.cfg.Backend, "restore"), "--noflush", restoreWait())
	return err
}

func restoreWait() string { return "--wait=" + strconv.Itoa(int(lockWait.Seconds())) }

// save reads all tables of a family. Naming a table would make the legacy backend create it.
func save(ctx context.Context, r Runner, b Backend, f family) (ruleset, error) {
	name := program(f, b, "save")
	out, err := r.Run(ctx, "", name)
	if err != nil {
		return nil, err
	}
	set, err := parseSave(out)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return set, nil
}

func program(f family, b Backend, what string) string {
	return string(f) + "-" + string(b) + "-" + what
}
