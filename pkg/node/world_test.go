package node_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/pkg/iptables"
	"github.com/podrole/podrole/pkg/node"
)

var (
	agent4 = netip.MustParseAddr("169.254.77.1")
	agent6 = netip.MustParseAddr("fd7a:706f:6472::1")
)

// deadline bounds what must be answered soon, one way or the other. The kernel may overlook the first ICMPv6 refusal,
// which on a veth pair arrives while connect(2) still holds the socket; the second try is a second later.
const deadline = 5 * time.Second

// world is a node in a box with one pod, a stand-in for the instance's metadata service behind the uplink, and both
// halves of the Redirect, not installed yet.
type world struct {
	box   *nodebox.Box
	pod   *nodebox.Pod
	node  *node.Redirect
	rules *iptables.Redirect
	want  iptables.Rules

	config  node.Config
	backend iptables.Backend
	pairs   []pair
	pods    int
}

// pair is a metadata address and where the agent listens for it.
type pair struct {
	name     string
	metadata netip.Addr
	agent    netip.AddrPort
	pod      netip.Addr
	nodeIP   netip.Addr
}

func newWorld(t *testing.T, backend iptables.Backend, exceptDNS bool) *world {
	t.Helper()
	box := nodebox.ForTest(t, nodebox.Config{})
	w := &world{box: box, backend: backend}
	w.run(t, "sysctl", "-q", "-w", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0")
	pod := w.newPod(t)
	w.pod = pod
	w.pairs = []pair{{"ipv4", box.MetadataIP, netip.AddrPortFrom(agent4, 41001), pod.IP, box.NodeIP}}
	if box.HasIPv6() {
		w.pairs = append(w.pairs,
			pair{"ipv6", box.MetadataIPv6, netip.AddrPortFrom(agent6, 41001), pod.IPv6, box.NodeIPv6})
	}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	w.config = node.Config{GuardExceptDNS: exceptDNS, Logger: logger}
	w.want.GuardExceptDNS = exceptDNS
	for _, p := range w.pairs {
		w.config.Targets = append(w.config.Targets, node.Target{Metadata: p.metadata, Agent: p.agent.Addr()})
		w.want.Targets = append(w.want.Targets, iptables.Target{Metadata: p.metadata, Agent: p.agent})
		serve(t, box.Outside, netip.AddrPortFrom(p.metadata, 80), "instance")
		serve(t, box.Outside, netip.AddrPortFrom(p.metadata, 81), "instance")
		serve(t, box.Outside, netip.AddrPortFrom(p.metadata, 53), "resolver")
		echo(t, box.Outside, netip.AddrPortFrom(p.metadata, 80))
		echo(t, box.Outside, netip.AddrPortFrom(p.metadata, 53))
	}
	w.node = w.newRedirect(t, w.config)
	rules, err := iptables.NewRedirect(iptables.Config{Backend: backend, Runner: inside{box.Node}, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	w.rules = rules
	return w
}

// newPod adds a pod. The kernel bounds how often it tells one address that a packet is prohibited (some at
// once, then one in a second or two), so tests that want to be told ask from a new one each time.
func (w *world) newPod(t *testing.T) *nodebox.Pod {
	t.Helper()
	w.pods++
	pod, err := w.box.AddPod(nodebox.PodConfig{Namespace: "shop", Name: fmt.Sprintf("web-%d", w.pods)})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// newRedirect opens the netlink half in the node's namespace.
func (w *world) newRedirect(t *testing.T, c node.Config) *node.Redirect {
	t.Helper()
	var redirect *node.Redirect
	err := w.box.Node.Do(func() (err error) {
		redirect, err = node.NewRedirect(c)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(redirect.Close)
	return redirect
}

// install puts the Redirect in place in the agent's order, with the agent's listeners.
func (w *world) install(t *testing.T) {
	t.Helper()
	w.heal(t)
	for _, p := range w.pairs {
		serve(t, w.box.Node, p.agent, "agent")
	}
}

func (w *world) heal(t *testing.T) {
	t.Helper()
	if _, err := w.node.Ensure(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.rules.Ensure(t.Context(), w.want); err != nil {
		t.Fatal(err)
	}
}

// inside runs programs in a namespace, as the agent does in the node's.
type inside struct{ namespace *nodebox.Namespace }

func (r inside) Run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	cmd := r.namespace.Command(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, &iptables.CommandError{Command: name, Stderr: string(exit.Stderr), Err: err}
	}
	return out, err
}

// run runs a program in the node's namespace.
func (w *world) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := inside{w.box.Node}.Run(t.Context(), "", name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// snapshot is everything that Remove must put back: rules, addresses, routes and policy. Comments, counters and empty
// built-in chains of iptables-save are left out: both backends print them once a table was used.
func (w *world) snapshot(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	for _, program := range []string{
		"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save",
	} {
		for line := range strings.Lines(w.run(t, program)) {
			userChain := strings.HasPrefix(line, ":") && strings.Contains(line, " - ")
			if userChain || strings.HasPrefix(line, "-") {
				fmt.Fprintf(&out, "%s %s", program, line)
			}
		}
	}
	for _, args := range []string{
		"-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "-4 -o addr", "-6 -o addr",
	} {
		for line := range strings.Lines(w.run(t, "ip", strings.Fields(args)...)) {
			if !strings.Contains(line, " eni") { // of pods, which come and go
				out.WriteString(line)
			}
		}
	}
	return out.String()
}

// serve answers each TCP connection with who answers and whom, and closes it; a first byte of the client is awaited,
// so that a connection can be kept open.
func serve(t *testing.T, at *nodebox.Namespace, on netip.AddrPort, who string) {
	t.Helper()
	listener, err := at.Listen(t.Context(), "tcp", on.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
				if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil {
					fmt.Fprintf(conn, "%s to %s", who, peer)
				}
			}()
		}
	}()
}

// echo sends every datagram back.
func echo(t *testing.T, at *nodebox.Namespace, on netip.AddrPort) {
	t.Helper()
	conn, err := at.ListenPacket(t.Context(), "udp", on.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}()
}

// ask sends one byte and returns the answer.
func ask(t *testing.T, from *nodebox.Namespace, network string, to netip.AddrPort) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	conn, err := from.DialContext(ctx, network, to.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return askOn(conn)
}

func askOn(conn net.Conn) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(deadline)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

func expect(t *testing.T, what string, from *nodebox.Namespace, to netip.AddrPort, want string) {
	t.Helper()
	if got, err := ask(t, from, "tcp", to); err != nil || got != want {
		t.Errorf("%s: asking %v = %q, %v, want %q", what, to, got, err, want)
	}
}

// expectRefused wants an error that came at once: a client that waits for a time-out is a broken application.
func expectRefused(t *testing.T, what string, from *nodebox.Namespace, network string, to netip.AddrPort) {
	t.Helper()
	got, err := ask(t, from, network, to)
	if network == "udp" && errors.Is(err, os.ErrDeadlineExceeded) { // TCP's second try, see deadline
		got, err = ask(t, from, network, to)
	}
	refusals := []error{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES, unix.ECONNRESET}
	if !slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) }) {
		t.Errorf("%s: asking %s %v = %q, %v, want a refusal", what, network, to, got, err)
	}
}

// ping sends an ICMP echo request and does not wait for the answer.
func ping(t *testing.T, from *nodebox.Namespace, to netip.Addr) {
	t.Helper()
	network, message := "ip4:icmp", []byte{8, 0, 0xf7, 0xfe, 0, 1, 0, 0}
	if to.Is6() {
		network, message = "ip6:ipv6-icmp", []byte{128, 0, 0, 0, 0, 1, 0, 0}
	}
	err := from.Do(func() error {
		conn, err := net.Dial(network, to.String())
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write(message)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) expectNoLeak(t *testing.T, what string) {
	t.Helper()
	if leaks := w.box.Leaks(); len(leaks) > 0 {
		t.Fatalf("%s: pods' packets reached the instance's metadata service: %v", what, leaks)
	}
}

// hunt tries the ways from a pod to the instance's metadata service, all at once: these TCP ports, UDP and ICMP.
func (w *world) hunt(t *testing.T, what string, tcpPorts ...uint16) {
	t.Helper()
	pod := w.newPod(t)
	var wg sync.WaitGroup
	for _, p := range w.pairs {
		for _, port := range tcpPorts {
			wg.Go(func() { expectRefused(t, what, pod.Namespace, "tcp", netip.AddrPortFrom(p.metadata, port)) })
		}
		wg.Go(func() { expectRefused(t, what, pod.Namespace, "udp", netip.AddrPortFrom(p.metadata, 80)) })
		ping(t, pod.Namespace, p.metadata)
	}
	wg.Wait()
	w.expectNoLeak(t, what)
}

func equal(t *testing.T, what, before, after string) {
	t.Helper()
	if before != after {
		var lines bytes.Buffer
		for line := range strings.Lines(before) {
			if !strings.Contains(after, line) {
				fmt.Fprintf(&lines, "- %s", line)
			}
		}
		for line := range strings.Lines(after) {
			if !strings.Contains(before, line) {
				fmt.Fprintf(&lines, "+ %s", line)
			}
		}
		t.Errorf("%s:\n%s", what, &lines)
	}
}
