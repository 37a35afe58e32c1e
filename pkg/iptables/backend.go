package iptables

import (
	"context"
	"errors"
	"fmt"
)

// Backend is one of the two places in the kernel that iptables writes to. The kernel evaluates both, so the redirect
// would work from either; it belongs where the node's other rules are, for whoever looks for it.
type Backend string

const (
	// Auto is the backend that the node's own programs use, as found by [Detect].
	Auto Backend = "auto"
	// NFT is nf_tables, through iptables-nft.
	NFT Backend = "nft"
	// Legacy is x_tables, through iptables-legacy.
	Legacy Backend = "legacy"
)

// Detection is the outcome of [Detect].
type Detection struct {
	// Backend is NFT or Legacy.
	Backend Backend
	// Reason says why, for the log.
	Reason string
	// Stale is the other backend, if it holds chains of podrole: an earlier agent chose otherwise. They are to be
	// removed after those of Backend are in place. Empty otherwise.
	Stale Backend
}

// kubeletHints are the chains that the kubelet keeps in the mangle table for programs in containers, which cannot
// tell the host's iptables variant otherwise (Kubernetes KEP-3178, "Clean Up IPTables Chain Ownership").
var kubeletHints = [...]string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}

// Detect finds the backend that the host uses: the one in which the kubelet left its hint, else the one that holds
// more rules of others, else nft. Rules in both are ordinary. A want other than [Auto] is taken as it is. Detect
// changes nothing, and does not make the legacy backend create its tables.
func Detect(ctx context.Context, r Runner, want Backend) (Detection, error) {
	if want != Auto && want != NFT && want != Legacy {
		return Detection{}, fmt.Errorf("iptables backend %q is unknown: choose %s, %s or %s", want, Auto, NFT, Legacy)
	}
	nft, nftErr := survey(ctx, r, NFT)
	legacy, legacyErr := survey(ctx, r, Legacy)

	var d Detection
	switch {
	case want != Auto:
		d.Backend, d.Reason = want, "set by configuration"
	case nftErr != nil && legacyErr != nil:
		return Detection{}, fmt.Errorf("detect iptables backend: %w", errors.Join(nftErr, legacyErr))
	case legacyErr != nil:
		d.Backend, d.Reason = NFT, "legacy cannot be read"
	case nftErr != nil:
		d.Backend, d.Reason = Legacy, "nft cannot be read"
	case nft.hint != "":
		d.Backend, d.Reason = NFT, "the kubelet's chain "+nft.hint+" is in nft"
	case legacy.hint != "":
		d.Backend, d.Reason = Legacy, "the kubelet's chain "+legacy.hint+" is in legacy"
	case legacy.rules > nft.rules:
		d.Backend, d.Reason = Legacy, fmt.Sprintf("legacy holds more rules (%d, nft %d)", legacy.rules, nft.rules)
	case nft.rules > legacy.rules:
		d.Backend, d.Reason = NFT, fmt.Sprintf("nft holds more rules (%d, legacy %d)", nft.rules, legacy.rules)
	default:
		d.Backend, d.Reason = NFT, fmt.Sprintf("neither backend says more (%d rules each)", nft.rules)
	}
	switch chosen := map[Backend]error{NFT: nftErr, Legacy: legacyErr}[d.Backend]; {
	case chosen != nil:
		return Detection{}, fmt.Errorf("detect iptables backend: %w", chosen)
	case d.Backend == NFT && legacy.ours:
		d.Stale = Legacy
	case d.Backend == Legacy && nft.ours:
		d.Stale = NFT
	}
	return d, nil
}

// traces is what a backend tells about its users.
type traces struct {
	hint  string
	rules int // of others: ours must not confirm the choice that put them there
	ours  bool
}

// survey reads a backend. IPv4 must be readable; a kernel without IPv6 has no rules there.
func survey(ctx context.Context, r Runner, b Backend) (traces, error) {
	var found traces
	for _, f := range []family{ipv4, ipv6} {
		saved, err := save(ctx, r, b, f)
		if err != nil {
			if f == ipv6 {
				continue
			}
			return traces{}, err
		}
		for _, hint := range kubeletHints {
			if found.hint == "" && saved.table("mangle").chains[hint] != nil {
				found.hint = hint
			}
		}
		for _, t := range saved {
			for _, c := range t.all() {
				if isOurs(c.name) {
					found.ours = true
					continue
				}
				for _, rule := range c.rules {
					if !jumpsToUs(rule) {
						found.rules++
					}
				}
			}
		}
	}
	return found, nil
}
