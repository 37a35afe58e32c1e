package node

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// LocalMetadataError is why a node cannot be guarded: it answers on the metadata address itself, so that the
// kernel delivers what is sent there before any rule is asked.
type LocalMetadataError struct {
	Address netip.Addr
	// Interface has the address; empty where a local route leads to it without one.
	Interface string
}

// Error implements error.
func (e *LocalMetadataError) Error() string {
	owner := "a local route"
	if e.Interface != "" {
		owner = "interface " + e.Interface
	}
	return fmt.Sprintf("metadata address %v is local to this node (%s), so pods would reach it past the guard: "+
		"stop what serves it here (aws-vault, ec2-metadata-mock) and remove the address", e.Address, owner)
}

// ResolverError is why a node must not be guarded as configured: the metadata address is also a resolver, and the guard
// would take name resolution from every pod.
type ResolverError struct {
	Address netip.Addr
	File    string
}

// Error implements error.
func (e *ResolverError) Error() string {
	return fmt.Sprintf("metadata address %v is a nameserver of this node (%s), and the guard would cut pods off: "+
		"set --guard-except-dns to let port 53 through", e.Address, e.File)
}

// CheckNode reports why this node cannot be guarded, as *[LocalMetadataError], *[PodIdentityAgentError] and
// *[ResolverError], or nil.
func (r *Redirect) CheckNode() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	var podIdentity error
	if slices.ContainsFunc(r.cfg.Targets, func(t Target) bool { return isPodIdentityAddress(t.Metadata) }) {
		podIdentity = checkPodIdentityAgent(r.handle)
		errs = append(errs, podIdentity)
	}
	for _, t := range r.cfg.Targets {
		if podIdentity == nil || !isPodIdentityAddress(t.Metadata) {
			errs = append(errs, r.checkNotLocal(t.Metadata))
		}
		if r.cfg.GuardExceptDNS {
			continue
		}
		for _, path := range r.cfg.ResolvConf {
			if err := checkResolvers(path, t.Metadata); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func (r *Redirect) checkNotLocal(addr netip.Addr) error {
	routes, err := r.handle.RouteGet(net.IP(addr.AsSlice()))
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EINVAL):
		return nil // no route, or one that refuses: a node off EC2, or one without IPv6
	case err != nil:
		return fmt.Errorf("look up route to %v: %w", addr, err)
	case len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL:
		return nil
	}
	local := &LocalMetadataError{Address: addr}
	addrs, err := r.handle.AddrList(nil, familyOf(addr))
	if err != nil {
		return errors.Join(local, fmt.Errorf("list addresses: %w", err))
	}
	for _, a := range addrs {
		if a.IP.Equal(net.IP(addr.AsSlice())) {
			local.Interface = r.linkName(a.LinkIndex)
		}
	}
	return local
}

// checkResolvers reads a file in the form of resolv.conf(5).
func checkResolvers(path string, addr netip.Addr) error {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read resolvers: %w", err)
	}
	for resolver := range nameservers(string(content)) {
		if resolver == addr {
			return &ResolverError{Address: addr, File: path}
		}
	}
	return nil
}

// nameservers yields the addresses of nameserver lines; what is no address is passed over, as the resolver does.
func nameservers(content string) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for line := range strings.Lines(content) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if addr, err := netip.ParseAddr(fields[1]); err == nil && !yield(addr.WithZone("").Unmap()) {
				return
			}
		}
	}
}
