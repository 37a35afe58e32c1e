package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"time"
)

// Runner runs one program to its end, with stdin as its input, and returns what it printed. Failures are returned as
// [*CommandError]. It must be safe for concurrent use.
type Runner interface {
	Run(ctx context.Context, stdin string, name string, args ...string) (stdout []byte, err error)
}

// Exec runs the programs of the system, found in PATH, in the network namespace of the calling thread.
type Exec struct{}

var _ Runner = Exec{}

// killDelay is how long a program whose context has ended may hold its pipes open before they are closed.
const killDelay = time.Second

// runTimeout bounds one program. With tens of thousands of rules they take seconds, and wait for a lock for lockWait.
const runTimeout = 30 * time.Second

// Run implements [Runner]. A program that takes longer than half a minute is killed.
func (Exec) Run(ctx context.Context, stdin string, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = killDelay
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, &CommandError{
			Command: strings.Join(append([]string{name}, args...), " "),
			Stderr:  strings.TrimSpace(stderr.String()),
			Err:     err,
		}
	}
	return stdout.Bytes(), nil
}

// CommandError is a program that failed: which, what it said, and what to do about it.
type CommandError struct {
	Command string // with its arguments
	Stderr  string
	Err     error // [exec.ErrNotFound], an *exec.ExitError, or why it did not start
}

// Error implements error.
func (e *CommandError) Error() string {
	said := ""
	if e.Stderr != "" {
		said = fmt.Sprintf(" (%s)", strings.Join(strings.Fields(e.Stderr), " "))
	}
	return fmt.Sprintf("run %s: %v%s: %s", e.Command, e.Err, said, e.Remedy())
}

// Unwrap returns the cause.
func (e *CommandError) Unwrap() error { return e.Err }

// Remedy says what the operator can do. The texts it looks for are those of iptables 1.8.
func (e *CommandError) Remedy() string {
	says := func(text string) bool { return strings.Contains(e.Stderr, text) }
	switch {
	case errors.Is(e.Err, exec.ErrNotFound), errors.Is(e.Err, fs.ErrNotExist):
		return "install iptables with both its nft and legacy programs where the agent runs"
	case says("you must be root"), says("Operation not permitted"), says("Permission denied"):
		return "run the agent with CAP_NET_ADMIN and CAP_NET_RAW in the host's network namespace"
	case says("xtables lock"):
		return "another program holds /run/xtables.lock: the next attempt may succeed, else see who holds it"
	case says("do you need to insmod"), says("Table does not exist"), says("Extension "), says("Couldn't load"):
		return "load the kernel modules for nat, conntrack and REJECT on the node, or choose the other iptables backend"
	default:
		return "run the command on the node to see it fail, and check what else writes its rules"
	}
}
