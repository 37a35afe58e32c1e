package netevents

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// quiet is for how long nothing of interest must have been heard before a burst counts as over.
	quiet = 10 * time.Millisecond
	// longest bounds how long a burst that does not end keeps its first change back.
	longest = 50 * time.Millisecond
	// bufferSize is what the kernel keeps for us, in bytes. Five thousand rules that are replaced at once fit.
	bufferSize = 8 << 20
	// datagramSize is more than any notification is long; what is longer nevertheless counts as lost.
	datagramSize = 64 << 10
	// batch bounds how many datagrams are read before the time is looked at.
	batch = 64
)

// Config says what to listen to.
type Config struct {
	// Protocol is the netlink family, such as unix.NETLINK_ROUTE. Required.
	Protocol int
	// Groups are its multicast groups, such as unix.RTNLGRP_LINK. Required.
	Groups []int
	// Matters says whether a message is of interest; it must not block. It is not asked about lost ones, which always
	// are. Required.
	Matters func(Message) bool
	// Changed is told that something of interest may have changed since it was told before: at the start, since nothing
	// is known of what came before, and after each burst. It must not block, for notifications are lost meanwhile.
	// Required.
	Changed func()
}

// Watch listens in the network namespace of the calling thread, and calls cfg.Matters and cfg.Changed, until ctx ends,
// which is no error.
func Watch(ctx context.Context, cfg Config) error {
	file, err := open(cfg, bufferSize)
	if err != nil {
		return fmt.Errorf("listen to kernel notifications: %w", err)
	}
	defer file.Close()
	return watch(ctx, cfg, file)
}

func watch(ctx context.Context, cfg Config, file *os.File) error {
	socket, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("listen to kernel notifications: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	w := &watcher{cfg: cfg, data: make([]byte, datagramSize)}
	w.heard(time.Now())
	for {
		if err := file.SetReadDeadline(w.due()); err != nil {
			return fmt.Errorf("listen to kernel notifications: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		var readErr error
		err := socket.Read(func(fd uintptr) (done bool) {
			done, readErr = w.read(int(fd))
			return done
		})
		switch {
		case readErr != nil:
			return fmt.Errorf("read kernel notifications: %w", readErr)
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("read kernel notifications: %w", err)
		case ctx.Err() != nil:
			return nil
		}
		w.tell(time.Now())
	}
}

// open returns a socket that is subscribed to the groups and does not block.
func open(cfg Config, buffer int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, cfg.Protocol)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := subscribe(fd, cfg.Groups, buffer); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

func subscribe(fd int, groups []int, buffer int) error {
	// Beyond the system's limit with CAP_NET_ADMIN, else up to it: a smaller one makes for more lost messages, no
	// worse.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	for _, group := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return fmt.Errorf("join netlink group %d: %w", group, err)
		}
	}
	return nil
}

// watcher is what is known of a burst.
type watcher struct {
	cfg  Config
	data []byte

	pending     bool      // something is to be told
	first, last time.Time // when it was heard, while pending
	// lossy is set while the kernel may be dropping messages: from the first one that was lost until the socket has
	// been read empty (the kernel's NETLINK_S_CONGESTED). It says so only once.
	lossy bool
}

// heard takes note of a change.
func (w *watcher) heard(now time.Time) {
	if !w.pending {
		w.pending, w.first = true, now
	}
	w.last = now
}

// due returns when what is pending is to be told; never, if nothing is.
func (w *watcher) due() time.Time {
	if !w.pending {
		return time.Time{}
	}
	due := w.last.Add(quiet)
	if bound := w.first.Add(longest); bound.Before(due) {
		return bound
	}
	return due
}

// tell reports what is pending, once that is due. While messages are being lost, what was told is not the last word.
func (w *watcher) tell(now time.Time) {
	if !w.pending || now.Before(w.due()) {
		return
	}
	w.pending = false
	if w.lossy {
		w.heard(now)
	}
	w.cfg.Changed()
}

// read takes what the socket has. It returns true when something is to be done about it, or there may be more.
func (w *watcher) read(fd int) (done bool, err error) {
	for range batch {
		// The real length is wanted, also of what does not fit.
		n, from, err := unix.Recvfrom(fd, w.data, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			w.lossy = false
			return done, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			w.lossy, done = true, true
			w.heard(time.Now())
			continue
		case err != nil:
			return true, err
		}
		// Other processes can write to the socket, too.
		if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
			continue
		}
		if w.matters(n) {
			done = true
			w.heard(time.Now())
		}
	}
	return true, nil
}

// matters reports whether a datagram of n bytes does.
func (w *watcher) matters(n int) bool {
	if n > len(w.data) {
		return true
	}
	for m := range messages(w.data[:n]) {
		if m.Kind == unix.NLMSG_OVERRUN || w.cfg.Matters(m) {
			return true
		}
	}
	return false
}
