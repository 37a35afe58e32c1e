package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/node/netevents"
)

// iptablesPriority is that of iptables' nat chains at the hook prerouting (NF_IP_PRI_NAT_DST). What comes before it
// translates first, and what was translated once is not translated again.
const iptablesPriority = -100

// NativeLeftovers returns the rules of nftables, outside of what iptables shows, that translate one of the metadata
// addresses before our rules see the packet, in the network namespace of the calling thread. It finds addresses that
// are written in a rule, and not those in sets. It changes nothing.
func NativeLeftovers(metadata []netip.Addr) ([]Leftover, error) {
	chains, err := natChains()
	if err != nil {
		return nil, fmt.Errorf("look for nftables rules of other tools: %w", err)
	}
	var found []Leftover
	for _, c := range chains {
		inTable := nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(c.table))
		rules, err := nftDump(unix.NFT_MSG_GETRULE, c.family, inTable)
		if errors.Is(err, unix.ENOENT) {
			continue // deleted since
		}
		if err != nil {
			return found, fmt.Errorf("look for nftables rules of other tools: list table %s: %w", c.table, err)
		}
		for _, rule := range rules {
			handle, ok := translates(netevents.Message{Payload: rule}, metadata)
			if !ok {
				continue
			}
			l := Leftover{
				Tool:   "another tool",
				Where:  fmt.Sprintf("nft, table %s %s", familyName(c.family), c.table),
				Rule:   fmt.Sprintf("handle %d, behind chain %s of priority %d", handle, c.name, c.priority),
				Remedy: fmt.Sprintf("nft -a list table %s %s", familyName(c.family), c.table),
			}
			if !slices.Contains(found, l) {
				found = append(found, l)
			}
		}
	}
	return found, nil
}

// natChain is a chain of type nat at the hook prerouting.
type natChain struct {
	family      byte
	table, name string
	priority    int32
}

// natChains lists those that are asked before iptables' chains, or in an order that nobody knows.
func natChains() ([]natChain, error) {
	msgs, err := nftDump(unix.NFT_MSG_GETCHAIN, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var chains []natChain
	for _, msg := range msgs {
		if c, ok := parseNATChain(netevents.Message{Payload: msg}); ok {
			chains = append(chains, c)
		}
	}
	return chains, nil
}

func parseNATChain(m netevents.Message) (c natChain, ok bool) {
	if len(m.Payload) < sizeofNfGenMsg {
		return natChain{}, false
	}
	c.family = m.Payload[0]
	isNAT, atPrerouting := false, false
	for kind, value := range m.Attributes(sizeofNfGenMsg) {
		switch kind {
		case unix.NFTA_CHAIN_TABLE:
			c.table = unix.ByteSliceToString(value)
		case unix.NFTA_CHAIN_NAME:
			c.name = unix.ByteSliceToString(value)
		case unix.NFTA_CHAIN_TYPE:
			isNAT = unix.ByteSliceToString(value) == "nat"
		case unix.NFTA_CHAIN_HOOK:
			for kind, value := range (netevents.Message{Payload: value}).Attributes(0) {
				switch {
				case kind == unix.NFTA_HOOK_HOOKNUM && len(value) == 4:
					atPrerouting = binary.BigEndian.Uint32(value) == unix.NF_INET_PRE_ROUTING
				case kind == unix.NFTA_HOOK_PRIORITY && len(value) == 4:
					c.priority = int32(binary.BigEndian.Uint32(value))
				}
			}
		}
	}
	ofIptables := c.family != unix.NFPROTO_INET && c.table == "nat" && c.name == "PREROUTING"
	return c, isNAT && atPrerouting && c.priority <= iptablesPriority && !ofIptables
}

// translates reports whether a rule names one of the addresses and translates; handle is its number.
func translates(m netevents.Message, metadata []netip.Addr) (handle uint64, ok bool) {
	for kind, value := range m.Attributes(sizeofNfGenMsg) {
		switch {
		case kind == unix.NFTA_RULE_HANDLE && len(value) == 8:
			handle = binary.BigEndian.Uint64(value)
		case kind == unix.NFTA_RULE_EXPRESSIONS:
			nat := slices.ContainsFunc([]string{"nat", "redir", "tproxy"}, func(name string) bool {
				return bytes.Contains(value, nl.NewRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated(name)).Serialize())
			})
			ok = nat && slices.ContainsFunc(metadata, func(addr netip.Addr) bool {
				return bytes.Contains(value, nl.NewRtAttr(unix.NFTA_DATA_VALUE, addr.AsSlice()).Serialize())
			})
		}
	}
	return handle, ok
}

// nftDump lists objects of nf_tables.
func nftDump(kind, family byte, attrs ...*nl.RtAttr) ([][]byte, error) {
	const attempts = 3 // a listing that was interrupted by a change is begun anew
	for attempt := 1; ; attempt++ {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|int(kind), unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: nl.NFNETLINK_V0})
		for _, a := range attrs {
			req.AddData(a)
		}
		msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if errors.Is(err, nl.ErrDumpInterrupted) && attempt < attempts {
			continue
		}
		return msgs, err
	}
}

func familyName(family byte) string {
	switch family {
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_INET:
		return "inet"
	default:
		return fmt.Sprint(family)
	}
}
