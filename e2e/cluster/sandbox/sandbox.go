package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lockFile is held while a sandbox runs.
	lockFile = "/run/podrole-e2e.lock"
	// insideVariable tells a process that it is the sandbox.
	insideVariable = "E2E_SANDBOX"
	// endWithin is how long a sandbox that is told to end may take before it is killed.
	endWithin = 30 * time.Second
)

// Inside reports whether the process is the sandbox.
func Inside() bool { return os.Getenv(insideVariable) != "" }

// Hold waits until no other sandbox runs on this machine, saying so to w, and removes what one that was killed left. The
// caller calls it before Run, and release afterwards, which lets the next one in.
func Hold(w io.Writer) (release func() error, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster of namespaces needs root: run as root, for example with sudo make e2e")
	}
	lock, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		fmt.Fprintln(w, "== waiting for another run on this machine to end")
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", lockFile, err), lock.Close())
	}
	if err := removeCgroups(Cgroup); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock.Close, nil
}

// ErrFailed is what Run returns when all went well but for the program in the sandbox, which has said what failed.
var ErrFailed = errors.New("failed in the sandbox")

// Run runs this program again, with these arguments, as the sandbox, and returns when it has ended and all of it is
// removed. At the end of ctx the sandbox gets SIGTERM.
func Run(ctx context.Context, args ...string) error {
	// The kernel sends the signal of the parent's death when the thread that forked ends: keep it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endWithin
	err := cmd.Run()
	if removing := removeCgroups(Cgroup); removing != nil {
		return errors.Join(err, removing)
	}
	if exit, ended := errors.AsType[*exec.ExitError](err); ended && exit.Exited() {
		return ErrFailed
	}
	return err
}

// Settle makes the sandbox's mounts, host name and loopback its own. It is the first thing that a process calls that is
// [Inside], and nothing else may.
func Settle() error {
	if !Inside() || os.Getpid() != 1 {
		return errors.New("settle: not the first process of a sandbox")
	}
	if err := ownMounts(); err != nil {
		return err
	}
	if err := mountTmpfs("/run"); err != nil {
		return err
	}
	// Sockets, keys and temporary files go with the sandbox.
	if err := os.Mkdir(Dir, 0o700); err != nil {
		return fmt.Errorf("create folder: %w", err)
	}
	if err := os.Setenv("TMPDIR", Dir); err != nil {
		return fmt.Errorf("set TMPDIR: %w", err)
	}
	if err := unix.Sethostname([]byte("outside")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return IP("link set lo up")
}

// Dir is a folder, in memory, that ends with the sandbox.
const Dir = "/run/cluster"
