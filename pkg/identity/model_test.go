package identity

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// The model test: random schedules of everything that happens to a node's pods, against an oracle that knows the truth.
//
// The truth is the kernel's: which sandbox holds which address, behind which interface. At random moments a connection
// comes out of one, and the Directory is asked whose it is. Two answers are right: that sandbox's pod, and "unknown". And
// once everything has arrived and nothing moves, "unknown" is wrong as well. What the Directory tells its Follower must be a
// state that existed, in the order in which it did, and complete.
//
// How the delay is modelled: what the API server says is on its way for any time, is in an informer's store, then told
// to the handler, then reconciled; each of these steps is an op of its own. Watches break and begin again with a list.
// A CNI result is read any time after it was written. One thing is taken for granted where the address is all there is
// to tell pods apart: a pod's first instruction comes after podrole has read its result (see mayStart).
//
// Without CNI results for the pod that asks, one window is open and cannot be closed: its address was another's, and the
// API has said neither that the other one is gone nor that it is this one's now. Such answers are counted and logged.
// Within that window too, only the one pod is ever named that the API says has the address.

const (
	modelSteps   = 1_000_000 // in all; with -short a twentieth
	episodeSteps = 2_000     // at most: not every op finds something to do
	shrinkTime   = 20 * time.Second
)

// episode is a schedule for one world.
type episode struct {
	seed                   uint64
	network                network
	results, faults, hasty bool
	ops                    []op
}

// newEpisode returns a random one. CNI results are there in most, and whole in most of these.
func newEpisode(seed uint64, steps int) episode {
	r := rand.New(rand.NewPCG(seed, 1))
	e := episode{seed: seed, network: network(r.IntN(int(networks))), results: r.IntN(8) > 0, ops: randomOps(seed, steps)}
	e.faults, e.hasty = r.IntN(3) == 0, r.IntN(3) == 0
	return e
}

// conditions says what stands between a sandbox and its being known.
func (e episode) conditions() string {
	switch {
	case !e.results:
		return "no results"
	case e.faults && e.hasty:
		return "some results missing, some late"
	case e.faults:
		return "some results missing"
	case e.hasty:
		return "some results late"
	}
	return "results"
}

func (e episode) String() string {
	return fmt.Sprintf("seed %d (network %d, results %v, faults %v, hasty %v)", e.seed, e.network, e.results, e.faults, e.hasty)
}

// outcome is what became of an episode.
type outcome struct {
	*oracle
	ops   int // until the violation, or all
	steps int // ops that did something
	trace []string
}

func (e episode) play(agent driver, traced bool) outcome {
	out := outcome{oracle: newOracle()}
	w := newWorld(e.network, e.results, e.faults, e.hasty, out.oracle)
	w.agent, w.traced = agent, traced
	agent.start(w)
	defer agent.stop()
	for _, op := range e.ops {
		w.did, w.said = false, w.said[:0]
		w.do(op)
		out.ops++
		if w.did {
			out.steps++
			if traced {
				out.trace = append(out.trace, fmt.Sprintf("%4d: %s", out.ops, strings.Join(w.said, "; ")))
			}
		}
		if out.err() != nil {
			break
		}
	}
	return out
}

// shrink leaves out what a violation does not need.
func (e episode) shrink(agent func() driver) episode {
	deadline := time.Now().Add(shrinkTime)
	e.ops = e.ops[:e.play(agent(), false).ops]
	for size := len(e.ops) / 2; size > 0; size /= 2 {
		for smaller := true; smaller; {
			smaller = false
			for from := 0; from < len(e.ops); {
				if time.Now().After(deadline) {
					return e
				}
				less := e
				less.ops = slices.Delete(slices.Clone(e.ops), from, min(from+size, len(e.ops)))
				if out := less.play(agent(), false); out.err() != nil {
					less.ops = less.ops[:out.ops]
					e, smaller = less, true
				} else {
					from += size
				}
			}
		}
	}
	return e
}

// report fails the test with the seed and a short way to the violation.
func (e episode) report(t *testing.T, agent func() driver, violation error) {
	t.Helper()
	small := e.shrink(agent)
	out := small.play(agent(), true)
	t.Errorf("%v: %v\nTo play it again: PODROLE_MODEL_SEED=%d go test -run '%s$'\nShrunk to %d steps, which end in: %v\n%s",
		e, violation, e.seed, t.Name(), out.steps, out.err(), strings.Join(out.trace, "\n"))
}

// modelSeed returns the seed to begin with: the same one every time, unless the environment says otherwise ("random", or a
// number).
func modelSeed(t *testing.T) (seed uint64, given bool) {
	t.Helper()
	text := os.Getenv("PODROLE_MODEL_SEED")
	switch text {
	case "":
		return 1, false
	case "random":
		return uint64(time.Now().UnixNano()), false
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("PODROLE_MODEL_SEED: %v", err)
	}
	return seed, true
}

// TestModel plays a million steps, those not counted that found nothing to do.
func TestModel(t *testing.T) {
	t.Parallel()
	firstSeed, given := modelSeed(t)
	steps := modelSteps
	switch {
	case given:
		steps = 1
	case testing.Short():
		steps /= 20
	}
	agent := func() driver { return newByHand(mutant{}) }

	const players = 2
	var (
		mu                                         sync.Mutex // guards the following
		episodes, played, asked, answered, settled int
		windows                                    = map[string]int{}
		failed                                     *episode
		violation                                  error
		playing                                    sync.WaitGroup
	)
	next := func() (seed uint64, more bool) {
		mu.Lock()
		defer mu.Unlock()
		episodes++
		return firstSeed + uint64(episodes-1), failed == nil && played < steps && episodes <= 1+steps/100
	}
	for range players {
		playing.Go(func() {
			for seed, more := next(); more; seed, more = next() {
				e := newEpisode(seed, episodeSteps)
				out := e.play(agent(), false)
				mu.Lock()
				played, asked, answered, settled = played+out.steps, asked+out.asked, answered+out.answered, settled+out.settled
				windows[e.conditions()] += out.windows
				if err := out.err(); err != nil && failed == nil {
					failed, violation = &e, err
				}
				mu.Unlock()
			}
		})
	}
	playing.Wait()
	t.Logf("%d steps, %d questions, %d of them answered, all settled %d times", played, asked, answered, settled)
	t.Logf("wrong where the API alone could tell: %v", windows)
	if failed != nil {
		failed.report(t, agent, violation)
	} else if !given && answered < asked/4 {
		t.Errorf("%d of %d questions were answered: too few to mean something", answered, asked)
	}
	if n := windows["results"]; n > 0 {
		t.Errorf("%d wrong answers with every CNI result in place and read", n)
	}
}
