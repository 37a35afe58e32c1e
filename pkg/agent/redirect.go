package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/podrole/podrole/pkg/config"
	"github.com/podrole/podrole/pkg/iptables"
	"github.com/podrole/podrole/pkg/node"
	"github.com/podrole/podrole/pkg/telemetry"
)

// resolvConfs returns the files that name the resolvers of the node and of its pods.
func resolvConfs() []string { return []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} }

// links is the half of the Redirect that netlink does: address and guard. It needs no program, and so comes first.
type links struct {
	node    *node.Redirect
	locator *node.Locator
	pairs   []node.Target
	dns     bool
	logger  *slog.Logger
}

// openLinks changes nothing yet. close must be called.
func openLinks(cfg config.Config, logger *slog.Logger) (*links, error) {
	pairs := targets(cfg, wantIPv6(cfg.Redirect.IPv6))
	locator, err := node.NewLocator()
	if err != nil {
		return nil, err
	}
	redirect, err := node.NewRedirect(node.Config{
		Targets:        pairs,
		GuardExceptDNS: cfg.Redirect.GuardExceptDNS,
		ResolvConf:     resolvConfs(),
		Logger:         logger,
	})
	if err != nil {
		locator.Close()
		return nil, err
	}
	return &links{redirect, locator, pairs, cfg.Redirect.GuardExceptDNS, logger}, nil
}

// targets returns the addresses that are led here.
func targets(cfg config.Config, ipv6 bool) []node.Target {
	addresses := []netip.Addr{cfg.Metadata.Address, cfg.Metadata.AddressIPv6}
	if cfg.Metadata.ContainerCredentials {
		// The container credentials endpoint of ECS
		// (https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html), and that of EKS Pod Identity
		// (https://docs.aws.amazon.com/eks/latest/userguide/pod-id-how-it-works.html).
		addresses = append(addresses, netip.AddrFrom4([4]byte{169, 254, 170, 2}))
		addresses = append(addresses, node.PodIdentityAddresses()...)
	}
	var pairs []node.Target
	for _, address := range addresses {
		switch {
		case address.Is4():
			pairs = append(pairs, node.Target{Metadata: address, Agent: cfg.Redirect.AgentAddress})
		case ipv6:
			pairs = append(pairs, node.Target{Metadata: address, Agent: cfg.Redirect.AgentAddressIPv6})
		}
	}
	return pairs
}

func (l *links) close() {
	l.locator.Close()
	l.node.Close()
}

// wantIPv6 reports whether IPv6 is to be redirected as well: "auto" means where lo has it. Where it is switched off
// there, no pod has a way to the metadata service over it either.
func wantIPv6(mode config.Mode) bool {
	if mode != config.ModeAuto {
		return mode == config.ModeOn
	}
	off, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
	return err == nil && strings.TrimSpace(string(off)) == "0"
}

// guard refuses pods the metadata address and puts the agent's address in place. From here on nothing leaks.
func (l *links) guard() error {
	if err := l.node.CheckNode(); err != nil {
		return err
	}
	if _, err := l.node.Ensure(); err != nil {
		return fmt.Errorf("guard the metadata address: %w", err)
	}
	return nil
}

// listen opens a port of its own on each of the agent's addresses, and returns the rules that lead there.
func (l *links) listen(ctx context.Context) (listeners []net.Listener, rules iptables.Rules, err error) {
	rules.GuardExceptDNS = l.dns
	agents := make(map[netip.Addr]netip.AddrPort)
	for _, p := range l.pairs {
		to, listening := agents[p.Agent]
		if !listening {
			// Connections live for milliseconds: keep-alive would only cost four system calls each.
			listener, err := (&net.ListenConfig{KeepAlive: -1}).Listen(ctx, "tcp", netip.AddrPortFrom(p.Agent, 0).String())
			if err != nil {
				for _, open := range listeners {
					err = errors.Join(err, open.Close())
				}
				return nil, rules, fmt.Errorf("listen on the agent's address: %w", err)
			}
			listeners = append(listeners, listener)
			to = netip.AddrPortFrom(p.Agent, netip.MustParseAddrPort(listener.Addr().String()).Port())
			agents[p.Agent] = to
		}
		rules.Targets = append(rules.Targets, iptables.Target{Metadata: p.Metadata, Agent: to})
	}
	return listeners, rules, nil
}

// locate says where the source of a redirected connection lives. Its end here is the agent's address.
func (l *links) locate(ctx context.Context, source netip.Addr) (node.Place, error) {
	for _, p := range l.pairs {
		if p.Agent.Is4() == source.Is4() {
			return l.locator.Locate(ctx, source, p.Agent)
		}
	}
	return node.Place{}, fmt.Errorf("locate %v: the agent has no address of its family", source)
}

// redirect is both halves of the Redirect.
type redirect struct {
	*links
	rules   *iptables.Redirect
	backend iptables.Backend
	stale   *iptables.Redirect // the other backend, where another agent left rules; else nil
	// unsure says that another agent may have left some since it was looked for. It is set while nobody looks after the
	// rules.
	unsure bool
}

// openRedirect adds the iptables rules to links. It changes nothing yet.
func openRedirect(ctx context.Context, l *links, backend config.Backend) (*redirect, error) {
	found, err := iptables.Detect(ctx, iptables.Exec{}, iptables.Backend(backend))
	if err != nil {
		return nil, err
	}
	l.logger.Info("iptables backend chosen", "backend", found.Backend, "why", found.Reason)
	r := &redirect{links: l, backend: found.Backend}
	if r.rules, err = iptables.NewRedirect(iptables.Config{
		Backend: found.Backend, Runner: iptables.Exec{}, Logger: l.logger,
	}); err != nil {
		return nil, err
	}
	if found.Stale == "" {
		return r, nil
	}
	r.stale, err = iptables.NewRedirect(iptables.Config{Backend: found.Stale, Runner: iptables.Exec{}, Logger: l.logger})
	return r, err
}

// findStale looks for rules of ours in the other backend, if there may be any that are not known of.
func (r *redirect) findStale(ctx context.Context) error {
	if !r.unsure || r.stale != nil {
		return nil
	}
	found, err := iptables.Detect(ctx, iptables.Exec{}, r.backend)
	if err != nil {
		return err
	}
	if found.Stale != "" {
		r.stale, err = iptables.NewRedirect(iptables.Config{Backend: found.Stale, Runner: iptables.Exec{}, Logger: r.logger})
	}
	r.unsure = err != nil
	return err
}

// install leads pods to rules' ports, and takes over from whichever agent they were led to before. While another program
// is in the way, it tries again until ctx ends: the guard stands, and sessions stay warm.
func (r *redirect) install(ctx context.Context, claims claims, rules iptables.Rules) error {
	const claimWithin = 8 * time.Second
	done := retry(ctx, time.Second, 15*time.Second, func(next time.Duration) (done bool) {
		others, othersErr := claims.Others()
		err := claims.Claim(ctx, func(ctx context.Context) error {
			if others && othersErr == nil { // which can repair nothing meanwhile
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, claimWithin)
				defer cancel()
			}
			return r.tryInstall(ctx, rules)
		})
		if err != nil && ctx.Err() == nil {
			r.logger.Error("pods cannot be redirected yet; they are refused", "retry_in", next, "error", err)
		}
		return err == nil
	})
	if !done {
		return ctx.Err()
	}
	r.unsure = true // when it was looked for, at the start, others were still at it; the keeper's first look has the time
	return nil
}

func (r *redirect) tryInstall(ctx context.Context, rules iptables.Rules) error {
	// Another version's agent, whose guard may look different, has had the last word until now.
	if _, err := r.node.Ensure(); err != nil {
		return fmt.Errorf("guard the metadata address: %w", err)
	}
	changed, err := r.ensureRules(ctx, rules)
	if err != nil || !changed {
		return err
	}
	// Connections that pods had before the rules go on past them otherwise.
	n, err := r.node.FlushConntrack()
	if err != nil {
		return fmt.Errorf("forget earlier connections to the metadata address: %w", err)
	}
	r.logger.Info("pods are redirected", "targets", rules.Targets, "connections_forgotten", n)
	return nil
}

// ensureRules leaves rules in one backend and none of ours in the other.
func (r *redirect) ensureRules(ctx context.Context, rules iptables.Rules) (changed bool, err error) {
	if changed, err = r.rules.Ensure(ctx, rules); err != nil {
		return changed, fmt.Errorf("redirect the metadata address: %w", err)
	}
	if err := r.findStale(ctx); err != nil {
		return changed, fmt.Errorf("look for rules in the other iptables backend: %w", err)
	}
	if r.stale != nil {
		if _, err := r.stale.Remove(ctx); err != nil {
			return changed, fmt.Errorf("remove the rules another agent left in the other iptables backend: %w", err)
		}
	}
	return changed, nil
}

// warnOfLeftovers names what other programs have in place that redirects the same addresses.
func (r *redirect) warnOfLeftovers(ctx context.Context, warn func(reason, message string)) {
	var addresses []netip.Addr
	for _, p := range r.pairs {
		addresses = append(addresses, p.Metadata)
	}
	found, err := iptables.Leftovers(ctx, iptables.Exec{}, addresses)
	native, nativeErr := iptables.NativeLeftovers(addresses)
	if err := errors.Join(err, nativeErr); err != nil {
		r.logger.Warn("cannot look for other programs' redirects of the metadata address", "error", err)
	}
	for _, l := range append(found, native...) {
		r.logger.Warn("another program redirects the metadata address too", "tool", l.Tool, "where", l.Where, "rule", l.Rule,
			"remedy", l.Remedy)
		warn(telemetry.EventLeftover, l.String())
	}
}

// rulesHalf is what iptables does of the redirect.
func (r *redirect) rulesHalf(rules iptables.Rules) half {
	return half{
		name:   "rules",
		watch:  func(ctx context.Context, changed func()) error { return r.rules.Watch(ctx, rules, changed) },
		ensure: func(ctx context.Context) (bool, error) { return r.ensureRules(ctx, rules) },
		heal:   func(ctx context.Context) (bool, error) { return r.rules.Heal(ctx, rules) },
	}
}

// guardHalf is what netlink does of it.
func (l *links) guardHalf() half {
	ensure := func(context.Context) (bool, error) {
		repaired, err := l.node.Ensure()
		return repaired, errors.Join(l.node.CheckNode(), err)
	}
	return half{name: "guard", watch: l.node.Watch, ensure: ensure, heal: ensure}
}

// repeat calls do every interval until ctx ends.
func repeat(ctx context.Context, every time.Duration, do func()) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}

// remove takes everything away again, of both backends: rules first, guard last.
func (r *redirect) remove(ctx context.Context) error {
	_, err := r.rules.Remove(ctx)
	if r.stale != nil {
		_, staleErr := r.stale.Remove(ctx)
		err = errors.Join(err, staleErr)
	}
	if err != nil {
		return fmt.Errorf("remove the redirect: %w", err)
	}
	if _, err := r.node.Remove(); err != nil {
		return fmt.Errorf("remove the guard: %w", err)
	}
	return nil
}
