package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/podrole/podrole/pkg/config"
	"github.com/podrole/podrole/pkg/iptables"
	"github.com/podrole/podrole/pkg/node"
)

// resolvConfs are the files that name the resolvers of the node and of its pods.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// redirect is both halves of the Redirect: what netlink does, and the iptables rules.
type redirect struct {
	node    *node.Redirect
	rules   *iptables.Redirect
	stale   *iptables.Redirect // the other backend, where an earlier agent left rules; else nil
	pairs   []node.Target
	dns     bool
	checked func(repaired, intact bool)
	logger  *slog.Logger
}

// openRedirect changes nothing yet. Whatever ctx is, close must be called.
func openRedirect(ctx context.Context, cfg config.Config, checked func(repaired, intact bool), logger *slog.Logger) (*redirect, error) {
	pairs := []node.Target{{Metadata: cfg.Metadata.Address, Agent: cfg.Redirect.AgentAddress}}
	if wantIPv6(cfg.Redirect.IPv6) {
		pairs = append(pairs, node.Target{Metadata: cfg.Metadata.AddressIPv6, Agent: cfg.Redirect.AgentAddressIPv6})
	}
	found, err := iptables.Detect(ctx, iptables.Exec{}, iptables.Backend(cfg.Redirect.IPTablesBackend))
	if err != nil {
		return nil, err
	}
	logger.Info("iptables backend chosen", "backend", found.Backend, "why", found.Reason)
	rules, err := iptables.NewRedirect(iptables.Config{Backend: found.Backend, Runner: iptables.Exec{}, Logger: logger})
	if err != nil {
		return nil, err
	}
	var stale *iptables.Redirect
	if found.Stale != "" {
		if stale, err = iptables.NewRedirect(iptables.Config{Backend: found.Stale, Runner: iptables.Exec{}, Logger: logger}); err != nil {
			return nil, err
		}
	}
	links, err := node.NewRedirect(node.Config{
		Targets:        pairs,
		GuardExceptDNS: cfg.Redirect.GuardExceptDNS,
		ResolvConf:     resolvConfs,
		Logger:         logger,
	})
	if err != nil {
		return nil, err
	}
	return &redirect{links, rules, stale, pairs, cfg.Redirect.GuardExceptDNS, checked, logger}, nil
}

func (r *redirect) close() { r.node.Close() }

// wantIPv6 reports whether IPv6 is to be redirected as well: "auto" means where the kernel has it.
func wantIPv6(mode config.Mode) bool {
	if mode == config.ModeAuto {
		_, err := os.Stat("/proc/net/if_inet6")
		return err == nil
	}
	return mode == config.ModeOn
}

// guard refuses pods the metadata address and puts the agent's address in place. From here on nothing leaks.
func (r *redirect) guard() error {
	if err := r.node.CheckNode(); err != nil {
		return err
	}
	if _, err := r.node.Ensure(); err != nil {
		return fmt.Errorf("guard the metadata address: %w", err)
	}
	return nil
}

// listen opens a port of its own on each of the agent's addresses.
func (r *redirect) listen(ctx context.Context) (listeners []net.Listener, rules iptables.Rules, err error) {
	rules.GuardExceptDNS = r.dns
	for _, p := range r.pairs {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(p.Agent, 0).String())
		if err != nil {
			for _, open := range listeners {
				err = errors.Join(err, open.Close())
			}
			return nil, rules, fmt.Errorf("listen on the agent's address: %w", err)
		}
		listeners = append(listeners, l)
		port := netip.MustParseAddrPort(l.Addr().String()).Port()
		rules.Targets = append(rules.Targets, iptables.Target{Metadata: p.Metadata, Agent: netip.AddrPortFrom(p.Agent, port)})
	}
	return listeners, rules, nil
}

// install leads pods to rules' ports, and takes over from whichever agent they were led to before.
func (r *redirect) install(ctx context.Context, rules iptables.Rules) error {
	first, err := r.rules.Ensure(ctx, rules)
	if err != nil {
		return fmt.Errorf("redirect the metadata address: %w", err)
	}
	if r.stale != nil {
		if _, err := r.stale.Remove(ctx); err != nil {
			return fmt.Errorf("remove the rules an earlier agent left in the other iptables backend: %w", err)
		}
	}
	if !first {
		return nil
	}
	// Connections that pods had before the rules go on past them otherwise.
	n, err := r.node.FlushConntrack()
	if err != nil {
		return fmt.Errorf("forget earlier connections to the metadata address: %w", err)
	}
	r.logger.Info("pods are redirected", "targets", rules.Targets, "connections_forgotten", n)
	return nil
}

// sweep compares address, guard and rules with what they should be, every interval until ctx ends, and puts right what
// another program changed. A sweep that fails is reported and tried again: the guard still refuses.
func (r *redirect) sweep(ctx context.Context, rules iptables.Rules, every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		fromLinks, linkErr := r.node.Ensure()
		fromRules, ruleErr := r.rules.Ensure(ctx, rules)
		if ctx.Err() != nil {
			return
		}
		err := errors.Join(linkErr, ruleErr)
		if err != nil {
			r.logger.Error("redirect is not whole; pods may be refused", "error", err)
		}
		if fromLinks || fromRules {
			r.logger.Warn("redirect was changed by another program and has been repaired",
				"guard_or_address", fromLinks, "rules", fromRules)
		}
		r.checked(fromLinks || fromRules, err == nil)
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
