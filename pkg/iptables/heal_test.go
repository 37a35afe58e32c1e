package iptables

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/node/netevents"

	"golang.org/x/sys/unix"
)

var (
	healRounds  = flag.Int("heal.rounds", 1, "how often each damage is done")
	healForeign = flag.Int("heal.foreign", 500, "how many rules of others there are")
)

// healer is what the agent does: it watches, and heals.
type healer struct {
	redirect *Redirect
	rules    Rules
	done     chan time.Time // after each Heal: when the last rules were written before its end
}

// stamping notes when rules were last written.
type stamping struct {
	Runner

	mu   sync.Mutex // guards last
	last time.Time
}

func (s *stamping) Run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	out, err := s.Runner.Run(ctx, stdin, name, args...)
	if strings.HasSuffix(name, "-restore") {
		s.mu.Lock()
		s.last = time.Now()
		s.mu.Unlock()
	}
	return out, err
}

func (s *stamping) lastWritten() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// startHealer installs the rules and keeps them until the test ends.
func startHealer(t *testing.T, runner boxRunner, backend Backend, rules Rules) *healer {
	t.Helper()
	stamps := &stamping{Runner: runner}
	h := &healer{redirect: newRedirect(t, stamps, backend), rules: rules, done: make(chan time.Time, 100)}
	if _, err := h.redirect.Ensure(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	wake := make(chan struct{}, 1)
	var running sync.WaitGroup
	running.Go(func() {
		err := runner.namespace.Do(func() error {
			return h.redirect.Watch(ctx, rules, func() {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-wake:
			}
			if _, err := h.redirect.Heal(ctx, rules); err != nil && ctx.Err() == nil {
				t.Log(err)
			}
			h.done <- stamps.lastWritten()
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	<-h.done // at the start
	return h
}

// settled waits until no Heal is under way or due.
func (h *healer) settled() {
	pause := 2 * legacyInterval
	if h.redirect.cfg.Backend == NFT {
		pause = legacyInterval
	}
	for {
		select {
		case <-h.done:
		case <-time.After(pause):
			return
		}
	}
}

// heals waits until the rules are whole again and returns how long after the damage they were.
func (h *healer) heals(t *testing.T, damaged time.Time) time.Duration {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		select {
		case written := <-h.done:
			differences, err := h.redirect.Check(t.Context(), h.rules)
			if err != nil {
				t.Fatal(err)
			}
			if len(differences) == 0 {
				return max(0, written.Sub(damaged))
			}
		case <-deadline:
			differences, err := h.redirect.Check(t.Context(), h.rules)
			t.Fatalf("not healed: %q, %v", differences, err)
		}
	}
}

// moment is when damage was done: for nft, when the kernel said so first; for legacy, when the program had ended.
type moment struct {
	first *atomic.Pointer[time.Time] // nil for legacy
}

func startMoment(t *testing.T, runner boxRunner, backend Backend) moment {
	t.Helper()
	if backend == Legacy {
		return moment{}
	}
	m := moment{new(atomic.Pointer[time.Time])}
	places := placesOf(bothIPs)
	listening := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		err := runner.namespace.Do(func() error {
			return netevents.Watch(ctx, netevents.Config{
				Protocol: unix.NETLINK_NETFILTER,
				Groups:   []int{unix.NFNLGRP_NFTABLES},
				Matters: func(msg netevents.Message) bool {
					if e, ok := parseEvent(msg); ok && slices.ContainsFunc(places, e.touches) {
						m.first.CompareAndSwap(nil, new(time.Now()))
					}
					return false
				},
				Changed: sync.OnceFunc(func() { close(listening) }),
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	<-listening
	return m
}

func (m moment) arm() {
	if m.first != nil {
		m.first.Store(nil)
	}
}

func (m moment) taken() time.Time {
	now := time.Now()
	if m.first == nil {
		return now
	}
	if first := m.first.Load(); first != nil {
		return *first
	}
	return now
}

// services are rules as kube-proxy writes them, about n of them.
func services(n, port int) string {
	if n == 0 {
		return ""
	}
	var chains, portals, endpoints strings.Builder
	for i := range n / 2 {
		fmt.Fprintf(&chains, ":KUBE-SVC-%d - [0:0]\n", i)
		fmt.Fprintf(&portals, "-A KUBE-SERVICES -d 10.96.%d.%d/32 -p tcp -m comment --comment \"shop/web-%d cluster IP\" "+
			"-m tcp --dport 80 -j KUBE-SVC-%d\n", i>>8, i&0xff, i, i)
		fmt.Fprintf(&endpoints, "-A KUBE-SVC-%d -p tcp -m comment --comment \"shop/web-%d\" -m tcp -j DNAT "+
			"--to-destination 198.18.0.5:%d\n", i, i, port)
	}
	return "*nat\n:KUBE-SERVICES - [0:0]\n" + chains.String() + portals.String() + endpoints.String() + "COMMIT\n"
}

// whole makes what services returns the whole of table nat, with the jump to it.
func whole(services string) string {
	const jump = "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n"
	return strings.TrimSuffix(services, "COMMIT\n") + jump + "COMMIT\n"
}

// damage is what another program does to the rules.
type damage struct {
	name     string
	commands []string // PROGRAM-BACKEND arguments; with an input, if it reads one
	input    string
	only     Backend
}

func damages(foreign int) []damage {
	const unlink = `*nat
-D PREROUTING -d 169.254.169.254/32 -m comment --comment "podrole: metadata redirect" -j PODROLE-PREROUTING
-F PODROLE-PREROUTING
-X PODROLE-PREROUTING
COMMIT
`
	all := []damage{
		{name: "iptables-F", commands: []string{"iptables -t nat -F", "iptables -t filter -F"}},
		{name: "ip6tables-F", commands: []string{"ip6tables -t nat -F", "ip6tables -t filter -F"}},
		{name: "chain-emptied", commands: []string{"ip6tables -t nat -F PODROLE-PREROUTING"}},
		{name: "chain-deleted", commands: []string{"iptables-restore --noflush"}, input: unlink},
		{name: "jump-deleted", commands: []string{"iptables -D FORWARD 1"}},
		{name: "taken-before", commands: []string{"iptables -t nat -I PREROUTING -p tcp -j ACCEPT"}},
		{name: "table-deleted", commands: []string{"nft delete table ip nat"}, only: NFT},
		{name: "nft-flush-ruleset", commands: []string{"nft flush ruleset"}, only: NFT},
	}
	if foreign > 0 {
		all = append(all, damage{
			name: "full-restore", commands: []string{"iptables-restore"}, input: whole(services(foreign, 8080)),
		})
	}
	return all
}

func (d damage) do(t *testing.T, runner boxRunner, backend Backend) {
	t.Helper()
	for _, command := range d.commands {
		args := strings.Fields(command)
		switch {
		case strings.HasSuffix(args[0], "-restore"):
			args[0] = strings.Replace(args[0], "-", "-"+string(backend)+"-", 1)
		case args[0] != "nft":
			args[0] += "-" + string(backend)
		}
		if _, err := runner.Run(t.Context(), d.input, args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever another program does to the rules, the news of it leads to their repair. The times that it took are printed.
func TestHeal(t *testing.T) {
	var table strings.Builder
	fmt.Fprintf(&table, "time from damage to whole again, %d rules of others, %d rounds (ms)\n", *healForeign, *healRounds)
	for _, backend := range []Backend{NFT, Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			_, runner := newNode(t)
			seed := func() {
				text := services(*healForeign, 8080)
				if text == "" {
					return
				}
				if _, err := runner.Run(t.Context(), text, program(ipv4, backend, "restore"), "--noflush"); err != nil {
					t.Fatal(err)
				}
			}
			seed()
			h := startHealer(t, runner, backend, bothIPs)
			moment := startMoment(t, runner, backend)
			for _, d := range damages(*healForeign) {
				if d.only != "" && d.only != backend {
					continue
				}
				t.Run(d.name, func(t *testing.T) {
					var took []time.Duration
					for range *healRounds {
						h.settled()
						moment.arm()
						d.do(t, runner, backend)
						took = append(took, h.heals(t, moment.taken()))
						seed()
					}
					slices.Sort(took)
					at := func(q float64) float64 {
						return float64(took[int(q*float64(len(took)-1)+0.5)].Microseconds()) / 1000
					}
					fmt.Fprintf(&table, "%-8s %-20s median %7.1f  p99 %7.1f\n", backend, d.name, at(0.5), at(0.99))
				})
			}
		})
	}
	t.Log(table.String())
}
