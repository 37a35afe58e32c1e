package owner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// agentEnv holds the agentConfig of a process that is to be an agent of the model.
const agentEnv = "OWNER_TEST_AGENT"

// agentConfig is what an agent of the model is told. It begins when its input is closed.
type agentConfig struct {
	Dir    string // of the model
	ID     string
	Seed   uint64
	Bug    string // one of the planted ones, or empty
	Steady bool   // it neither fails nor dies by itself
}

// agent does what an agent does with the Redirect: claims it, looks after it, stands by, takes it back, resigns. Its
// rules are a file of two halves, one after the other, as iptables-restore is run once for each address family.
type agent struct {
	claimant
	id      string
	steady  bool
	random  *rand.Rand
	rules   *os.File
	journal *os.File
}

// claimant is what a planted bug may be in.
type claimant interface {
	Claim(ctx context.Context, change func(context.Context) error) error
	Do(ctx context.Context, change func(context.Context) error) (bool, error)
	Wait(ctx context.Context) error
	Resign()
}

const (
	agentTick = time.Millisecond
	half      = 12 // bytes: the length of an agent's id
)

func openRules(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "rules"), os.O_RDWR|os.O_CREATE, 0o600)
}

func openJournal(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
}

func openClaimant(dir string) (*Claimant, error) {
	c, err := Open(Config{Dir: filepath.Join(dir, "claims")})
	if err == nil {
		c.patience = 20 * time.Millisecond
	}
	return c, err
}

func runAgent(text string) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var cfg agentConfig
	err := json.Unmarshal([]byte(text), &cfg)
	a := &agent{id: cfg.ID, steady: cfg.Steady, random: rand.New(rand.NewPCG(cfg.Seed, 0))}
	if err == nil {
		a.rules, err = openRules(cfg.Dir)
	}
	if err == nil {
		a.journal, err = openJournal(cfg.Dir)
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
	if err == nil {
		var c *Claimant
		if c, err = openClaimant(cfg.Dir); err == nil {
			a.claimant = plant(cfg.Bug, c)
		}
	}
	if err != nil {
		fmt.Println("broken:", err)
		os.Exit(1)
	}
	a.run(ctx)
	select {} // what has resigned may take its time to end; nobody waits for it
}

// run is the life of an agent until ctx ends.
func (a *agent) run(ctx context.Context) {
	resigned := make(chan struct{})
	context.AfterFunc(ctx, func() { // also in the middle of a change
		defer close(resigned)
		a.note("resigns")
		a.Resign()
	})
	for ctx.Err() == nil && a.Claim(ctx, a.change("claims")) != nil {
		a.linger()
	}
	tick := time.NewTicker(agentTick)
	for was := ""; ctx.Err() == nil; {
		owns, err := a.Do(ctx, a.repair)
		is := map[bool]string{true: "owns", false: "stands by"}[owns]
		if err != nil {
			is = was
		}
		if is != was {
			fmt.Println(is)
			was = is
		}
		if err == nil && !owns {
			_ = a.Wait(ctx)
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	<-resigned
	fmt.Println("resigned")
}

// change makes all rules its own, in steps. It may fail between them, and be killed at each.
func (a *agent) change(why string) func(context.Context) error {
	return func(context.Context) error {
		a.note(why)
		a.mayDie()
		for i := range int64(2) {
			if _, err := a.rules.WriteAt([]byte(a.id), i*half); err != nil {
				return err
			}
			a.linger()
			a.mayDie()
			if !a.steady && a.random.IntN(20) == 0 {
				a.note("fails")
				return errors.New("planted failure")
			}
		}
		a.note("done")
		return nil
	}
}

// repair changes the rules only if they are not this agent's, as Ensure does.
func (a *agent) repair(ctx context.Context) error {
	if found, err := readRules(a.rules); err != nil || found == a.id {
		return err
	}
	return a.change("repairs")(ctx)
}

// linger does nothing for up to half a millisecond.
func (a *agent) linger() { <-time.After(time.Duration(a.random.IntN(500)) * time.Microsecond) }

// mayDie kills the process, seldom.
func (a *agent) mayDie() {
	if !a.steady && a.random.IntN(40) == 0 {
		a.note("killed")
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

// note appends a line to the journal, which all processes share.
func (a *agent) note(what string) {
	if _, err := fmt.Fprintln(a.journal, a.id, what); err != nil {
		panic(err)
	}
}

// readRules returns the id of the agent that all rules are of, or what is there instead.
func readRules(rules *os.File) (string, error) {
	both := make([]byte, 2*half)
	n, err := rules.ReadAt(both, 0)
	if n == len(both) && bytes.Equal(both[:half], both[half:]) {
		return string(both[:half]), nil
	}
	if n < len(both) && n > 0 || err == nil {
		return fmt.Sprintf("%q", both[:n]), nil
	}
	if n == 0 {
		return "", nil
	}
	return "", err
}
