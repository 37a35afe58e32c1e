package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockName  = "lock"
	ownerName = "owner"
	// lockPatience is how long a writer waits for another one. The lock is held for one file at a time, so that only a
	// process that was stopped in the middle of it makes anybody wait.
	lockPatience = 2 * time.Second
)

// owner is who writes. The lock alone would not do: the last agent still runs when the next one takes over, and must
// find that out before it writes again.
type owner struct {
	generation uint64 // counts the owners there have been
	id         string // random, so that two owners differ though the file was lost between them
	superseded bool   // by another, or this process could not take the folder in the first place
}

type ownerRecord struct {
	header
	Generation uint64 `json:"generation"`
	ID         string `json:"id"`
}

// lock takes the lock of the folder, which all its users share. Caller holds mu.
func (d *Dir) lock() (unlock func(), err error) {
	f, err := d.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	deadline := time.Now().Add(lockPatience)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil // closing unlocks
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR), !time.Now().Before(deadline):
			_ = f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// take makes this process the owner. Caller holds mu and the lock.
func (d *Dir) take() error {
	last, err := d.readOwner()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.setAside(ownerName, err)
	}
	next := owner{generation: last.Generation + 1, id: rand.Text()}
	data, err := json.Marshal(ownerRecord{header{version, "owner"}, next.generation, next.id})
	if err != nil {
		return fmt.Errorf("encode owner: %w", err)
	}
	if err := d.replace(ownerName, data); err != nil {
		return err
	}
	d.owner = next
	return nil
}

func (d *Dir) readOwner() (ownerRecord, error) {
	data, err := d.read(ownerName)
	if err != nil {
		return ownerRecord{}, err
	}
	var r ownerRecord
	if err := decode(data, "owner", &r); err != nil {
		return ownerRecord{}, err
	}
	return r, nil
}

// write calls change if this process is still the owner, while no other can become it. If it is not, it does nothing,
// now and until it takes the folder back: the newer agent's state is the better one.
func (d *Dir) write(change func() error) error { return d.writeOr(change, func() {}) }

// writeOr is write, but calls otherwise where that does nothing.
func (d *Dir) writeOr(change func() error, otherwise func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner.superseded {
		otherwise()
		return nil
	}
	unlock, err := d.lock()
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	defer unlock()
	if now, err := d.readOwner(); err != nil || now.ID != d.owner.id {
		d.owner.superseded = true
		d.logger.Info("another agent has taken over the state directory; this one writes no more",
			"generation", d.owner.generation, "newer_generation", now.Generation)
		otherwise()
		return nil
	}
	return change()
}

// Superseded reports whether this process has noticed that it does not own the folder, be it that another one does.
func (d *Dir) Superseded() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.owner.superseded
}
