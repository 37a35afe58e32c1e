package owner

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// presencePrefix begins the file name of the pipe that an agent holds from [Open] on, whether or not it has claimed.
const presencePrefix = "agent-"

// Living reports whether an agent of the node lives: one that has claimed the Redirect, or one that may yet. It claims
// nothing, and waits for nobody. There may be no folder dir, in which case no agent has been there.
func Living(dir string) (bool, error) {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	f, err := openFolder(dir)
	if err != nil {
		return false, fmt.Errorf("look for agents: %w", err)
	}
	defer f.close()
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return false, fmt.Errorf("look for agents: %w", err)
	}
	for _, e := range entries {
		if _, claimed := parseClaim(e.Name()); e.Type() != fs.ModeNamedPipe || !claimed && !isPresence(e) {
			continue
		}
		held, err := f.reader(e.Name())
		if err != nil {
			return false, fmt.Errorf("look for agents: %w", err)
		}
		if held != nil {
			return true, held.Close()
		}
	}
	return false, nil
}

// arrive returns a pipe that says, while it is held, that an agent is there. It removes those of agents that are gone.
// No lock is needed, so that an agent that is stuck in a change keeps nobody from starting.
func (f *folder) arrive() (*os.File, error) {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if !isPresence(e) {
			continue
		}
		if held, err := f.reader(e.Name()); held != nil {
			_ = held.Close()
		} else if err == nil {
			_ = f.root.Remove(e.Name())
		}
	}
	for {
		name := presencePrefix + rand.Text()
		if err := unix.Mkfifoat(int(f.self.Fd()), name, 0o600); err != nil {
			return nil, fmt.Errorf("make pipe in %s: %w", f.root.Name(), err)
		}
		pipe, err := f.root.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK, 0)
		if !errors.Is(err, fs.ErrNotExist) { // else another agent took it for that of one that is gone
			return pipe, err
		}
	}
}

func isPresence(e fs.DirEntry) bool {
	return strings.HasPrefix(e.Name(), presencePrefix) && e.Type() == fs.ModeNamedPipe
}
