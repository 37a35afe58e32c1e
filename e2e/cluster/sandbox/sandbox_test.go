package sandbox_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/podrole/podrole/e2e/cluster/sandbox"
)

// The test's program is also what runs in the sandbox, and what waits outside of it.
const (
	partVariable   = "SANDBOX_TEST_PART"   // end or hang: what to do once all is there
	markerVariable = "SANDBOX_TEST_MARKER" // an argument of the process in the machine, by which it is found
)

func TestMain(m *testing.M) {
	sandbox.Main()
	part, marker := os.Getenv(partVariable), os.Getenv(markerVariable)
	var err error
	switch {
	case part == "":
		os.Exit(m.Run())
	case sandbox.Inside():
		err = inside(part, marker)
	default:
		err = outside()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func outside() error {
	release, err := sandbox.Hold(io.Discard)
	if err != nil {
		return err
	}
	defer release()
	return sandbox.Run(context.Background())
}

// inside makes a machine with a process in it, a link to it and control groups, and says so. It is the second machine of
// its name.
func inside(part, marker string) error {
	if err := sandbox.Settle(); err != nil {
		return err
	}
	m, err := newMachine(marker)
	if err != nil {
		return err
	}
	if err := m.Kill(); err != nil {
		return err
	}
	for _, group := range groups("/testing") {
		if _, err := os.Stat(group); !os.IsNotExist(err) {
			return fmt.Errorf("after Kill: %s: %w", group, err)
		}
	}
	if m, err = newMachine(marker); err != nil {
		return err
	}
	if err := sandbox.IP(fmt.Sprintf("link add sandbox-test type veth peer name eth0 netns %d", m.PID())); err != nil {
		return err
	}
	host, err := m.Command(context.Background(), "hostname").Output()
	if err != nil || strings.TrimSpace(string(host)) != "testing" {
		return fmt.Errorf("host name %q: %w", host, err)
	}
	fmt.Println("ready")
	if part == "hang" {
		select {}
	}
	return nil
}

// newMachine makes a machine with a process, which it puts, as a container runtime does, into a control group that it
// makes in every hierarchy that it sees.
func newMachine(marker string) (*sandbox.Machine, error) {
	m, err := sandbox.NewMachine("testing")
	if err != nil {
		return nil, err
	}
	pid, err := m.Start(os.DevNull, "bash", "-c", "sleep infinity; true", marker)
	if err != nil {
		return nil, err
	}
	script := `for group in "$@"; do mkdir $group && echo $PID > $group/cgroup.procs || exit; done`
	cmd := m.Command(context.Background(), append([]string{"bash", "-c", script, "bash"}, hierarchies("/"+marker)...)...)
	cmd.Env = append(os.Environ(), fmt.Sprintf("PID=%d", pid))
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make control groups: %w: %s", err, out)
	}
	return m, nil
}

// TestNothingStays: neither at the end nor after a SIGKILL.
func TestNothingStays(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root: run the tests as root, for example with sudo make test")
	}
	for _, part := range []string{"end", "hang"} {
		t.Run(part, func(t *testing.T) {
			marker := "sandbox-test-" + rand.Text()
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), partVariable+"="+part, markerVariable+"="+marker)
			cmd.Stderr = t.Output()
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
				t.Fatalf("the sandbox says %q: %v, %v", line, err, cmd.Wait())
			}
			if part == "hang" {
				if n := running(t, marker); n == 0 {
					t.Fatal("the process in the machine is not found, so that its end could not be either")
				}
				for _, group := range groups("/testing/" + marker) {
					if text, err := os.ReadFile(group + "/cgroup.procs"); len(text) == 0 {
						t.Errorf("the process is not in %s, where it belongs: %v", group, err)
					}
				}
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Wait(); (err == nil) != (part == "end") {
				t.Errorf("ended with %v", err)
			}
			waitGone(t, marker)
			// What a killed one leaves, the next one removes.
			release, err := sandbox.Hold(t.Output())
			if err != nil {
				t.Fatal(err)
			}
			defer release()
			for _, group := range append(groups(""), hierarchies("/"+marker)...) {
				if err := os.Remove(group); !os.IsNotExist(err) {
					t.Errorf("%s was left, and is removed only now: %v", group, err)
				}
			}
			if _, err := os.Stat("/sys/class/net/sandbox-test"); !os.IsNotExist(err) {
				t.Errorf("the link is the machine's: %v", err)
			}
		})
	}
}

// groups are the folders of a control group that is below a sandbox's.
func groups(below string) []string { return hierarchies(sandbox.Cgroup + below) }

// hierarchies are the folders of a control group, one in each hierarchy.
func hierarchies(group string) []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil { // version 2
		return []string{"/sys/fs/cgroup" + group}
	}
	controllers, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs") // version 1
	var all []string
	for _, file := range controllers {
		all = append(all, filepath.Dir(file)+group)
	}
	return all
}

// running counts the processes that have marker among their arguments.
func running(t *testing.T, marker string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte(marker)) {
			n++
		}
	}
	return n
}

func waitGone(t *testing.T, marker string) {
	t.Helper()
	deadline, again := time.NewTimer(10*time.Second), time.NewTicker(20*time.Millisecond)
	defer deadline.Stop()
	defer again.Stop()
	for running(t, marker) > 0 {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("%d processes are still there", running(t, marker))
		}
	}
}
