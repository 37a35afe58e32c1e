package nodebox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command returns a command that runs inside the namespace however it is started: Run, Output and CombinedOutput
// work too. It goes through nsenter(1), which execs, so the process ID is the program's own. What still runs when the
// box closes is killed; only with Start does it also die with the owner.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path, err := exec.LookPath(name)
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.Path(), "--", path}, args...)...)
	cmd.Env = n.environ(nil)
	if err != nil {
		cmd.Err = fmt.Errorf("find program %s: %w", name, err)
	}
	return cmd
}

// Start starts cmd inside the namespace. The caller calls cmd.Wait. The process is killed when the box closes and,
// unless cmd.SysProcAttr asks for another signal, when the owner dies in whatever way.
func (n *Namespace) Start(cmd *exec.Cmd) error {
	cmd.Env = n.environ(cmd.Env)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	err := n.spawner.do(func() error { return n.Do(cmd.Start) })
	return wrapf(err, "start %s in namespace %s", cmd.Path, n.name)
}

// environ returns env, or the process's own when nil, with what programs need to keep to the box.
func (n *Namespace) environ(env []string) []string {
	if env == nil {
		env = os.Environ()
	}
	return append(slices.Clip(env), n.env...)
}

// spawner is the thread that starts a box's processes. The kernel sends a parent-death signal when the *thread* that
// forked ends (PR_SET_PDEATHSIG(2const)), and ordinary threads of a Go program come and go.
type spawner struct {
	requests chan func()
	stopOnce sync.Once
	stop     chan struct{}
	done     chan struct{}
}

func startSpawner() *spawner {
	s := &spawner{requests: make(chan func()), stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // never unlocked: the thread ends here, and takes the processes it started with it
		for {
			select {
			case request := <-s.requests:
				request()
			case <-s.stop:
				return
			}
		}
	}()
	return s
}

func (s *spawner) do(fn func() error) error {
	result := make(chan error, 1)
	select {
	case s.requests <- func() { result <- fn() }:
		return <-result
	case <-s.done:
		return errClosed
	}
}

func (s *spawner) close() {
	s.stopOnce.Do(func() { close(s.stop) })
	<-s.done
}

// killWait bounds the wait for killed processes to be gone.
const killWait = 10 * time.Second

// endProcesses kills every process in the given namespaces, descendants of what the box started included, and
// returns when they are gone.
func endProcesses(ids map[namespaceID]bool) error {
	own, err := identifyNamespace(threadNS)
	if err != nil {
		return err
	}
	if ids[own] {
		return errors.New("end processes: refused in the caller's own namespace; leave the box first")
	}
	deadline := time.Now().Add(killWait)
	for {
		pids, err := processesIn(ids)
		if err != nil || len(pids) == 0 {
			return err
		}
		// Killed ones may have forked since they were listed, so look again until nobody is left.
		for _, pid := range pids {
			if err := endProcess(pid, ids, deadline); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("end processes: %d are still there after %s", len(pids), killWait)
		}
	}
}

// processesIn lists the processes, other than the calling one, whose main thread is in one of the namespaces.
func processesIn(ids map[namespaceID]bool) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(strings.Split(entry, "/")[2])
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that is gone, or about to be, has no namespace.
		if id, err := identifyNamespace(entry); err == nil && ids[id] {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// endProcess kills a process if it is in one of the namespaces. The check comes after the process is held by a file
// descriptor, so that a process ID given out anew hits nobody else.
func endProcess(pid int, ids map[namespaceID]bool, deadline time.Time) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	id, err := identifyNamespace(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil || !ids[id] {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for {
		// Readable once the process has ended, reaped or not (pidfd_open(2)).
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		count, err := unix.Poll(poll, int(max(0, time.Until(deadline)).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("wait for process %d: %w", pid, err)
		case count == 0:
			return fmt.Errorf("wait for process %d: still there after %s", pid, killWait)
		}
		return nil
	}
}
