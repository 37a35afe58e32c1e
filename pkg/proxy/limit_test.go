package proxy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// pipeListener hands out the near ends of pipes, from the addresses that it is told.
type pipeListener struct{ conns chan net.Conn }

func (l pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (l pipeListener) Close() error { close(l.conns); return nil }
func (pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// fromAddress is a connection from an address.
type fromAddress struct {
	net.Conn
	from netip.Addr
}

func (c fromAddress) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 40000))
}

// connect opens a connection from an address that has one byte to read. It returns both ends; near is nil if the
// connection was not accepted.
func connect(l limitListener, conns chan net.Conn, from netip.Addr) (near net.Conn, far net.Conn) {
	inner, far := net.Pipe()
	go func() { _, _ = far.Write([]byte("x")) }() // ends when either end is closed
	conns <- fromAddress{inner, from}
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	synctest.Wait()
	select {
	case near = <-accepted:
	default: // refused: Accept waits for the next one
		next, _ := net.Pipe()
		conns <- fromAddress{next, netip.MustParseAddr("192.0.2.1")}
		_ = (<-accepted).Close()
	}
	return near, far
}

// read reads the one byte, in the background.
func read(c net.Conn) <-chan error {
	result := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(c, make([]byte, 1))
		result <- err
	}()
	return result
}

func TestConnectionsOfOneSourceTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conns := make(chan net.Conn, 1)
		l := limitListener{pipeListener{conns}, newLimiter()}
		noisy, quiet := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		var near, far []net.Conn
		dial := func(from netip.Addr) net.Conn {
			n, f := connect(l, conns, from)
			if n != nil {
				near = append(near, n)
			}
			far = append(far, f)
			return n
		}
		for range maxServed {
			if err := <-read(dial(noisy)); err != nil {
				t.Fatal(err)
			}
		}
		// The next one waits, and gets its turn when another one ends.
		patient := read(dial(noisy))
		synctest.Wait()
		select {
		case err := <-patient:
			t.Fatalf("served beyond the limit (%v)", err)
		default:
		}
		// Nobody else notices.
		if err := <-read(dial(quiet)); err != nil {
			t.Fatal(err)
		}
		if err := near[0].Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-patient; err != nil {
			t.Errorf("its turn did not come: %v", err)
		}
		// Another one waits in vain.
		began := time.Now()
		if err := <-read(dial(noisy)); !errors.Is(err, errNoTurn) || time.Since(began) != turnTimeout {
			t.Errorf("got %v after %s, want none after %s", err, time.Since(began), turnTimeout)
		}
		for range maxOpen - maxServed - 1 {
			dial(noisy)
		}
		if n := dial(noisy); n != nil {
			t.Error("a connection beyond the last limit was accepted")
		}
		for _, c := range near {
			_ = c.Close()
			_ = c.Close() // counts once
		}
		for _, c := range far {
			_ = c.Close()
		}
		if len(l.limiter.origins) != 0 || l.limiter.total != 0 {
			t.Errorf("%d origins, %d connections are left", len(l.limiter.origins), l.limiter.total)
		}
	})
}
