package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/internal/nodebox"
	"github.com/podrole/podrole/internal/testbed"
)

// TestClaimFailsHalfWay: an agent that has added its rules to the other iptables backend, and is gone before its claim is
// whole, leaves nothing that leads pods astray. The owner has never seen it alive.
func TestClaimFailsHalfWay(t *testing.T) {
	for _, pair := range [][2]string{{"nft", "legacy"}, {"legacy", "nft"}} {
		t.Run(pair[0]+"_then_"+pair[1], func(t *testing.T) {
			bed, pods, flags := takeoverStage(t, pair[0])
			startAgent(t, bed, flags...)
			// It cannot take the owner's rules away, which comes after adding its own.
			programs := t.TempDir()
			for _, program := range []string{"iptables", "ip6tables"} {
				file := filepath.Join(programs, program+"-"+pair[0]+"-restore")
				if err := os.WriteFile(file, []byte("#!/bin/sh\nexit 4\n"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			path := os.Getenv("PATH")
			t.Setenv("PATH", programs+":"+path)
			go func() {
				defer close(ended)
				_, _ = bed.StartAgent(ctx, append(flags, "--iptables-backend="+pair[1])...) // never ready
			}()
			defer func() { cancel(); <-ended }()
			saved := func() string {
				out, err := bed.Box.Node.Command(t.Context(), "iptables-"+pair[1]+"-save").CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				return string(out)
			}
			eventually(t, "rules in the other backend", func() string {
				if text := saved(); !strings.Contains(strings.ToLower(text), "podrole") {
					return text
				}
				return ""
			})
			cancel() // kills it
			<-ended
			began := time.Now()
			eventually(t, "its rules are gone", func() string {
				if text := saved(); strings.Contains(strings.ToLower(text), "podrole") {
					return text
				}
				return ""
			})
			for role, pod := range pods {
				if got := get(t, pod, credentials+role); got.status != http.StatusOK {
					t.Errorf("%s: got %s", role, got)
				}
			}
			t.Logf("the other backend is empty %s after the agent's end", time.Since(began).Round(time.Millisecond))
			noLeaks(t, bed)
		})
	}
}

// TestUninstallBesideAStart: an agent that guards the node, and waits for the API server before it leads pods anywhere, is an
// agent: an uninstall leaves it alone.
func TestUninstallBesideAStart(t *testing.T) {
	s := newClusterStage(t, testbed.ClusterConfig{})
	s.addAccount(t, "orders")
	pod := s.addPod(t, "orders-0", "orders")
	s.must(t, s.cluster.Stop())
	stateDir := "--state-dir=" + filepath.Join(s.bed.Box.Dir, "state")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = s.bed.StartAgent(ctx, "--state-dir-on-disk", stateDir) // never ready
	}()
	defer func() { cancel(); <-ended }()
	guarded := func() string {
		out, err := s.bed.Box.Node.Command(t.Context(), "ip", "rule").CombinedOutput()
		s.must(t, err)
		if !strings.Contains(string(out), "prohibit") {
			return string(out)
		}
		return ""
	}
	eventually(t, "guarded, and at its sessions", func() string {
		if _, err := os.Stat(filepath.Join(s.bed.Box.Dir, "state", "owner")); err != nil {
			return err.Error()
		}
		return guarded()
	})
	binary, err := nodebox.BuildAgent(t.Context(), true)
	s.must(t, err)
	uninstall := func() (string, error) {
		out, err := s.bed.Box.Node.Command(t.Context(), binary, "uninstall", stateDir).CombinedOutput()
		return fmt.Sprint(string(out), err), err
	}
	if said, err := uninstall(); err == nil || !strings.Contains(said, "an agent serves this node") {
		t.Errorf("uninstall beside an agent: %s", said)
	}
	if rules := guarded(); rules != "" {
		t.Errorf("after an uninstall that should have been refused:\n%s", rules)
	}
	if got := get(t, pod, credentials); got.err == nil {
		t.Errorf("got %s", got)
	}
	cancel()
	<-ended
	if said, err := uninstall(); err != nil {
		t.Errorf("uninstall after its end: %s", said)
	}
	if guarded() == "" {
		t.Error("the guard is still there after an uninstall")
	}
}
