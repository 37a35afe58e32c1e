package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/node/netevents"
)

// legacyInterval is how often the tables of the legacy backend are looked at, which announces no changes. A look is a
// few system calls of a microsecond each.
const legacyInterval = 100 * time.Millisecond

// Watch calls changed whenever something was done to the rules that r asks for, so that it is time for [Redirect.Heal],
// in the network namespace of the calling thread, until ctx ends, which is no error. changed is called by one
// goroutine, once at the start, and must not block. Our own changes are told of as well: a Heal that finds nothing to
// do ends it.
//
// With the nft backend the kernel tells of each change. Those of other chains do not matter, so that a kube-proxy
// that writes thousands of its rules anew goes unnoticed. With the legacy backend the sizes of the tables are looked
// at ten times a second; what leaves them as they were is for a sweep to find, as is a chain of others that stands
// before ours and takes to accepting our packets.
//
// It is to be called after the first Ensure: the legacy backend creates the tables that it is asked about.
func (d *Redirect) Watch(ctx context.Context, r Rules, changed func()) error {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("watch iptables rules: %w", err)
	}
	watch := watchNFT
	if d.cfg.Backend == Legacy {
		watch = watchLegacy
	}
	if err := watch(ctx, placesOf(r), changed); err != nil {
		return fmt.Errorf("watch iptables rules: %w", err)
	}
	return nil
}

// place is a table of one family, and the chains of others in it that hold jumps of ours.
type place struct {
	family family
	table  string
	chains []string
}

func placesOf(r Rules) []place {
	var places []place
	for _, f := range r.byFamily() {
		for _, wanted := range f.tables() {
			places = append(places, place{f.family, wanted.name, wanted.hooks()})
		}
	}
	return places
}

func watchNFT(ctx context.Context, places []place, changed func()) error {
	return netevents.Watch(ctx, netevents.Config{
		Protocol: unix.NETLINK_NETFILTER,
		Groups:   []int{unix.NFNLGRP_NFTABLES},
		Matters: func(m netevents.Message) bool {
			e, ok := parseEvent(m)
			return ok && slices.ContainsFunc(places, e.touches)
		},
		Changed: changed,
	})
}

// event is what a notification of nf_tables says: that a table, a chain or a rule has come, gone or changed.
type event struct {
	family byte // of the kernel: NFPROTO_*
	table  string
	chain  string // empty for a table
}

// sizeofNfGenMsg is the length of struct nfgenmsg (linux/netfilter/nfnetlink.h), which begins with the family.
const sizeofNfGenMsg = 4

// parseEvent reads the notifications that are about tables, chains and rules (linux/netfilter/nf_tables.h).
func parseEvent(m netevents.Message) (e event, ok bool) {
	if m.Kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Payload) < sizeofNfGenMsg {
		return event{}, false
	}
	e.family = m.Payload[0]
	var table, chain uint16
	switch m.Kind & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		table = unix.NFTA_TABLE_NAME
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		table, chain = unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		table, chain = unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN
	default:
		return event{}, false
	}
	for kind, value := range m.Attributes(sizeofNfGenMsg) {
		switch kind {
		case table:
			e.table = unix.ByteSliceToString(value)
		case chain:
			e.chain = unix.ByteSliceToString(value)
		}
	}
	return e, true
}

func (e event) touches(p place) bool {
	if e.family != p.family.number() || e.table != p.table {
		return false
	}
	return e.chain == "" || isOurs(e.chain) || slices.Contains(p.chains, e.chain)
}

// number is the family's in the kernel, where AF_* and NFPROTO_* are the same.
func (f family) number() byte {
	if f == ipv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func watchLegacy(ctx context.Context, places []place, changed func()) (err error) {
	sockets := map[family]int{}
	defer func() {
		for _, fd := range sockets {
			err = errors.Join(err, unix.Close(fd))
		}
	}()
	for _, p := range places {
		if _, open := sockets[p.family]; open {
			continue
		}
		fd, err := unix.Socket(int(p.family.number()), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("open %s socket: %w", p.family, err)
		}
		sockets[p.family] = fd
	}
	ticker := time.NewTicker(legacyInterval)
	defer ticker.Stop()
	var known []tableInfo
	for {
		var now []tableInfo
		for _, p := range places {
			info, err := readTableInfo(sockets[p.family], p.family, p.table)
			if err != nil {
				return fmt.Errorf("look at %s table %s: %w", p.family, p.table, err)
			}
			now = append(now, info)
		}
		if known == nil || !slices.Equal(known, now) {
			known = now
			changed()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
