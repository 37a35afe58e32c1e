package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// nameless is the file name of a pipe that is about to become a claim. Who makes one has the lock.
	nameless = "nameless"
	// lockRetry is the pause between two attempts to get the lock. A change takes 5 to 150 ms.
	lockRetry = time.Millisecond
)

// folder is the shared folder, opened for one operation: by the next, another one may be in its place.
type folder struct {
	root *os.Root
	self *os.File // the folder itself, which is what is locked
}

// openFolder opens the folder, and makes it if it is not there. Its parent must be.
func openFolder(path string) (*folder, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	self, err := root.Open(".")
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	f := &folder{root, self}
	if err := f.secure(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

// secure makes sure that nobody else can make a claim, or hold the lock.
func (f *folder) secure() error {
	info, err := f.self.Stat()
	if err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user: give the agents a folder of their own", f.root.Name())
	}
	if info.Mode().Perm() != 0o700 {
		return f.self.Chmod(0o700)
	}
	return nil
}

func (f *folder) close() {
	_ = f.self.Close()
	_ = f.root.Close()
}

// is reports whether path leads to this folder.
func (f *folder) is(path string) bool {
	there, err := os.Stat(path)
	if err != nil {
		return false
	}
	here, err := f.self.Stat()
	return err == nil && os.SameFile(here, there)
}

// lock waits for the lock until ctx ends, and for patience at most. The claim is that of who waits, or zero.
func (f *folder) lock(ctx context.Context, patience time.Duration, mine claim) error {
	deadline := time.Now().Add(patience)
	for {
		locked, err := f.tryLock()
		if err != nil {
			return err
		}
		if locked {
			break
		}
		if !time.Now().Before(deadline) {
			return f.lockedOut(patience, mine)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lockRetry):
		}
	}
	// A program that the change starts, such as iptables-restore, may outlive an agent that is killed. So that nobody else
	// changes the rules before it is done, it inherits the lock.
	if _, err := unix.FcntlInt(f.self.Fd(), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("share lock: %w", err)
	}
	return nil
}

// tryLock takes the lock if it is free. It is gone with the last process that has it, if not by unlock.
func (f *folder) tryLock() (bool, error) {
	switch err := unix.Flock(int(f.self.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
		return true, nil
	case unix.EWOULDBLOCK:
		return false, nil
	default:
		return false, fmt.Errorf("lock %s: %w: put it on a file system with locks, such as a tmpfs", f.root.Name(), err)
	}
}

// lockedOut is the error of a lock that was not to be had. It is the newest agent that changes the rules; if that is who
// waits, it is one that it would not know.
func (f *folder) lockedOut(waited time.Duration, mine claim) error {
	who := "an agent"
	if l, err := f.newestAbove(claim{}); err == nil && l != nil {
		if l.claim != mine {
			who = fmt.Sprintf("an agent, likely the one of generation %d", l.generation)
		}
		l.close()
	}
	return fmt.Errorf("the redirect has been locked for %s by %s, which is stuck in a change or was stopped there: "+
		"find the process with `fuser -v %s` on the node, and let it continue or kill it", waited, who, f.root.Name())
}

// unlock releases the lock, whoever has inherited it, and closes f.
func (f *folder) unlock() {
	_ = unix.Flock(int(f.self.Fd()), unix.LOCK_UN)
	f.close()
}

// claims returns all claims, the newest first, whether or not anybody holds them, and the files that are none.
func (f *folder) claims() (claims []claim, foreign []string, err error) {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return nil, nil, fmt.Errorf("list claims: %w", err)
	}
	for _, e := range entries {
		if c, ok := parseClaim(e.Name()); ok && e.Type() == fs.ModeNamedPipe {
			claims = append(claims, c)
		} else if e.Name() != nameless && !isPresence(e) {
			foreign = append(foreign, e.Name())
		}
	}
	slices.SortFunc(claims, func(a, b claim) int { return b.compare(a) })
	return claims, foreign, nil
}

// newest returns the newest claim, held or not, or the zero claim if there is none.
func (f *folder) newest() (claim, error) {
	claims, _, err := f.claims()
	if err != nil || len(claims) == 0 {
		return claim{}, err
	}
	return claims[0], nil
}

// newestAbove returns the newest living claim above c, or nil if there is none. The caller must close it.
func (f *folder) newestAbove(c claim) (*living, error) {
	claims, _, err := f.claims()
	if err != nil {
		return nil, err
	}
	for _, other := range claims {
		if other.compare(c) <= 0 {
			break
		}
		if l, err := f.look(other); l != nil || err != nil {
			return l, err
		}
	}
	return nil, nil
}

// look returns a claim if it is alive, or nil if nobody holds it any more. The caller must close it.
func (f *folder) look(c claim) (*living, error) {
	reader, err := f.reader(c.String())
	if reader == nil || err != nil {
		return nil, err
	}
	return &living{c, reader}, nil
}

// reader opens a pipe for reading if somebody holds it, and returns nil if nobody does.
func (f *folder) reader(name string) (*os.File, error) {
	reader, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pipe: %w", err)
	}
	alive, err := held(reader)
	if err == nil && alive {
		return reader, nil
	}
	if err != nil {
		err = fmt.Errorf("read %s: %w", name, err)
	}
	return nil, errors.Join(err, reader.Close())
}

// hold makes a claim, and returns the pipe that is to be held. It is before the claim gets its name. Caller has the
// lock.
func (f *folder) hold(c claim) (pipe *os.File, err error) {
	_ = f.root.RemoveAll(nameless) // its maker was killed
	if err := unix.Mkfifoat(int(f.self.Fd()), nameless, 0o600); err != nil {
		return nil, fmt.Errorf("make pipe in %s: %w: "+
			"put it on a file system with named pipes and room for them, such as a tmpfs", f.root.Name(), err)
	}
	// fifo(7): Linux opens a pipe for reading and writing without anybody at its other end.
	pipe, err = f.root.OpenFile(nameless, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("hold pipe: %w", err)
	}
	if err := f.root.Rename(nameless, c.String()); err != nil {
		return nil, errors.Join(fmt.Errorf("name claim: %w", err), pipe.Close())
	}
	return pipe, nil
}

// bury removes the claims that nobody holds. One that cannot be removed does no harm.
func (f *folder) bury(claims []claim) {
	for _, c := range claims {
		if l, err := f.look(c); l != nil {
			l.close()
		} else if err == nil {
			_ = f.root.Remove(c.String())
		}
	}
}
