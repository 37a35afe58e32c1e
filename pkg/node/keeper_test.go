package node_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podrole/podrole/pkg/iptables"
)

// keep does what the agent does until stopped: it watches both halves of the Redirect, and repairs what it hears of.
func (w *world) keep(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	half := func(name string, watch func(context.Context, func()) error, repair func() error) {
		wake, started := make(chan struct{}, 1), make(chan struct{})
		running.Go(func() {
			err := w.box.Node.Do(func() error {
				return watch(ctx, func() {
					select {
					case wake <- struct{}{}:
					default:
					}
				})
			})
			if err != nil {
				t.Errorf("watch of the %s: %v", name, err)
			}
		})
		running.Go(func() {
			for first := true; ; first = false {
				select {
				case <-ctx.Done():
					return
				case <-wake:
				}
				if err := repair(); err != nil && ctx.Err() == nil {
					t.Logf("repair of the %s: %v", name, err)
				}
				if first {
					close(started)
				}
			}
		})
		<-started
	}
	half("guard", w.node.Watch, func() error {
		_, err := w.node.Ensure()
		return err
	})
	half("rules", func(ctx context.Context, changed func()) error { return w.rules.Watch(ctx, w.want, changed) },
		func() error {
			_, err := w.rules.Heal(ctx, w.want)
			return err
		})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// served waits until a pod is answered by the agent at address, and returns how long that took. A try that is not
// answered is given up soon, so that what is lost meanwhile does not cost TCP's time-outs.
func (w *world) served(t *testing.T, p pair, address netip.AddrPort) time.Duration {
	t.Helper()
	const patience, once = 10 * time.Second, 30 * time.Millisecond
	start := time.Now()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), once)
		got, err := "", error(nil)
		conn, err := w.pod.DialContext(ctx, "tcp", address.String())
		if err == nil {
			got, err = askOn(conn)
			err = errors.Join(err, conn.Close())
		}
		cancel()
		took := time.Since(start)
		switch {
		case err == nil && got == "agent to "+p.pod.String():
			return took
		case err == nil:
			t.Fatalf("%v was answered by %q", address, got)
		case took > patience:
			t.Fatalf("%v is not served again: %v", address, err)
		}
	}
}

// whole waits until neither half of the Redirect has anything to repair.
func (w *world) whole(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		inNode, err := w.node.Check()
		if err != nil {
			t.Fatal(err)
		}
		if len(inNode) == 0 {
			inRules, err := w.rules.Check(t.Context(), w.want)
			if err != nil {
				t.Fatal(err)
			}
			if len(inRules) == 0 {
				return time.Since(start)
			}
			inNode = inRules
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("not whole again: %q", inNode)
		}
	}
}

// Whatever is done to rules, guard and address, the news of it leads to the repair, and nothing leaks meanwhile. The
// times are printed: until a pod is served again, and until everything is as it should be.
func TestHeal(t *testing.T) {
	t.Parallel()
	const mains = "ip rule add pref 32766 lookup main; ip -6 rule add pref 32766 lookup main; "
	// In one transaction: one after the other, each would be repaired before the next.
	const unlink = `*nat
-D PREROUTING -d 169.254.169.254/32 -m comment --comment "podrole: metadata redirect" -j PODROLE-PREROUTING
-F PODROLE-PREROUTING
-X PODROLE-PREROUTING
COMMIT
`
	damages := []struct{ name, commands string }{
		{"iptables-F", "iptables -t nat -F; iptables -t filter -F; ip6tables -t nat -F; ip6tables -t filter -F"},
		{"chain-deleted", unlink},
		{"nft-flush-ruleset", "nft flush ruleset"},
		{"addresses-deleted", "ip addr del 169.254.77.1/32 dev lo; ip addr del fd7a:706f:6472::1/128 dev lo"},
		{"address-flushed", "ip addr flush dev lo scope host to 169.254.77.1; ip -6 addr flush dev lo to fd7a:706f:6472::1"},
		{"local-routes-deleted", "ip route del local 169.254.77.1 dev lo table local; " +
			"ip -6 route del local fd7a:706f:6472::1 dev lo table local"},
		{"ip-rule-flush", "ip rule flush; ip -6 rule flush; " + mains},
		{"rule-deleted", "ip rule del pref 6"},
		{"rule-changed", "ip rule del pref 2; ip rule add pref 2 to 169.254.77.1 nop protocol kernel"},
		{"lo-down", "ip link set lo down; ip link set lo up"},
	}
	var mu sync.Mutex
	var table strings.Builder
	t.Cleanup(func() { t.Logf("time from damage until served and whole again (ms)\n%s", table.String()) })
	for _, backend := range backends {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, backend, false)
			if err := w.box.Watch(agent4, agent6); err != nil {
				t.Fatal(err)
			}
			w.install(t)
			w.keep(t)
			for _, d := range damages {
				if strings.HasPrefix(d.name, "nft-") && backend != iptables.NFT {
					continue
				}
				t.Run(d.name, func(t *testing.T) {
					if strings.HasPrefix(d.commands, "*") {
						w.restore(t, d.commands)
						d.commands = ""
					}
					for command := range strings.SplitSeq(d.commands, ";") {
						if args := strings.Fields(command); len(args) > 0 {
							args[0] = strings.Replace(args[0], "tables", "tables-"+string(backend), 1)
							w.run(t, args[0], args[1:]...)
						}
					}
					start := time.Now()
					for _, p := range w.pairs {
						w.served(t, p, netip.AddrPortFrom(p.metadata, 80))
					}
					served := time.Since(start)
					w.whole(t)
					mu.Lock()
					fmt.Fprintf(&table, "%-8s %-22s served %7.1f  whole %7.1f\n", backend, d.name,
						float64(served.Microseconds())/1000, float64(time.Since(start).Microseconds())/1000)
					mu.Unlock()
					w.expectNoLeak(t, d.name)
					if packets := w.box.Watched(); len(packets) > 0 {
						t.Errorf("packets for the agent left the node: %v", packets)
					}
				})
			}
		})
	}
}
