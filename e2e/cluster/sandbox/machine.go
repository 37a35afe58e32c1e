package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// machineVariable tells a process that it is the first of a machine, and holds the machine's host name.
	machineVariable = "E2E_MACHINE"
	// enteredVariable tells it that it is in the machine's control groups.
	enteredVariable = "E2E_MACHINE_ENTERED"
)

// Machine is a host in the sandbox. Its methods may be called concurrently.
type Machine struct {
	// Name is the host name.
	Name string

	first *exec.Cmd
	ended chan struct{}
	left  error // why something of it stays; read after ended is closed

	mu      sync.Mutex // guards the conversation with the first process
	orders  io.WriteCloser
	answers *bufio.Scanner
}

// order is what the first process of a machine is told, one JSON object a line.
type order struct {
	Start []string `json:",omitempty"` // program and arguments
	Log   string   `json:",omitempty"` // file for its output
	Stop  int      `json:",omitempty"` // process ID, as the machine sees it
}

// answer is what it says when it has done so.
type answer struct {
	PID   int
	Error string
}

// NewMachine starts a machine without anything in it. The caller must be [Inside], and no machine of this name may run.
// The machine lasts until Kill, or until the sandbox ends.
func NewMachine(name string) (*Machine, error) {
	m := &Machine{Name: name, ended: make(chan struct{})}
	m.first = exec.Command("/proc/self/exe")
	m.first.Args[0] = name
	m.first.Env = append(os.Environ(), machineVariable+"="+name)
	m.first.Stderr = os.Stderr
	m.first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	var out io.ReadCloser
	err := errors.Join(
		assign(&m.orders, m.first.StdinPipe),
		assign(&out, m.first.StdoutPipe),
	)
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", name, err)
	}
	// No signal at the parent's death is needed: the parent is the first process of the sandbox's process namespace.
	if err := m.first.Start(); err != nil {
		return nil, fmt.Errorf("start machine %s: %w", name, err)
	}
	go func() {
		defer close(m.ended)
		_, _ = m.first.Process.Wait() // it is killed, and says nothing with that
		m.left = removeCgroups(filepath.Join(Cgroup, name))
	}()
	m.answers = bufio.NewScanner(out)
	if _, err := m.answer(); err != nil { // the first line says that it is settled
		return nil, errors.Join(fmt.Errorf("start machine %s: %w", name, err), m.Kill())
	}
	return m, nil
}

func assign[T any](to *T, from func() (T, error)) (err error) {
	*to, err = from()
	return err
}

// PID returns the process ID of the machine's first process, for nsenter(1) and the machine's files.
func (m *Machine) PID() int { return m.first.Process.Pid }

// File returns the path, as the sandbox sees it, of a file of the machine.
func (m *Machine) File(path string) string {
	return filepath.Join("/proc", strconv.Itoa(m.PID()), "root", path)
}

// Start starts a program in the machine, with its output appended to the file log, and returns its process ID as the
// machine sees it.
func (m *Machine) Start(log string, args ...string) (pid int, err error) {
	pid, err = m.tell(order{Start: args, Log: log})
	if err != nil {
		return 0, fmt.Errorf("start %s on %s: %w", args[0], m.Name, err)
	}
	return pid, nil
}

// Stop kills a program that Start started, and returns when it is gone.
func (m *Machine) Stop(pid int) error {
	if _, err := m.tell(order{Stop: pid}); err != nil {
		return fmt.Errorf("stop process %d on %s: %w", pid, m.Name, err)
	}
	return nil
}

// Command returns a command that runs in all namespaces of the machine.
func (m *Machine) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{
		"--target=" + strconv.Itoa(m.PID()), "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--",
	}, args...)...)
}

// IP configures the machine's network, like [IP].
func (m *Machine) IP(lines ...string) error {
	return ip(exec.Command("nsenter", "--target="+strconv.Itoa(m.PID()), "--net", "--", "ip", "-batch", "-"), lines)
}

// Kill ends the machine as pulling its plug would: all its processes are gone, its network, its disk and its control
// groups too. Calling it again does nothing.
func (m *Machine) Kill() error {
	if err := m.first.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill machine %s: %w", m.Name, err)
	}
	<-m.ended
	return m.left
}

func (m *Machine) tell(o order) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	text, err := json.Marshal(o)
	if err != nil {
		return 0, err
	}
	if _, err := m.orders.Write(append(text, '\n')); err != nil {
		return 0, err
	}
	return m.answer()
}

func (m *Machine) answer() (int, error) {
	if !m.answers.Scan() {
		return 0, errors.Join(errors.New("the machine has ended"), m.answers.Err())
	}
	var a answer
	if err := json.Unmarshal(m.answers.Bytes(), &a); err != nil {
		return 0, err
	}
	if a.Error != "" {
		return 0, errors.New(a.Error)
	}
	return a.PID, nil
}

// Main turns the process into a machine's first one if NewMachine made it, and returns only if not. A program that uses
// this package calls it first thing in main.
func Main() {
	name := os.Getenv(machineVariable)
	if name == "" || os.Getpid() != 1 {
		return
	}
	runtime.LockOSThread()
	part := first
	if os.Getenv(enteredVariable) == "" {
		part = enter
	}
	if err := part(name); err != nil {
		fmt.Fprintf(os.Stderr, "machine %s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// enter puts the process into the machine's control groups and begins again. It does not return unless it fails.
func enter(name string) error {
	if err := enterCgroups(name); err != nil {
		return err
	}
	// The namespace is this thread's until now.
	err := unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), enteredVariable+"=1"))
	return fmt.Errorf("begin again: %w", err)
}

// first settles the machine and obeys orders until there are no more.
func first(name string) error {
	if err := machineMounts(name); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	for _, variable := range []string{machineVariable, enteredVariable, insideVariable, "TMPDIR"} {
		if err := os.Unsetenv(variable); err != nil {
			return fmt.Errorf("clean environment: %w", err)
		}
	}
	if err := IP("link set lo up"); err != nil {
		return err
	}
	// Nothing but the reaper may wait for children from here on.
	r := newReaper()
	go r.run()
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(answer{}); err != nil {
		return err
	}
	orders := bufio.NewScanner(os.Stdin)
	for orders.Scan() {
		var o order
		err := json.Unmarshal(orders.Bytes(), &o)
		var a answer
		switch {
		case err != nil:
		case o.Stop != 0:
			err = r.stop(o.Stop)
		default:
			a.PID, err = r.start(o.Start, o.Log)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
	return orders.Err()
}
