package iptables

import (
	"context"
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/pkg/node/netevents"
)

// notification returns a message of nf_tables about what the attributes name.
func notification(kind, family byte, names ...string) netevents.Message {
	payload := []byte{family, 0, 0, 0}
	for i := 0; i+1 < len(names); i += 2 {
		value := names[i+1] + "\x00"
		payload = binary.NativeEndian.AppendUint16(payload, uint16(unix.SizeofNlAttr+len(value)))
		payload = binary.NativeEndian.AppendUint16(payload, uint16(names[i][0]-'0'))
		payload = append(payload, value...)
		payload = append(payload, make([]byte, -len(payload)&3)...)
	}
	return netevents.Message{Kind: unix.NFNL_SUBSYS_NFTABLES<<8 | uint16(kind), Payload: payload}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	const ip, ip6, inet = unix.NFPROTO_IPV4, unix.NFPROTO_IPV6, unix.NFPROTO_INET
	places := placesOf(onlyIPv4)
	for name, c := range map[string]struct {
		message netevents.Message
		matters bool
	}{
		"our-rule":          {notification(unix.NFT_MSG_DELRULE, ip, "1", "nat", "2", "PODROLE-PREROUTING"), true},
		"our-chain":         {notification(unix.NFT_MSG_DELCHAIN, ip, "1", "filter", "3", "PODROLE-INPUT"), true},
		"of-other-version":  {notification(unix.NFT_MSG_NEWCHAIN, ip, "1", "filter", "3", "PODROLE-OLD"), true},
		"beside-our-jump":   {notification(unix.NFT_MSG_NEWRULE, ip, "1", "nat", "2", "PREROUTING"), true},
		"table":             {notification(unix.NFT_MSG_DELTABLE, ip, "1", "nat"), true},
		"table-new":         {notification(unix.NFT_MSG_NEWTABLE, ip, "1", "filter"), true},
		"chain-with-jump":   {notification(unix.NFT_MSG_DELCHAIN, ip, "1", "filter", "3", "FORWARD"), true},
		"kube-proxy":        {notification(unix.NFT_MSG_NEWRULE, ip, "1", "nat", "2", "KUBE-SERVICES"), false},
		"other-hook":        {notification(unix.NFT_MSG_NEWRULE, ip, "1", "nat", "2", "POSTROUTING"), false},
		"hook-of-other":     {notification(unix.NFT_MSG_NEWRULE, ip, "1", "filter", "2", "PREROUTING"), false},
		"other-table":       {notification(unix.NFT_MSG_DELTABLE, ip, "1", "mangle"), false},
		"other-family":      {notification(unix.NFT_MSG_DELRULE, ip6, "1", "nat", "2", "PODROLE-PREROUTING"), false},
		"kube-proxy-of-nft": {notification(unix.NFT_MSG_NEWRULE, inet, "1", "kube-proxy", "2", "services"), false},
		"generation":        {notification(unix.NFT_MSG_NEWGEN, 0, "3", "nft"), false},
		"other-subsystem":   {netevents.Message{Kind: 1 << 8, Payload: []byte{ip, 0, 0, 0}}, false},
		"cut-short":         {netevents.Message{Kind: unix.NFNL_SUBSYS_NFTABLES << 8, Payload: []byte{ip}}, false},
	} {
		e, ok := parseEvent(c.message)
		matters := false
		for _, p := range places {
			matters = matters || ok && e.touches(p)
		}
		if matters != c.matters {
			t.Errorf("%s: %+v, %t, matters: %t, want %t", name, e, ok, matters, c.matters)
		}
	}
}

func FuzzParseEvent(f *testing.F) {
	for _, m := range []netevents.Message{
		notification(unix.NFT_MSG_DELRULE, unix.NFPROTO_IPV4, "1", "nat", "2", "PODROLE-PREROUTING"),
		notification(unix.NFT_MSG_DELCHAIN, unix.NFPROTO_IPV6, "1", "filter", "3", "PODROLE-INPUT"),
		{Kind: unix.NFNL_SUBSYS_NFTABLES << 8, Payload: []byte{2}},
	} {
		f.Add(m.Kind, m.Payload)
	}
	places := placesOf(bothIPs)
	f.Fuzz(func(t *testing.T, kind uint16, payload []byte) {
		e, ok := parseEvent(netevents.Message{Kind: kind, Payload: payload})
		for _, p := range places {
			if !ok && e.touches(p) {
				t.Errorf("%+v was not understood and matters", e)
			}
		}
	})
}

// watched runs Watch in the node of a box and returns its tellings, the one at the start excepted.
func watched(t *testing.T, runner boxRunner, redirect *Redirect) <-chan struct{} {
	t.Helper()
	told := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		err := runner.namespace.Do(func() error {
			return redirect.Watch(ctx, bothIPs, func() { told <- struct{}{} })
		})
		if err != nil {
			t.Errorf("Watch = %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	<-told
	return told
}

// A kube-proxy that writes thousands of rules anew must not cost a look each time, whatever it writes.
func TestWatchPassesOverOthers(t *testing.T) {
	_, runner := newNode(t)
	redirect := newRedirect(t, runner, NFT)
	if _, err := redirect.Ensure(t.Context(), bothIPs); err != nil {
		t.Fatal(err)
	}
	restore := func(text string) {
		t.Helper()
		if _, err := runner.Run(t.Context(), text, "iptables-nft-restore", "--noflush"); err != nil {
			t.Fatal(err)
		}
	}
	told := watched(t, runner, redirect)
	for port := range 3 {
		restore(services(2000, 8080+port))
	}
	restore("*mangle\n-A PREROUTING -j ACCEPT\nCOMMIT\n")
	select {
	case <-told:
		t.Error("told of the rules of others")
	case <-time.After(2 * legacyInterval):
	}
	restore("*nat\n-F PODROLE-PREROUTING\nCOMMIT\n")
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Error("not told of ours")
	}
}

func TestWatchRefusesBadRules(t *testing.T) {
	t.Parallel()
	if err := newRedirect(t, newFakeKernel(), NFT).Watch(t.Context(), Rules{}, func() {}); err == nil {
		t.Error("Watch took rules without a target")
	}
}
