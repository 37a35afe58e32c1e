package iptables

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	address := netip.MustParseAddr
	for name, targets := range map[string][]Target{
		"none":        nil,
		"no-metadata": {{Agent: target4.Agent}},
		"no-agent":    {{Metadata: target4.Metadata}},
		"no-port":     {{target4.Metadata, netip.AddrPortFrom(target4.Agent.Addr(), 0)}},
		"mixed":       {{target4.Metadata, target6.Agent}},
		"itself":      {{target4.Metadata, netip.AddrPortFrom(target4.Metadata, 80)}},
		"mapped":      {{address("::ffff:169.254.169.254"), target6.Agent}},
		"zone":        {{target6.Metadata, netip.AddrPortFrom(address("fe80::1%eth0"), 80)}},
		"two-ports":   {target4, {address("169.254.170.23"), netip.AddrPortFrom(target4.Agent.Addr(), 1)}},
		"two-agents":  {target4, {address("169.254.170.23"), netip.MustParseAddrPort("169.254.77.2:41001")}},
		"twice":       {target4, target6, target4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := (Rules{Targets: targets}).Validate(); err == nil {
				t.Errorf("Validate(%v) = nil", targets)
			}
			if _, err := newRedirect(t, newFakeKernel(), NFT).Ensure(t.Context(), Rules{Targets: targets}); err == nil {
				t.Error("Ensure took it")
			}
		})
	}
	for _, good := range []Rules{bothIPs, containerCredentials} {
		if err := good.Validate(); err != nil {
			t.Errorf("Validate of good rules = %v", err)
		}
	}
	if _, err := NewRedirect(Config{Backend: Auto}); err == nil {
		t.Error("NewRedirect took the backend auto")
	}
}

func TestCheckNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	k := newFakeKernel()
	redirect := newRedirect(t, k, NFT)
	if _, err := redirect.Ensure(t.Context(), bothIPs); err != nil {
		t.Fatal(err)
	}
	if err := k.restore("ip6tables-nft", "*nat\n-F PREROUTING\nCOMMIT\n"); err != nil {
		t.Fatal(err)
	}
	before := k.save("ip6tables-nft")
	got, err := redirect.Check(t.Context(), bothIPs)
	want := "IPv6 nat: the jump from PREROUTING to PODROLE-PREROUTING is missing"
	if err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("Check = %q, %v, want %q", got, err, want)
	}
	if k.save("ip6tables-nft") != before {
		t.Error("Check changed something")
	}
}

// A rule that is there when the table is read and gone when it is written fails the transaction; the next try sees it.
func TestEnsureStartsOverWhenTheTableChangedMeanwhile(t *testing.T) {
	t.Parallel()
	k := newFakeKernel()
	redirect := newRedirect(t, k, NFT)
	if err := k.restore("iptables-nft", "*nat\n:PODROLE-OLD - [0:0]\n-A OUTPUT -j PODROLE-OLD\nCOMMIT\n"); err != nil {
		t.Fatal(err)
	}
	k.beforeRestore = func() {
		if err := k.restore("iptables-nft", "*nat\n-F OUTPUT\nCOMMIT\n"); err != nil {
			t.Error(err)
		}
	}
	if changed, err := redirect.Ensure(t.Context(), onlyIPv4); err != nil || !changed {
		t.Errorf("Ensure = %t, %v", changed, err)
	}
}

// forgetful is a kernel that takes everything and keeps nothing, as if another program undid it at once.
type forgetful struct{ restores int }

func (f *forgetful) Run(_ context.Context, _, name string, _ ...string) ([]byte, error) {
	if strings.HasSuffix(name, "-restore") {
		f.restores++
	}
	return nil, nil
}

func TestEnsureGivesUpWhenRulesDoNotStay(t *testing.T) {
	t.Parallel()
	f := &forgetful{}
	_, err := newRedirect(t, f, NFT).Ensure(t.Context(), onlyIPv4)
	if err == nil || !strings.Contains(err.Error(), "PODROLE-PREROUTING is missing") {
		t.Errorf("Ensure = %v, want what does not stay", err)
	}
	if f.restores != attempts {
		t.Errorf("wrote %d times, want %d", f.restores, attempts)
	}
}

func TestEnsureRefusesTablesThatOnlyNFTUnderstands(t *testing.T) {
	t.Parallel()
	runner := textRunner{"iptables-nft-save": "# Table `nat' is incompatible, use 'nft' tool.\n"}
	_, err := newRedirect(t, runner, NFT).Ensure(t.Context(), onlyIPv4)
	if err == nil || !strings.Contains(err.Error(), "nft list table") {
		t.Errorf("Ensure = %v, want a remedy", err)
	}
}

// One family that fails must not leave the other without its rules.
func TestFamiliesAreIndependent(t *testing.T) {
	t.Parallel()
	k := newFakeKernel()
	k.fails["iptables-nft-save"] = exec.ErrNotFound
	redirect := newRedirect(t, k, NFT)
	changed, err := redirect.Ensure(t.Context(), bothIPs)
	if commandErr, ok := errors.AsType[*CommandError](err); !ok || commandErr.Command != "iptables-nft-save" || !changed {
		t.Errorf("Ensure = %t, %v, want the failed command and IPv6 changed", changed, err)
	}
	if !strings.Contains(k.save("ip6tables-nft"), "PODROLE-PREROUTING") {
		t.Error("IPv6 has no rules")
	}
}

func TestCommandErrorSaysWhatToDo(t *testing.T) {
	t.Parallel()
	_, err := Exec{}.Run(t.Context(), "", "podrole-no-such-program", "--flag")
	commandErr, ok := errors.AsType[*CommandError](err)
	if !ok || commandErr.Command != "podrole-no-such-program --flag" || !errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("Run = %v", err)
	}
	for _, c := range []struct {
		err    CommandError
		remedy string
	}{
		{*commandErr, "install iptables"},
		{CommandError{Err: errors.New("x"), Stderr: "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: " +
			"Permission denied (you must be root)"}, "CAP_NET_ADMIN"},
		{CommandError{Err: errors.New("x"), Stderr: "Another app is currently holding the xtables lock."}, "/run/xtables.lock"},
		{CommandError{Err: errors.New("x"), Stderr: "can't initialize iptables table `nat': Table does not exist " +
			"(do you need to insmod?)"}, "kernel modules"},
		{CommandError{Err: errors.New("x"), Stderr: "line 3 failed"}, "run the command"},
	} {
		if got := c.err.Error(); !strings.Contains(got, c.remedy) {
			t.Errorf("Error() = %q, want %q", got, c.remedy)
		}
	}
	out, err := Exec{}.Run(t.Context(), "in\n", "cat")
	if string(out) != "in\n" || err != nil {
		t.Errorf("cat = %q, %v", out, err)
	}
	_, err = Exec{}.Run(t.Context(), "", "ls", "/podrole/does/not/exist")
	if commandErr, ok := errors.AsType[*CommandError](err); !ok || !strings.Contains(commandErr.Stderr, "does/not/exist") {
		t.Errorf("ls = %v, want its stderr", err)
	}
}
