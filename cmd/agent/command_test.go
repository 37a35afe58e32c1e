package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/podrole/podrole/pkg/config"
)

// outcome is what one command line did.
type outcome struct {
	code           int
	stdout, stderr string
	ran, removed   *config.Config
	guarded        *config.Config
}

// execute runs one command line with actions that end with err.
func execute(t *testing.T, err error, environ []string, args ...string) outcome {
	t.Helper()
	var o outcome
	var stdout, stderr strings.Builder
	p := program{
		run: func(_ context.Context, c config.Config, l *slog.Logger) error {
			o.ran = &c
			l.Info("running")
			l.Debug("in detail")
			return err
		},
		uninstall: func(_ context.Context, c config.Config, _ *slog.Logger) error {
			o.removed = &c
			return err
		},
		guard: func(_ context.Context, c config.Config, _ *slog.Logger) error {
			o.guarded = &c
			return err
		},
		version:  "v1.2.3",
		environ:  environ,
		hostname: func() (string, error) { return "", errors.New("no name") },
		stdout:   &stdout,
		stderr:   &stderr,
	}
	o.code = p.execute(t.Context(), args)
	o.stdout, o.stderr = stdout.String(), stderr.String()
	return o
}

func TestRun(t *testing.T) {
	o := execute(t, nil, []string{"PODROLE_NODE_NAME=n"}, "run", "--sts-rate=3")
	if o.code != 0 || o.ran == nil || o.removed != nil || o.ran.STS.Rate != 3 || o.ran.Cluster.NodeName != "n" {
		t.Errorf("%+v", o)
	}
	if records := logged(t, o); len(records) != 2 || records[1].Msg != "running" {
		t.Errorf("log: %s", o.stderr)
	}
	o = execute(t, nil, nil, "run", "--node-name=n", "--log-format=text", "--log-level=debug")
	if !strings.Contains(o.stderr, "level=DEBUG msg=\"in detail\"") {
		t.Errorf("log: %s", o.stderr)
	}
}

// record is a line of the log.
type record struct{ Level, Msg, Error, Command, Version string }

// logged returns the lines of the log, each of which is one JSON object.
func logged(t *testing.T, o outcome) (all []record) {
	t.Helper()
	for line := range strings.Lines(o.stderr) {
		var r record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("line of the log is not JSON: %v\n%s", err, line)
		}
		all = append(all, r)
	}
	return all
}

// TestSaysVersionFirst: whoever reads a log knows what wrote it.
func TestSaysVersionFirst(t *testing.T) {
	for _, args := range [][]string{{"run", "--node-name=n"}, {"guard"}, {"uninstall"}} {
		want := record{Level: "INFO", Msg: "podrole starts", Command: args[0], Version: "v1.2.3"}
		if records := logged(t, execute(t, nil, nil, args...)); len(records) == 0 || records[0] != want {
			t.Errorf("%q: log begins with %+v", args, records)
		}
	}
}

func TestVersionOf(t *testing.T) {
	if got := versionOf("v1.2.3"); got != "v1.2.3" {
		t.Errorf("told v1.2.3: got %s", got)
	}
	if got := versionOf(""); got == "" {
		t.Error("told nothing: got nothing")
	}
}

func TestUninstall(t *testing.T) {
	o := execute(t, nil, nil, "uninstall", "--ipv6=off")
	if o.code != 0 || o.ran != nil || o.removed == nil || o.removed.Redirect.IPv6 != config.ModeOff {
		t.Errorf("%+v", o)
	}
}

func TestGuard(t *testing.T) {
	o := execute(t, nil, nil, "guard", "--guard-except-dns")
	if o.code != 0 || o.ran != nil || o.removed != nil || o.guarded == nil || !o.guarded.Redirect.GuardExceptDNS {
		t.Errorf("%+v", o)
	}
}

func TestFailure(t *testing.T) {
	o := execute(t, errors.New("bind: address in use"), nil, "run", "--node-name=n", "--log-level=error")
	want := record{Level: "ERROR", Msg: "podrole failed", Error: "bind: address in use", Command: "run"}
	if records := logged(t, o); o.code != 1 || len(records) != 1 || records[0] != want {
		t.Errorf("code %d, %+v", o.code, records)
	}
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"run --node-name=n --sts-rate=fast": `podrole run: --sts-rate "fast": not a number; give calls per second, for example 10`,
		"run --node-name=n --sts-rat=fast":  "podrole run: --sts-rat: no such flag; did you mean --sts-rate?",
		"run --node-name=n true":            `podrole run: argument "true": not a flag; flags are written --NAME=VALUE`,
		"run":                               "podrole run: --node-name: missing; give the node's name, in a DaemonSet from the field spec.nodeName of the agent's pod",
		"guard --drain=1s":                  "podrole guard: --drain: no flag of this command; --help lists all flags",
		"uninstall --node-name=n":           "podrole uninstall: --node-name: no flag of this command; --help lists all flags",
		"uninstal":                          `podrole: command "uninstal": no such command; did you mean uninstall?`,
		"frobnicate":                        `podrole: command "frobnicate": no such command; podrole help lists all`,
		"--frobnicate":                      "podrole: unknown flag: --frobnicate",
		"version 2":                         `podrole version: argument "2": not a flag; flags are written --NAME=VALUE`,
	} {
		o := execute(t, nil, nil, strings.Split(args, " ")...)
		if o.code != 2 || o.stderr != want+"\n" || o.stdout != "" || o.ran != nil || o.removed != nil {
			t.Errorf("podrole %s: code %d, %q", args, o.code, o.stderr)
		}
	}
	o := execute(t, nil, []string{"PODROLE_DRAIN=soon"}, "run", "--sts-rate=fast")
	if n := strings.Count(o.stderr, "\n"); o.code != 2 || n != 3 || strings.Count(o.stderr, "podrole run: ") != n {
		t.Errorf("three faults: code %d\n%s", o.code, o.stderr)
	}
}

func TestHelpAndVersion(t *testing.T) {
	for args, want := range map[string][]string{
		"":                 {"podrole gives every pod", "  run ", "  guard ", "  uninstall ", "  version ", "podrole run --node-name"},
		"help":             {"podrole gives every pod"},
		"--help":           {"podrole gives every pod"},
		"run --help":       {"podrole run [flags]", "Cluster:\n", "--sts-rate CALLS/S", "PODROLE_STS_ENDPOINT"},
		"help run":         {"podrole run [flags]"},
		"uninstall --help": {"podrole uninstall [flags]", "--iptables-backend"},
		"guard --help":     {"podrole guard [flags]", "--guard-except-dns"},
		"version":          {"podrole v1.2.3 go1."},
		"--version":        {"podrole version v1.2.3"},
	} {
		o := execute(t, nil, nil, strings.Fields(args)...)
		if o.code != 0 || o.stderr != "" || o.ran != nil || o.removed != nil {
			t.Errorf("podrole %s: %+v", args, o)
		}
		for _, part := range want {
			if !strings.Contains(o.stdout, part) {
				t.Errorf("podrole %s does not say %q:\n%s", args, part, o.stdout)
			}
		}
	}
}
