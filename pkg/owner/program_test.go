package owner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// programEnv makes a process an agent that claims the Redirect in the folder it names, with a change that runs a
// program; and "program" makes it that program, which runs until its input ends.
const programEnv = "OWNER_TEST_PROGRAM"

func runProgram() {
	dir := os.Getenv(programEnv)
	if dir == "program" {
		fmt.Println("program runs")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	c, err := Open(Config{Dir: dir})
	if err == nil {
		err = c.Claim(context.Background(), func(ctx context.Context) error {
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), programEnv+"=program")
			cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
			return cmd.Run()
		})
	}
	fmt.Println("agent ends", err)
	os.Exit(1)
}

// TestProgramOutlivesAgent: iptables-restore goes on after the agent that started it was killed. Until it is done,
// nobody else changes the rules; then the agent before does, which was told at once that it owns again.
func TestProgramOutlivesAgent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	before := open(t, dir)
	before.patience = 20 * time.Millisecond
	mustClaim(t, before)

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), programEnv+"="+dir, "GORACE=atexit_sleep_ms=0")
	// Pipes of our own: those of exec.Cmd end with the agent.
	theirIn, in, err := os.Pipe()
	check(t, err)
	out, theirOut, err := os.Pipe()
	check(t, err)
	defer func() { _, _ = in.Close(), out.Close() }()
	cmd.Stdin, cmd.Stdout = theirIn, theirOut
	check(t, cmd.Start())
	check(t, errors.Join(theirIn.Close(), theirOut.Close()))
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); line != "program runs\n" {
		t.Fatalf("%q, %v", line, err)
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()

	check(t, before.Wait(t.Context()))
	if _, err := before.Do(t.Context(), forbidden(t)); err == nil || !strings.Contains(err.Error(), "locked") {
		t.Errorf("changed the rules while a program did: %v", err)
	}
	check(t, in.Close())
	_, err = io.Copy(io.Discard, said) // the program has ended
	check(t, err)
	before.patience = patience
	mustOwn(t, before)
}

// TestProgramLeftBehind: a program that goes on after its change, as none should, does not keep the lock.
func TestProgramLeftBehind(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "claims")
	c := open(t, dir)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), programEnv+"=program", "GORACE=atexit_sleep_ms=0")
	in, err := cmd.StdinPipe()
	check(t, err)
	check(t, c.Claim(t.Context(), func(context.Context) error { return cmd.Start() }))
	c.patience = 20 * time.Millisecond
	mustOwn(t, c)
	check(t, in.Close())
	check(t, cmd.Wait())
}
