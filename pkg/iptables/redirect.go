package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	if err := r.Validate(); err != nil {
		return false, fmt.Errorf("ensure iptables rules: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, t := range r.Targets {
		familyChanged, err := d.settle(ctx, familyOf(t.Metadata), func(saved ruleset) (plan, error) {
			return planEnsure(saved, t.tables(r.GuardExceptDNS))
		})
		changed = changed || familyChanged
		if err != nil {
			errs = append(errs, fmt.Errorf("ensure %s rules: %w", familyOf(t.Metadata), err))
		}
	}
	return changed, errors.Join(errs...)
}

// Check says, one line each, in what the kernel's rules differ from r. It changes nothing.
func (d *Redirect) Check(ctx context.Context, r Rules) (differences []string, err error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("check iptables rules: %w", err)
	}
	for _, t := range r.Targets {
		f := familyOf(t.Metadata)
		saved, err := save(ctx, d.cfg.Runner, d.cfg.Backend, f)
		if err != nil {
			return nil, fmt.Errorf("check %s rules: %w", f, err)
		}
		p, err := planEnsure(saved, t.tables(r.GuardExceptDNS))
		if err != nil {
			return nil, fmt.Errorf("check %s rules: %w", f, err)
		}
		for _, reason := range p.reasons {
			differences = append(differences, f.String()+" "+reason)
		}
	}
	return differences, nil
}

// Remove takes our chains and the jumps to them out of both families, of whatever version they are, and touches
// nothing else. Where there are none, it changes nothing.
func (d *Redirect) Remove(ctx context.Context) (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, f := range []family{ipv4, ipv6} {
		familyChanged, err := d.settle(ctx, f, planRemove)
		changed = changed || familyChanged
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s rules: %w", f, err))
		}
	}
	return changed, errors.Join(errs...)
}

// settle reads, plans and writes until what it reads needs no change.
func (d *Redirect) settle(
	ctx context.Context, f family, planFor func(ruleset) (plan, error),
) (changed bool, err error) {
	var failed error
	for attempt := 0; ; attempt++ {
		saved, err := save(ctx, d.cfg.Runner, d.cfg.Backend, f)
		if err != nil {
			return changed, err
		}
		p, err := planFor(saved)
		switch {
		case err != nil:
			return changed, err
		case p.restore == "":
			return changed, nil
		case attempt == attempts && failed != nil:
			return changed, failed
		case attempt == attempts:
			return changed, fmt.Errorf("rules do not stay as written: %q: find what else writes these chains "+
				"(nft monitor shows it, for the nft backend)", p.reasons)
		}
		if failed = d.restore(ctx, f, p.restore); failed != nil {
			if ctx.Err() != nil {
				return changed, failed
			}
			continue
		}
		changed = true
		d.cfg.Logger.Info("iptables rules changed",
			"family", f.String(), "backend", string(d.cfg.Backend), "reasons", p.reasons)
	}
}

// restore hands text to iptables-restore. Tables that it does not mention, and chains that it does not declare, stay
// as they are.
func (d *Redirect) restore(ctx context.Context, f family, text string) error {
	_, err := d.cfg.Runner.Run(ctx, text, program(f, d.cfg.Backend, "restore"),
		"--noflush", "--wait="+strconv.Itoa(int(lockWait.Seconds())))
	return err
}

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
