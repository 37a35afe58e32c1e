package state

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Limits on the number of files of a kind. A node runs a few hundred pods at most; what does not fit pushes out what is
// of least use.
const (
	maxSessions  = 4096
	maxTokens    = 4096
	maxDecisions = 4096
)

// ErrNotMemory is the error of Open for a folder that is not on a memory file system.
var ErrNotMemory = errors.New("not on a memory file system (tmpfs, ramfs): credentials would be written to disk")

// Config configures Open.
type Config struct {
	// Path of the folder, absolute. Required. It is made if it is not there; its parent must be.
	Path string
	// AllowDisk accepts a folder on any file system. Credentials are then on the node's disk until they expire, and
	// what a disk has held can be read off it for longer.
	AllowDisk bool
	// Logger is told what was set aside, and when a newer agent takes over. Optional.
	Logger *slog.Logger
}

// Dir is the folder. It is safe for concurrent use.
type Dir struct {
	root   *os.Root
	logger *slog.Logger

	mu    sync.Mutex // guards the following, and writing
	owner owner
	late  map[string]lateToken // by file name: what Take makes up for

	sessions  folder
	tokens    folder
	decisions folder
}

// Open opens the folder and takes it over: from now on an agent that had it open writes no more. What is in it is
// checked, and cleaned of what has expired. An error means that the folder cannot be used at all, never that something
// in it is bad, nor that its file system is full: then what is there can be read, nothing is written, and the Dir is
// Superseded until Take.
func Open(cfg Config) (*Dir, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	root, err := openRoot(cfg)
	if err != nil {
		return nil, fmt.Errorf("open state directory %s: %w", cfg.Path, err)
	}
	d := &Dir{root: root, logger: cfg.Logger, late: make(map[string]lateToken)}
	d.sessions = folder{dir: d, name: "sessions", limit: maxSessions}
	d.tokens = folder{dir: d, name: "tokens", limit: maxTokens}
	d.decisions = folder{dir: d, name: "decisions", limit: maxDecisions}
	err = d.locked(d.adopt)
	if isFull(err) {
		cfg.Logger.Error("the file system of the state directory is full: what is there is used, and nothing is kept for the "+
			"next agent until there is room", "path", cfg.Path, "error", err)
		_ = d.locked(func() error { d.scan(); return nil }) // without a file to lock, nothing is there
		return d, nil
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open state directory %s: %w", cfg.Path, err), root.Close())
	}
	return d, nil
}

// openRoot returns the folder once it is sure that nobody else can read it.
func openRoot(cfg Config) (*os.Root, error) {
	if err := os.Mkdir(cfg.Path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	root, err := os.OpenRoot(cfg.Path)
	if err != nil {
		return nil, err
	}
	if err := secure(root, cfg.AllowDisk); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

func secure(root *os.Root, allowDisk bool) error {
	self, err := root.Open(".")
	if err != nil {
		return err
	}
	defer self.Close()
	info, err := self.Stat()
	if err != nil {
		return err
	}
	if uid := ownerOf(info); uid != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, not to this one (%d): give a folder of its own to the agent", uid, os.Geteuid())
	}
	// The kubelet makes a hostPath of type DirectoryOrCreate with mode 0755.
	if info.Mode().Perm() != 0o700 {
		if err := self.Chmod(0o700); err != nil {
			return err
		}
	}
	if allowDisk {
		return nil
	}
	memory, err := inMemory(self)
	if err == nil && !memory {
		err = ErrNotMemory
	}
	return err
}

// inMemory reports whether f is on a file system that has no disk under it.
func inMemory(f *os.File) (bool, error) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &s); err != nil {
		return false, fmt.Errorf("find out file system: %w", err)
	}
	return s.Type == unix.TMPFS_MAGIC || s.Type == unix.RAMFS_MAGIC, nil
}

// Take makes this process the owner again, after another had taken the folder over. What that one wrote is adopted, and
// tokens that could not be kept meanwhile are.
func (d *Dir) Take() error {
	if err := d.locked(d.adopt); err != nil {
		return fmt.Errorf("take state directory over: %w", err)
	}
	return nil
}

// Gone reports whether the folder has been removed. Nothing can be written to it any more, and it does not come back: a
// folder that is made in its place is another one, and where this one is mounted, as in a container, it stays mounted.
func (d *Dir) Gone() bool {
	info, err := d.root.Stat(".")
	if err != nil {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && s.Nlink == 0 // a folder that is there has a name at least
}

// isFull reports whether err is for want of room.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// locked calls do with mu and the lock.
func (d *Dir) locked(do func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	unlock, err := d.lock()
	if err != nil {
		d.owner.superseded = true
		return err
	}
	defer unlock()
	return do()
}

// adopt makes this process the owner and reads what there is. Caller is in locked.
func (d *Dir) adopt() error {
	d.owner.superseded = true // unless all of it succeeds
	for _, name := range []string{asideName, d.sessions.name, d.tokens.name, d.decisions.name} {
		if err := d.folder(name); err != nil {
			return err
		}
	}
	if err := d.take(); err != nil {
		return err
	}
	d.scan()
	d.keepLate()
	return nil
}

// scan reads what there is. Caller is in locked.
func (d *Dir) scan() {
	d.sessions.scan(func(name string, data []byte) (validity, error) {
		s, err := parseSession(name, data)
		return validity{until: s.Credentials.Expiration, expires: true}, err
	})
	d.tokens.scan(func(name string, data []byte) (validity, error) {
		_, t, err := parseToken(name, data)
		return validity{until: t.Expires, expires: true}, err
	})
	d.decisions.scan(func(name string, data []byte) (validity, error) {
		v, err := parseDecision(name, data)
		return validity{until: v.Decided}, err
	})
}

// folder makes a folder of the Dir. Something else in its place is set aside.
func (d *Dir) folder(name string) error {
	info, err := d.root.Lstat(name)
	if err == nil && (!info.IsDir() || ownerOf(info) != os.Geteuid()) {
		if name == asideName {
			return fmt.Errorf("%s is no folder of the agent's: remove it", name)
		}
		d.setAside(name, errors.New("not a folder of the agent's"))
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		return d.root.Mkdir(name, 0o700)
	}
	return err
}

// Close gives up the folder. It is left as it is, for the next agent.
func (d *Dir) Close() error { return d.root.Close() }

func ownerOf(info fs.FileInfo) int {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}
