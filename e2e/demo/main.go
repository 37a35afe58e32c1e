// Demo shows on one machine what podrole does on a node: a node in a box with three pods, unchanged clients that find
// out whose role they have, then ten rotations of the pods' sessions under steady polling, beside a pod that calls STS
// in-line. It ends with one line of figures, and with status 1 if a request failed, a rotation is missing or anything but
// the node itself reached the node's metadata service.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/podrole/podrole/internal/awstest"
	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/poll"
	"github.com/podrole/podrole/internal/rotation"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	stsLatency = 1500 * time.Millisecond
	// sessionLife stands for the hour of real sessions, so that rotations come every few seconds.
	sessionLife = 12 * time.Second
	rotations   = 10
	interval    = 20 * time.Millisecond // between the requests of a pod
	longest     = 4 * time.Minute       // of the whole demo
)

//go:embed boto2.py
var boto2 []byte

func main() {
	poll.Main() // the pollers in the pods are this same program
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, longest)
	ok, err := demo(ctx, os.Stdout)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// demo runs the whole and reports whether all went as promised.
func demo(ctx context.Context, w io.Writer) (ok bool, err error) {
	if os.Geteuid() != 0 {
		return false, errors.New("network namespaces need root: run as root, for example with sudo make demo")
	}
	self, err := os.Executable()
	if err != nil {
		return false, fmt.Errorf("find own binary: %w", err)
	}
	s := &stage{w: w}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.build(ctx, filepath.Join(filepath.Dir(self), "podrole")); err != nil {
		return false, err
	}
	if err := s.introduce(ctx); err != nil {
		return false, err
	}
	return s.rotate(ctx)
}

// actor is a pod of the demo.
type actor struct {
	pod     *nodebox.Pod
	account string
	role    string // ARN; empty for the pod without one
}

type stage struct {
	w      io.Writer
	bed    *testbed.Bed
	agent  *testbed.Agent
	log    *os.File
	actors []actor
	inline actor // fetches its credentials itself
	script string
}

func (s *stage) say(format string, args ...any) { fmt.Fprintf(s.w, format+"\n", args...) }

func (s *stage) build(ctx context.Context, agent string) (err error) {
	s.say("== a node in a box, three pods, AWS outside with an STS that takes %s per call", stsLatency)
	if s.log, err = os.Create(filepath.Join(filepath.Dir(agent), "demo-agent.log")); err != nil {
		return fmt.Errorf("create log of the agent: %w", err)
	}
	if s.bed, err = testbed.New(ctx, testbed.Config{Agent: agent, Log: s.log}); err != nil {
		return err
	}
	s.bed.AWS.SetSessionLifetime(func(time.Duration) time.Duration { return sessionLife })
	if _, err := s.bed.AWS.Inject(awstest.Fault{Service: "sts", Action: "AssumeRole", Latency: stsLatency}); err != nil {
		return err
	}
	if _, err := s.bed.AWS.Inject(awstest.Fault{
		Service: "sts", Action: "AssumeRoleWithWebIdentity", Latency: stsLatency,
	}); err != nil {
		return err
	}
	for _, p := range []struct{ name, account, role string }{
		{"orders-0", "orders", "orders"}, {"reports-0", "reports", "reports"}, {"web-0", "web", ""},
	} {
		a, err := s.add(p.name, p.account, p.role)
		if err != nil {
			return err
		}
		s.actors = append(s.actors, a)
	}
	s.say("== podrole starts; its log is %s", s.log.Name())
	began := time.Now()
	if s.agent, err = s.bed.StartAgent(ctx); err != nil {
		return err
	}
	s.say("   ready after %s, sessions minted: %d", time.Since(began).Round(time.Millisecond),
		s.bed.AWS.Count(awstest.Filter{Action: "AssumeRole", Code: awstest.CodeOK}))
	s.script = filepath.Join(s.bed.Box.Dir, "boto2.py")
	if err := os.WriteFile(s.script, boto2, 0o600); err != nil {
		return fmt.Errorf("write client: %w", err)
	}
	// Not one of podrole's pods: the baseline, which takes the way of IRSA.
	s.inline, err = s.add("irsa-0", "irsa", "irsa")
	return err
}

func (s *stage) add(pod, account, role string) (actor, error) {
	a := actor{account: account}
	var err error
	if role != "" {
		if a.role, err = s.bed.AddRole(role, "shop", account); err != nil {
			return actor{}, err
		}
	}
	annotate := a.role
	if account == "irsa" {
		annotate = "" // nothing for podrole to keep warm
	}
	if err := s.bed.AddServiceAccount("shop", account, annotate); err != nil {
		return actor{}, err
	}
	a.pod, err = s.bed.AddPod("shop", pod, account)
	return a, err
}

// introduce has unchanged clients say who they are.
func (s *stage) introduce(ctx context.Context) error {
	s.say("== whose role do unchanged clients find?")
	sts := strings.TrimPrefix(s.bed.STS(), "http://")
	host, port, _ := strings.Cut(sts, ":")
	clients := []struct {
		name string
		args []string
	}{
		{"AWS CLI", []string{"aws", "sts", "get-caller-identity", "--query", "Arn", "--output", "text",
			"--region", testbed.Region, "--endpoint-url", s.bed.STS()}},
		{"boto 2.49, no IMDSv2", []string{"/usr/bin/python3", "-W", "ignore", s.script, host, port, testbed.Region}},
	}
	for _, a := range s.actors {
		for _, c := range clients {
			began := time.Now()
			answer := s.ask(ctx, a, c.args)
			s.say("   %-9s  %-20s  %s  (%s)", a.pod.Config.Name, c.name, answer, time.Since(began).Round(10*time.Millisecond))
			if right := a.role != "" && strings.Contains(answer, ":assumed-role/"+a.account+"/") ||
				a.role == "" && !strings.Contains(answer, "arn:"); !right {
				return fmt.Errorf("%s in %s has the wrong identity: %s", c.name, a.pod.Config.Name, answer)
			}
		}
	}
	return nil
}

// ask runs a client in a pod and returns its one line.
func (s *stage) ask(ctx context.Context, a actor, args []string) string {
	cmd := a.pod.Command(ctx, args[0], args[1:]...)
	// What a pod has: no AWS setting at all.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.bed.Box.Dir, "LC_ALL=C.UTF-8"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	answer := lines[len(lines)-1]
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		answer = err.Error()
	}
	if strings.Contains(answer, "NoAuthHandlerFound") || strings.Contains(answer, "No handler was ready") {
		answer = "no credentials found"
	}
	return answer
}

// rotate polls through the rotations, draws the chart and prints the figures.
func (s *stage) rotate(ctx context.Context) (ok bool, err error) {
	token, err := s.bed.WebIdentityToken(s.inline.pod, s.inline.account)
	if err != nil {
		return false, err
	}
	s.say("== %d rotations, a request every %s from each pod; sessions live %s; beside them in-line STS, as with IRSA",
		rotations, interval, sessionLife)
	result, err := rotation.Run(ctx, rotation.Config{
		Bed:       s.bed,
		Pods:      []rotation.Pod{{Pod: s.actors[0].pod, Role: s.actors[0].role}, {Pod: s.actors[1].pod, Role: s.actors[1].role}},
		Baseline:  rotation.Pod{Pod: s.inline.pod, Role: s.inline.role},
		Token:     token,
		Rotations: rotations,
		Interval:  interval,
		Progress:  func(n int) { s.say("   rotation %2d of %d", n, rotations) },
	})
	if err != nil {
		return false, err
	}
	s.say("")
	err = drawChart(s.w,
		series{"podrole: every request asks the metadata service", '●', result.Samples},
		series{"in-line STS: most requests use what is in memory, one in each session's life waits", '▲', result.Baseline})
	if err != nil {
		return false, err
	}
	for _, problem := range result.Failed {
		s.say("failed: %s", problem)
	}
	leaks := s.bed.NodeRoleLeaks()
	for _, l := range s.bed.Box.Leaks() {
		s.say("leak: %v", l)
	}
	if err := s.agent.Stop(); err != nil {
		return false, err
	}
	s.say("")
	s.say("demo: pods=%d requests=%d failures=%d rotations=%d max_ms=%.1f baseline_max_ms=%.1f node_role_leaks=%d",
		len(s.actors), result.Requests, result.Failures, result.Rotations,
		milliseconds(rotation.Max(result.Samples)), milliseconds(rotation.Max(result.Baseline)), leaks)
	return result.Failures == 0 && leaks == 0 && result.Rotations >= rotations, nil
}

func (s *stage) close() error {
	var errs []error
	if s.bed != nil {
		errs = append(errs, s.bed.Close())
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	return errors.Join(errs...)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
