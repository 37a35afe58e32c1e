package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/poll"
	"github.com/podrole/podrole/internal/testbed"
)

const (
	// healRepeats is how often each kind of damage is done.
	healRepeats = 25
	// healPause is between the repair of one and the next: repairs that follow each other without a pause are throttled.
	healPause = 300 * time.Millisecond
	// healPace is between two looks at whether a repair is done, and healPatience how long it may take.
	healPace     = time.Millisecond
	healPatience = 20 * time.Second
	// takeovers is how many there are with each backend, and takeoverPace how often a pod asks meanwhile.
	takeovers    = 5
	takeoverPace = 2 * time.Millisecond
	// guardPriorityEnd is behind the last priority of the guard.
	guardPriorityEnd = 10
)

// damage is what another program does to the redirect.
type damage struct {
	name   string
	script string // for sh, in the node
}

// heals measures how long it takes until the redirect is whole again: from the start of the program that damages it until
// a pod is served, or the guard's rules are there.
func heals(w io.Writer) func(context.Context, string) ([]figure, error) {
	return func(ctx context.Context, agent string) ([]figure, error) {
		var all []figure
		for _, backend := range []string{"nft", "legacy"} {
			figures, err := healsWith(ctx, w, agent, backend)
			if err != nil {
				return nil, fmt.Errorf("with iptables-%s: %w", backend, err)
			}
			all = append(all, figures...)
		}
		return all, nil
	}
}

func healsWith(ctx context.Context, w io.Writer, agent, backend string) (_ []figure, err error) {
	bed, pod, err := onePod(ctx, testbed.Config{Agent: agent, Flags: []string{"--iptables-backend=" + backend, "--request-rate=0"}}, time.Hour)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	// A pod that is refused is to hear of it each time, not once a second.
	if err := inNode(ctx, bed, "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=1000000"); err != nil {
		return nil, err
	}
	iptables := "iptables-" + backend
	damages := []damage{
		{"rules flushed", fmt.Sprintf("%[1]s -t nat -F; %[1]s -F", iptables)},
		{"chains deleted", fmt.Sprintf("for t in nat filter; do %[1]s -t $t -F; %[1]s -t $t -X; done", iptables)},
		{"tables restored", fmt.Sprintf(`printf '*nat\nCOMMIT\n*filter\nCOMMIT\n' | %s-restore`, iptables)},
	}
	if backend == "nft" {
		damages = append(damages, damage{"ruleset flushed", "nft flush ruleset"})
	}
	served := func() bool { return servedNow(ctx, pod) }
	var rules []float64
	for _, d := range damages {
		took, err := healed(ctx, bed, d, served)
		if err != nil {
			return nil, err
		}
		printHeal(w, backend, d.name, took)
		rules = append(rules, took...)
	}
	figures := []figure{newP99("heal_"+backend+"_p99_ms", "ms", rules)}
	if backend == "legacy" {
		return figures, nil
	}
	guard, err := guardRules(bed.Box.Node)
	if err != nil {
		return nil, err
	}
	policy, err := healed(ctx, bed, damage{
		"routing policy flushed",
		"ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default",
	}, func() bool {
		now, err := guardRules(bed.Box.Node)
		return err == nil && now == guard
	})
	if err != nil {
		return nil, err
	}
	printHeal(w, backend, "routing policy flushed", policy)
	return append(figures, newP99("heal_rule_p99_ms", "ms", policy)), nil
}

func printHeal(w io.Writer, backend, name string, took []float64) {
	fmt.Fprintf(w, "# %-6s %-24s whole again after %5.1f ms (median) %6.1f ms (p99)\n",
		backend, name, newFigure("", "", took).Value, newP99("", "", took).Value)
}

// newP99 is the figure of which one in a hundred repeats may be worse.
func newP99(name, unit string, repeats []float64) figure {
	sorted := slices.Sorted(slices.Values(repeats))
	return figure{name, sorted[(len(sorted)*99+99)/100-1], unit, repeats}
}

// healed does the damage again and again and returns how long each took to be repaired, in milliseconds.
func healed(ctx context.Context, bed *testbed.Bed, d damage, whole func() bool) (took []float64, err error) {
	for range healRepeats {
		began := time.Now()
		if err := inNode(ctx, bed, d.script); err != nil {
			return nil, err
		}
		for !whole() {
			if time.Since(began) > healPatience {
				return nil, fmt.Errorf("%s: not repaired after %s", d.name, healPatience)
			}
			if err := rest(ctx, healPace); err != nil {
				return nil, err
			}
		}
		took = append(took, milliseconds(time.Since(began)))
		if err := rest(ctx, healPause); err != nil {
			return nil, err
		}
	}
	return took, nil
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func inNode(ctx context.Context, bed *testbed.Bed, script string) error {
	if out, err := bed.Box.Node.Command(ctx, "sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// servedNow asks once, and does not wait for a packet that is lost.
func servedNow(ctx context.Context, pod *nodebox.Pod) bool {
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	c, err := pod.DialContext(ctx, "tcp", "169.254.169.254:80")
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", credentials); err != nil {
		return false
	}
	status := make([]byte, len("HTTP/1.0 200"))
	_, err = io.ReadFull(c, status)
	return err == nil && strings.HasSuffix(string(status), fmt.Sprint(http.StatusOK))
}

// guardRules counts the rules of the guard in the node's routing policy.
func guardRules(node *nodebox.Namespace) (n int, err error) {
	err = node.Do(func() error {
		rules, err := netlink.RuleList(netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("list routing policy: %w", err)
		}
		for _, r := range rules {
			if r.Priority > 0 && r.Priority < guardPriorityEnd {
				n++
			}
		}
		return nil
	})
	return n, err
}

// updates measures what pods notice of the agent being replaced by another one while they ask all the time: requests that
// fail; and with them the packets that got to the node's own metadata service.
func updates(ctx context.Context, agent string) ([]figure, error) {
	var failures, leaks []float64
	for _, backend := range []string{"nft", "legacy"} {
		failed, leaked, err := updatesWith(ctx, agent, backend)
		if err != nil {
			return nil, fmt.Errorf("with iptables-%s: %w", backend, err)
		}
		failures, leaks = append(failures, float64(failed)), append(leaks, float64(leaked))
	}
	return []figure{
		newWorst("takeover_failures", "requests", failures),
		newWorst("node_role_leaks", "packets", leaks),
	}, nil
}

func updatesWith(ctx context.Context, agent, backend string) (failures, leaks int, err error) {
	state, removeState, err := stateDir()
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, removeState()) }()
	bed, err := testbed.New(ctx, testbed.Config{Agent: agent, Flags: []string{"--iptables-backend=" + backend, "--request-rate=0", state}})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	pod, err := addBenchPod(bed)
	if err != nil {
		return 0, 0, err
	}
	old, err := bed.StartAgent(ctx)
	if err != nil {
		return 0, 0, err
	}
	if err := bed.Box.Watch(netip.MustParseAddr("169.254.77.1")); err != nil {
		return 0, 0, err
	}
	polling, stop := context.WithCancel(ctx)
	defer stop()
	poller, err := poll.Start(polling, pod, poll.Config{Method: poll.IMDS, Role: "bench", Interval: takeoverPace})
	if err != nil {
		return 0, 0, err
	}
	failed := make(chan int, 1)
	go func() { // ends with the poller
		n := 0
		for s := range poller.Samples() {
			if s.Error != "" {
				n++
			}
		}
		failed <- n
	}()
	for range takeovers {
		fresh, err := bed.StartAgent(ctx)
		if err != nil {
			return 0, 0, err
		}
		if err := old.Stop(); err != nil {
			return 0, 0, err
		}
		old = fresh
	}
	stop()
	failures = <-failed
	if err := poller.Err(); err != nil {
		return 0, 0, err
	}
	return failures, bed.NodeRoleLeaks() + len(bed.Box.Watched()), nil
}
