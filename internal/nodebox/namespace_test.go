package nodebox

import (
	"errors"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func insideOf(n *Namespace) error {
	id, err := identifyNamespace(threadNS)
	if err == nil && id != n.id {
		err = fmt.Errorf("thread is not in %s", n.Path())
	}
	return err
}

func TestDo(t *testing.T) {
	b := ForTest(t, Config{})
	before, err := identifyNamespace(threadNS)
	if err != nil {
		t.Fatal(err)
	}
	back := func(after string) {
		t.Helper()
		if id, err := identifyNamespace(threadNS); err != nil || id != before {
			t.Errorf("after %s: in another namespace, %v", after, err)
		}
	}
	fault := errors.New("fault")
	for name, do := range map[string]func() error{
		"success": func() error { return insideOf(b.Node) },
		"error":   func() error { return fault },
		"nested": func() error {
			return errors.Join(b.Outside.Do(func() error { return insideOf(b.Outside) }), insideOf(b.Node))
		},
	} {
		want := map[bool]error{name == "error": fault}[true]
		if err := b.Node.Do(do); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		back(name)
	}
	func() {
		defer func() { _ = recover() }()
		_ = b.Node.Do(func() error { panic("fault") })
	}()
	back("panic")
}

// Threads are shared by all goroutines of the process: none may be left where it does not belong.
func TestDoConcurrently(t *testing.T) {
	b := ForTest(t, Config{})
	before, err := identifyNamespace(threadNS)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range 8 {
		n := []*Namespace{b.Node, b.Outside}[i%2]
		group.Go(func() {
			for range 200 {
				if err := n.Do(func() error { runtime.Gosched(); return insideOf(n) }); err != nil {
					t.Error(err)
				}
				if id, err := identifyNamespace(threadNS); err != nil || id != before {
					t.Errorf("outside of Do, yet in a namespace of the box: %v", err)
				}
			}
		})
	}
	group.Wait()
}

func TestSocketsTakeNoNames(t *testing.T) {
	b := ForTest(t, Config{})
	for _, address := range []string{"localhost:80", "example.com:80", "192.0.2.10", "", "192.0.2.1:80:80"} {
		if conn, err := b.Node.DialContext(t.Context(), "tcp", address); err == nil {
			t.Errorf("connected to %q: %v", address, conn.RemoteAddr())
		}
		if listener, err := b.Node.Listen(t.Context(), "tcp", address); err == nil {
			t.Errorf("listens on %q: %v", address, listener.Addr())
		}
		if conn, err := b.Node.ListenPacket(t.Context(), "udp", address); err == nil {
			t.Errorf("listens on %q: %v", address, conn.LocalAddr())
		}
	}
}

// The same address and port, once per namespace.
func TestListenPacket(t *testing.T) {
	b := ForTest(t, Config{})
	receivers := make(map[*Namespace]net.PacketConn)
	for _, n := range []*Namespace{b.Node, b.Outside} {
		conn, err := n.ListenPacket(t.Context(), "udp", "127.0.0.1:53")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		receivers[n] = conn
	}
	for n, receiver := range receivers {
		sender, err := n.DialContext(t.Context(), "udp", "127.0.0.1:53")
		if err != nil {
			t.Fatal(err)
		}
		defer sender.Close()
		if _, err := sender.Write([]byte(n.Path())); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 256)
		size, _, err := receiver.ReadFrom(data)
		if err != nil || string(data[:size]) != n.Path() {
			t.Errorf("received %q, %v, want %q", data[:size], err, n.Path())
		}
	}
}

func TestProcesses(t *testing.T) {
	b := ForTest(t, Config{})
	p := addPod(t, b, PodConfig{Namespace: "team", Name: "app"})
	want := fmt.Sprintf("net:[%d]", p.id.inode)
	show := []string{"-c", `readlink /proc/self/ns/net; echo "$XTABLES_LOCKFILE"`}

	output, err := p.Command(t.Context(), "sh", show...).Output()
	if err != nil || !strings.HasPrefix(string(output), want) || !strings.Contains(string(output), b.Dir) {
		t.Errorf("Command ran in %q, %v, want %s", output, err, want)
	}
	var started strings.Builder
	cmd := exec.CommandContext(t.Context(), "sh", show...)
	cmd.Stdout = &started
	if err := p.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.HasPrefix(started.String(), want) {
		t.Errorf("Start ran in %q, %v, want %s", &started, err, want)
	}
	if err := p.Command(t.Context(), "no-such-program").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("unknown program: %v, want %v", err, exec.ErrNotFound)
	}
	if err := p.Start(exec.Command("no-such-program")); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("unknown program: %v, want %v", err, exec.ErrNotFound)
	}

	// A pod's processes end with it, those of others do not.
	inPod, inNode := exec.Command("sleep", "3600"), exec.Command("sleep", "3600")
	if err := errors.Join(p.Start(inPod), b.Node.Start(inNode)); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(); err != nil {
		t.Fatal(err)
	}
	if !gone(inPod.Process.Pid) {
		t.Error("a process of the removed pod is there")
	}
	if gone(inNode.Process.Pid) {
		t.Error("a process of the node ended with the pod")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if !gone(inNode.Process.Pid) {
		t.Error("a process of the closed box is there")
	}
	if inPod.Wait() == nil || inNode.Wait() == nil {
		t.Error("processes were not killed")
	}
}
