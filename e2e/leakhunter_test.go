package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// pace is the time between two attempts of one kind: often enough to fall into every gap that a program could notice.
const pace = 4 * time.Millisecond

// hunter tries, all the time and from inside a pod, to get a packet to the node's own metadata service.
type hunter struct {
	pod      *nodebox.Pod
	attempts atomic.Int64
	hunting  sync.WaitGroup
	cancel   context.CancelFunc
	held     []io.Closer // when all hunting has ended
}

// hunt begins. Whatever is sent, whether it gets anywhere is for the recorder behind the node's uplink to say, and for the
// metadata stand-in.
func hunt(t *testing.T, bed *testbed.Bed, pod *nodebox.Pod) *hunter {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	h := &hunter{pod: pod, cancel: cancel}
	services := []netip.Addr{bed.Box.MetadataIP}
	if bed.Box.HasIPv6() {
		services = append(services, bed.Box.MetadataIPv6)
	}
	for _, service := range services {
		for _, port := range []uint16{80, 443, 8080} {
			h.every(ctx, func() { h.connect(ctx, netip.AddrPortFrom(service, port)) })
		}
		h.keepAlive(ctx, netip.AddrPortFrom(service, 80))
		h.datagrams(t, ctx, service)
		h.pings(t, ctx, service)
	}
	t.Cleanup(h.stop)
	return h
}

func (h *hunter) stop() {
	h.cancel()
	h.hunting.Wait()
	for _, c := range h.held {
		_ = c.Close()
	}
	h.held = nil
}

// every tries again and again until ctx ends.
func (h *hunter) every(ctx context.Context, try func()) {
	h.hunting.Go(func() {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				h.attempts.Add(1)
				try()
			}
		}
	})
}

// connect makes a connection of its own for one request.
func (h *hunter) connect(ctx context.Context, service netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	c, err := h.pod.DialContext(ctx, "tcp", service.String())
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
	fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", credentials)
	_, _ = io.Copy(io.Discard, c)
}

// keepAlive holds one connection after the other for as long as it lives, and sends on it.
func (h *hunter) keepAlive(ctx context.Context, service netip.AddrPort) {
	c := new(holder)
	h.held = append(h.held, c)
	h.every(ctx, func() {
		if c.Conn == nil {
			dialing, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			defer cancel()
			c.Conn, _ = h.pod.DialContext(dialing, "tcp", service.String())
			return
		}
		_ = c.SetWriteDeadline(time.Now().Add(pace))
		if _, err := c.Write([]byte("G")); err != nil {
			_ = c.Close()
		}
	})
}

// holder holds one connection or none.
type holder struct{ net.Conn }

// Close implements io.Closer.
func (h *holder) Close() error {
	if h.Conn == nil {
		return nil
	}
	c := h.Conn
	h.Conn = nil
	return c.Close()
}

// datagrams sends UDP to the port of DNS, of which some guards make an exception, and to others, from one source port and
// from many.
func (h *hunter) datagrams(t *testing.T, ctx context.Context, service netip.Addr) {
	t.Helper()
	from := "0.0.0.0:0"
	if service.Is6() {
		from = "[::]:0"
	}
	same, err := h.pod.ListenPacket(ctx, "udp", from)
	if err != nil {
		t.Fatal(err)
	}
	h.held = append(h.held, same)
	for _, port := range []uint16{53, 80, 123} {
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(service, port))
		h.every(ctx, func() {
			_, _ = same.WriteTo([]byte("x"), to)
			if c, err := h.pod.DialContext(ctx, "udp", to.String()); err == nil {
				_, _ = c.Write([]byte("x"))
				_ = c.Close()
			}
		})
	}
}

// pings sends echo requests (RFC 792, RFC 4443; of the latter the kernel writes the checksum).
func (h *hunter) pings(t *testing.T, ctx context.Context, service netip.Addr) {
	t.Helper()
	network, from, echo := "ip4:icmp", "0.0.0.0", []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
	if service.Is6() {
		network, from, echo = "ip6:ipv6-icmp", "::", []byte{128, 0, 0, 0, 0, 0, 0, 0}
	}
	var raw net.PacketConn
	err := h.pod.Do(func() (err error) {
		raw, err = new(net.ListenConfig).ListenPacket(ctx, network, from)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	h.held = append(h.held, raw)
	h.every(ctx, func() { _, _ = raw.WriteTo(echo, &net.IPAddr{IP: service.AsSlice()}) })
}

// TestLeakHunter: from the moment the first agent serves, nothing that a pod sends reaches the node's metadata service, and
// nothing for the agent's address leaves the node, whatever becomes of agents and rules.
func TestLeakHunter(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) { huntLeaks(t, backend) })
	}
}

func huntLeaks(t *testing.T, backend string) {
	bed := newBed(t, testbed.Config{})
	pod := addPod(t, bed, "orders", "orders")
	flags := []string{
		"--iptables-backend=" + backend, "--state-dir-on-disk", "--state-dir=" + filepath.Join(bed.Box.Dir, "state"),
		"--request-rate=0", // the hunter alone would use it up
	}
	agentAddresses := []netip.Addr{netip.MustParseAddr("169.254.77.1"), netip.MustParseAddr("fd70:6f64:726f:6c65::1")}
	agent := startAgent(t, bed, flags...)
	if err := bed.Box.Watch(agentAddresses...); err != nil {
		t.Fatal(err)
	}
	h := hunt(t, bed, pod)
	shell := func(script string) {
		t.Helper()
		if out, err := bed.Box.Node.Command(t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	families := func(script string) string {
		text := strings.ReplaceAll(script, "BACKEND", backend)
		if !bed.Box.HasIPv6() {
			return strings.ReplaceAll(text, "IPTABLES", "iptables")
		}
		return strings.ReplaceAll(text, "IPTABLES", "iptables") + "\n" + strings.ReplaceAll(text, "IPTABLES", "ip6tables")
	}
	flush := families("for t in nat filter; do IPTABLES-BACKEND -t $t -F; done")
	replace := families(`for t in nat filter; do printf '*%s\nCOMMIT\n' $t; done | IPTABLES-BACKEND-restore`)
	// Between the two, the agent may have repaired what was flushed: no chain can be deleted then.
	delete := families(`for t in nat filter; do until IPTABLES-BACKEND -t $t -F && IPTABLES-BACKEND -t $t -X; do :; done; done`)
	policy := `ip rule flush; ip rule add pref 32766 lookup main; ip rule add pref 32767 lookup default`
	addresses := `ip address del 169.254.77.1/32 dev lo`
	if bed.Box.HasIPv6() {
		policy += `; ip -6 rule flush; ip -6 rule add pref 32766 lookup main`
		addresses += `; ip -6 address del fd70:6f64:726f:6c65::1/128 dev lo`
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"flushed", func() { shell(flush) }},
		{"nft_flush_ruleset", func() { shell("nft flush ruleset") }},
		{"chains_deleted", func() { shell(delete) }},
		{"tables_restored_by_others", func() { shell(replace) }},
		{"address_deleted", func() { shell(addresses) }},
		{"routing_policy_flushed", func() { shell(policy) }},
		{"taken_over", func() {
			fresh := startAgent(t, bed, flags...)
			must(agent.Stop())
			agent = fresh
		}},
		{"crash_loop", func() {
			for range 5 {
				must(agent.Kill())
				agent = startAgent(t, bed, flags...)
			}
		}},
		{"absent_after_SIGKILL", func() {
			must(agent.Kill())
			shell("sleep 60")
			agent = startAgent(t, bed, flags...)
		}},
		{"absent_after_SIGTERM_and_flushed", func() {
			must(agent.Stop())
			shell("nft flush ruleset; " + flush + "; sleep 5")
			agent = startAgent(t, bed, flags...)
		}},
	} {
		before := h.attempts.Load()
		step.do()
		began := time.Now()
		eventually(t, "served after "+step.name, func() string {
			got := ask(t.Context(), pod.Namespace, http.MethodGet, metadataIPv4+credentials)
			if got.body != "orders" {
				return got.String()
			}
			return ""
		})
		t.Logf("%s: served again after %s, %d attempts", step.name, time.Since(began).Round(time.Millisecond),
			h.attempts.Load()-before)
		for _, l := range append(bed.Box.Leaks(), bed.Box.Watched()...) {
			t.Errorf("after %s: %v left the node", step.name, l)
		}
		for _, l := range bed.Metadata.Leaks() {
			t.Errorf("after %s: %v reached the node's metadata service", step.name, l)
		}
		if t.Failed() {
			return
		}
	}
	if n := h.attempts.Load(); n < 10000 {
		t.Errorf("only %d attempts", n)
	}
	// Without podrole the same attempts succeed, and are seen.
	must(agent.Stop())
	binary, err := nodebox.BuildAgent(t.Context(), true)
	must(err)
	shell(binary + " uninstall --iptables-backend=" + backend)
	eventually(t, "leaks after uninstall", func() string {
		if len(bed.Box.Leaks()) == 0 || len(bed.Metadata.Leaks()) == 0 {
			return "none is seen"
		}
		return ""
	})
}
