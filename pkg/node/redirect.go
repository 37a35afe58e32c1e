package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Config is what a [Redirect] needs.
type Config struct {
	// Targets holds at least one entry. Those of one address family differ in their metadata address alone. Required.
	Targets []Target
	// GuardExceptDNS lets port 53 of the metadata addresses through (udp and tcp): on Google Compute Engine the
	// metadata address is also the node's resolver.
	GuardExceptDNS bool
	// ResolvConf names the files that say which resolvers the node and its pods use, such as /etc/resolv.conf and
	// /run/systemd/resolve/resolv.conf of the host. Files that do not exist are skipped. Optional.
	ResolvConf []string
	// Logger is told of every change. Required.
	Logger *slog.Logger
}

// Target is where a metadata address leads.
type Target struct {
	// Metadata is the address that pods ask: 169.254.169.254 or fd00:ec2::254, or one at which SDKs look for container
	// credentials (169.254.170.2, 169.254.170.23, fd00:ec2::23). Required.
	Metadata netip.Addr
	// Agent is the address on lo to which the redirect leads: IPv4 link-local, or an IPv6 unique local address (an
	// IPv6 link-local one cannot be reached from another link). Required, and the same on every node.
	Agent netip.Addr
}

// Redirect is the node's part of the Redirect: address, guard, flush. It belongs to the network namespace of the thread
// that made it, and holds no state but its sockets: every call starts from what the kernel has. Its methods
// are safe for concurrent use, and wait for each other.
type Redirect struct {
	cfg      Config
	families []family
	handle   *netlink.Handle
	sockets  map[int]*nl.SocketHandle // for what the library cannot read

	mu sync.Mutex // orders the calls
}

// NewRedirect opens the netlink sockets, in the network namespace of the calling thread. Close closes them.
func NewRedirect(cfg Config) (*Redirect, error) {
	if err := validate(cfg.Targets); err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink sockets: %w", err)
	}
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Redirect{
		cfg:      cfg,
		families: byFamily(cfg.Targets),
		handle:   handle,
		sockets:  map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}},
	}, nil
}

// family is what the targets of one address family say.
type family struct {
	number   int // unix.AF_*
	agent    netip.Addr
	metadata []netip.Addr
}

// String returns IPv4 or IPv6.
func (f family) String() string {
	if f.number == unix.AF_INET {
		return "IPv4"
	}
	return "IPv6"
}

// byFamily returns the families in the order in which the targets name them. The targets must be valid.
func byFamily(targets []Target) []family {
	var all []family
	for _, t := range targets {
		number := familyOf(t.Metadata)
		i := slices.IndexFunc(all, func(f family) bool { return f.number == number })
		if i < 0 {
			i = len(all)
			all = append(all, family{number: number, agent: t.Agent})
		}
		all[i].metadata = append(all[i].metadata, t.Metadata)
	}
	return all
}

func validate(targets []Target) error {
	if len(targets) == 0 {
		return errors.New("no target: give at least one metadata and agent address")
	}
	var errs []error
	agents := map[bool]netip.Addr{}
	seen := map[netip.Addr]bool{}
	for _, t := range targets {
		v4 := t.Metadata.Is4()
		switch {
		case !t.Metadata.IsValid() || !t.Agent.IsValid() || v4 != t.Agent.Is4() ||
			t.Metadata.Is4In6() || t.Agent.Is4In6() || t.Metadata.Zone() != "" || t.Agent.Zone() != "":
			errs = append(errs, fmt.Errorf("target %v to %v: give two plain addresses of one family",
				t.Metadata, t.Agent))
		case t.Metadata == t.Agent:
			errs = append(errs, fmt.Errorf("target %v leads to itself: give the agent an address of its own",
				t.Metadata))
		case !v4 && t.Agent.IsLinkLocalUnicast():
			errs = append(errs, fmt.Errorf("agent address %v is link-local: "+
				"give a unique local address (fd00::/8), which can be reached from other links", t.Agent))
		case seen[t.Metadata]:
			errs = append(errs, fmt.Errorf("target %v is named twice", t.Metadata))
		case agents[v4].IsValid() && agents[v4] != t.Agent:
			errs = append(errs, fmt.Errorf("targets of one address family lead to %v and to %v: give them one agent",
				agents[v4], t.Agent))
		}
		seen[t.Metadata], agents[v4] = true, t.Agent
	}
	return errors.Join(errs...)
}

// Close closes the sockets. What was installed stays.
func (r *Redirect) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handle.Close()
	for _, s := range r.sockets {
		s.Close()
	}
}

// Ensure puts address and guard in place, in this order, where they are not, and reports whether anything was
// changed. It is to be called before the iptables rules go in. The address families are independent: one that fails
// does not keep the other from being guarded.
func (r *Redirect) Ensure() (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, f := range r.families {
		addressChanged, err := r.ensureAddress(f.agent)
		changed = changed || addressChanged
		if err != nil {
			errs = append(errs, fmt.Errorf("ensure address %v on lo: %w", f.agent, err))
		}
	}
	guardChanged, err := r.ensureGuard()
	return changed || guardChanged, errors.Join(append(errs, err)...)
}

// EnsureGuard is Ensure without the address: what refuses pods before any agent runs. Until the address is there,
// what is sent to it is refused too.
func (r *Redirect) EnsureGuard() (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ensureGuard()
}

// Check says, one line each, what of address and guard is missing or not as it should be. It changes nothing.
func (r *Redirect) Check() (differences []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.families {
		state, err := r.addressState(f.agent)
		if err != nil {
			return nil, fmt.Errorf("check address %v on lo: %w", f.agent, err)
		}
		if !state.right {
			differences = append(differences, fmt.Sprintf("address %v on lo is missing or differs", hostNet(f.agent)))
		}
		diff, err := r.guardDiff(f)
		if err = errors.Join(err, diff.blind); err != nil {
			return nil, fmt.Errorf("check %s guard: %w", f, err)
		}
		for _, m := range diff.missing {
			differences = append(differences, fmt.Sprintf("policy rule %q is missing", m))
		}
		for _, s := range diff.stale {
			differences = append(differences, fmt.Sprintf("policy rule %q is of another version", s))
		}
	}
	return differences, nil
}

// Remove takes guard and address away, in this order, of both address families as far as the targets name them, and
// reports whether there was anything. It is to be called after the iptables rules are gone.
func (r *Redirect) Remove() (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, f := range r.families {
		guardChanged, err := r.removeGuard(f)
		changed = changed || guardChanged
		if err != nil {
			errs = append(errs, fmt.Errorf("remove %s guard: %w", f, err))
		}
	}
	for _, f := range r.families {
		addressChanged, err := r.removeAddress(f.agent)
		changed = changed || addressChanged
		if err != nil {
			errs = append(errs, fmt.Errorf("remove address %v from lo: %w", f.agent, err))
		}
	}
	return changed, errors.Join(errs...)
}

func hostNet(addr netip.Addr) *net.IPNet { return ipNet(hostPrefix(addr)) }

func familyOf(addr netip.Addr) int {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// ipv6Remedy adds what to do to the errors of a kernel in which IPv6 is switched off.
func ipv6Remedy(addr netip.Addr, err error) error {
	off := errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES)
	if err == nil || addr.Is4() || !off {
		return err
	}
	return fmt.Errorf("%w: IPv6 is switched off here: "+
		"set the sysctl net.ipv6.conf.lo.disable_ipv6=0, or configure the agent for IPv4 alone", err)
}
