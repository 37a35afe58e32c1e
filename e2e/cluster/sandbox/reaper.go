package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper is what the first process of a machine does for the others: those that lost their parent become its children,
// and stay in the process table until somebody waits for them.
type reaper struct {
	mu      sync.Mutex            // guards started
	started map[int]chan struct{} // by process ID, of what runs; closed when it is gone
}

func newReaper() *reaper { return &reaper{started: make(map[int]chan struct{})} }

// run waits for children for ever.
func (r *reaper) run() {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGCHLD)
	for range changed {
		for {
			var status unix.WaitStatus
			// Locked, so that a program that ends at once is known by then.
			r.mu.Lock()
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if gone := r.started[pid]; err == nil && gone != nil {
				close(gone)
				delete(r.started, pid)
			}
			r.mu.Unlock()
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
}

func (r *reaper) start(args []string, log string) (int, error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return 0, err
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	none, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer none.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	// ForkExec, for os.Process and exec.Cmd want to wait themselves.
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{none.Fd(), out.Fd(), out.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, err
	}
	r.started[pid] = make(chan struct{})
	return pid, nil
}

func (r *reaper) stop(pid int) error {
	r.mu.Lock()
	gone := r.started[pid]
	if gone == nil {
		r.mu.Unlock()
		return fmt.Errorf("no process %d was started, or it has ended by itself", pid)
	}
	err := unix.Kill(pid, unix.SIGKILL) // the ID cannot be another's: nobody but run waits for it, and that has not yet
	r.mu.Unlock()
	if err != nil {
		return err
	}
	<-gone
	return nil
}
