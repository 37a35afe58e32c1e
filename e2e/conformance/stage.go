package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// namespace is where all pods are.
const namespace = "shop"

// restarts is the scenario that all clients play at once: see [stage.restart].
func restarts() []scenario {
	return []scenario{{scenarioRestart, "the agent is replaced, and the client reads credentials anew with the token that it has", nil, nil}}
}

// stage is a node in a box with an agent, and AWS outside.
type stage struct {
	settings settings
	bed      *testbed.Bed
	agent    *testbed.Agent
	home     string // of the clients: empty

	objects sync.Mutex // held to write Kubernetes objects
}

// play plays all scenarios with all clients.
func play(ctx context.Context, cfg settings, clients []ready, w io.Writer) (_ *results, err error) {
	log, err := os.Create(cfg.log)
	if err != nil {
		return nil, fmt.Errorf("create log of the agent: %w", err)
	}
	s := &stage{settings: cfg}
	if s.bed, err = testbed.New(ctx, testbed.Config{Agent: cfg.agent, Log: log}); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	defer func() { err = errors.Join(err, s.bed.Close(), log.Close()) }()
	s.home = filepath.Join(s.bed.Box.Dir, "home")
	if err := os.Mkdir(s.home, 0o700); err != nil {
		return nil, fmt.Errorf("create the clients' home: %w", err)
	}

	all := newResults(clients, plain(), restarts(), containers(), strict())
	fmt.Fprintf(w, "== podrole with its defaults; its log is %s\n", cfg.log)
	if err := s.replaceAgent(ctx); err != nil {
		return nil, err
	}
	if err := s.each(ctx, clients, plain(), all, w); err != nil {
		return nil, err
	}
	for _, sc := range restarts() {
		fmt.Fprintln(w, "== podrole is replaced while all clients run")
		if err := s.restart(ctx, clients, sc, all); err != nil {
			return nil, err
		}
	}
	fmt.Fprintln(w, "== podrole with", containerFlag)
	if err := s.replaceAgent(ctx, containerFlag); err != nil {
		return nil, err
	}
	if err := s.each(ctx, clients, containers(), all, w); err != nil {
		return nil, err
	}
	fmt.Fprintln(w, "== podrole with --imdsv1=false")
	if err := s.replaceAgent(ctx, "--imdsv1=false"); err != nil {
		return nil, err
	}
	if err := s.each(ctx, clients, strict(), all, w); err != nil {
		return nil, err
	}
	if err := s.agent.Stop(); err != nil {
		return nil, err
	}
	all.leaks = s.bed.NodeRoleLeaks()
	return all, nil
}

// replaceAgent starts an agent in the place of the one before.
func (s *stage) replaceAgent(ctx context.Context, flags ...string) (err error) {
	if s.agent != nil {
		if err := s.agent.Stop(); err != nil {
			return err
		}
	}
	// Two dozen pods at once are no node's everyday, and a client that is slow to start holds its call to STS for long.
	flags = append([]string{
		"--sts-rate=50", "--sts-timeout=1m", "--state-dir=" + filepath.Join(s.bed.Box.Dir, "state"), "--state-dir-on-disk",
	}, flags...)
	s.agent, err = s.bed.StartAgent(ctx, flags...)
	return err
}

// each plays scenarios with every client, each for itself, some at the same time.
func (s *stage) each(ctx context.Context, clients []ready, scenarios []scenario, all *results, w io.Writer) error {
	for _, sc := range scenarios {
		began := time.Now()
		pool(s.settings.parallel, len(clients), func(i int) {
			r := clients[i]
			if !all.absent(r, sc.name) {
				note, err := sc.play(ctx, s, r)
				all.record(r.name, sc.name, note, err)
				return
			}
			if r.err != nil || !r.mayLearn() || sc.learnt == nil {
				return
			}
			if err := sc.learnt(ctx, s, r); err != nil {
				all.record(r.name, sc.name, "", err)
			}
		})
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("play %q: %w", sc.name, err)
		}
		fmt.Fprintf(w, "   %-11s  %s\n", sc.name, time.Since(began).Round(100*time.Millisecond))
	}
	return nil
}

// restart replaces the agent while all clients run, and has them read credentials anew.
func (s *stage) restart(ctx context.Context, clients []ready, sc scenario, all *results) error {
	actors := make([]*actor, len(clients))
	pool(s.settings.parallel, len(clients), func(i int) {
		if all.absent(clients[i], sc.name) {
			return
		}
		a, err := s.enter(ctx, clients[i], sc.name, part{role: clients[i].name})
		if err == nil {
			if err = a.findsItsRole(ctx); err == nil {
				actors[i] = a
				return
			}
			_, err = a.leave(err)
		}
		all.record(clients[i].name, sc.name, "", fmt.Errorf("before the restart: %w", err))
	})
	if err := s.replaceAgent(ctx); err != nil {
		return err
	}
	pool(s.settings.parallel, len(actors), func(i int) {
		if a := actors[i]; a != nil {
			note, err := a.leave(a.readsAnew(ctx))
			all.record(a.name, sc.name, note, err)
		}
	})
	return nil
}

// readsAnew has a client read its credentials once more, with whatever token it holds. That some clients get over a
// token that is not known any more does not count: others do not.
func (a *actor) readsAnew(ctx context.Context) error {
	got, err := a.ask(ctx, "forget")
	if err == nil && got.Error != "" {
		err = fmt.Errorf("forget: %s", got)
	}
	if err != nil {
		return err
	}
	if err := a.findsItsRole(ctx); err != nil {
		return err
	}
	for _, e := range a.wire.heard() {
		if e.status == http.StatusUnauthorized {
			return fmt.Errorf("its token was refused: %s", e)
		}
	}
	return nil
}

// part is what is special about an actor.
type part struct {
	role string        // by name; empty for a pod without one
	life time.Duration // of sessions; default an hour
	// variables are of the pod's environment, as NAME=VALUE.
	variables []string
	// With a latency, the call to STS takes so long from the moment that the client has sent its first request, and
	// the client starts when minting is closed, which is when the call has arrived.
	latency time.Duration
	minting chan struct{}
}

// actor is a client in a pod of its own.
type actor struct {
	ready
	*conversation
	stage *stage
	role  string
	pod   *nodebox.Pod
	wire  *wire
	undo  []func() error
}

// enter makes a pod and starts a client in it.
func (s *stage) enter(ctx context.Context, r ready, scenario string, p part) (_ *actor, err error) {
	a := &actor{ready: r, stage: s, role: p.role}
	defer func() {
		if err != nil {
			_, err = a.leave(err)
		}
	}()
	account, name := p.role, r.name+"-"+strings.ToLower(strings.ReplaceAll(scenario, " ", "-"))
	if account == "" {
		account = "nobody"
	}
	if a.pod, err = s.bed.Box.AddPod(nodebox.PodConfig{Namespace: namespace, Name: name}); err != nil {
		return nil, err
	}
	a.undo = append(a.undo, a.pod.Remove)
	if a.wire, err = listen(a.pod); err != nil {
		return nil, err
	}
	a.undo = append(a.undo, a.wire.close)
	if p.latency > 0 {
		waiting := sync.OnceFunc(func() { close(p.minting) })
		remove, err := s.bed.AWS.Inject(awstest.Fault{
			Service: "sts", Action: "AssumeRole", RoleARN: roleARN(p.role), Times: 1,
			LatencyFunc: func() time.Duration {
				waiting()
				if a.wire.first(ctx) != nil {
					return 0
				}
				return p.latency
			},
		})
		if err != nil {
			return nil, err
		}
		a.undo = append(a.undo, func() error { remove(); return nil })
	}
	if err := s.schedule(a.pod, account, p); err != nil {
		return nil, err
	}
	a.undo = append(a.undo, func() error { return s.bed.Delete("Pod", namespace, name) })
	if p.minting != nil {
		select {
		case <-p.minting:
		case <-time.After(answerWithin):
			return nil, fmt.Errorf("no call to STS within %s", answerWithin)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	var hello answer
	command := append(append([]string{}, r.command...), s.bed.STS(), testbed.Region)
	if a.conversation, hello, err = converse(ctx, a.pod, s.home, p.variables, command...); err != nil {
		return nil, err
	}
	if r.version != "" && hello.Version != r.version {
		return nil, fmt.Errorf("want version %s; it says %s", r.version, hello)
	}
	return a, nil
}

// schedule writes the Kubernetes objects of a pod.
func (s *stage) schedule(pod *nodebox.Pod, account string, p part) error {
	s.objects.Lock()
	defer s.objects.Unlock()
	arn := ""
	if p.role != "" {
		var err error
		if arn, err = s.bed.AddRole(p.role, namespace, account); err != nil {
			return err
		}
	}
	if err := s.bed.AddServiceAccount(namespace, account, arn); err != nil {
		return err
	}
	if p.life > 0 {
		annotations := map[string]any{
			"podrole.io/role-arn":         arn,
			"podrole.io/session-duration": strconv.Itoa(int(p.life.Seconds())),
		}
		metadata := map[string]any{"annotations": annotations}
		if err := s.bed.Put("ServiceAccount", namespace, account, metadata, nil); err != nil {
			return err
		}
	}
	return s.bed.Run(pod, account)
}

// leave ends the client and removes its pod. What it returns is the verdict: err with all that the client did, or what
// went wrong here.
func (a *actor) leave(err error) (note string, _ error) {
	if err != nil && a.wire != nil {
		err = fmt.Errorf("%w\n      it asked for: %s", err, describe(a.wire.heard()))
	}
	if a.conversation != nil {
		ended := a.conversation.close()
		if err == nil {
			err = ended
		} else if said := tail(a.stderr.String()); said != "" {
			err = fmt.Errorf("%w\n      on standard error: %s", err, said)
		}
	}
	for i := len(a.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, a.undo[i]())
	}
	return "ok", err
}

func roleARN(name string) string { return "arn:aws:iam::" + testbed.Account + ":role/" + name }
