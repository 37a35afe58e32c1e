package nodebox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) and nsenter(1) users expect named network namespaces.
const netnsDir = "/run/netns"

// threadNS names the network namespace of the calling thread. /proc/self would name that of the main thread.
const threadNS = "/proc/thread-self/ns/net"

// Namespace is a network namespace of a box. Its methods may be called concurrently, and fail after the namespace
// was closed.
type Namespace struct {
	name    string
	id      namespaceID
	spawner *spawner
	env     []string // for processes inside

	mu     sync.RWMutex // guards handle
	handle netns.NsHandle
}

// namespaceID tells one namespace from all others that exist at the same time.
type namespaceID struct{ dev, inode uint64 }

// Path returns the file of the namespace, for nsenter --net=PATH. No two namespaces of a process ever share it.
func (n *Namespace) Path() string { return filepath.Join(netnsDir, n.name) }

// Do runs fn on the calling goroutine with its thread inside the namespace. Goroutines that fn starts are not inside.
// If the thread cannot be brought back, Do returns an error and leaves the goroutine locked to it, so that the thread
// ends with the goroutine and nothing else ever runs on it.
func (n *Namespace) Do(fn func() error) error {
	return onThread(n.enter, fn)
}

// enter brings the calling thread into the namespace.
func (n *Namespace) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.handle.IsOpen() {
		return fmt.Errorf("enter namespace %s: %w", n.name, errClosed)
	}
	return wrapf(netns.Set(n.handle), "enter namespace %s", n.name)
}

// onThread locks the goroutine to its thread, lets enter change the thread's network namespace, runs fn and changes
// the namespace back.
func onThread(enter, fn func() error) (err error) {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the thread's own namespace: %w", err)
	}
	defer func() {
		restored := netns.Set(before)
		err = errors.Join(err, before.Close())
		if restored != nil {
			err = errors.Join(err, fmt.Errorf("return to the thread's own namespace: %w", restored))
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := enter(); err != nil {
		return err
	}
	return fn()
}

// newNamespace creates a network namespace under /run/netns with lo up and setup applied inside it.
func newNamespace(name string, spawner *spawner, env []string, setup func() error) (*Namespace, error) {
	if err := prepareNetnsDir(); err != nil {
		return nil, err
	}
	n := &Namespace{name: name, handle: netns.None(), spawner: spawner, env: env}
	file, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("create namespace file: %w", err)
	}
	if err := file.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("create namespace file: %w", err), n.close())
	}
	unshare := func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		return nil
	}
	err = onThread(unshare, func() error {
		if err := unix.Mount(threadNS, n.Path(), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount namespace at %s: %w", n.Path(), err)
		}
		if n.handle, err = netns.Get(); err != nil {
			return fmt.Errorf("open namespace %s: %w", name, err)
		}
		if n.id, err = identifyNamespace(n.Path()); err != nil {
			return err
		}
		if err := linkUp("lo"); err != nil {
			return err
		}
		return setup()
	})
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// prepareNetnsDir makes /run/netns a shared mount of its own, exactly as ip-netns(8) does. Without it, an `ip netns
// add` while a box stands would cover the box's mounts with copies and neither could be removed any more.
func prepareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", netnsDir, err)
	}
	dir, err := os.Open(netnsDir)
	if err != nil {
		return fmt.Errorf("open %s: %w", netnsDir, err)
	}
	defer dir.Close()
	// The lock that ip-netns(8) takes too; closing the directory releases it.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", netnsDir, err)
	}
	share := func() error { return unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err := share(); !errors.Is(err, unix.EINVAL) { // EINVAL: not a mount point yet
		return wrapf(err, "share %s", netnsDir)
	}
	if err := unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", netnsDir, err)
	}
	return wrapf(share(), "share %s", netnsDir)
}

func identifyNamespace(path string) (namespaceID, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return namespaceID{}, fmt.Errorf("identify namespace %s: %w", path, err)
	}
	return namespaceID{dev: uint64(stat.Dev), inode: stat.Ino}, nil
}

// netlink opens a netlink handle inside the namespace; the caller closes it.
func (n *Namespace) netlink() (*netlink.Handle, error) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.handle.IsOpen() {
		return nil, fmt.Errorf("open netlink in namespace %s: %w", n.name, errClosed)
	}
	h, err := netlink.NewHandleAt(n.handle, unix.NETLINK_ROUTE)
	return h, wrapf(err, "open netlink in namespace %s", n.name)
}

// close lets go of the namespace. The kernel frees it with the last socket or process inside.
func (n *Namespace) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var err error
	if n.handle.IsOpen() {
		err = wrapf(n.handle.Close(), "close namespace %s", n.name)
	}
	return errors.Join(err, removeNamespaceFile(n.Path()))
}

// removeNamespaceFile unmounts and removes a file under /run/netns. A file that is already gone is no error: two
// processes may sweep at once.
func removeNamespaceFile(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err == nil {
			continue
		}
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // not a mount point, gone
			break
		}
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace file: %w", err)
	}
	return nil
}

// wrapf adds context to err and keeps nil nil.
func wrapf(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
}
