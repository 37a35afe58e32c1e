package owner

import (
	"context"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// living is a claim that somebody held when it was looked at.
type living struct {
	claim
	reader *os.File // the other end of its pipe
}

func (l *living) close() { _ = l.reader.Close() }

// held reports whether anybody holds the pipe. Nothing is ever written to it; what somebody wrote all the same is
// skipped.
func held(reader *os.File) (bool, error) {
	conn, err := reader.SyscallConn()
	if err != nil {
		return false, err
	}
	var readErr error
	err = conn.Read(func(fd uintptr) (done bool) {
		for n, buf := 1, make([]byte, 64); n > 0; {
			n, readErr = unix.Read(int(fd), buf)
		}
		return true
	})
	switch {
	case err != nil:
		return false, err
	case readErr == unix.EAGAIN: // pipe(7): nothing to read, and somebody who could write
		return true, nil
	default:
		return false, readErr
	}
}

// awaitEnd returns when nobody holds the claim any more, or at the end of ctx with its error.
func (l *living) awaitEnd(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = l.reader.SetReadDeadline(time.Unix(1, 0)) })()
	_, err := io.Copy(io.Discard, l.reader)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
